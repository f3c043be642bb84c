//! A network namespace of one's own for the whole run: nothing else uses its loopback, and its TCP
//! acknowledges at once.
//!
//! qemu's NBD client waits for acknowledgements that the kernel delays (docs/performance.md has the
//! figures). That says nothing about mirrors; so 127.0.0.1 has a route that acknowledges at once, and
//! 127.0.0.2 one that does not: both are measured.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::candidate::Network;
use crate::error::BenchError;
use crate::process;

/// What this program is told when it runs in its namespace.
pub const INSIDE: &str = "--inside-namespace";

/// What `unshare` needs to make a namespace here, if it can.
pub fn unshare_options() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&["--net"], &["--net", "--user", "--map-root-user"]];
    ways.into_iter().find(|options| {
        Command::new("unshare")
            .args(*options)
            .arg("true")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

/// Starts this program again in a namespace of its own, in this process; returns only where the machine
/// allows none.
///
/// # Errors
/// It allowed one, and then did not.
pub fn enter() -> Result<(), BenchError> {
    let Some(options) = unshare_options() else {
        eprintln!("no network namespace can be made here: using the machine's own loopback");
        return Ok(());
    };
    let this = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
    let error = Command::new("unshare")
        .args(options)
        .arg("--")
        .arg(this)
        .args(std::env::args_os().skip(1))
        .arg(INSIDE)
        .exec();
    Err(BenchError::io("starting unshare")(error))
}

/// Sets the namespace's loopback up.
///
/// # Errors
/// `ip` is missing, or refuses.
pub fn prepare() -> Result<Network, BenchError> {
    ip("link set lo up")?;
    for quick in ["127.0.0.0/8", "127.0.0.1"] {
        ip(&format!(
            "route change local {quick} dev lo table local quickack 1"
        ))?;
    }
    // More exact than the network's, and without a preferred source: it is 127.0.0.2 at both ends.
    ip("route add local 127.0.0.2 dev lo table local")?;
    Ok(Network::Own)
}

fn ip(words: &str) -> Result<(), BenchError> {
    let program = process::program("ip")?;
    let mut command = Command::new(program);
    command.args(words.split(' '));
    process::output(&format!("ip {words}"), &mut command).map(drop)
}
