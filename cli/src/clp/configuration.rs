//! `clpcfctrl`: gives a configuration to both nodes, and fetches the one in force.

use std::path::{Path, PathBuf};

use kagami_failover::control::{Answer, Ask};

use super::options::{Known, parse};
use crate::commands::cluster::{file, push, unexpected};
use crate::commands::{Context, print_out};
use crate::config::edit::replace;
use crate::exit::{DONE, Failure, Outcome};

const NAME: &str = "clpcfctrl";
const KNOWN: Known = Known {
    name: NAME,
    flags: &["--push", "--pull", "-l", "-w", "--force", "--nocheck"],
    values: &["-x", "-h"],
    optional: &[],
    words: 0,
};

/// Gives it, or fetches it: `cluster.toml` in the folder of `-x`; without one, in this folder.
///
/// # Errors
/// It is wrong, refused, or can't be written.
pub async fn clpcfctrl(context: &Context, arguments: &[String]) -> Outcome {
    let given = parse(&KNOWN, arguments)?;
    let folder = given
        .value("-x")
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    let path = file(&folder.join("kagami.toml"));
    match given.one_of(NAME, &["--push", "--pull"])? {
        "--push" => push::run(context, &path, given.has("--force"), false, false).await,
        _ => pull(context, &path).await,
    }
}

async fn pull(context: &Context, path: &Path) -> Outcome {
    let text = match context.manager().await?.ask(Ask::Configuration).await? {
        Answer::Configuration { text, .. } => text,
        other => return Err(unexpected(&other)),
    };
    // It may be the file in force: nobody reads half of it.
    replace(path, text.as_bytes()).map_err(|error| {
        Failure::system(format!(
            "{}: not written: {error}\n  next: name a folder that this user may write (-x)",
            path.display()
        ))
    })?;
    print_out(&format!("{}: the configuration in force\n", path.display()))?;
    DONE
}
