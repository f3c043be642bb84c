//! Where a backing file has holes.
//!
//! A file system may let such a question wait for a disk that hangs, so it is asked on a thread of its own, one
//! at a time, and not for longer than [`PATIENCE`]. What can't be known counts as data.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{SeekFrom, seek};
use tokio::sync::{Semaphore, oneshot};

use super::device::{Stretch, Stretches};

/// How long a question may take; what has no answer then is data.
const PATIENCE: Duration = Duration::from_secs(1);

/// The holes of a backing file.
#[derive(Debug)]
pub(super) struct Holes {
    file: Arc<File>,
    /// Where the data begin in it, in bytes.
    start: u64,
    /// Held by the thread that asks, and for as long as it hangs.
    turn: Arc<Semaphore>,
}

impl Holes {
    /// Of that file, whose data begin at `start`. It is opened once more, by its descriptor (its name may be another
    /// file's by now): locks are the other descriptor's.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn of(file: &File, start: u64) -> io::Result<Self> {
        let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        Ok(Self {
            file: Arc::new(again),
            start,
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// Which parts of `at..end` are holes, alternating, at most `max` of them; they may end before it. Holding the
    /// answer up holds up nothing else, so it needs nothing of `self`.
    pub(super) fn look(
        &self,
        at: u64,
        end: u64,
        max: usize,
    ) -> impl Future<Output = Vec<Stretch>> + use<> {
        self.look_for(PATIENCE, at, end, max)
    }

    fn look_for(
        &self,
        patience: Duration,
        at: u64,
        end: u64,
        max: usize,
    ) -> impl Future<Output = Vec<Stretch>> + use<> {
        let (file, start, turn) = (Arc::clone(&self.file), self.start, Arc::clone(&self.turn));
        let known = async move {
            let turn = turn.acquire_owned().await.ok()?;
            let (answer, answered) = oneshot::channel();
            let thread = std::thread::Builder::new().name("kagami-holes".to_owned());
            let asked = thread.spawn(move || {
                let found = walk(&*file, start, at, end, max);
                drop(turn);
                let _ = answer.send(found);
            });
            asked.ok()?;
            answered.await.ok()
        };
        async move {
            let known = tokio::time::timeout(patience, known).await;
            known.ok().flatten().unwrap_or_else(|| {
                let (len, is_set) = (end - at, false);
                vec![Stretch { len, is_set }]
            })
        }
    }
}

fn walk(file: impl AsFd, start: u64, mut at: u64, end: u64, max: usize) -> Vec<Stretch> {
    let mut out = Stretches::new(max);
    while at < end && !out.is_full() {
        let (until, is_hole) = next_edge(&file, start, at, end).unwrap_or((end, false));
        out.add(until - at, is_hole);
        at = until;
    }
    out.finish()
}

/// Where the stretch of data or hole around `at` ends, and whether it is a hole. Offsets count from
/// `start` in the file.
fn next_edge(file: impl AsFd, start: u64, at: u64, end: u64) -> Option<(u64, bool)> {
    match seek(&file, SeekFrom::Hole(start + at)) {
        Ok(hole) if hole > start + at => Some(((hole - start).min(end), false)),
        Ok(_) => match seek(&file, SeekFrom::Data(start + at)) {
            Ok(data) if data > start + at => Some(((data - start).min(end), true)),
            // No data behind it: a hole to the end.
            Err(rustix::io::Errno::NXIO) => Some((end, true)),
            _ => None,
        },
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    const STEP: u64 = 1 << 16;

    /// Data in every second step.
    fn comb(file: &File, teeth: u64) {
        file.set_len(2 * teeth * STEP).expect("sized");
        for tooth in 0..teeth {
            file.write_all_at(&[1], 2 * tooth * STEP).expect("written");
        }
    }

    #[tokio::test]
    async fn the_holes_are_those_of_the_file_that_is_open() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store");
        let file = File::create_new(&path).expect("a file");
        comb(&file, 4);
        // Another one has its name now.
        std::fs::rename(&path, folder.path().join("moved")).expect("renamed");
        let other = File::create_new(&path).expect("another file");
        other.set_len(8 * STEP).expect("sized");
        let holes = Holes::of(&file, 0).expect("opened");
        let found = holes.look(0, 8 * STEP, 64).await;
        let kinds: Vec<bool> = found.iter().map(|stretch| stretch.is_set).collect();
        assert_eq!(kinds, [false, true].repeat(4));
        assert_eq!(found.iter().map(|s| s.len).sum::<u64>(), 8 * STEP);
        let two = holes.look(2 * STEP, 8 * STEP, 2).await;
        assert_eq!(two.len(), 2);
    }

    #[tokio::test]
    async fn what_is_not_answered_in_time_is_data() {
        let file = tempfile::tempfile().expect("a file");
        comb(&file, 4);
        let holes = Holes::of(&file, 0).expect("opened");
        // A question that hangs.
        let hangs = holes.turn.acquire().await.expect("a turn");
        let soon = Duration::from_millis(1);
        let found = holes.look_for(soon, 0, 8 * STEP, 64).await;
        let (len, is_set) = (8 * STEP, false);
        assert_eq!(found, [Stretch { len, is_set }]);
        drop(hangs);
    }
}
