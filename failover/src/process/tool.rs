//! The system's own programs: `ip`, `mount`, `fsck`, `systemctl`. They are short, end with the
//! manager's patience, and what they say is the error's text.

use std::ffi::OsStr;
use std::process::Stdio;

use tokio::process::Command;

use super::{Deadline, Failure, Step};
use crate::place::Place;

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its status; 128 and the signal's number if it was ended by one.
    pub status: i32,
    /// Its standard output.
    pub output: String,
    /// The last line of its standard error.
    pub error: String,
}

/// Runs a program with these arguments, whatever its status.
///
/// # Errors
/// It is not there, or takes longer than the deadline; it is killed then.
pub async fn ask<S: AsRef<OsStr>>(
    place: &Place,
    program: &str,
    arguments: &[S],
    environment: &[(&str, String)],
    deadline: Deadline,
) -> Step<Said> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", &place.tools)
        .env("LC_ALL", "C")
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    // The program is looked for in the PATH that it is given.
    let output = deadline
        .wait(command.output())
        .await?
        .map_err(|error| format!("{program} can't be run: {error}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    let error = error.lines().rev().find(|line| !line.trim().is_empty());
    Ok(Said {
        status: super::script::status(output.status),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        error: error.unwrap_or_default().trim().to_owned(),
    })
}

/// Runs a program that has to end with 0, and answers its standard output.
///
/// # Errors
/// It does not end with 0, is not there, or takes longer than the deadline.
pub async fn run<S: AsRef<OsStr>>(
    place: &Place,
    program: &str,
    arguments: &[S],
    deadline: Deadline,
) -> Step<String> {
    let said = ask(place, program, arguments, &[], deadline).await?;
    if said.status == 0 {
        return Ok(said.output);
    }
    let shown: Vec<_> = arguments
        .iter()
        .map(|a| a.as_ref().to_string_lossy())
        .collect();
    Err(Failure::Failed(format!(
        "{program} {}: status {}: {}",
        shown.join(" "),
        said.status,
        said.error
    )))
}
