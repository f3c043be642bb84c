//! The same in the project's virtual machine (tests/vm), for a machine whose kernel has no nbd, or a user
//! who is not root: user-mode Linux is a process of this user, and has this machine's files.

use std::env;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::args::ClusterDemoArgs;
use crate::commands::demo::fault::DemoError;
use crate::commands::demo::process::tie;
use crate::commands::demo::signals;
use crate::exit::{DONE, Failure, Outcome, Status};

/// The machine is ended after so many seconds.
const LONGEST: u64 = 290;
/// It is gone so long after it was told to end.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// In there: files on a disk, since a file system in memory takes no direct I/O.
const INSIDE: &str = "set -e; mkdir -p /run/kagami-cluster; mkfs.ext4 -q /dev/disk0; \
    mount /dev/disk0 /run/kagami-cluster; exec \"$@\"";

/// The folder with `run`: above or at one of these.
fn find(from: &[PathBuf]) -> Option<PathBuf> {
    let above = from.iter().flat_map(|folder| folder.ancestors());
    let mut folders = above.map(|folder| folder.join("tests/vm"));
    folders.find(|folder| folder.join("run").is_file())
}

/// Where the virtual machine's tools are.
///
/// # Errors
/// Nowhere: `why` this machine itself is not used, and what would help.
fn tools(named: Option<&Path>, why: &str) -> Result<PathBuf, DemoError> {
    if let Some(named) = named {
        if named.join("run").is_file() {
            return std::path::absolute(named).map_err(DemoError::system(format!(
                "looking for {}",
                named.display()
            )));
        }
        return Err(DemoError::Lacking {
            why: format!(
                "{} has no `run`: it is not kagami's tests/vm",
                named.display()
            ),
            next: "name the folder tests/vm of kagami's source tree".to_owned(),
        });
    }
    let places: Vec<PathBuf> = [env::current_dir(), env::current_exe()]
        .into_iter()
        .filter_map(Result::ok)
        .collect();
    find(&places).ok_or_else(|| DemoError::Lacking {
        why: format!("not on this machine: {why}; and the virtual machine's tools are not here"),
        next: "as root on a machine with the module nbd (`modprobe nbd`) it needs no virtual machine; else run it in \
            kagami's source tree, or name its tests/vm with --vm"
            .to_owned(),
    })
}

/// Shows it in there, and hands back how that ended.
///
/// # Errors
/// The machine can't be started, or does not come to its end in time.
pub fn run(args: &ClusterDemoArgs, why: &str) -> Outcome {
    let tools = tools(args.vm.as_deref(), why).map_err(|error| super::failure(&error))?;
    let program = env::current_exe().map_err(|error| {
        Failure::system(format!(
            "not begun: this program's own file is not found: {error}"
        ))
    })?;
    anstream::eprintln!(
        "not on this machine: {why}\nso in a virtual machine: user-mode Linux, by {}",
        tools.join("run").display()
    );
    let mut command = Command::new(tools.join("run"));
    command
        .args([
            "--backend",
            "uml",
            "--mem",
            "1024",
            "--disk",
            "1G",
            "--timeout",
        ])
        .arg(LONGEST.to_string())
        .args(["--", "sh", "-c", INSIDE, "sh"])
        .arg(program)
        .args([
            "cluster",
            "demo",
            "--here",
            "--dir",
            "/run/kagami-cluster/files",
            "--service",
        ])
        .arg(args.service.name());
    if args.json {
        command.arg("--json");
    }
    // In there standard output is no terminal.
    if io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none() {
        command.env("CLICOLOR_FORCE", "1");
    }
    let ended = watched(&mut command)
        .map_err(|error| Failure::system(format!("the virtual machine: {error}")))?;
    outcome(ended, signals::said_stop())
}

/// Runs it to its end, or until the user says stop.
fn watched(command: &mut Command) -> io::Result<ExitStatus> {
    let mut child = tie(command).stdin(Stdio::null()).spawn()?;
    let mut told: Option<Instant> = None;
    loop {
        if let Some(ended) = child.try_wait()? {
            return Ok(ended);
        }
        match told {
            None if signals::said_stop() => {
                told = Some(Instant::now());
                let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                if let Some(id) = id {
                    kill_process(id, Signal::TERM)?;
                }
            }
            Some(when) if when.elapsed() > END_PATIENCE => {
                // The machine dies with it.
                child.kill()?;
                return child.wait();
            }
            _ => {}
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What tests/vm/run's exit status says (its own head has the list).
fn outcome(ended: ExitStatus, said_stop: bool) -> Outcome {
    if said_stop {
        return Err(Failure::new(
            Status::Interrupted,
            "stopped, as you said; the virtual machine is gone",
        ));
    }
    match ended.code() {
        Some(0) => DONE,
        Some(124) => Err(Failure::new(
            Status::TimedOut,
            format!(
                "the virtual machine was ended after {LONGEST} s\n  next: try it on a machine with less to do"
            ),
        )),
        Some(125) | None => Err(Failure::system(
            "the virtual machine could not be used; its words are above",
        )),
        // The words were said in there.
        Some(other) => Ok(u8::try_from(other).unwrap_or(1)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn the_tools_are_found_from_anywhere_in_the_tree() {
        let tree = tempfile::tempdir().expect("a folder");
        let place = tree.path().join("tests/vm");
        let program = tree.path().join("target/release/kagami");
        assert_eq!(find(&[tree.path().join("docs"), program.clone()]), None);
        fs::create_dir_all(&place).expect("made");
        fs::write(place.join("run"), "").expect("written");
        assert_eq!(find(&[tree.path().join("docs")]), Some(place.clone()));
        assert_eq!(find(&["/nowhere".into(), program]), Some(place.clone()));
        assert_eq!(tools(Some(&place), "no nbd").expect("named"), place);
    }

    #[test]
    fn a_folder_that_is_none_is_refused_with_what_to_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let words = tools(Some(folder.path()), "no nbd").expect_err("no run");
        let words = words.to_string();
        assert!(
            words.contains("has no `run`") && words.contains("next: "),
            "{words}"
        );
    }

    #[test]
    fn how_the_machine_ended_is_how_the_command_ends() {
        let ended = |code: i32| outcome(ExitStatus::from_raw(code << 8), false);
        assert_eq!(ended(0), DONE);
        assert_eq!(ended(1), Ok(1));
        assert_eq!(ended(4), Ok(4));
        assert_eq!(ended(124).expect_err("late").status, Status::TimedOut);
        assert_eq!(ended(125).expect_err("none").status, Status::System);
        let stopped = outcome(ExitStatus::from_raw(143 << 8), true);
        assert_eq!(stopped.expect_err("stopped").status, Status::Interrupted);
    }
}
