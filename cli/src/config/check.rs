//! What keys mean together: references that must exist, stores and sockets that must differ,
//! permissions that need an arbiter.
//!
//! It looks at the configuration alone and touches no disk; the daemon and `kagami config check`
//! refuse by the same function.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fault::Fault;
use super::keys::{self, Section};
use super::{Config, Solo, arbiter};

/// Everything that is wrong, sorted by line.
pub fn check(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    names(config, &mut faults);
    references(config, &mut faults);
    arbiter::check(config, &mut faults);
    solo(config, &mut faults);
    follows(config, &mut faults);
    stores(config, &mut faults);
    sockets(config, &mut faults);
    threads(config, &mut faults);
    uuids(config, &mut faults);
    keys_apart(config, &mut faults);
    nbd(config, &mut faults);
    faults.sort_by_key(|fault| fault.line);
    faults
}

/// What is allowed, and hardly what was meant, sorted by line: `kagami config check` tells it, and nothing is refused.
pub fn warnings(config: &Config) -> Vec<Fault> {
    let sheet = &config.sheet;
    // As a time is written, in one unit.
    let spell = |time: Duration| match time.as_millis() {
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    };
    let mut warnings = Vec::new();
    for peer in &config.peers {
        if peer.ack_timeout >= peer.timeout {
            continue;
        }
        // One of both is in the file: by themselves they fit.
        let is_written = |key: &&'static str| {
            let entry = sheet.entry(Section::Peer, &peer.name, key);
            entry.is_some_and(|entry| entry.line.is_some())
        };
        let key = ["ack-timeout", "timeout"].into_iter().find(is_written);
        warnings.push(Fault::at(
            sheet.line(Section::Peer, &peer.name, key.unwrap_or("timeout")),
            format!(
                "[peer.{}] ack-timeout: {} is shorter than `timeout`, {}: a silence that `timeout` bears ends the session where an answer is owed",
                peer.name,
                spell(peer.ack_timeout),
                spell(peer.timeout)
            ),
            format!("write ack-timeout = \"{}\" or more", spell(peer.timeout)),
        ));
    }
    warnings.sort_by_key(|fault| fault.line);
    warnings
}

/// Node, peers and arbiters are different machines, so they have different names and ids.
fn names(config: &Config, faults: &mut Vec<Fault>) {
    let sheet = &config.sheet;
    let here = &config.node.name;
    for peer in &config.peers {
        if peer.name == *here {
            faults.push(Fault::at(
                sheet.line(Section::Peer, &peer.name, "id"),
                format!("[peer.{here}] has this node's own name"),
                "name the other node here; this node's name is in [node]",
            ));
        }
        if peer.id == config.node.id {
            faults.push(Fault::at(
                sheet.line(Section::Peer, &peer.name, "id"),
                format!("[peer.{}] id: {} is this node's own id", peer.name, peer.id),
                "write the id from the [node] section of the other node's file",
            ));
        }
    }
    for (index, peer) in config.peers.iter().enumerate() {
        if let Some(other) = config.peers[..index].iter().find(|o| o.id == peer.id) {
            faults.push(Fault::at(
                sheet.line(Section::Peer, &peer.name, "id"),
                format!(
                    "[peer.{}] id: {} is the id of [peer.{}]",
                    peer.name, peer.id, other.name
                ),
                "write the id from the [node] section of that node's file",
            ));
        }
    }
    for arbiter in &config.arbiters {
        let who = if arbiter.name == *here {
            "this node"
        } else if config.peer(&arbiter.name).is_some() {
            "a peer"
        } else {
            continue;
        };
        faults.push(Fault::at(
            sheet.line(Section::Arbiter, &arbiter.name, "addresses"),
            format!("[arbiter.{}] has the name of {who}", arbiter.name),
            "an arbiter is a third machine: whoever holds a copy can't decide between the copies",
        ));
    }
}

/// A peer or arbiter that a mirror names is there.
fn references(config: &Config, faults: &mut Vec<Fault>) {
    for mirror in &config.mirrors {
        let named = [
            ("peer", Section::Peer, &mirror.peer),
            ("arbiter", Section::Arbiter, &mirror.arbiter),
        ];
        for (key, section, name) in named {
            let Some(name) = name else { continue };
            let known: Vec<&str> = config
                .sheet
                .instances(section)
                .iter()
                .map(|instance| instance.name.as_str())
                .collect();
            if known.contains(&name.as_str()) {
                continue;
            }
            let next = match keys::nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None if known.is_empty() && section == Section::Peer => format!(
                    "add {}, or remove `peer` and run `kagami pair {}`",
                    section.heading(name),
                    mirror.name
                ),
                None if known.is_empty() => format!("add {}", section.heading(name)),
                None => format!(
                    "add {}, or name one of \"{}\"",
                    section.heading(name),
                    known.join("\", \"")
                ),
            };
            faults.push(Fault::at(
                config.sheet.line(Section::Mirror, &mirror.name, key),
                format!(
                    "[mirror.{}] {key}: there is no {}",
                    mirror.name,
                    section.heading(name)
                ),
                next,
            ));
        }
    }
}

/// `solo = "arbiter"` needs one.
fn solo(config: &Config, faults: &mut Vec<Fault>) {
    for mirror in &config.mirrors {
        if mirror.solo == Solo::Arbiter && mirror.arbiter.is_none() {
            let next = match config.arbiters.first() {
                Some(arbiter) => format!("add `arbiter = \"{}\"`", arbiter.name),
                None => "add `arbiter = \"NAME\"` and an [arbiter.NAME] with its addresses and fingerprints (on a third machine: `kagami witness`) or an etcd's endpoints, or write solo = \"never\"".to_owned(),
            };
            faults.push(Fault::at(
                config.sheet.line(Section::Mirror, &mirror.name, "solo"),
                format!(
                    "[mirror.{}] solo: \"arbiter\" without an arbiter",
                    mirror.name
                ),
                next,
            ));
        }
    }
}

/// A mirror follows another one that follows nobody, and both ask the same arbiter.
fn follows(config: &Config, faults: &mut Vec<Fault>) {
    for mirror in &config.mirrors {
        let Some(named) = &mirror.follows else {
            continue;
        };
        let name = &mirror.name;
        let mut fault = |what: String, next: String| {
            faults.push(Fault::at(
                config.sheet.line(Section::Mirror, name, "follows"),
                format!("[mirror.{name}] follows: {what}"),
                next,
            ));
        };
        let first = "name the first mirror of the group; that one follows none";
        if named == name {
            fault("it names the mirror itself".to_owned(), first.to_owned());
            continue;
        }
        let Some(leader) = config.mirror(named) else {
            let others = config.mirrors.iter().map(|one| one.name.as_str());
            let near = keys::nearest(named, others.filter(|other| other != name));
            let next = near.map_or_else(
                || format!("{first}, or take `follows` out"),
                |near| format!("did you mean \"{near}\"?"),
            );
            fault(format!("there is no [mirror.{named}]"), next);
            continue;
        };
        match &leader.follows {
            Some(back) if back == name => fault(
                format!("mirror {named} follows {name}: one of both decides first"),
                "take `follows` out of the group's first mirror".to_owned(),
            ),
            Some(its) => fault(
                format!("mirror {named} follows {its} itself"),
                format!("name that one: follows = \"{its}\""),
            ),
            None => {}
        }
        if let Some(one) = [mirror, leader]
            .into_iter()
            .find(|m| m.solo != Solo::Arbiter)
        {
            fault(
                format!(
                    "mirror {} asks no arbiter before it goes on alone",
                    one.name
                ),
                format!(
                    "write solo = \"arbiter\" into [mirror.{}], or take `follows` out",
                    one.name
                ),
            );
        } else if mirror.arbiter != leader.arbiter {
            let of = |mirror: &super::Mirror| mirror.arbiter.clone().unwrap_or_default();
            let its = of(leader);
            fault(
                format!(
                    "its arbiter is \"{}\", and that of mirror {named} is \"{its}\"",
                    of(mirror)
                ),
                format!(
                    "give both the same, at once: `kagami arbiter use {its} --mirror {named} --mirror {name}`"
                ),
            );
        }
    }
}

/// The path that a store really is: links resolved where it exists.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// No two stores are one file or device.
fn stores(config: &Config, faults: &mut Vec<Fault>) {
    let mut taken: BTreeMap<PathBuf, (String, &str, usize)> = BTreeMap::new();
    for mirror in &config.mirrors {
        for (key, path) in [("backing", &mirror.backing), ("metadata", &mirror.metadata)] {
            let line = config.sheet.line(Section::Mirror, &mirror.name, key);
            match taken.get(&real(path)) {
                Some((other, what, at)) => faults.push(Fault::at(
                    line,
                    format!(
                        "[mirror.{}] {key}: {} is the {what} store of mirror {other} already (line {at})",
                        mirror.name,
                        path.display()
                    ),
                    "give each store a file or device of its own",
                )),
                None => {
                    taken.insert(real(path), (mirror.name.clone(), key, line));
                }
            }
        }
    }
}

/// The longest path a Unix socket can have (`sun_path` with its final zero).
pub const SOCKET_PATH_MAX: usize = 107;

/// No two sockets are one, and each fits the kernel's structure.
fn sockets(config: &Config, faults: &mut Vec<Fault>) {
    let node = &config.node;
    let mut taken = BTreeMap::from([(node.control.clone(), "the control socket".to_owned())]);
    let too_long = |path: &Path| {
        use std::os::unix::ffi::OsStrExt as _;
        path.as_os_str().as_bytes().len() > SOCKET_PATH_MAX
    };
    if too_long(&node.control) {
        faults.push(Fault::at(
            config.sheet.line(Section::Node, "", "control"),
            format!("[node] control: {} is longer than a socket's path may be ({SOCKET_PATH_MAX} bytes)", node.control.display()),
            "name a shorter `control` or `run-dir`",
        ));
    }
    for mirror in &config.mirrors {
        let line = config
            .sheet
            .line(Section::Mirror, &mirror.name, "nbd-socket");
        let path = &mirror.nbd_socket;
        if too_long(path) {
            faults.push(Fault::at(
                line,
                format!("[mirror.{}] nbd-socket: {} is longer than a socket's path may be ({SOCKET_PATH_MAX} bytes)", mirror.name, path.display()),
                "name a shorter `nbd-socket`, or a shorter `run-dir` in [node]",
            ));
        }
        if let Some(other) = taken.insert(
            path.clone(),
            format!("the socket of mirror {}", mirror.name),
        ) {
            faults.push(Fault::at(
                line,
                format!(
                    "[mirror.{}] nbd-socket: {} is {other} already",
                    mirror.name,
                    path.display()
                ),
                "give each mirror a socket of its own",
            ));
        }
    }
}

fn threads(config: &Config, faults: &mut Vec<Fault>) {
    for mirror in &config.mirrors {
        if mirror.thread >= config.node.threads {
            faults.push(Fault::at(
                config.sheet.line(Section::Mirror, &mirror.name, "thread"),
                format!(
                    "[mirror.{}] thread: there is no thread {} among {}",
                    mirror.name, mirror.thread, config.node.threads
                ),
                format!(
                    "write a number from 0 to {}, or raise `threads` in [node]",
                    config.node.threads - 1
                ),
            ));
        }
    }
}

fn uuids(config: &Config, faults: &mut Vec<Fault>) {
    for (index, mirror) in config.mirrors.iter().enumerate() {
        if let Some(other) = config.mirrors[..index]
            .iter()
            .find(|o| o.uuid == mirror.uuid)
        {
            faults.push(Fault::at(
                config.sheet.line(Section::Mirror, &mirror.name, "uuid"),
                format!(
                    "[mirror.{}] uuid: it is the uuid of mirror {}",
                    mirror.name, other.name
                ),
                "each mirror has a uuid of its own: make another mirror with `kagami init`",
            ));
        }
    }
}

/// Two machines never show the same key.
fn keys_apart(config: &Config, faults: &mut Vec<Fault>) {
    let mut taken: BTreeMap<&str, String> = BTreeMap::new();
    let peers = config
        .peers
        .iter()
        .map(|peer| (Section::Peer, &peer.name, &peer.fingerprints));
    let arbiters = config
        .arbiters
        .iter()
        .map(|arbiter| (Section::Arbiter, &arbiter.name, &arbiter.fingerprints));
    for (section, name, fingerprints) in peers.chain(arbiters) {
        let heading = section.heading(name);
        for fingerprint in fingerprints {
            let Some(other) = taken.insert(fingerprint, heading.clone()) else {
                continue;
            };
            let next = if section == Section::Arbiter && other.starts_with("[peer") {
                "an arbiter is a third machine: whoever holds a copy can't decide between the copies"
            } else {
                "write the fingerprint that this machine shows"
            };
            faults.push(Fault::at(
                config.sheet.line(section, name, "fingerprints"),
                format!("{heading} fingerprints: the key is that of {other}"),
                next,
            ));
        }
    }
}

/// Off loopback, TCP needs TLS with client certificates.
fn nbd(config: &Config, faults: &mut Vec<Fault>) {
    let Some(instance) = config.sheet.instances(Section::Nbd).first() else {
        return;
    };
    let has = |key| config.sheet.entry(Section::Nbd, "", key).is_some();
    let line = |key| config.sheet.line(Section::Nbd, "", key);
    for (one, other) in [
        ("certificate", "key"),
        ("key", "certificate"),
        ("client-ca", "certificate"),
    ] {
        if has(one) && !has(other) {
            faults.push(Fault::at(
                line(one),
                format!("[nbd] {one} without `{other}`"),
                "TLS needs `certificate` and `key`",
            ));
        }
    }
    let Some(nbd) = &config.nbd else {
        if has("certificate") || has("client-ca") {
            faults.push(Fault::at(
                instance.line,
                "[nbd] has TLS but no `listen`",
                "add `listen = [\"address:10809\"]`, or remove the section",
            ));
        }
        return;
    };
    let whole = nbd.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if let Some(open) = nbd
        .listen
        .iter()
        .find(|address| !address.ip().is_loopback())
        && !whole
    {
        faults.push(Fault::at(
            line("listen"),
            format!(
                "[nbd] listen: {open} is not loopback, and there is no TLS with client certificates"
            ),
            "add `certificate`, `key` and `client-ca`, or listen on 127.0.0.1 or [::1]",
        ));
    }
}
