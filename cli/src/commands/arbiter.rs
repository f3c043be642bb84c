//! `kagami arbiter join`: a witness becomes known to this node, and decides for its mirrors.

use kagami_replicator::shell::identity::NodeKeys;
use kagami_replicator::shell::pairing::{Purpose, Token};
use kagami_replicator::shell::witness::enrol;

use super::pair::token_failure;
use super::witness::failure;
use super::{Context, key_folder, print_out, within};
use crate::args::ArbiterVerb;
use crate::config::edit::Editor;
use crate::config::keys::Section;
use crate::exit::{DONE, Failure, Outcome};

/// Enrols this node.
///
/// # Errors
/// The token is wrong, the witness refuses, no such mirror.
pub async fn run(context: &Context, verb: ArbiterVerb) -> Outcome {
    let ArbiterVerb::Join { token, mirror } = verb;
    let token: Token = token
        .trim()
        .parse()
        .map_err(|error| token_failure(&error))?;
    let token = token
        .require(Purpose::Witness)
        .map_err(|error| token_failure(&error))?;
    let config = context.config()?;
    for name in &mirror {
        if config.mirror(name).is_none() {
            return Err(Failure::refused(format!(
                "there is no mirror {name} in {}\n  next: `kagami config show` names those there are",
                context.file.display()
            )));
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
    editor.save(&context.places)?;
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
    text.push_str("next: `kagami down && kagami up` here, if the daemon runs\n");
    print_out(&text)?;
    DONE
}
