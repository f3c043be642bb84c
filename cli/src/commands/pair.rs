//! `kagami pair`: a second node comes to a mirror, by one line that is pasted there.
//!
//! The exchange is the replicator's ([`kagami_replicator::shell::pairing`]); here are the stores and
//! the configuration of both sides. Each side writes what it learned only after the other has said yes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use kagami_replicator::core::state::Protocol as CoreProtocol;
use kagami_replicator::shell::identity::Fingerprint;
use kagami_replicator::shell::pairing::facts::{Facts, MirrorFacts};
use kagami_replicator::shell::pairing::{Joining, PairError, Purpose, Token, TokenError};
use serde_json::json;

use super::offer::{self, Offer, Taken};
use super::old_copy::{self, GivesUp};
use super::stores::{Made, Plan, Wanted};
use super::{
    Context, confirm_meanwhile, init, node, print_dry_run, print_json, print_out, stopped, within,
};
use crate::args::PairArgs;
use crate::config::Config;
use crate::config::edit::Editor;
use crate::config::keys::{self, Section};
use crate::config::value::{check_name, spell_size};
use crate::exit::{DONE, Failure, Outcome, Status};
use crate::unit::Starter;

/// Pairs: the offering side, or the joining one.
///
/// # Errors
/// The token is wrong, nobody came, the other side refused, no store could be made.
pub async fn run(context: &Context, args: PairArgs) -> Outcome {
    if args.join.is_none() && args.store.names_any() {
        return Err(Failure::usage(
            "--device, --backing, --metadata and --max-size are for the node that joins\n  next: name them behind the line that is pasted there",
        ));
    }
    if args.rotate {
        return super::rotate::run(context, &args.told, args.json).await;
    }
    match (&args.join, &args.mirror) {
        (Some(token), _) => join(context, &args, token).await,
        (None, Some(mirror)) => offer(context, &args, mirror).await,
        (None, None) => Err(Failure::usage(
            "name the mirror that a second node is to join, or --join with its line",
        )),
    }
}

/// A wrong token.
pub fn token_failure(error: &TokenError) -> Failure {
    Failure::usage(format!("not joined: {error}"))
}

/// A meeting's end, with its exit status.
pub fn pair_failure(error: &PairError, what: &str) -> Failure {
    let status = match error {
        PairError::NobodyCame(_) | PairError::NotReached { .. } => Status::TimedOut,
        PairError::Listen { .. } | PairError::Random(_) | PairError::Tls(_) => Status::System,
        PairError::NoAddress => Status::Usage,
        _ => Status::Refused,
    };
    Failure::new(status, format!("{what}: {error}"))
}

/// Waits for the other node.
async fn offer(context: &Context, args: &PairArgs, name: &str) -> Outcome {
    let config = context.config()?;
    let Some(mirror) = config.mirror(name) else {
        return Err(Failure::refused(format!(
            "there is no mirror {name} in {}\n  next: `kagami init {name} --size 20G` makes one",
            context.file.display()
        )));
    };
    if let (Some(peer), false) = (&mirror.peer, args.again) {
        return Err(Failure::refused(format!(
            "mirror {name} is paired with {peer} already\n  next: nothing to do; `--again` makes a new token, for a pairing that one side lost; another node takes {peer}'s place by `kagami replace-peer {name}`"
        )));
    }
    let came = offer::wait(
        &config,
        mirror,
        &Offer {
            address: &args.address,
            valid: args.valid,
            json: args.json,
            done: "paired",
        },
    )
    .await?;
    let peer = mirror.peer.as_deref().and_then(|peer| config.peer(peer));
    // The copy's own record knows better than a file that a crash, or a full disk, kept from being written.
    let id = came.facts.party.node.0;
    let is_its_peer = args.again && offer::peer_on_record(mirror) == Some(id);
    if let Some(peer) = peer.filter(|peer| peer.id != id && !is_its_peer) {
        let failure = Failure::refused(format!(
            "mirror {name}: not paired: its peer is {}, and {} came, which is another node\n  next: for a new node in {}'s place: `kagami replace-peer {name}`",
            peer.name, came.facts.party.name, peer.name
        ));
        return Err(came.refuse(failure).await);
    }
    let taken = offer::take(context, &config, mirror, came).await?;
    let starter = Starter::of_file(&context.file);
    let next = if taken.live {
        let there = starter.anew(&format!("on {}", taken.peer), "if its daemon runs");
        format!("{there}; the daemon here knows")
    } else {
        let both = starter.anew("on both nodes", "where the daemon runs");
        format!("{both}, then `kagami promote {name}` on one")
    };
    paired(args.json, name, &taken, &next)
}

/// What both sides print at the end.
fn paired(as_json: bool, name: &str, taken: &Taken, next: &str) -> Outcome {
    if as_json {
        print_json(&json!({
            "mirror": name, "peer": taken.peer, "fingerprint": taken.fingerprint.to_string(),
            "first_copy": !taken.zeroed,
        }))?;
        return DONE;
    }
    let copy = if taken.zeroed {
        "both copies read as zeroes: nothing has to be copied"
    } else {
        "the first copy is full: what one of both holds is sent to the other"
    };
    print_out(&format!(
        "mirror {name}: paired with {} (key {})\n  {copy}\nnext: {next}\n",
        taken.peer, taken.fingerprint
    ))?;
    DONE
}

/// Joins the mirror that a token is for.
async fn join(context: &Context, args: &PairArgs, token: &str) -> Outcome {
    let token: Token = token
        .trim()
        .parse()
        .map_err(|error| token_failure(&error))?;
    let token = token
        .require(Purpose::Mirror)
        .map_err(|error| token_failure(&error))?;
    let config = {
        let mut editor = Editor::open(&context.file)?;
        let config = node::ensure(&mut editor, &args.node, &context.places)?;
        if args.dry_run || editor.existed() {
            config
        } else {
            // The id that the other node is told must last. The lock isn't kept while people wait.
            editor.save(&context.places)?
        }
    };
    if args.dry_run {
        return dry_run(args, &config, &token);
    }
    let keys = config.keys()?;
    if args.give_up_copy {
        // Its stores are written to.
        stopped(&config, "not joined", "kagami pair --join … --give-up-copy").await?;
    }
    let joining = within(
        None,
        String::new,
        || "interrupted; nothing was made".to_owned(),
        async {
            Joining::connect(&keys.current, &token)
                .await
                .map_err(|error| pair_failure(&error, "not joined"))
        },
    )
    .await?;
    let facts = match Facts::decode(&joining.facts) {
        Ok(facts) => facts,
        Err(fault) => {
            joining.refuse("the other node did not understand").await;
            return Err(Failure::refused(format!(
                "not joined: what {} said makes no sense: {fault}\n  next: use the same build of kagami on both nodes",
                token.name
            )));
        }
    };
    let name = facts.mirror.name.clone();
    let Prepared {
        made,
        lines,
        gives_up,
    } = match prepare_while_they_wait(args, &config, &facts).await {
        Ok(prepared) => prepared,
        Err(failure) => {
            let first = failure.words.lines().next().unwrap_or_default();
            joining.refuse(first).await;
            return Err(failure);
        }
    };
    let mine = Facts {
        party: offer::joining_party(&config, &token.addresses),
        mirror: MirrorFacts {
            zeroed: made.zeroed,
            ..facts.mirror.clone()
        },
        settings: Vec::new(),
    };
    let fingerprint = joining.fingerprint();
    if let Err(error) = joining.accept(&mine.encode()).await {
        made.take_back();
        return Err(pair_failure(&error, &format!("mirror {name}: not joined")));
    }
    if let Some(gives_up) = gives_up {
        gives_up.now().map_err(|error| {
            Failure::system(format!(
                "mirror {name}: {} knows this node as its peer, and the old copy here is what it was: {error}\n  next: put that right, then `kagami pair {name} --again` there, and this command with its new line",
                facts.party.name
            ))
        })?;
    }
    let seen = token
        .addresses
        .first()
        .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), SocketAddr::ip);
    let saved = keep(context, &config, &facts, fingerprint, seen, &made)?;
    if !args.json {
        tell_joined(&saved, &name, &lines)?;
    }
    let taken = Taken {
        peer: facts.party.name.clone(),
        fingerprint,
        zeroed: facts.mirror.zeroed && made.zeroed,
        live: false,
    };
    // The other may be Primary, and know already.
    let next = format!(
        "{}; what {} has to do, if anything, is told there",
        Starter::of_file(&context.file).anew("here", "if the daemon runs"),
        taken.peer
    );
    paired(args.json, &name, &taken, &next)
}

/// Says what joining with this token would do.
fn dry_run(args: &PairArgs, config: &Config, token: &Token) -> Outcome {
    let left = token.time_left().map_or_else(
        || "expired, by this machine's clock".to_owned(),
        |left| format!("valid for {} s", left.as_secs()),
    );
    let addresses: Vec<String> = token.addresses.iter().map(ToString::to_string).collect();
    let mut words = format!(
        "the line was made by {} ({}, key {}), {left}; ",
        token.name,
        addresses.join(", "),
        token.fingerprint,
    );
    if args.give_up_copy {
        // The line does not tell of which mirror it is.
        words.push_str("this node's old copy of its mirror would be given up");
        for mirror in &config.mirrors {
            let old = match old_copy::judge(config, mirror) {
                Ok((_, worth)) => old_copy::given_up(mirror, &worth),
                Err(failure) => failure.words,
            };
            words.push_str(&format!("\nif that is {}: {old}", mirror.name));
        }
    } else {
        words.push_str(&format!(
            "a store of its mirror's size would be made in {}",
            args.store
                .device
                .as_ref()
                .or(args.store.backing.as_ref())
                .unwrap_or(&config.node.state_dir)
                .display()
        ));
    }
    print_dry_run("node", &token.name, &words, args.json)
}

/// Says what was made on this node for mirror `name`, and what its arbiter still needs.
fn tell_joined(config: &Config, name: &str, lines: &[String]) -> Result<(), Failure> {
    let mut text = format!("mirror {name}: made on node {}\n", config.node.name);
    for line in lines {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(&format!("  config    {}\n", config.file.display()));
    let arbiter = config
        .mirror(name)
        .and_then(|mirror| config.arbiter(mirror.arbiter.as_deref()?));
    match arbiter {
        Some(arbiter) if arbiter.etcd.is_some() => text.push_str(&format!(
            "next: give [arbiter.{}] what etcd knows this node by, if it asks for that: `certificate` and `key`, or `user` and `password-file`\n",
            arbiter.name
        )),
        Some(arbiter) => text.push_str(&format!(
            "next: let {} know this node: `kagami witness enrol` there, `kagami arbiter join` here\n",
            arbiter.name
        )),
        None => {}
    }
    print_out(&text)
}

/// What this side brings; the other one has not agreed yet.
struct Prepared {
    made: Made,
    /// What is told of it.
    lines: Vec<String>,
    gives_up: Option<GivesUp>,
}

/// Does what may take minutes on a thread of its own. The meeting lives on this one, and ends where it gives no sign for
/// some seconds.
async fn beside_the_meeting<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| panic!("the stores were not made: {error}"))
}

/// Also asks before an old copy is given up; nothing else is destroyed by joining.
async fn prepare_while_they_wait(
    args: &PairArgs,
    config: &Config,
    facts: &Facts,
) -> Result<Prepared, Failure> {
    let (of, config, facts) = (args.clone(), config.clone(), facts.clone());
    let prepared = beside_the_meeting(move || prepare(&of, &config, &facts)).await?;
    if let Some(gives_up) = &prepared.gives_up {
        confirm_meanwhile(gives_up.what.clone(), args.yes).await?;
    }
    Ok(prepared)
}

/// Checks what the other side told, and makes the stores. On a large or slow store this takes minutes.
fn prepare(args: &PairArgs, config: &Config, facts: &Facts) -> Result<Prepared, Failure> {
    let mirror = &facts.mirror;
    let name = &mirror.name;
    check_name(name)
        .map_err(|why| Failure::refused(format!("not joined: the mirror's name: {why}")))?;
    let old = config.mirror(name);
    if let Some(old) = old
        && old.uuid != mirror.mirror.to_be_bytes()
    {
        return Err(Failure::refused(format!(
            "not joined: another mirror is called {name} on node {}\n  next: choose another name for one of both mirrors",
            config.node.name
        )));
    }
    if let (Some(old), false) = (old, args.give_up_copy) {
        return Err(old_copy::refused(config, old, &facts.party.name));
    }
    if facts.party.name == config.node.name || facts.party.node.0 == config.node.id {
        return Err(Failure::refused(format!(
            "not joined: both nodes are {} (id {})\n  next: paste the line on the other machine; a cloned one needs a `name` and `id` of its own in [node]",
            config.node.name, config.node.id
        )));
    }
    offer::may_name(config, name, &facts.party)?;
    if usize::from(mirror.thread) >= config.node.threads {
        return Err(Failure::refused(format!(
            "not joined: {} carries mirror {name} on data-plane thread {}, and this node has {}\n  next: write `threads = {}` into [node] of {}",
            facts.party.name,
            mirror.thread,
            config.node.threads,
            facts.party.threads,
            config.file.display()
        )));
    }
    if let Some(old) = old {
        let gives_up = old_copy::give_up(config, old, facts, args.force)?;
        return Ok(Prepared {
            made: Made::kept(mirror.size, &old.backing, &old.metadata),
            lines: vec![
                format!(
                    "backing   {}: the old copy there is given up",
                    old.backing.display()
                ),
                format!("metadata  {}: begun anew", old.metadata.display()),
            ],
            gives_up: Some(gives_up),
        });
    }
    let extents = facts
        .settings
        .iter()
        .find(|(place, _)| place == "mirror.activity-log-extents")
        .and_then(|(_, written)| written.parse().ok())
        .unwrap_or_else(init::default_extents);
    let plan = Plan::new(&Wanted {
        name,
        uuid: mirror.mirror.to_be_bytes(),
        node: config.node.id,
        peer: Some(facts.party.node.0),
        size: Some(mirror.size),
        keep_data: false,
        logical_block: mirror.logical_block,
        extents,
        state_dir: &config.node.state_dir,
        store: &args.store,
    })?;
    let lines = plan.lines();
    Ok(Prepared {
        made: plan.make()?,
        lines,
        gives_up: None,
    })
}

/// Writes what was agreed into the configuration.
///
/// Errors: it was not written; the other node knows this one all the same.
fn keep(
    context: &Context,
    config: &Config,
    facts: &Facts,
    fingerprint: Fingerprint,
    seen: IpAddr,
    made: &Made,
) -> Result<Config, Failure> {
    let written = (|| {
        let mut editor = Editor::open(&context.file)?;
        write_joined(&mut editor, config, facts, fingerprint, seen, made)?;
        Ok::<_, Failure>(editor.save(&context.places)?)
    })();
    written.map_err(|failure| {
        Failure::new(
            failure.status,
            format!(
                "mirror {}: the other node knows this one and the stores are made ({}, {}), but the configuration was not written: {}",
                facts.mirror.name,
                made.backing.display(),
                made.metadata.display(),
                failure.words
            ),
        )
    })
}

/// Writes the mirror, its peer and what both share.
fn write_joined(
    editor: &mut Editor,
    config: &Config,
    facts: &Facts,
    fingerprint: Fingerprint,
    seen: IpAddr,
    made: &Made,
) -> Result<(), Failure> {
    let name = &facts.mirror.name;
    let uuid = facts.mirror.mirror.to_be_bytes();
    init::write_mirror(editor, name, &uuid, made, facts.mirror.logical_block);
    offer::set_peer(editor, facts, fingerprint, seen)?;
    editor.set(Section::Mirror, name, "peer", facts.party.name.as_str());
    if facts.mirror.protocol != CoreProtocol::C {
        let protocol = format!("{:?}", facts.mirror.protocol);
        editor.set(Section::Mirror, name, "protocol", protocol);
    }
    if facts.mirror.thread != 0 {
        editor.set(
            Section::Mirror,
            name,
            "thread",
            i64::from(facts.mirror.thread),
        );
    }
    let arbiter = facts
        .settings
        .iter()
        .find(|(place, _)| place == "mirror.arbiter")
        .map(|(_, written)| written.trim_matches('"').to_owned());
    for (place, written) in &facts.settings {
        let Some((kind, key)) = place.split_once('.') else {
            continue;
        };
        let target = match kind {
            "mirror" => (Section::Mirror, name.as_str()),
            "peer" => (Section::Peer, facts.party.name.as_str()),
            "arbiter" => match &arbiter {
                // One that is known here already stays as it is.
                Some(arbiter) if config.arbiter(arbiter).is_none() => {
                    (Section::Arbiter, arbiter.as_str())
                }
                _ => continue,
            },
            _ => continue,
        };
        // What this build does not know, or can't read, keeps its default.
        if let (Some(key), Ok(value)) = (
            keys::find(target.0, key),
            written.parse::<toml_edit::Value>(),
        ) {
            editor.set(target.0, target.1, key.name, value);
        }
    }
    // The result is checked as a whole when it is saved; its size is spelled as the other node's.
    editor.set(Section::Mirror, name, "size", spell_size(made.size));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::commands::block_on;

    /// What keeps the meeting alive is a task of the same thread.
    #[test]
    fn a_meeting_goes_on_while_stores_are_made() {
        let (keeps_alive, sign) = mpsc::channel();
        let done = block_on(async {
            let meeting = tokio::spawn(async move { keeps_alive.send(()).expect("heard") });
            let made = beside_the_meeting(move || sign.recv_timeout(Duration::from_secs(30))).await;
            meeting.await.expect("it goes on");
            made.expect("a sign of life while the stores are made");
            DONE
        });
        assert!(done.is_ok());
    }
}
