//! `mount` and `umount`: what they have asked of the kernel may be done long after they were killed.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, OnceLock};

use rustix::process::{Pid, Signal};

use crate::process::{Deadline, Failure, Process, Step};
use crate::resource::Subject;

/// Those of one resource, one at a time.
fn name(subject: Subject<'_>) -> String {
    format!("mounting or unmounting {}", subject.key())
}

/// Runs one of them, which has to end with 0; one that was killed before and has not ended is waited
/// for first.
///
/// # Errors
/// It does not end with 0, or not in time: it is killed.
pub(super) async fn run(
    subject: Subject<'_>,
    program: &'static str,
    words: Vec<OsString>,
    deadline: Deadline,
) -> Step {
    let shown: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let shown = format!("{program} {}", shown.join(" "));
    let mut command = Command::new(program);
    // The program is looked for in the PATH that it is given.
    command
        .args(&words)
        .env_clear()
        .env("PATH", &subject.place.tools)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let process = Arc::new(OnceLock::new());
    let begun = process.clone();
    let to_its_end = move || -> std::io::Result<Output> {
        let child = command.spawn()?;
        let _ = begun.set(Process::of(child.id().cast_signed()));
        child.wait_with_output()
    };
    let apart = &subject.place.apart;
    let ended = apart.run(&name(subject), deadline, to_its_end).await;
    if matches!(ended, Err(Failure::TimedOut))
        && let Some(Some(process)) = process.get()
        && process.is_alive()
        && let Some(pid) = Pid::from_raw(process.pid)
    {
        // One that has ended meanwhile is what is wanted.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    let output = ended?.map_err(|error| format!("{program} can't be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    let error = error.lines().rev().find(|line| !line.trim().is_empty());
    let signal = || 128 + output.status.signal().unwrap_or_default();
    Err(Failure::Failed(format!(
        "{shown}: status {}: {}",
        output.status.code().unwrap_or_else(signal),
        error.unwrap_or_default().trim()
    )))
}

/// Waits until none of them is there any more.
///
/// # Errors
/// There is one when the deadline passes.
pub(super) async fn ended(subject: Subject<'_>, deadline: Deadline) -> Step {
    subject.place.apart.returned(&name(subject), deadline).await
}
