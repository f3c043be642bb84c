//! `kagami arbiter join`: a witness becomes known to this node, and decides for its mirrors.

use kagami_replicator::shell::identity::NodeKeys;
use kagami_replicator::shell::pairing::{Purpose, Token};
use kagami_replicator::shell::witness::enrol;

use super::pair::token_failure;
use super::witness::failure;
use super::{Context, hand_over, key_folder, print_out, running, within};
use crate::args::ArbiterVerb;
use crate::config::Config;
use crate::config::edit::Editor;
use crate::config::keys::Section;
use crate::control::report::Condition;
use crate::exit::{DONE, Failure, Outcome};

/// Enrols this node.
///
/// # Errors
/// The token is wrong, the witness refuses, no such mirror.
pub async fn run(context: &Context, verb: ArbiterVerb) -> Outcome {
    let ArbiterVerb::Join {
        token,
        mirror,
        replace,
    } = verb;
    let token: Token = token
        .trim()
        .parse()
        .map_err(|error| token_failure(&error))?;
    let token = token
        .require(Purpose::Witness)
        .map_err(|error| token_failure(&error))?;
    let config = context.config()?;
    for name in &mirror {
        let Some(found) = config.mirror(name) else {
            return Err(Failure::refused(format!(
                "there is no mirror {name} in {}\n  next: `kagami config show` names those there are",
                context.file.display()
            )));
        };
        if let Some(old) = found.arbiter.as_ref().filter(|old| **old != token.name) {
            may_replace(context, &config, name, old, replace).await?;
        }
    }
    if config.node.name == token.name || config.peer(&token.name).is_some() {
        return Err(Failure::refused(format!(
            "not enrolled: the witness is called {}, like a node of this configuration\n  next: an arbiter is a third machine; give it a name of its own (`name` in [node] there)",
            token.name
        )));
    }
    let keys = NodeKeys::load_or_create(&key_folder(&config))
        .map_err(|error| Failure::system(format!("this node has no key: {error}")))?;
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
        list(vec![enrolled.fingerprint.to_string()]),
    );
    for mirror in &mirror {
        editor.set(Section::Mirror, mirror, "arbiter", name.as_str());
        editor.set(Section::Mirror, mirror, "solo", "arbiter");
    }
    let config = editor.save(&context.places)?;
    let handed = hand_over(&config).await?;
    let mut text = format!("witness {name} is known to this node\n");
    for mirror in &mirror {
        text.push_str(&format!(
            "mirror {mirror}: solo = \"arbiter\", arbiter = \"{name}\": do the same on the other node\n"
        ));
    }
    if mirror.is_empty() {
        text.push_str(&format!(
            "next: write `solo = \"arbiter\"` and `arbiter = \"{name}\"` into a [mirror.NAME]\n"
        ));
    }
    match handed {
        None => text.push_str("the daemon finds it when it starts\n"),
        Some(restart) if restart.is_empty() => text.push_str("the running daemon knows\n"),
        Some(restart) => text.push_str(&format!(
            "needs a restart: {}\nnext: `kagami down && kagami up` here\n",
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
