//! `kagami replace-peer` and `kagami remove-peer`: the other copy is given up for good.
//!
//! Both are orders to the running daemon, for it alone knows whether the peer is there, and its core
//! writes what is decided into the record of the copy. A new node then comes as with `kagami pair`.

use std::time::Duration;

use serde_json::json;

use super::offer::{self, Offer};
use super::order::give;
use super::{Context, confirm, hand_over, print_dry_run, print_json, print_out};
use crate::args::{RemovePeerArgs, ReplacePeerArgs};
use crate::config::edit::Editor;
use crate::config::keys::Section;
use crate::config::{Config, Mirror, Peer};
use crate::control::message::Order;
use crate::control::report::{Connection, Disk, MirrorReport, Role};
use crate::exit::{DONE, Failure, Outcome};
use crate::render::units::size;
use crate::unit::Starter;

/// How long the daemon may take to write its record.
const PATIENCE: Duration = Duration::from_secs(60);

/// The mirror, its peer, and the daemon's word on both; refused while they are connected.
async fn parting<'a>(
    context: &Context,
    config: &'a Config,
    name: &str,
    what: &str,
) -> Result<(&'a Mirror, &'a Peer, MirrorReport), Failure> {
    let Some(mirror) = config.mirror(name) else {
        return Err(Failure::refused(format!(
            "there is no mirror {name} in {}\n  next: `kagami config show` names those there are",
            context.file.display()
        )));
    };
    let Some(peer) = mirror.peer.as_deref().and_then(|peer| config.peer(peer)) else {
        return Err(Failure::refused(format!(
            "mirror {name}: not {what}: it has no peer\n  next: `kagami pair {name}` brings a second node"
        )));
    };
    let report = context.mirror(name).await?;
    if let Some(fault) = &report.fault {
        return Err(Failure::refused(format!(
            "mirror {name}: not {what}: it is not open here: {fault}\n  next: put that right first"
        )));
    }
    if report.connection == Connection::Connected {
        return Err(Failure::refused(format!(
            "mirror {name}: not {what}: {} is connected ({})\n  next: stop its daemon first (`kagami down` there); if it shall stay, nothing is to be done",
            peer.name,
            report
                .peer
                .as_ref()
                .and_then(|peer| peer.address.clone())
                .unwrap_or_default()
        )));
    }
    let bad = matches!(
        report.disk,
        Disk::Inconsistent | Disk::Outdated | Disk::Failed | Disk::Diskless
    );
    if bad {
        return Err(Failure::refused(format!(
            "mirror {name}: not {what}: the copy here is {}, and {}'s is the good one\n  next: bring {} back; if it is gone for good, `kagami promote {name} --force` here first (it says what is lost)",
            report.disk, peer.name, peer.name
        )));
    }
    Ok((mirror, peer, report))
}

/// What is lost with the peer's copy.
fn loss(report: &MirrorReport, peer: &Peer) -> String {
    let alone = if report.alone.is_some() {
        "what it wrote while it was alone, if it did"
    } else {
        "what it wrote after this node last saw it, if it did"
    };
    format!(
        "mirror {}: the copy of {} (node {}) is given up for good: never taken back but as an empty one; lost is {alone}",
        report.name, peer.name, peer.id
    )
}

/// What an arbiter has to be told besides.
fn at_the_arbiter(config: &Config, mirror: &Mirror, peer: &str) -> String {
    let arbiter = mirror.arbiter.as_ref();
    let needs_it = |other: &Mirror| {
        other.name != mirror.name
            && other.arbiter == mirror.arbiter
            && other.peer.as_deref() == Some(peer)
    };
    if config.mirrors.iter().any(needs_it) {
        // It asks there for another mirror still.
        return String::new();
    }
    match arbiter.and_then(|name| config.arbiter(name)) {
        None => String::new(),
        Some(arbiter) if arbiter.etcd.is_some() => format!(
            "next: take {peer}'s user or certificate out of etcd {}\n",
            arbiter.name
        ),
        Some(arbiter) => format!(
            "next: on {}: `kagami witness forget {peer}`\n",
            arbiter.name
        ),
    }
}

/// Puts a new node in the peer's place.
///
/// # Errors
/// The peer is connected, this copy is not good, nobody came, the daemon refuses.
pub async fn replace(context: &Context, args: &ReplacePeerArgs) -> Outcome {
    let name = &args.mirror;
    let config = context.config()?;
    let (mirror, peer, report) = parting(context, &config, name, "replaced").await?;
    let loss = loss(&report, peer);
    if args.danger.dry_run {
        let words = format!(
            "{loss}\na new node would be waited for, and get a full copy of {}",
            size(report.size_bytes)
        );
        return print_dry_run("mirror", name, &words, args.json);
    }
    confirm(&loss, args.danger.yes)?;
    let offer = Offer {
        address: &args.address,
        valid: args.valid,
        json: args.json,
        done: "replaced",
    };
    let came = offer::wait(&config, mirror, &offer).await?;
    if came.facts.party.node.0 == peer.id {
        let failure = Failure::refused(format!(
            "mirror {name}: not replaced: {} came, the very node whose place is to be taken\n  next: to take it back, `kagami pair {name} --again`; if it has a new disk, `kagami replace-disk {name}` there",
            came.facts.party.name
        ));
        return Err(came.refuse(failure).await);
    }
    let taken = offer::take(context, &config, mirror, came).await?;
    if args.json {
        print_json(&json!({
            "mirror": name, "replaced": peer.name, "peer": taken.peer,
            "fingerprint": taken.fingerprint.to_string(), "live": taken.live,
        }))?;
        return DONE;
    }
    print_out(&format!(
        "mirror {name}: {} has taken the place of {} (key {})\n  the copy there is empty: everything is sent to it\n  {} is refused from now on\nnext: `{}` on {}\n{}",
        taken.peer,
        peer.name,
        taken.fingerprint,
        peer.name,
        Starter::of_file(&context.file).up(),
        taken.peer,
        at_the_arbiter(&config, mirror, &peer.name)
    ))?;
    DONE
}

/// Goes on without a peer.
///
/// # Errors
/// The peer is connected, this copy is not good, the daemon refuses.
pub async fn remove(context: &Context, args: &RemovePeerArgs) -> Outcome {
    let name = &args.mirror;
    let config = context.config()?;
    let (mirror, peer, report) = parting(context, &config, name, "removed").await?;
    let loss = loss(&report, peer);
    if args.danger.dry_run {
        return print_dry_run("mirror", name, &loss, args.json);
    }
    confirm(&loss, args.danger.yes)?;
    give(context, name, Order::SetPeer { peer: None }, PATIENCE).await?;
    let mut editor = Editor::open(&context.file)?;
    offer::drop_peer(&mut editor, context, mirror, "")?;
    editor.unset(Section::Mirror, name, "peer");
    let config = editor.save(&context.places).map_err(|error| {
        let failure = Failure::from(error);
        Failure::new(
            failure.status,
            format!(
                "mirror {name}: the copy is without a peer already, and the configuration is not: {}\n  next: put it right, and remove `peer` from [mirror.{name}]",
                failure.words
            ),
        )
    })?;
    hand_over(&config).await?;
    if args.json {
        print_json(&json!({"mirror": name, "removed": peer.name}))?;
        return DONE;
    }
    let role = match report.role {
        Role::Primary => "it goes on being served from here",
        Role::Secondary => "`kagami promote` serves it from here",
    };
    print_out(&format!(
        "mirror {name}: {} is out: this node has the only copy\n  {role}; no permission is needed while there is no other copy\nnext: `kagami pair {name}` brings a second node, whenever that is\n{}",
        peer.name,
        at_the_arbiter(&config, mirror, &peer.name)
    ))?;
    DONE
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::places::Places;

    #[test]
    fn the_old_peer_is_taken_out_of_the_arbiter_with_its_last_mirror() {
        let mirror = |name: &str| {
            format!(
                "[mirror.{name}]\nuuid = \"00112233445566778899aabbccddee{name}\"\nsize = \"20G\"\nbacking = \"/dev/vg0/{name}\"\n\
                 metadata = \"/dev/vg0/{name}-meta\"\nsolo = \"arbiter\"\npeer = \"beta\"\narbiter = \"gamma\"\n"
            )
        };
        let [key, other] = ["11", "22"].map(|two| two.repeat(32));
        let text = format!(
            "[node]\nname = \"alpha\"\nid = 1\n{}{}\
             [peer.beta]\nid = 2\naddresses = [\"10.0.0.2:7789\"]\nfingerprints = [\"sha256:{key}\"]\n\
             [arbiter.gamma]\naddresses = [\"10.0.0.3:7790\"]\nfingerprints = [\"sha256:{other}\"]\n",
            mirror("aa"),
            mirror("bb")
        );
        let mut config =
            Config::parse(Path::new("k.toml"), &text, &Places::of_root()).expect("right");
        let hint = |config: &Config| {
            let one = config.mirror("aa").expect("it");
            at_the_arbiter(config, one, "beta")
        };
        assert_eq!(hint(&config), "");
        config.mirrors.retain(|mirror| mirror.name == "aa");
        assert!(hint(&config).contains("`kagami witness forget beta`"));
    }
}
