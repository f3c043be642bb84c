//! The offering side of a meeting: this node prints a line, a new one pastes it, and comes to a mirror.
//!
//! For `pair` and `replace-peer`. Who comes is told to the running daemon first, whose core writes it
//! into the record of the copy; then the configuration is written, then the other side hears yes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use kagami_bitmap::{Record, read_slots};
use kagami_replicator::core::state::{NodeId, Protocol as CoreProtocol};
use kagami_replicator::shell::identity::Fingerprint;
use kagami_replicator::shell::pairing::facts::{Facts, MirrorFacts, Party};
use kagami_replicator::shell::pairing::{Met, Offering, PairError, Purpose, Terms};
use serde_json::json;

use super::order::give;
use super::pair::pair_failure;
use super::{Context, hand_over, node, print_json, print_out, running, within};
use crate::config::edit::Editor;
use crate::config::keys::Section;
use crate::config::value::check_name;
use crate::config::{Config, Mirror, Protocol};
use crate::control::message::Order;
use crate::exit::Failure;

/// How long the daemon may take to record a peer.
const ORDER_PATIENCE: Duration = Duration::from_secs(60);

/// Keys of a mirror that both nodes should share, told to the joining side.
const SHARED_MIRROR: &[&str] = &[
    "solo",
    "after-sb-0pri",
    "after-sb-1pri",
    "after-sb-2pri",
    "both-stale",
    "activity-log-extents",
];
/// Keys of the peer that both nodes should share.
const SHARED_PEER: &[&str] = &["timeout", "ack-timeout"];
/// Keys of the arbiter that both nodes should share. Not by what an etcd lets this node in: files of the
/// other node are not named by this one.
const SHARED_ARBITER: &[&str] = &[
    "kind",
    "addresses",
    "fingerprints",
    "endpoints",
    "prefix",
    "ca",
    "timeout",
];

/// Where to wait, and how others reach that: ports of the system's choice, since the daemon may hold
/// its own.
pub fn meeting_place(addresses: &[SocketAddr]) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let mut listen = Vec::new();
    if addresses.iter().any(SocketAddr::is_ipv4) {
        listen.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
    }
    if addresses.iter().any(SocketAddr::is_ipv6) {
        listen.push(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0));
    }
    let advertise = addresses
        .iter()
        .map(|address| SocketAddr::new(address.ip(), 0))
        .collect();
    (listen, advertise)
}

/// This node, as it describes itself.
pub fn party(config: &Config, given: &[IpAddr]) -> Party {
    Party {
        node: NodeId(config.node.id),
        name: config.node.name.clone(),
        addresses: node::reachable(&config.node.listen, given),
        threads: u16::try_from(config.node.threads).unwrap_or(u16::MAX),
    }
}

/// The same of one that joins the node it reached at one of `others`.
pub fn joining_party(config: &Config, others: &[SocketAddr]) -> Party {
    Party {
        addresses: node::reachable_from(&config.node.listen, others),
        ..party(config, &[])
    }
}

/// What is offered, and how.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// Addresses that were given.
    pub address: &'a [IpAddr],
    /// How long the token is valid.
    pub valid: Duration,
    /// Print JSON.
    pub json: bool,
    /// What it leads to: "paired".
    pub done: &'static str,
}

/// Who came; nothing is agreed yet.
#[derive(Debug)]
pub struct Came {
    offering: Offering,
    met: Met,
    /// What it told.
    pub facts: Facts,
    /// The key that it showed.
    pub fingerprint: Fingerprint,
    told: Facts,
}

/// A node that was taken as the peer.
#[derive(Debug)]
pub struct Taken {
    /// Its name.
    pub peer: String,
    /// Its key.
    pub fingerprint: Fingerprint,
    /// Both copies read as zeroes.
    pub zeroed: bool,
    /// The running daemon knows.
    pub live: bool,
}

/// Prints the token and waits for who joins with it.
///
/// # Errors
/// No key, no address, nobody came, what came makes no sense.
pub async fn wait(config: &Config, mirror: &Mirror, offer: &Offer<'_>) -> Result<Came, Failure> {
    let name = &mirror.name;
    let what = format!("mirror {name}: not {}", offer.done);
    let keys = config.keys()?;
    let told = Facts {
        party: party(config, offer.address),
        mirror: MirrorFacts {
            mirror: u128::from_be_bytes(mirror.uuid),
            name: name.clone(),
            size: mirror.size,
            logical_block: mirror.logical_block,
            protocol: match mirror.protocol {
                Protocol::A => CoreProtocol::A,
                Protocol::B => CoreProtocol::B,
                Protocol::C => CoreProtocol::C,
            },
            zeroed: is_zeroed(mirror),
            thread: u16::try_from(mirror.thread).unwrap_or(u16::MAX),
        },
        settings: shared_settings(config, mirror),
    };
    if told.party.addresses.is_empty() {
        return Err(pair_failure(&PairError::NoAddress, &what));
    }
    let (listen, advertise) = meeting_place(&told.party.addresses);
    let mut offering = Offering::open(
        &keys.current,
        &Terms {
            purpose: Purpose::Mirror,
            name: config.node.name.clone(),
            listen,
            advertise,
            valid: offer.valid,
        },
    )
    .map_err(|error| pair_failure(&error, &what))?;
    let line = format!("kagami pair --join {}", offering.token());
    if offer.json {
        print_json(&json!({"mirror": name, "token": offering.token().to_string()}))?;
    } else {
        print_out(&format!(
            "mirror {name}: on the other node (valid {}; add --device DEVICE to use one there):\n\n  {line}\n\n",
            humantime::format_duration(offer.valid)
        ))?;
    }
    let encoded = told.encode();
    let met = within(
        None,
        String::new,
        || format!("mirror {name}: interrupted; the token is worth nothing any more"),
        async {
            offering
                .meet(&encoded)
                .await
                .map_err(|error| pair_failure(&error, &what))
        },
    )
    .await?;
    match Facts::decode(&met.facts) {
        Ok(facts) => Ok(Came {
            fingerprint: met.fingerprint,
            offering,
            met,
            facts,
            told,
        }),
        Err(fault) => {
            met.refuse("what this node said makes no sense to the other")
                .await;
            Err(Failure::refused(format!(
                "{what}: what the other node said makes no sense: {fault}\n  next: use the same build of kagami on both nodes"
            )))
        }
    }
}

impl Came {
    /// Sends it away; gives the failure that is told here.
    pub async fn refuse(self, failure: Failure) -> Failure {
        let first = failure.words.lines().next().unwrap_or_default();
        self.met.refuse(first).await;
        self.offering.close().await;
        failure
    }
}

/// Takes who came as the peer of `mirror`: in its record, in the configuration, in the daemon.
///
/// # Errors
/// The daemon refuses, the configuration can't be written, the other side did not hear.
pub async fn take(
    context: &Context,
    config: &Config,
    mirror: &Mirror,
    came: Came,
) -> Result<Taken, Failure> {
    let name = &mirror.name;
    let party = &came.facts.party;
    let id = party.node.0;
    let is_open = running(config).await?.is_some_and(|report| {
        let found = report.mirrors.iter().find(|found| found.name == *name);
        found.is_some_and(|found| found.fault.is_none())
    });
    if let Err(failure) = may_name(config, name, party) {
        return Err(came.refuse(failure).await);
    }
    // Only the daemon changes who the peer of a copy with a history is. A record that can't be read is no new one.
    let configured = || Some(config.peer(mirror.peer.as_deref()?)?.id);
    let paired_with = peer_on_record(mirror).or_else(configured);
    if let Some(of) = paired_with.filter(|of| !is_open && *of != id) {
        let failure = Failure::refused(format!(
            "mirror {name}: not paired: its copy is paired with node {of}, {} is node {id}, and the daemon does not have the mirror open\n  next: `kagami status` says why, or `kagami up` starts the daemon; then again",
            party.name
        ));
        return Err(came.refuse(failure).await);
    }
    if is_open
        && let Err(failure) = give(
            context,
            name,
            Order::SetPeer { peer: Some(id) },
            ORDER_PATIENCE,
        )
        .await
    {
        return Err(came.refuse(failure).await);
    }
    let written = write_peer(
        context,
        mirror,
        &came.facts,
        came.fingerprint,
        came.met.from(),
    );
    if let Err(mut failure) = written {
        if is_open {
            failure.words.push_str(&format!(
                "\n  the copy is {}'s and this node's already: put the configuration right, and pair again: `kagami pair {name} --again`, or `kagami replace-peer {name}`",
                party.name
            ));
        }
        return Err(came.refuse(failure).await);
    }
    let Came {
        met,
        offering,
        facts,
        fingerprint,
        told,
    } = came;
    let confirmed = met.confirm().await;
    offering.close().await;
    // What the daemon can't take over at once is none of the pairing.
    let live = is_open && hand_over(&context.config()?).await.is_ok();
    confirmed.map_err(|error| {
        Failure::system(format!(
            "mirror {name}: {} is written into the configuration here, and whether it heard so is not known: {error}\n  next: if {} is not paired, run `kagami pair {name} --again`",
            facts.party.name, facts.party.name
        ))
    })?;
    Ok(Taken {
        peer: facts.party.name,
        fingerprint,
        zeroed: told.mirror.zeroed && facts.mirror.zeroed,
        live,
    })
}

/// Whether the configuration has room for a node of that name, as the peer of `mirror`.
///
/// # Errors
/// Another node has it, and another mirror.
pub fn may_name(config: &Config, mirror: &str, party: &Party) -> Result<(), Failure> {
    let name = &party.name;
    let others = config
        .mirrors
        .iter()
        .any(|other| other.name != mirror && other.peer.as_ref() == Some(name));
    match config.peer(name) {
        Some(known) if known.id != party.node.0 && others => Err(Failure::refused(format!(
            "mirror {mirror}: not paired: another node is called {name} here, and has other mirrors\n  next: `kagami peer rename {name} {name}-old` here, then again"
        ))),
        _ => Ok(()),
    }
}

/// Whether this node's copy is known to read as zeroes, as its superblock says.
fn is_zeroed(mirror: &Mirror) -> bool {
    record_of(mirror).is_some_and(|record| record.zeroed)
}

/// The node that this node's copy was paired with, as its superblock says.
pub fn peer_on_record(mirror: &Mirror) -> Option<u64> {
    record_of(mirror)?.peer
}

/// The record of this node's copy, if it can be read.
fn record_of(mirror: &Mirror) -> Option<Record> {
    use std::io::Read as _;
    let mut slots = vec![0; kagami_bitmap::layout::SLOTS_BYTES as usize];
    // A look past the daemon's lock, which may be writing: one slot is whole then. Nothing is written by it, and the
    // daemon holds record against configuration itself.
    let read = std::fs::File::open(&mirror.metadata).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.read_exact(&mut slots)?;
        Ok(length)
    });
    let slots = read_slots(&slots, read.ok()?.max(u64::from(u32::MAX)), None);
    Some(slots.ok()?.superblock.record)
}

/// The settings that the joining side takes over, as the file spells them.
fn shared_settings(config: &Config, mirror: &Mirror) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut add = |place: String, section, name: &str, key| {
        if let Some(entry) = config.sheet.entry(section, name, key)
            && entry.line.is_some()
        {
            settings.push((place, entry.written.clone()));
        }
    };
    for key in SHARED_MIRROR {
        add(format!("mirror.{key}"), Section::Mirror, &mirror.name, key);
    }
    if let Some(peer) = &mirror.peer {
        for key in SHARED_PEER {
            add(format!("peer.{key}"), Section::Peer, peer, key);
        }
    }
    if let Some(arbiter) = &mirror.arbiter {
        settings.push(("mirror.arbiter".to_owned(), format!("\"{arbiter}\"")));
        for key in SHARED_ARBITER {
            if let Some(entry) = config.sheet.entry(Section::Arbiter, arbiter, key)
                && entry.line.is_some()
            {
                settings.push((format!("arbiter.{key}"), entry.written.clone()));
            }
        }
    }
    settings
}

/// Writes [peer.NAME] and who the mirror's peer is; a peer that nothing is shared with any more goes.
fn write_peer(
    context: &Context,
    mirror: &Mirror,
    other: &Facts,
    fingerprint: Fingerprint,
    from: SocketAddr,
) -> Result<(), Failure> {
    let mut editor = Editor::open(&context.file)?;
    drop_peer(&mut editor, context, mirror, &other.party.name)?;
    set_peer(&mut editor, other, fingerprint, from.ip())?;
    let name = other.party.name.as_str();
    editor.set(Section::Mirror, &mirror.name, "peer", name);
    editor.save(&context.places)?;
    Ok(())
}

/// Removes the peer of `mirror` unless other mirrors are shared with it, or it is `stays`.
///
/// # Errors
/// The file is wrong.
pub fn drop_peer(
    editor: &mut Editor,
    context: &Context,
    mirror: &Mirror,
    stays: &str,
) -> Result<(), Failure> {
    let Some(config) = editor.config(&context.places)? else {
        return Ok(());
    };
    let old = config.mirror(&mirror.name).and_then(|m| m.peer.clone());
    let Some(old) = old.filter(|old| old != stays) else {
        return Ok(());
    };
    let is_used = config
        .mirrors
        .iter()
        .any(|other| other.name != mirror.name && other.peer.as_ref() == Some(&old));
    if !is_used {
        editor.remove(Section::Peer, &old);
    }
    Ok(())
}

/// Writes [peer.NAME].
///
/// # Errors
/// Its name or id can't be written.
pub fn set_peer(
    editor: &mut Editor,
    other: &Facts,
    fingerprint: Fingerprint,
    seen: IpAddr,
) -> Result<(), Failure> {
    let party = &other.party;
    check_name(&party.name)
        .map_err(|why| Failure::refused(format!("not paired: the other node's name: {why}")))?;
    let id = i64::try_from(party.node.0).map_err(|_| {
        Failure::refused("not paired: the other node's id is out of bounds\n  next: `kagami init` there draws a right one")
    })?;
    editor.set(Section::Peer, &party.name, "id", id);
    let mut addresses: Vec<String> = party.addresses.iter().map(ToString::to_string).collect();
    if addresses.is_empty() {
        addresses.push(SocketAddr::new(seen, node::LINK_PORT).to_string());
    }
    let list = |texts: Vec<String>| texts.into_iter().collect::<toml_edit::Array>();
    editor.set(Section::Peer, &party.name, "addresses", list(addresses));
    let prints = vec![fingerprint.to_string()];
    editor.set(Section::Peer, &party.name, "fingerprints", list(prints));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::places::Places;

    const FILE: &str = r#"[node]
name = "beta"
id = 7
[mirror.one]
uuid = "00112233445566778899aabbccddeeff"
size = "20G"
backing = "/dev/vg0/one"
metadata = "/dev/vg0/one-meta"
peer = "alpha"
[peer.alpha]
id = 1
addresses = ["10.0.0.2:7789"]
fingerprints = ["sha256:1111111111111111111111111111111111111111111111111111111111111111"]
"#;

    #[test]
    fn another_node_does_not_take_the_name_of_one_that_has_a_mirror() {
        let config = Config::parse(Path::new("k.toml"), FILE, &Places::of_root()).expect("good");
        let alpha = |id| Party {
            node: NodeId(id),
            name: "alpha".to_owned(),
            addresses: Vec::new(),
            threads: 1,
        };
        may_name(&config, "two", &alpha(1)).expect("the same node");
        may_name(&config, "one", &alpha(2)).expect("it takes the place of the old one");
        let failure = may_name(&config, "two", &alpha(2)).expect_err("the old one's mirror");
        assert!(
            failure.words.contains("kagami peer rename alpha"),
            "{failure:?}"
        );
    }
}
