//! The client: it stores one record after the other through the floating address, all the time, and
//! remembers which were acknowledged, and when.
//!
//! A record whose answer did not come is never tried again: nobody knows whether it was stored. The client
//! lives in a network of its own and sees of the cluster what any client would: an address.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::wire::{ANSWER_PATIENCE, Protocol, Session};
use crate::commands::demo::fault::DemoError;
use crate::commands::demo::node::wait_until;
use crate::commands::demo::process::Inside;

/// Between an acknowledgement and the next record: the machine has other work, too.
const PAUSE: Duration = Duration::from_millis(4);
/// After something that failed, until the next try.
const AGAIN: Duration = Duration::from_millis(20);
/// For an answer to the question for everything.
const LIST_PATIENCE: Duration = Duration::from_secs(20);

/// What was acknowledged, in this order.
#[derive(Clone, Debug, Default)]
struct Journal(Vec<(u64, Instant)>);

impl Journal {
    /// The longest time without an acknowledgement, of those times that ended after `since`.
    fn longest_gap(&self, since: Instant) -> Option<Duration> {
        let pairs = self.0.windows(2).rev();
        let ended = pairs.take_while(|pair| pair[1].1 > since);
        ended.map(|pair| pair[1].1 - pair[0].1).max()
    }

    fn after(&self, moment: Instant) -> usize {
        let later = self.0.iter().rev();
        later.take_while(|(_, when)| *when > moment).count()
    }
}

/// What a look at everything found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Records that had been acknowledged before.
    pub acknowledged: usize,
    /// Those of them that are not there.
    pub missing: Vec<u64>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    journal: Mutex<Journal>,
}

impl Shared {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client at work.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    inside: Inside,
    protocol: Protocol,
    address: SocketAddr,
}

impl Client {
    /// Begins in the network `inside`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        inside: Inside,
        protocol: Protocol,
        address: SocketAddr,
    ) -> Result<Self, DemoError> {
        let shared = Arc::new(Shared::default());
        let (ours, place) = (Arc::clone(&shared), inside.clone());
        let thread = thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || {
                // Without it nothing is ever acknowledged, which is waited for.
                if place.enter().is_ok() {
                    store_on_and_on(protocol, address, &ours);
                }
            })
            .map_err(DemoError::system("starting the client"))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            inside,
            protocol,
            address,
        })
    }

    /// Waits until some records are acknowledged that were so after `moment`.
    ///
    /// # Errors
    /// They are not in time, or the user said stop.
    pub fn served_after(&self, moment: Instant, patience: Duration) -> Result<(), DemoError> {
        wait_until("client", "acknowledgements", patience, || {
            (self.shared.journal().after(moment) >= 5).then_some(())
        })
    }

    /// The longest time without an acknowledgement since a fault.
    pub fn longest_gap(&self, since: Instant) -> Duration {
        self.shared.journal().longest_gap(since).unwrap_or_default()
    }

    /// Asks for all records, and compares with what was acknowledged before that.
    ///
    /// # Errors
    /// The service does not answer.
    pub fn check(&self) -> Result<Found, DemoError> {
        let known: BTreeSet<u64> = {
            let journal = self.shared.journal();
            journal.0.iter().map(|(number, _)| *number).collect()
        };
        let (inside, protocol, address) = (self.inside.clone(), self.protocol, self.address);
        let asked = thread::spawn(move || -> io::Result<BTreeSet<u64>> {
            inside.enter()?;
            Session::connect(protocol, address, LIST_PATIENCE)?.list()
        });
        let stored = asked
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that asked is gone")))
            .map_err(DemoError::system("asking the service for all records"))?;
        Ok(Found {
            acknowledged: known.len(),
            missing: known.difference(&stored).copied().collect(),
        })
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, nothing more would have been acknowledged.
            let _ = thread.join();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
    }
}

fn store_on_and_on(protocol: Protocol, address: SocketAddr, shared: &Shared) {
    let mut session = None;
    for number in 1.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let stored = match session.take() {
            Some(session) => Ok(session),
            None => Session::connect(protocol, address, ANSWER_PATIENCE),
        }
        .and_then(|mut session| session.append(number).map(|()| session));
        match stored {
            Ok(open) => {
                shared.journal().0.push((number, Instant::now()));
                session = Some(open);
                thread::sleep(PAUSE);
            }
            Err(_) => thread::sleep(AGAIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_one_that_ended_after_the_fault() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let journal = Journal(
            [0, 5000, 5010, 5020, 6000, 6010]
                .iter()
                .zip(1..)
                .map(|(ms, number)| (number, at(*ms)))
                .collect(),
        );
        let gap = |since| journal.longest_gap(at(since));
        assert_eq!(gap(5015), Some(Duration::from_millis(980)));
        assert_eq!(gap(5025), Some(Duration::from_millis(980)));
        assert_eq!(gap(6000), Some(Duration::from_millis(10)));
        assert_eq!(gap(6010), None);
        assert_eq!(journal.after(at(5015)), 3);
        assert_eq!(journal.after(at(7000)), 0);
    }
}
