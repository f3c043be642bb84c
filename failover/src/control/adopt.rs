//! A new configuration on its way into force: from a person to both nodes, from the other node's manager to this one.

use std::path::Path;

use super::answer::{other, their_view, unexpected};
use super::desk::Desk;
use super::message::{Answer, Ask, Pushed, Refused};
use super::status::RunState;
use super::{merge::merge, push};
use crate::config::Cluster;

fn parse(text: &str) -> Result<Cluster, Refused> {
    Cluster::parse(Path::new("cluster.toml"), text).map_err(|error| {
        let mut refused = Refused::new(
            "the configuration is wrong, nothing was changed",
            "put it right (`kagami cluster check FILE`) and push it again",
        );
        refused.facts = error.to_string().lines().map(str::to_owned).collect();
        refused
    })
}

fn would_drop(subject: &str, changes: Vec<String>) -> Refused {
    let mut refused = Refused::new(
        format!("{subject}: it would drop what runs"),
        "stop those groups first, or add --force",
    );
    refused.facts = changes;
    refused
}

/// A configuration from the other node's manager.
pub(super) async fn adopt<D: Desk>(
    desk: &D,
    text: String,
    replaces: u64,
    force: bool,
    dry_run: bool,
) -> Result<(), Refused> {
    let new = parse(&text)?;
    let old = desk.cluster();
    if old.revision != replaces {
        return Err(Refused::new(
            format!(
                "node {}: revision {} is in force, and not {replaces}: somebody else has changed it meanwhile",
                old.nodes[desk.me()],
                old.revision
            ),
            "look at what is in force there, and push again",
        ));
    }
    push::may_follow(&old, &new)?;
    // The other node knows what runs here by its own configuration, which may be older than this one's.
    let view = desk.view().await;
    let node = &old.nodes[desk.me()];
    let mut report = merge(&old, desk.me(), &view, None, desk.time_ms());
    report
        .groups
        .retain(|group| group.on.get(node) != Some(&RunState::Offline));
    let changes = push::dropped(&old, &new, &report);
    if !changes.is_empty() && !force {
        let subject = format!("node {node}: revision {} is not taken over", new.revision);
        return Err(would_drop(&subject, changes));
    }
    if dry_run || new.revision == old.revision {
        return Ok(());
    }
    desk.adopt(text, new).await
}

/// A configuration from a person: for both nodes, the other one first. So where this node can't
/// take it over, the command says so, and the person who gave it can try again.
pub(super) async fn push<D: Desk>(
    desk: &D,
    text: String,
    force: bool,
    dry_run: bool,
) -> Result<Pushed, Refused> {
    let new = parse(&text)?;
    let old = desk.cluster();
    push::may_follow(&old, &new)?;
    let (mine, theirs) = tokio::join!(desk.view(), their_view(desk));
    let other = other(desk);
    let subject = format!(
        "cluster {}: revision {} is not pushed",
        old.name, new.revision
    );
    let not = |what: String| format!("{subject}: {what}");
    if let Ok(theirs) = &theirs
        && theirs.revision > new.revision
    {
        return Err(Refused::new(
            not(format!(
                "node {other} has revision {}, which is newer",
                theirs.revision
            )),
            format!("begin with cluster.toml of node {other}, and raise its revision"),
        ));
    }
    let report = merge(&old, desk.me(), &mine, theirs.as_ref().ok(), desk.time_ms());
    let changes = push::dropped(&old, &new, &report);
    if !changes.is_empty() && !force {
        return Err(would_drop(&subject, changes));
    }
    let missing = theirs.as_ref().err().cloned();
    if let Some(why) = missing.as_ref().filter(|_| !force) {
        return Err(Refused::new(
            not(format!("node {other} can't be given it: {why}")),
            format!(
                "bring node {other} back first, or add --force: it would go on by the old one, and take over nothing until it has the new one"
            ),
        ));
    }
    let mut pushed = Pushed {
        from: old.revision,
        revision: new.revision,
        nodes: Vec::new(),
        changes,
        missing,
    };
    if let Ok(theirs) = theirs {
        let ask = Ask::Adopt {
            text: text.clone(),
            replaces: theirs.revision,
            force,
            dry_run,
        };
        match desk.forward(ask).await {
            Ok(Answer::Done) => pushed.nodes.push(other.clone()),
            Ok(Answer::Refused(refused)) => return Err(refused),
            Ok(answer) => {
                return Err(Refused::new(
                    not(unexpected(desk, &answer)),
                    "use the same build on both nodes",
                ));
            }
            Err(unreached) => {
                return Err(Refused::new(
                    not(unreached.why),
                    format!(
                        "see whether node {other} has it now (`kagami cluster status`), and push again"
                    ),
                ));
            }
        }
    }
    if !dry_run && new.revision > old.revision {
        desk.adopt(text, new).await.map_err(|refused| {
            let has = pushed.nodes.join(", ");
            if has.is_empty() {
                refused
            } else {
                refused.fact(format!(
                    "node {has} has it already: push again when this is mended"
                ))
            }
        })?;
    }
    pushed.nodes.push(old.nodes[desk.me()].clone());
    Ok(pushed)
}
