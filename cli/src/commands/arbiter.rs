//! `kagami arbiter`: who decides which copy of this node's mirrors may go on alone.
//!
//! `join` makes this node known to a witness; `use` takes an arbiter that the configuration has, a witness or
//! an etcd. Either can take the place of the one before.

use std::rc::Rc;

use kagami_replicator::shell::arbiter::raw::{RawRegister, RegisterId};
use kagami_replicator::shell::etcd::{self, EtcdConfig};
use kagami_replicator::shell::pairing::{Purpose, Token};
use kagami_replicator::shell::witness::{self, enrol};

use super::pair::token_failure;
use super::witness::failure;
use super::{Context, hand_over, print_out, running, within};
use crate::args::ArbiterVerb;
use crate::config::edit::Editor;
use crate::config::keys::Section;
use crate::config::{Arbiter, Config, Mirror};
use crate::control::report::Condition;
use crate::daemon::mirrors;
use crate::exit::{DONE, Failure, Outcome};

/// Carries out one of the verbs.
///
/// # Errors
/// The token is wrong, the arbiter refuses or does not answer, no such mirror.
pub async fn run(context: &Context, verb: ArbiterVerb) -> Outcome {
    match verb {
        ArbiterVerb::Join {
            token,
            mirror,
            replace,
        } => join(context, &token, &mirror, replace).await,
        ArbiterVerb::Use {
            name,
            mirror,
            replace,
        } => take(context, &name, &mirror, replace).await,
    }
}

/// Enrols this node at a witness.
async fn join(context: &Context, token: &str, mirrors: &[String], replace: bool) -> Outcome {
    let token: Token = token
        .trim()
        .parse()
        .map_err(|error| token_failure(&error))?;
    let token = token
        .require(Purpose::Witness)
        .map_err(|error| token_failure(&error))?;
    let config = context.config()?;
    let shown = token.fingerprint.to_string();
    let known = config.arbiter(&token.name);
    let known: &[String] = known.map_or(&[], |known| &known.fingerprints);
    let is_another = !known.is_empty() && !known.contains(&shown);
    if is_another {
        may_take_its_name(context, &config, &token.name, mirrors, replace).await?;
    }
    may_decide(context, &config, &token.name, mirrors, replace).await?;
    if config.node.name == token.name || config.peer(&token.name).is_some() {
        return Err(Failure::refused(format!(
            "not enrolled: the witness is called {}, like a node of this configuration\n  next: an arbiter is a third machine; give it a name of its own (`name` in [node] there)",
            token.name
        )));
    }
    if config
        .arbiter(&token.name)
        .is_some_and(|known| known.etcd.is_some())
    {
        return Err(Failure::refused(format!(
            "not enrolled: the witness is called {0}, and [arbiter.{0}] of {1} is an etcd\n  next: give one of them another name",
            token.name,
            context.file.display()
        )));
    }
    let keys = config.keys()?;
    let enrolled = within(
        None,
        String::new,
        || "interrupted; nothing was written here".to_owned(),
        async {
            enrol::join(&keys.current, &token, &config.node.name)
                .await
                .map_err(failure)
        },
    )
    .await?;
    let mut editor = Editor::open(&context.file)?;
    let name = &enrolled.name;
    let list = |texts: Vec<String>| texts.into_iter().collect::<toml_edit::Array>();
    editor.set(
        Section::Arbiter,
        name,
        "addresses",
        list(enrolled.addresses.iter().map(ToString::to_string).collect()),
    );
    editor.set(
        Section::Arbiter,
        name,
        "fingerprints",
        // Of one that is about to change its key both stay known.
        list(if is_another || known.is_empty() {
            vec![enrolled.fingerprint.to_string()]
        } else {
            known.to_vec()
        }),
    );
    let first = format!("witness {name} is known to this node\n");
    write(context, editor, name, mirrors, first).await
}

/// Takes an arbiter that the configuration has.
async fn take(context: &Context, name: &str, mirrors: &[String], replace: bool) -> Outcome {
    let config = context.config()?;
    let Some(arbiter) = config.arbiter(name) else {
        let known: Vec<_> = config.arbiters.iter().map(|one| &*one.name).collect();
        return Err(Failure::refused(format!(
            "there is no [arbiter.{name}] in {}{}\n  next: write one for an etcd (docs/arbiter.md has an example); a witness is added by `kagami arbiter join TOKEN`",
            context.file.display(),
            if known.is_empty() {
                String::new()
            } else {
                format!(": there is {}", known.join(", "))
            }
        )));
    };
    may_decide(context, &config, name, mirrors, replace).await?;
    for mirror in mirrors.iter().filter_map(|name| config.mirror(name)) {
        // One that can't be asked would hold the mirror back as soon as the peer is lost.
        let register = register(&config, arbiter, mirror).await?;
        register.read().await.map_err(|why| {
            Failure::refused(format!(
                "mirror {}: arbiter not changed: {why}\n  next: put that right, then again",
                mirror.name
            ))
        })?;
    }
    if let Some(etcd) = arbiter.as_etcd() {
        prove_writing(etcd).await?;
    }
    let first = format!("{} answers\n", arbiter.called());
    write(context, Editor::open(&context.file)?, name, mirrors, first).await
}

/// An etcd that only lets itself be read would say so when its word is needed.
async fn prove_writing(etcd: EtcdConfig) -> Result<(), Failure> {
    let (name, prefix) = (etcd.name.clone(), etcd.prefix.clone());
    let proved = etcd::Remote::new(etcd).prove_writing().await;
    proved.map_err(|why| {
        let why = why.to_string();
        let next = if why.contains("permission denied") {
            format!("`etcdctl role grant-permission ROLE --prefix=true readwrite {prefix}/` for a role of this node's user, then again")
        } else {
            "put that right, then again".to_owned()
        };
        Failure::refused(format!(
            "arbiter not changed: etcd {name} takes no change below {prefix}/: {why}\n  next: {next}"
        ))
    })
}

/// A mirror's register at an arbiter.
async fn register(
    config: &Config,
    arbiter: &Arbiter,
    mirror: &Mirror,
) -> Result<Rc<dyn RawRegister>, Failure> {
    let id = RegisterId(u128::from_be_bytes(mirror.uuid));
    if let Some(etcd) = arbiter.as_etcd() {
        return Ok(etcd::Client::new(etcd::Remote::new(etcd), id));
    }
    let keys = config.keys()?;
    let remote = witness::Remote::new(&keys.current, mirrors::witness(arbiter).await).map_err(
        |error| {
            Failure::system(format!(
                "witness {0} can't be asked: {error}\n  next: put that right, then again; what is written of it is in [arbiter.{0}] of {1}",
                arbiter.name,
                config.file.display()
            ))
        },
    )?;
    Ok(witness::Client::new(remote, id, Vec::new()))
}

/// Whether these mirrors are there, and may have the arbiter `name`.
async fn may_decide(
    context: &Context,
    config: &Config,
    name: &str,
    mirrors: &[String],
    replace: bool,
) -> Result<(), Failure> {
    for mirror in mirrors {
        let Some(found) = config.mirror(mirror) else {
            return Err(Failure::refused(format!(
                "there is no mirror {mirror} in {}\n  next: `kagami config show` names those there are",
                context.file.display()
            )));
        };
        let others = config
            .together(found)
            .filter(|one| one.arbiter.as_deref() != Some(name) && !mirrors.contains(&one.name));
        let others: Vec<_> = others.map(|one| format!("--mirror {}", one.name)).collect();
        if !others.is_empty() {
            return Err(Failure::refused(format!(
                "mirror {mirror}: arbiter not changed: mirrors of which one follows the other ask the same one\n  next: add {}",
                others.join(" ")
            )));
        }
        if let Some(old) = found.arbiter.as_ref().filter(|old| **old != name) {
            may_replace(context, config, mirror, old, replace).await?;
        }
    }
    Ok(())
}

/// A witness with another key is another one, whatever it is called: a machine that was set up anew has none of the
/// registers. So whatever asked the one before needs what any other arbiter needs.
async fn may_take_its_name(
    context: &Context,
    config: &Config,
    name: &str,
    mirrors: &[String],
    replace: bool,
) -> Result<(), Failure> {
    let asks = |mirror: &&Mirror| mirror.arbiter.as_deref() == Some(name);
    let of_it: Vec<&str> = config
        .mirrors
        .iter()
        .filter(asks)
        .map(|mirror| mirror.name.as_str())
        .collect();
    let said = replace && of_it.iter().all(|of| mirrors.iter().any(|one| one == of));
    if !said && !of_it.is_empty() {
        let named: Vec<String> = of_it.iter().map(|of| format!("--mirror {of}")).collect();
        return Err(Failure::refused(format!(
            "not enrolled: this witness shows another key than the {name} that is known here: it was set up anew, or is another machine, and knows nothing of {}\n  next: {} --replace takes it instead, while the copies are in sync; if it is another machine, give it another name (`name` in [node] there)",
            of_it.join(", "),
            named.join(" ")
        )));
    }
    for mirror in of_it {
        may_replace(context, config, mirror, name, replace).await?;
    }
    Ok(())
}

/// Writes who decides for `mirrors`, lets the daemon know, and says so after `text`.
async fn write(
    context: &Context,
    mut editor: Editor,
    name: &str,
    mirrors: &[String],
    mut text: String,
) -> Outcome {
    for mirror in mirrors {
        editor.set(Section::Mirror, mirror, "arbiter", name);
        editor.set(Section::Mirror, mirror, "solo", "arbiter");
    }
    let config = editor.save(&context.places)?;
    let handed = hand_over(&config).await?;
    for mirror in mirrors {
        text.push_str(&format!(
            "mirror {mirror}: solo = \"arbiter\", arbiter = \"{name}\": do the same on the other node\n"
        ));
    }
    if mirrors.is_empty() {
        text.push_str(&format!(
            "next: write `solo = \"arbiter\"` and `arbiter = \"{name}\"` into a [mirror.NAME]\n"
        ));
    }
    match handed {
        None => text.push_str("the daemon finds it when it starts\n"),
        Some(restart) if restart.is_empty() => text.push_str("the running daemon knows\n"),
        Some(restart) => text.push_str(&format!(
            "needs a restart: {}\nnext: `systemctl restart kagami` here (`kagami down && kagami up` without systemd)\n",
            restart.join("; ")
        )),
    }
    print_out(&text)?;
    DONE
}

/// Another arbiter may come while both copies are there and equal: nobody needs its word then, and
/// both record the new register before it is worth anything (docs/protocol.md §4).
async fn may_replace(
    context: &Context,
    config: &Config,
    name: &str,
    old: &str,
    said: bool,
) -> Result<(), Failure> {
    if !said {
        return Err(Failure::refused(format!(
            "mirror {name}: not changed: its arbiter is {old}\n  next: --replace takes the new one instead, while the copies are in sync"
        )));
    }
    let report = running(config).await?;
    let found = report
        .as_ref()
        .and_then(|report| report.mirrors.iter().find(|mirror| mirror.name == name));
    match found {
        Some(mirror) if matches!(mirror.condition, Condition::InSync | Condition::Verifying) => {
            Ok(())
        }
        other => Err(Failure::refused(format!(
            "mirror {name}: arbiter not replaced: {}, and a new arbiter knows nothing of who may go on alone\n  next: replace it while the copies are in sync; where that can't be, write `arbiter` into {} by hand: a copy that is alone then needs `kagami promote {name} --force` after its next restart",
            other.map_or_else(
                || "no daemon runs here".to_owned(),
                |mirror| format!("the mirror is {}", mirror.condition)
            ),
            context.file.display()
        ))),
    }
}
