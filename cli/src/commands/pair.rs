//! `kagami pair`: a second node comes to a mirror, by one line that is pasted there.
//!
//! The exchange is the replicator's ([`kagami_replicator::shell::pairing`]); here are the stores and
//! the configuration of both sides. Each side writes what it learned only after the other has said yes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kagami_bitmap::read_slots;
use kagami_replicator::core::state::{NodeId, Protocol as CoreProtocol};
use kagami_replicator::shell::identity::{Fingerprint, NodeKeys};
use kagami_replicator::shell::pairing::facts::{Facts, MirrorFacts, Party};
use kagami_replicator::shell::pairing::{
    Joining, Offering, PairError, Purpose, Terms, Token, TokenError,
};
use serde_json::json;

use super::stores::{Made, Plan, Wanted};
use super::{Context, init, key_folder, node, print_json, print_out, within};
use crate::args::PairArgs;
use crate::config::edit::Editor;
use crate::config::keys::{self, Section};
use crate::config::value::{check_name, spell_size};
use crate::config::{Config, Mirror, Protocol};
use crate::exit::{DONE, Failure, Outcome, Status};

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

/// Pairs: the offering side, or the joining one.
///
/// # Errors
/// The token is wrong, nobody came, the other side refused, no store could be made.
pub async fn run(context: &Context, args: PairArgs) -> Outcome {
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

fn keys_of(config: &Config) -> Result<NodeKeys, Failure> {
    NodeKeys::load_or_create(&key_folder(config))
        .map_err(|error| Failure::system(format!("this node has no key: {error}")))
}

fn party(config: &Config, given: &[IpAddr]) -> Party {
    Party {
        node: NodeId(config.node.id),
        name: config.node.name.clone(),
        addresses: node::reachable(&config.node.listen, given),
        threads: u16::try_from(config.node.threads).unwrap_or(u16::MAX),
    }
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
            "mirror {name} is paired with {peer} already\n  next: nothing to do; `--again` makes a new token, for a pairing that one side lost"
        )));
    }
    let keys = keys_of(&config)?;
    let told = Facts {
        party: party(&config, &args.address),
        mirror: MirrorFacts {
            mirror: u128::from_be_bytes(mirror.uuid),
            name: name.to_owned(),
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
        settings: shared_settings(&config, mirror),
    };
    if told.party.addresses.is_empty() {
        return Err(pair_failure(&PairError::NoAddress, "not paired"));
    }
    let (listen, advertise) = meeting_place(&told.party.addresses);
    let mut offering = Offering::open(
        &keys.current,
        &Terms {
            purpose: Purpose::Mirror,
            name: config.node.name.clone(),
            listen,
            advertise,
            valid: args.valid,
        },
    )
    .map_err(|error| pair_failure(&error, "not paired"))?;
    let line = format!("kagami pair --join {}", offering.token());
    if args.json {
        print_json(&json!({"mirror": name, "token": offering.token().to_string()}))?;
    } else {
        print_out(&format!(
            "mirror {name}: on the other node (valid {}; add --device DEVICE to use one there):\n\n  {line}\n\n",
            humantime::format_duration(args.valid)
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
                .map_err(|error| pair_failure(&error, &format!("mirror {name}: not paired")))
        },
    )
    .await?;
    let facts = match Facts::decode(&met.facts) {
        Ok(facts) => facts,
        Err(fault) => {
            met.refuse("what this node said makes no sense to the other")
                .await;
            return Err(Failure::refused(format!(
                "mirror {name}: not paired: what the other node said makes no sense: {fault}\n  next: use the same build of kagami on both nodes"
            )));
        }
    };
    let fingerprint = met.fingerprint;
    if let Err(failure) = write_peer(context, &facts, fingerprint, name, met.from()) {
        met.refuse("its configuration could not be written on the other node")
            .await;
        return Err(failure);
    }
    let confirmed = met.confirm().await;
    offering.close().await;
    confirmed.map_err(|error| {
        Failure::refused(format!(
            "mirror {name}: {} is written into the configuration here, and whether it heard so is not known: {error}\n  next: if {} is not paired, run `kagami pair {name} --again`",
            facts.party.name, facts.party.name
        ))
    })?;
    paired(
        args,
        name,
        &facts,
        fingerprint,
        told.mirror.zeroed && facts.mirror.zeroed,
    )
}

/// What both sides print at the end.
fn paired(
    args: &PairArgs,
    name: &str,
    other: &Facts,
    fingerprint: Fingerprint,
    zeroed: bool,
) -> Outcome {
    if args.json {
        print_json(&json!({
            "mirror": name, "peer": other.party.name, "fingerprint": fingerprint.to_string(),
            "first_copy": !zeroed,
        }))?;
        return DONE;
    }
    let copy = if zeroed {
        "both copies read as zeroes: nothing has to be copied"
    } else {
        "the first copy is full: what one of both holds is sent to the other"
    };
    print_out(&format!(
        "mirror {name}: paired with {} (key {fingerprint})\n  {copy}\nnext: `kagami up` on both nodes (`kagami down` first where the daemon runs), then `kagami promote {name}` on one\n",
        other.party.name
    ))?;
    DONE
}

/// Whether this node's copy is known to read as zeroes, as its superblock says.
fn is_zeroed(mirror: &Mirror) -> bool {
    use std::io::Read as _;
    let mut slots = vec![0; kagami_bitmap::layout::SLOTS_BYTES as usize];
    // A look past the daemon's lock: it is only for what is told to people.
    let read = std::fs::File::open(&mirror.metadata).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.read_exact(&mut slots)?;
        Ok(length)
    });
    read.is_ok_and(|length| {
        read_slots(&slots, length.max(u64::from(u32::MAX)), None)
            .is_ok_and(|read| read.superblock.record.zeroed)
    })
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
        for key in ["addresses", "fingerprints", "timeout"] {
            if let Some(entry) = config.sheet.entry(Section::Arbiter, arbiter, key)
                && entry.line.is_some()
            {
                settings.push((format!("arbiter.{key}"), entry.written.clone()));
            }
        }
    }
    settings
}

/// Writes [peer.NAME] and who the mirror's peer is.
fn write_peer(
    context: &Context,
    other: &Facts,
    fingerprint: Fingerprint,
    mirror: &str,
    from: SocketAddr,
) -> Result<(), Failure> {
    let mut editor = Editor::open(&context.file)?;
    set_peer(&mut editor, other, fingerprint, from.ip())?;
    editor.set(Section::Mirror, mirror, "peer", other.party.name.as_str());
    editor.save(&context.places)?;
    Ok(())
}

fn set_peer(
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
        let left = token.time_left().map_or_else(
            || "expired, by this machine's clock".to_owned(),
            |left| format!("valid for {} s", left.as_secs()),
        );
        let addresses: Vec<String> = token.addresses.iter().map(ToString::to_string).collect();
        print_out(&format!(
            "the line was made by {} ({}, key {}), {left}; a store of its mirror's size would be made in {}\n",
            token.name,
            addresses.join(", "),
            token.fingerprint,
            args.store
                .device
                .as_ref()
                .or(args.store.backing.as_ref())
                .unwrap_or(&config.node.state_dir)
                .display()
        ))?;
        return DONE;
    }
    let keys = keys_of(&config)?;
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
    let prepared = prepare(args, &config, &facts);
    let (made, lines) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            let first = failure.words.lines().next().unwrap_or_default();
            joining.refuse(first).await;
            return Err(failure);
        }
    };
    let mine = Facts {
        party: party(&config, &[]),
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
    let seen = token
        .addresses
        .first()
        .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), SocketAddr::ip);
    let file = context.file.display().to_string();
    let written = (|| {
        let mut editor = Editor::open(&context.file)?;
        write_joined(&mut editor, &config, &facts, fingerprint, seen, &made)?;
        Ok::<_, Failure>(editor.save(&context.places)?)
    })();
    let saved = written.map_err(|failure| {
        Failure::new(
            failure.status,
            format!(
                "mirror {name}: the other node knows this one and the stores are made ({}, {}), but the configuration was not written: {}",
                made.backing.display(),
                made.metadata.display(),
                failure.words
            ),
        )
    })?;
    if !args.json {
        let mut text = format!("mirror {name}: made on node {}\n", config.node.name);
        for line in lines {
            text.push_str(&format!("  {line}\n"));
        }
        text.push_str(&format!("  config    {file}\n"));
        let joined = saved
            .mirror(&name)
            .and_then(|mirror| mirror.arbiter.clone());
        if let Some(arbiter) = joined {
            text.push_str(&format!(
                "next: let {arbiter} know this node: `kagami witness enrol` there, `kagami arbiter join` here\n"
            ));
        }
        print_out(&text)?;
    }
    paired(
        args,
        &name,
        &facts,
        fingerprint,
        facts.mirror.zeroed && made.zeroed,
    )
}

/// Checks what the other side told, and makes the stores.
fn prepare(
    args: &PairArgs,
    config: &Config,
    facts: &Facts,
) -> Result<(Made, Vec<String>), Failure> {
    let mirror = &facts.mirror;
    let name = &mirror.name;
    check_name(name)
        .map_err(|why| Failure::refused(format!("not joined: the mirror's name: {why}")))?;
    if config.mirror(name).is_some() {
        return Err(Failure::refused(format!(
            "not joined: mirror {name} is on node {} already\n  next: choose another name for one of both mirrors",
            config.node.name
        )));
    }
    if facts.party.name == config.node.name || facts.party.node.0 == config.node.id {
        return Err(Failure::refused(format!(
            "not joined: both nodes are {} (id {})\n  next: paste the line on the other machine; a cloned one needs a `name` and `id` of its own in [node]",
            config.node.name, config.node.id
        )));
    }
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
        size: Some(mirror.size),
        keep_data: false,
        logical_block: mirror.logical_block,
        extents,
        state_dir: &config.node.state_dir,
        store: &args.store,
    })?;
    let lines = plan.lines();
    Ok((plan.make()?, lines))
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
    set_peer(editor, facts, fingerprint, seen)?;
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
