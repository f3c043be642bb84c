//! A write load that remembers what it was promised.
//!
//! It writes 4 KiB blocks at random places of a range, each stamped with its place and a version that
//! only grows, and flushes now and then. [`Journal`] keeps for every place the newest version that a
//! flush covered and the newest that was ever sent. What may be read back, whatever died in between, is
//! a whole block of a version between the two: nothing flushed may be lost, nothing may be made up.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::commands::bench::client::{Client, ClientError};
use crate::commands::bench::measure::next;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
const DEPTH: usize = 8;
/// Writes between two flushes.
const STRETCH: u64 = 64;

/// What is known of one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    /// Newest version that a flush covered; 0: none.
    flushed: u64,
    /// Newest version that was answered.
    answered: u64,
    /// Newest version that was sent.
    sent: u64,
}

/// What was promised, over any number of loads on the same range.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    places: BTreeMap<u64, Place>,
    version: u64,
}

/// What reading everything back found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Places read.
    pub places: usize,
    /// Of those, places with a version that a flush had covered.
    pub promised: usize,
    /// Places that hold less than was promised, or something else.
    pub broken: Vec<String>,
    /// Places that hold a write which was answered, and which no flush covered.
    pub newer: usize,
}

/// Figures of a load while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    stop: AtomicBool,
    writes: AtomicU64,
    flushes: AtomicU64,
    /// Longest time between two answers, microseconds.
    gap: AtomicU64,
}

impl Progress {
    /// Writes answered.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Flushes answered.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// The longest the load ever waited for an answer.
    pub fn longest_wait(&self) -> Duration {
        Duration::from_micros(self.gap.load(Ordering::Relaxed))
    }
}

/// A running load, on a thread and a connection of its own.
#[derive(Debug)]
pub struct Load {
    progress: Arc<Progress>,
    thread: JoinHandle<(Journal, Option<ClientError>)>,
}

impl Load {
    /// Begins to write in `range` (bytes, multiples of 4096), going on from `journal`.
    pub fn start(
        socket: &Path,
        export: &str,
        range: Range<u64>,
        patience: Duration,
        journal: Journal,
    ) -> Self {
        let progress = Arc::new(Progress::default());
        let (socket, export): (PathBuf, String) = (socket.to_owned(), export.to_owned());
        let shared = Arc::clone(&progress);
        let thread = thread::spawn(move || {
            let mut journal = journal;
            let end = Client::connect(&socket, &export, patience)
                .and_then(|mut client| write(&mut client, &range, &mut journal, &shared))
                .err();
            (journal, end)
        });
        Self { progress, thread }
    }

    /// Its figures.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Whether it has ended by itself, which it does only when the mirror fails it.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it; what was promised, and the error that ended it if one did.
    pub fn stop(self) -> (Journal, Option<ClientError>) {
        self.progress.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load does not panic")
    }
}

fn write(
    client: &mut Client,
    range: &Range<u64>,
    journal: &mut Journal,
    progress: &Progress,
) -> Result<(), ClientError> {
    let places = (range.end - range.start) / BLOCK as u64;
    let mut dice = 0x9E37_79B9_7F4A_7C15 ^ journal.version;
    let mut sent = BTreeMap::new();
    let mut places_in_flight = HashSet::new();
    while !progress.stop.load(Ordering::Relaxed) {
        for _ in 0..STRETCH {
            let offset = range.start + next(&mut dice) % places * BLOCK as u64;
            // Two writes to one place in flight may end in either order: the second waits.
            while client.in_flight() >= DEPTH || places_in_flight.contains(&offset) {
                answer(client, journal, progress, &mut sent, &mut places_in_flight)?;
            }
            journal.version += 1;
            let version = journal.version;
            journal.places.entry(offset).or_default().sent = version;
            let cookie = client.submit_write(offset, &block(offset, version), false)?;
            sent.insert(cookie, (offset, version));
            places_in_flight.insert(offset);
        }
        while client.in_flight() > 0 {
            answer(client, journal, progress, &mut sent, &mut places_in_flight)?;
        }
        let began = Instant::now();
        client.flush()?;
        note(progress, began);
        for place in journal.places.values_mut() {
            place.flushed = place.answered;
        }
        progress.flushes.fetch_add(1, Ordering::Relaxed);
    }
    client.flush()?;
    Ok(())
}

fn answer(
    client: &mut Client,
    journal: &mut Journal,
    progress: &Progress,
    sent: &mut BTreeMap<u64, (u64, u64)>,
    places: &mut HashSet<u64>,
) -> Result<(), ClientError> {
    let began = Instant::now();
    let cookie = client.next_answer()?;
    note(progress, began);
    let (offset, version) = sent.remove(&cookie).expect("it was sent");
    places.remove(&offset);
    journal.places.entry(offset).or_default().answered = version;
    progress.writes.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

fn note(progress: &Progress, began: Instant) {
    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    progress.gap.fetch_max(micros, Ordering::Relaxed);
}

impl Journal {
    /// Writes that a flush covered, counted once for each place.
    pub fn promised(&self) -> usize {
        self.places
            .values()
            .filter(|place| place.flushed > 0)
            .count()
    }

    /// Reads every place that was ever written, and compares with what was promised. What is found
    /// is what counts from now on: it is flushed here.
    ///
    /// # Errors
    /// The device fails.
    pub fn check(&mut self, client: &mut Client) -> Result<Found, ClientError> {
        let mut found = Found::default();
        let mut content = vec![0; BLOCK];
        for (&offset, place) in &mut self.places {
            client.read(offset, &mut content)?;
            found.places += 1;
            found.promised += usize::from(place.flushed > 0);
            let version = u64::from_le_bytes(content[8..16].try_into().expect("eight bytes"));
            if content != block(offset, version)
                && (version != 0 || content.iter().any(|b| *b != 0))
            {
                found.broken.push(format!(
                    "byte {offset}: not a block that was ever written there"
                ));
            } else if version < place.flushed || version > place.sent {
                found.broken.push(format!(
                    "byte {offset}: version {version}, where {} was flushed and {} sent",
                    place.flushed, place.sent
                ));
            } else {
                found.newer += usize::from(version > place.flushed);
                *place = Place {
                    flushed: version,
                    answered: version,
                    sent: version,
                };
            }
        }
        client.flush()?;
        Ok(found)
    }
}

/// The content of a place at a version: both in front, then numbers that follow from them.
fn block(offset: u64, version: u64) -> Vec<u8> {
    let mut content = Vec::with_capacity(BLOCK);
    content.extend(offset.to_le_bytes());
    content.extend(version.to_le_bytes());
    let mut dice = offset.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ version ^ 0x5555;
    while content.len() < BLOCK {
        content.extend(next(&mut dice).to_le_bytes());
    }
    content
}
