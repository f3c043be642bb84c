//! `kagami demo --serve`: a scratch pair that stays up for other programs.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use super::fault::DemoError;
use super::scratch::{MIRROR, PATIENCE, Scratch, Wanted};
use super::signals;
use crate::args::DemoArgs;
use crate::control::report::Condition;

/// Between two looks whether a daemon has died.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The URI under which NBD clients reach the mirror of a node.
///
/// # Errors
/// The node's configuration is wrong.
pub fn uri(node: &super::node::Node) -> Result<String, DemoError> {
    let socket = Scratch::socket(node)?;
    Ok(format!(
        "nbd+unix:///{MIRROR}?socket={}",
        escaped(&socket.display().to_string())
    ))
}

/// A path as a URI's query takes it.
fn escaped(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Makes a pair that is in sync, alpha Primary.
///
/// # Errors
/// Something does not come about.
pub fn make(wanted: &Wanted, no_peer: bool) -> Result<Scratch, DemoError> {
    let mut tell = |who: &str, what: &str| anstream::eprintln!("{who}$ {what}");
    let mut pair = Scratch::make(wanted, &mut tell)?;
    pair.alpha
        .wait(MIRROR, "beta to be met", PATIENCE, |state| {
            state.condition == Condition::InSync
        })?;
    tell("alpha", &format!("kagami promote {MIRROR}"));
    pair.alpha.run(&["promote", MIRROR])?;
    pair.wait_in_sync(PATIENCE)?;
    if no_peer {
        // The Secondary leaves cleanly, so alpha goes on alone by its consent, whatever `solo` is.
        tell("beta", "kagami down");
        pair.beta.run(&["down"])?;
        pair.beta.stop(PATIENCE)?;
        pair.alpha
            .wait(MIRROR, "beta to have left", PATIENCE, |state| {
                state.condition == Condition::Alone
            })?;
    }
    Ok(pair)
}

/// Serves until a signal comes.
///
/// # Errors
/// The pair does not come about, or one of its daemons dies.
pub fn run(args: &DemoArgs, folder: PathBuf) -> Result<u8, DemoError> {
    let wanted = Wanted {
        folder,
        size: args.size.to_string(),
        protocol: args.protocol.clone(),
        solo: args.solo.clone(),
    };
    let mut pair = match make(&wanted, args.no_peer) {
        Err(DemoError::Interrupted) => return Ok(0),
        other => other?,
    };
    let uri = uri(&pair.alpha)?;
    let mut out = std::io::stdout();
    writeln!(out, "{uri}")
        .and_then(|()| out.flush())
        .map_err(DemoError::system("writing the URI to standard output"))?;
    anstream::eprintln!(
        "serving; try `nbdinfo '{uri}'`, or `kagami --config {} status`. Ctrl-C or SIGTERM ends it.",
        pair.alpha.config().display()
    );
    while !signals::said_stop() {
        pair.alpha.still_runs()?;
        if !args.no_peer {
            pair.beta.still_runs()?;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    anstream::eprintln!("stopping, and removing what was made");
    drop(pair);
    Ok(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_path_survives_in_a_query() {
        assert_eq!(super::escaped("/tmp/a b&c.nbd"), "/tmp/a%20b%26c.nbd");
    }
}
