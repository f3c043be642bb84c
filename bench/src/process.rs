//! Programs under test: started, watched through /proc, and ended, whatever happens.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::BenchError;

/// How long a program may take to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// Programs that run now, for [`stop_all`].
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// A program that was started here; dropped, it is ended.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints goes to `name.log` in `dir`.
    ///
    /// # Errors
    /// The system won't.
    pub fn start(name: &str, command: &mut Command, dir: &Path) -> Result<Self, BenchError> {
        let log = dir.join(format!("{name}.log"));
        let fault = || BenchError::io(format!("starting {name}"));
        let file = File::create(&log).map_err(fault())?;
        let stdout = file.try_clone().map_err(fault())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(file)
            .spawn()
            .map_err(fault())?;
        running().push(child.id());
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// With its last words.
    pub fn check(&mut self) -> Result<(), BenchError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.fault(format!("ended with {status}"))),
            Err(error) => Err(BenchError::io(self.name.clone())(error)),
        }
    }

    /// Waits until `ready`, as long as it runs.
    ///
    /// # Errors
    /// It ended, or the time did.
    pub fn wait_for(
        &mut self,
        what: &str,
        patience: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), BenchError> {
        let deadline = Instant::now() + patience;
        while !ready() {
            self.check()?;
            if Instant::now() > deadline {
                return Err(self.fault(format!("no {what} in {} s", patience.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until it has ended well.
    ///
    /// # Errors
    /// It failed, or the time is over.
    pub fn wait_for_end(&mut self, patience: Duration) -> Result<(), BenchError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.fault(format!("ended with {status}"))),
                Ok(None) if Instant::now() > deadline => {
                    return Err(self.fault(format!("no end in {} s", patience.as_secs())));
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(BenchError::io(self.name.clone())(error)),
            }
        }
    }

    /// An error about it, with the end of its log.
    pub fn fault(&self, what: String) -> BenchError {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        BenchError::Program {
            program: self.name.clone(),
            what,
            words: lines[lines.len().saturating_sub(10)..].join("\n"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let id = self.child.id();
        if matches!(self.child.try_wait(), Ok(None)) {
            send(id, Signal::TERM);
            let deadline = Instant::now() + PATIENCE;
            while matches!(self.child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        running().retain(|other| *other != id);
    }
}

/// Asks every program that was started here to end: for an interrupted run.
pub fn stop_all() {
    for id in running().iter() {
        send(*id, Signal::TERM);
    }
}

fn running() -> std::sync::MutexGuard<'static, Vec<u32>> {
    RUNNING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn send(id: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, signal);
    }
}

/// A program on PATH.
///
/// # Errors
/// It is not there; the error names the Debian package.
pub fn program(name: &'static str) -> Result<PathBuf, BenchError> {
    let package = match name {
        "fio" => "fio",
        "nbdkit" => "nbdkit",
        "strace" => "strace",
        "unshare" | "nsenter" => "util-linux",
        "ip" => "iproute2",
        // Debian 13 and its backports have it in qemu-utils; Debian 12 in qemu-system-common.
        "qemu-storage-daemon" => "qemu-utils (from Debian 13 on), qemu-system-common (Debian 12)",
        other => unreachable!("no package is known for {other}"),
    };
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or(BenchError::MissingProgram {
            program: name,
            package,
        })
}

/// The same command, started by a program that enters its namespace first (none, where `entry` is
/// empty). Such programs `exec`, so the process id is the command's own.
pub fn within(entry: &[String], command: &Command) -> Command {
    let mut words = entry
        .iter()
        .map(OsString::from)
        .chain([command.get_program().to_owned()])
        .chain(command.get_args().map(OsString::from));
    let mut outer = Command::new(words.next().expect("the program, if nothing else"));
    outer.args(words);
    outer
}

/// Runs a program to its end and gives its standard output.
///
/// # Errors
/// It failed; with the end of what it said.
pub fn output(name: &str, command: &mut Command) -> Result<String, BenchError> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(BenchError::io(format!("starting {name}")))?;
    running().push(child.id());
    let id = child.id();
    let mut text = String::new();
    let read = child
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut text);
    let result = child.wait_with_output();
    running().retain(|other| *other != id);
    read.map_err(BenchError::io(format!("the output of {name}")))?;
    let result = result.map_err(BenchError::io(format!("waiting for {name}")))?;
    if !result.status.success() {
        return Err(BenchError::Program {
            program: name.to_owned(),
            what: format!("ended with {}", result.status),
            words: String::from_utf8_lossy(&result.stderr)
                .trim_end()
                .to_owned(),
        });
    }
    Ok(text)
}

/// Processor time of a process and its threads, those that have ended included; `None` when it is
/// gone. The kernel gives it in hundredths of a second.
pub fn cpu_time(id: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The command's name is in brackets and may hold anything.
    let after = &stat[stat.rfind(')')? + 2..];
    let mut fields = after.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
    Some(Duration::from_nanos((user + system) * tick))
}

/// Processor time of this process.
pub fn own_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Bytes of memory that a process holds now, and the most it ever held.
pub fn memory(id: u32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kilobytes << 10)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let id = std::process::id();
        assert!(cpu_time(id).is_some());
        let (now, most) = memory(id).expect("Linux has /proc");
        assert!(now > 0 && most >= now);
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let error = output(
            "sh",
            Command::new("sh").args(["-c", "echo because >&2; exit 3"]),
        )
        .expect_err("it fails");
        let text = error.to_string();
        assert!(text.contains("because") && text.contains('3'), "{text}");
    }
}
