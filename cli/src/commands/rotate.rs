//! `kagami pair --rotate`: another key for this node, without a break.
//!
//! The next key is made, arbiters are told of it with the present one, then the daemon tells the peers
//! and switches. Each step is durable, and running the command again goes on where it stopped.

use std::rc::Rc;

use kagami_failover::config::Cluster;
use kagami_failover::right::register;
use kagami_replicator::shell::identity::{Fingerprint, NodeKeys};
use kagami_replicator::shell::witness::wire::{Op, Outcome as Answered, Reason, Request};
use kagami_replicator::shell::witness::{RegisterId, Remote};
use serde_json::json;

use super::{Context, cluster, print_json, print_out, unexpected};
use crate::config::{Arbiter, Config, Peer};
use crate::control::message::{Answer, Ask};
use crate::daemon::mirrors;
use crate::exit::{DONE, Failure, Outcome};

/// Replaces the key. `told`: peers without a mirror that have the next one already.
///
/// # Errors
/// A peer or an arbiter is away or too old, or did not take it.
pub async fn run(context: &Context, told: &[String], as_json: bool) -> Outcome {
    let config = context.config()?;
    // It tells the peers: without it nothing is begun.
    let mut client = context.client().await?;
    let system =
        |error: &dyn std::fmt::Display| Failure::system(format!("key not replaced: {error}"));
    let mut keys = NodeKeys::load(&config.key_folder()).map_err(|error| system(&error))?;
    let before = keys.current.fingerprint();
    let next = match &keys.next {
        Some(next) => next.fingerprint(),
        None => keys.prepare_next().map_err(|error| system(&error))?,
    };
    may_be_told(&config, told, next)?;
    // etcd does not know nodes by these keys.
    let witnesses = || config.arbiters.iter().filter(|one| one.etcd.is_none());
    for arbiter in witnesses() {
        at_arbiter(&config, arbiter, &keys, next).await?;
    }
    match client.ask(Ask::Rotate).await? {
        Answer::Rotated { fingerprint, peers } => {
            if as_json {
                print_json(
                    &json!({"before": before.to_string(), "fingerprint": fingerprint, "peers": peers}),
                )?;
                return DONE;
            }
            let mut text = format!("this node shows another key: {fingerprint}\n");
            for peer in &peers {
                text.push_str(&format!("  {peer} knows it\n"));
            }
            for arbiter in witnesses() {
                text.push_str(&format!("  arbiter {} knows it\n", arbiter.name));
            }
            text.push_str(&format!(
                "  the old one ({before}) is out as soon as each has seen the new one at work\n"
            ));
            print_out(&text)?;
            DONE
        }
        Answer::Refused(refusal) => Err(Failure::of_refusal("", &refusal)),
        other => Err(unexpected(&other)),
    }
}

/// Every peer is told over the link of a mirror, or was told by a person. One that is not would know this node no more:
/// its failover manager, too, knows it by its key.
fn may_be_told(config: &Config, told: &[String], next: Fingerprint) -> Result<(), Failure> {
    if let Some(unknown) = told.iter().find(|name| config.peer(name).is_none()) {
        return Err(Failure::refused(format!(
            "key not replaced: there is no [peer.{unknown}] in {}\n  next: name a node that there is, or none",
            config.file.display()
        )));
    }
    let shares = |peer: &Peer| {
        let mut mirrors = config.mirrors.iter();
        mirrors.any(|mirror| mirror.peer.as_ref() == Some(&peer.name))
    };
    let mut untold = config.peers.iter().filter(|peer| !shares(peer));
    match untold.find(|peer| !told.contains(&peer.name)) {
        None => Ok(()),
        Some(peer) => Err(Failure::refused(format!(
            "key not replaced: {name} has no mirror with this node, so there is no link to tell it over\n  the next key is {next}\n  next: on {name}, write it into `fingerprints` of [peer.{here}] beside the present one and `kagami reload`, then `kagami pair --rotate --told {name}` here; a node that is gone for good: take [peer.{name}] out of {file}",
            name = peer.name,
            here = config.node.name,
            file = config.file.display()
        ))),
    }
}

/// Lets an arbiter know the next key, and binds the registers of this node's mirrors and groups to it,
/// too.
async fn at_arbiter(
    config: &Config,
    arbiter: &Arbiter,
    keys: &NodeKeys,
    next: Fingerprint,
) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::refused(format!(
            "key not replaced: arbiter {} has to learn it: {why}\n  next: put that right, then again; an arbiter that is gone for good is replaced with `kagami arbiter join`",
            arbiter.name
        ))
    };
    let remote = Remote::new(&keys.current, mirrors::witness(arbiter).await)
        .map_err(|error| failed(&error))?;
    ask(&remote, 0, Op::Succeed { key: next })
        .await
        .map_err(|why| failed(&why))?;
    let asks = config
        .mirrors
        .iter()
        .filter(|mirror| mirror.arbiter.as_ref() == Some(&arbiter.name));
    for mirror in asks {
        let Some(peer) = mirror.peer.as_deref().and_then(|peer| config.peer(peer)) else {
            continue;
        };
        let theirs = mirrors::fingerprints(&peer.fingerprints)
            .into_iter()
            .take(2);
        let members = [keys.current.fingerprint(), next].into_iter().chain(theirs);
        let op = Op::Bind {
            members: members.collect(),
        };
        ask(&remote, u128::from_be_bytes(mirror.uuid), op)
            .await
            .map_err(|why| failed(&format!("mirror {}: {why}", mirror.name)))?;
    }
    for (group, register, other) in groups_at(config, arbiter) {
        let theirs = mirrors::fingerprints(&other.fingerprints)
            .into_iter()
            .take(2);
        let members = [keys.current.fingerprint(), next].into_iter().chain(theirs);
        let op = Op::Bind {
            members: members.collect(),
        };
        ask(&remote, register, op)
            .await
            .map_err(|why| failed(&format!("group {group}: {why}")))?;
    }
    Ok(())
}

/// The groups without a mirror whose registers are at this arbiter, by the cluster's file, with the
/// node that they are shared with. A node without such a file has none.
fn groups_at<'a>(config: &'a Config, arbiter: &Arbiter) -> Vec<(String, u128, &'a Peer)> {
    let file = cluster::file(&config.file);
    let Ok(text) = std::fs::read_to_string(&file) else {
        return Vec::new();
    };
    let Ok(found) = Cluster::parse(&file, &text) else {
        return Vec::new();
    };
    let other = found.nodes.iter().find(|node| **node != config.node.name);
    let other = other.and_then(|node| config.peer(node));
    let Some(other) = other.filter(|_| found.arbiter.name.as_ref() == Some(&arbiter.name)) else {
        return Vec::new();
    };
    let without = found.groups.iter().filter(|g| !g.is_mirrored());
    without
        .map(|group| (group.name.clone(), register::id(&found, &group.name), other))
        .collect()
}

async fn ask(remote: &Rc<Remote>, register: u128, op: Op) -> Result<(), String> {
    let request = Request {
        register: RegisterId(register),
        nonce: 0,
        op,
    };
    match remote.exchange(&request).await {
        Ok(Answered::Swapped) => Ok(()),
        // No register yet: it is made for the keys that there are then.
        Ok(Answered::Refused(Reason::Invalid, _)) if matches!(request.op, Op::Bind { .. }) => {
            Ok(())
        }
        Ok(Answered::Refused(_, why)) => Err(why),
        Ok(Answered::State(_)) => Err("it answered with something else".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
