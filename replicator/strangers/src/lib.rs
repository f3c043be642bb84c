//! What strangers can have this node write into its log.
//!
//! Anybody may begin a handshake, with another key each time and, where addresses are cheap, from another
//! address each time: no two refusals are equal, and telling of each would fill the disk that the log is on. So
//! no more is told in a minute of one address, and of all together, than a person can read; what is left out
//! is counted, and told afterwards. Who is known is not counted here: a peer, whose key is, or a client that was let in.
//!
//! The link, the witness and the NBD server each have a [`Strangers`] of their own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;

/// Told of one address in [`WINDOW`] at most.
const OF_ONE: u32 = 6;
/// Told of all addresses in [`WINDOW`] at most.
const OF_ALL: u32 = 60;
/// How long it is counted.
const WINDOW: Duration = Duration::from_secs(60);

/// What is counted of strangers; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Strangers(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    /// When the present window began.
    began: Option<Instant>,
    /// Told in it, by address: no more than [`OF_ALL`].
    told: HashMap<IpAddr, u32>,
    /// Not told, and not counted in the log yet.
    left_out: u64,
}

impl Counts {
    fn admit(&mut self, from: IpAddr, now: Instant) -> bool {
        if self.began.is_none_or(|began| now >= began + WINDOW) {
            self.began = Some(now);
            self.told.clear();
        }
        let of_all: u32 = self.told.values().sum();
        let of_one = self.told.get(&from).copied().unwrap_or_default();
        let may = of_all < OF_ALL && of_one < OF_ONE;
        if may {
            self.told.insert(from, of_one + 1);
        } else {
            self.left_out += 1;
        }
        may
    }
}

impl Strangers {
    /// Whether something that a stranger at `from` did is told; else it is counted.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn may_tell(&self, from: IpAddr) -> bool {
        let mut counts = self.lock();
        let may = counts.admit(from, Instant::now());
        if !may && counts.left_out == 1 {
            let this = self.clone();
            tokio::spawn(async move {
                sleep(WINDOW).await;
                let left_out = std::mem::take(&mut this.lock().left_out);
                tracing::warn!(
                    left_out,
                    "refusals of strangers are left out of this log: of one address {OF_ONE} are told in a minute, of all {OF_ALL}"
                );
            });
        }
        may
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        // Counts are whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    #[test]
    fn one_address_and_all_together_have_a_bound() {
        let mut counts = Counts::default();
        let now = Instant::now();
        let one = (0..100).filter(|_| counts.admit(address(1), now)).count();
        assert_eq!(one, OF_ONE as usize);
        // It takes nothing from others.
        let others = (2..1000).filter(|n| counts.admit(address(*n), now)).count();
        assert_eq!(others, (OF_ALL - OF_ONE) as usize);
        assert_eq!(counts.left_out, 94 + 998 - 54);
        assert!(counts.told.len() <= OF_ALL as usize);
        assert!(!counts.admit(address(1), now + WINDOW / 2));
        assert!(counts.admit(address(1), now + WINDOW));
    }
}
