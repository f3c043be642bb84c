//! The guard's log, for which it never waits.
//!
//! What is written to standard error goes into a pipe, and a thread carries it on to where it belongs: a file of the system's
//! disk, which may be what hangs. The pipe is the queue, and its bound: what it has no room for is dropped. A line of up to
//! 4096 bytes is there whole or not at all.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;

/// At the end of the process what is in the queue is written within this, or lost.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Standard error goes this way for as long as this is there.
#[derive(Debug)]
pub struct Log {
    own: OwnedFd,
    ended: Receiver<()>,
}

impl Log {
    /// Puts the queue in the place of standard error.
    ///
    /// # Errors
    /// The system gives no pipe or no thread.
    pub fn begin() -> io::Result<Self> {
        let own = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?;
        let to = File::from(own.try_clone()?);
        let (queue, entrance) = io::pipe()?;
        let flags = rustix::fs::fcntl_getfl(&entrance)?;
        rustix::fs::fcntl_setfl(&entrance, flags | OFlags::NONBLOCK)?;
        let (end, ended) = channel();
        thread::Builder::new()
            .name("guard-log".to_owned())
            .spawn(move || {
                carry(queue, to);
                // Nobody may wait for it any more.
                let _ = end.send(());
            })?;
        rustix::stdio::dup2_stderr(&entrance)?;
        Ok(Self { own, ended })
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // It closes the pipe's only entrance: the thread ends when it has written what is in there.
        if rustix::stdio::dup2_stderr(&self.own).is_ok() {
            let _ = self.ended.recv_timeout(LAST_WORDS);
        }
    }
}

fn carry(mut queue: io::PipeReader, mut to: File) {
    let mut room = [0; 4096];
    loop {
        match queue.read(&mut room) {
            Ok(0) => return,
            // A disk that is full takes the next line, perhaps.
            Ok(length) => drop(to.write_all(&room[..length])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
