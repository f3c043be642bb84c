//! `kagami peer`: the other nodes as this one knows them. The running daemon takes every change over at
//! once; an established connection goes on until it ends by itself.

use serde_json::json;

use super::{Context, hand_over, print_json, print_out};
use crate::args::PeerVerb;
use crate::config::Config;
use crate::config::edit::Editor;
use crate::config::keys::{self, Section};
use crate::exit::{DONE, Failure, Outcome};

/// Shows or changes them.
///
/// # Errors
/// There is no such peer, or the result would be wrong.
pub async fn run(context: &Context, verb: PeerVerb) -> Outcome {
    match verb {
        PeerVerb::List { json } => list(&context.config()?, json),
        PeerVerb::Set { peer, address } => {
            known(&context.config()?, &peer)?;
            let mut editor = Editor::open(&context.file)?;
            let list: toml_edit::Array = address.iter().map(String::as_str).collect();
            editor.set(Section::Peer, &peer, "addresses", list);
            let config = editor.save(&context.places)?;
            let done = format!("peer {peer}: reached at {}", address.join(", "));
            told(&config, &done).await
        }
        PeerVerb::Rename { peer, new } => {
            let config = context.config()?;
            known(&config, &peer)?;
            if config.peer(&new).is_some() || config.arbiter(&new).is_some() {
                return Err(Failure::refused(format!(
                    "peer {peer}: not renamed: {new} is there already\n  next: choose another name"
                )));
            }
            let mut editor = Editor::open(&context.file)?;
            editor.rename(Section::Peer, &peer, &new);
            for mirror in &config.mirrors {
                if mirror.peer.as_ref() == Some(&peer) {
                    editor.set(Section::Mirror, &mirror.name, "peer", new.as_str());
                }
            }
            let config = editor.save(&context.places)?;
            told(&config, &format!("peer {peer} is called {new} here")).await
        }
    }
}

fn known(config: &Config, peer: &str) -> Result<(), Failure> {
    if config.peer(peer).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = config.peers.iter().map(|peer| peer.name.as_str()).collect();
    let next = match keys::nearest(peer, names.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if names.is_empty() => "`kagami pair NAME` brings one".to_owned(),
        None => format!("name one of {}", names.join(", ")),
    };
    Err(Failure::refused(format!(
        "there is no peer {peer}\n  next: {next}"
    )))
}

async fn told(config: &Config, done: &str) -> Outcome {
    let then = match hand_over(config).await? {
        None => "the daemon finds it when it starts".to_owned(),
        Some(restart) if restart.is_empty() => "the running daemon knows".to_owned(),
        Some(restart) => format!("needs a restart: {}", restart.join("; ")),
    };
    print_out(&format!("{done}; {then}\n"))?;
    DONE
}

fn list(config: &Config, as_json: bool) -> Outcome {
    let mirrors = |name: &str| -> Vec<String> {
        let of = |m: &&crate::config::Mirror| m.peer.as_deref() == Some(name);
        let mirrors = config.mirrors.iter().filter(of);
        mirrors.map(|mirror| mirror.name.clone()).collect()
    };
    if as_json {
        let peers: Vec<_> = config
            .peers
            .iter()
            .map(|peer| {
                json!({
                    "name": peer.name, "id": peer.id, "addresses": peer.addresses,
                    "fingerprints": peer.fingerprints, "mirrors": mirrors(&peer.name),
                })
            })
            .collect();
        print_json(&peers)?;
        return DONE;
    }
    if config.peers.is_empty() {
        print_out("no other node is known\nnext: `kagami pair NAME` brings one to a mirror\n")?;
        return DONE;
    }
    let mut text = String::new();
    for peer in &config.peers {
        let shared = mirrors(&peer.name).join(", ");
        let shared = if shared.is_empty() { "none" } else { &shared };
        text.push_str(&format!(
            "{}   id {}\n  addresses  {}\n  keys       {}\n  mirrors    {shared}\n",
            peer.name,
            peer.id,
            peer.addresses.join(", "),
            peer.fingerprints.join("\n             ")
        ));
    }
    print_out(&text)?;
    DONE
}
