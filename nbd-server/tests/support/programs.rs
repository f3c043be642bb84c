//! Programs of other people that a test runs, and waits for within its deadline.

use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

use super::DEADLINE;

/// A program of a client. A test without its client fails: passing would say that it was tried.
pub fn program(name: &str) -> Command {
    let package = match name {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "nbdsh" => "python3-libnbd",
        "qemu-img" | "qemu-io" => "qemu-utils",
        "fio" => "fio",
        "openssl" => "openssl",
        "strace" => "strace",
        other => panic!("which Debian package has {other}?"),
    };
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()));
    assert!(found, "{name} is not installed: apt-get install {package}");
    let mut command = Command::new(name);
    if name == "nbdsh" {
        // It starts `python3`, and the package's module is for Debian's own.
        let rest = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("/usr/bin:{rest}"));
    }
    command
}

/// Runs a client to its end, within the deadline.
pub fn finish(command: &mut Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pid = rustix::process::Pid::from_child(&child);
    let (done, wait) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if wait.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let output = child.wait_with_output().expect("its output");
    drop(done);
    watchdog.join().expect("the watchdog");
    output
}

/// Runs a client that must succeed, and gives what it printed.
pub fn succeed(command: &mut Command) -> String {
    let output = finish(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}\n{errors}",
        output.status
    );
    text
}
