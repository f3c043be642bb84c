//! Programs that the demo starts: none outlives it, each writes its log to a file of its own.
#![allow(unsafe_code)] // A child asks the kernel to die with its parent before it becomes the program.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network, and what is mounted, of its own. Both last for as long as this does, or a process in them.
#[derive(Clone, Debug)]
pub struct Inside {
    network: Arc<OwnedFd>,
    mounts: Option<Arc<OwnedFd>>,
}

impl Inside {
    /// By open files of `/proc/PID/ns`.
    pub fn new(network: OwnedFd, mounts: Option<OwnedFd>) -> Self {
        Self {
            network: Arc::new(network),
            mounts: mounts.map(Arc::new),
        }
    }

    /// Lets a program begin in there; what is mounted elsewhere on the way to it is not seen.
    pub fn put<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let inside = self.clone();
        // SAFETY: between fork and exec only system calls that are safe there are made: no allocation, no
        // lock. The descriptors live as long as the closure.
        unsafe { command.pre_exec(move || inside.enter()) }
    }

    /// This thread, from now on. Only a process of a single thread can change what it sees mounted.
    ///
    /// # Errors
    /// The system does not let it.
    pub fn enter(&self) -> io::Result<()> {
        move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
        if let Some(mounts) = &self.mounts {
            move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
        }
        Ok(())
    }
}

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// Ties a program to this thread: the kernel kills it when the thread is gone, however that comes.
pub fn tie(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    // Of its own group, so that Ctrl-C reaches the demo, which then ends it in order.
    command.process_group(0);
    // SAFETY: between fork and exec only system calls that are safe there are made: no allocation, no
    // lock. `parent` is a plain number.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        })
    }
}

impl Process {
    /// Starts `command` with its output appended to `log`.
    ///
    /// # Errors
    /// The system would not start it.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log)?;
        let child = tie(command)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its log's last lines, for error messages.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL: what a crash looks like. Returns when it is gone.
    ///
    /// # Errors
    /// The system would not do it.
    pub fn kill(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }

    /// SIGTERM; its exit status once it has ended, killed if it has not in time.
    ///
    /// # Errors
    /// It did not end in time, or the system would not tell.
    pub fn stop(mut self, patience: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.ok_or(io::ErrorKind::NotFound)?, signal).map_err(io::Error::from)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
