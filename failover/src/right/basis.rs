//! What a group's right to run rests on, from what the daemon says of its mirrors.
//!
//! The right is the right to be Primary of all of them, so the earliest lease counts. A daemon that
//! is gone, or has just started again, takes nothing away at once: what it said last holds until its
//! lease ends, since the other node waits for that, too.

use std::collections::BTreeMap;

use crate::core::Time;

/// What a mirror's being Primary rests on (docs/protocol.md §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not Primary, or its stores are not open.
    Secondary,
    /// The session with the other node, and its lease until then.
    Session(Time),
    /// Permission to go on alone, or none is needed.
    Alone,
    /// Permission is wanted and not there yet.
    Sought,
    /// The arbiter has refused it.
    Refused,
}

/// What the daemon says of a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Says {
    /// Which.
    pub mirror: String,
    /// What it rests on.
    pub standing: Standing,
    /// There is a session with the other node.
    pub connected: bool,
    /// The other node is Primary.
    pub peer_is_primary: bool,
    /// Both copies are the same.
    pub in_sync: bool,
    /// The other node is connected and its disk has failed: this copy has everything.
    pub only_copy: bool,
    /// This node has no disk under it, or none that can be used.
    pub diskless: bool,
    /// This node's copy is Inconsistent or Outdated: it is not promoted without the other node, unless by force.
    pub untrusted: bool,
    /// The end of the other node's lease, as this one must count it.
    pub peer_lease_ends: Time,
}

/// What the right comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It is there; until then, if nothing is heard.
    Good(Option<Time>),
    /// Its lease has ended.
    Ended,
    /// It is another's.
    Refused,
}

/// Permission to go on alone has no lease: only an operator's force can give the mirror to the other
/// node. So long is a daemon waited for that has just started again, in milliseconds.
const ALONE_GRACE: u64 = 10_000;

#[derive(Clone, Debug, Default)]
struct Mirror {
    says: Option<Says>,
    until: Until,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Until {
    #[default]
    Over,
    At(Time),
    Never,
    Refused,
}

/// What is known of a group's mirrors, or of the lease of a group without one.
#[derive(Clone, Debug, Default)]
pub struct Basis {
    mirrors: BTreeMap<String, Mirror>,
    /// The end of the lease ([`super::lease`]), of a group that has one of its own.
    lease: Option<Time>,
}

impl Basis {
    /// Of a group with these mirrors; nothing is known of them yet.
    pub fn new(mirrors: &[String]) -> Self {
        let none = |name: &String| (name.clone(), Mirror::default());
        Self {
            mirrors: mirrors.iter().map(none).collect(),
            lease: None,
        }
    }

    /// Of a group without a mirror, whose lease ends then.
    pub fn leased(until: Time) -> Self {
        Self {
            mirrors: BTreeMap::new(),
            lease: Some(until),
        }
    }

    /// The same, with a lease of its own besides, if there is one.
    #[must_use]
    pub fn with_lease(mut self, until: Option<Time>) -> Self {
        self.lease = until;
        self
    }

    /// The lease of a group without a mirror ends then; never earlier than was said before.
    pub fn extend(&mut self, until: Time) {
        if let Some(lease) = &mut self.lease {
            *lease = until.max(*lease);
        }
    }

    /// The same, of which it is known that the right was there: it counts until then.
    pub fn held_until(mirrors: &[String], until: Time) -> Self {
        let mut basis = Self::new(mirrors);
        for mirror in basis.mirrors.values_mut() {
            mirror.until = Until::At(until);
        }
        basis
    }

    /// Takes in what the daemon says. False: it is about none of these mirrors.
    pub fn take(&mut self, now: Time, says: &Says) -> bool {
        let Some(mirror) = self.mirrors.get_mut(&says.mirror) else {
            return false;
        };
        mirror.until = match (says.standing, mirror.until) {
            (Standing::Session(until), _) => Until::At(until),
            (Standing::Alone, _) => Until::Never,
            (Standing::Sought, _) => Until::Over,
            (Standing::Refused, _) => Until::Refused,
            (Standing::Secondary, _) if says.peer_is_primary => Until::Refused,
            (Standing::Secondary, Until::Never) => Until::At(now.after(ALONE_GRACE)),
            (Standing::Secondary, before) => before,
        };
        mirror.says = Some(says.clone());
        true
    }

    /// What it comes to now.
    pub fn judge(&self, now: Time) -> Judged {
        let mut earliest = self.lease;
        let mut ended = self.lease.is_some_and(|until| until <= now);
        for mirror in self.mirrors.values() {
            match mirror.until {
                Until::Refused => return Judged::Refused,
                Until::Over => ended = true,
                Until::At(at) if at <= now => ended = true,
                Until::At(at) => {
                    earliest = Some(earliest.map_or(at, |before: Time| before.min(at)));
                }
                Until::Never => {}
            }
        }
        if ended {
            Judged::Ended
        } else {
            Judged::Good(earliest)
        }
    }

    fn all(&self, holds: impl Fn(&Says) -> bool) -> bool {
        let mut mirrors = self.mirrors.values();
        mirrors.all(|mirror| mirror.says.as_ref().is_some_and(&holds))
    }

    /// The daemon says of each that it is Primary, with permission or not.
    pub fn is_primary(&self) -> bool {
        self.all(|says| says.standing != Standing::Secondary)
    }

    /// Those that are not Primary, though nobody else is.
    pub fn secondaries(&self) -> Vec<String> {
        let secondary = |mirror: &Mirror| {
            let says = mirror.says.as_ref();
            says.is_some_and(|s| s.standing == Standing::Secondary && !s.peer_is_primary)
        };
        let found = self.mirrors.iter().filter(|(_, mirror)| secondary(mirror));
        found.map(|(name, _)| name.clone()).collect()
    }

    /// This node can be Primary of each, as far as its copies go: both are the same, or the other one
    /// is gone. (Then the other node is not ready: its manager hears neither.)
    pub fn is_ready(&self) -> bool {
        self.all(|says| says.in_sync || says.only_copy)
    }

    /// This node has no disk under one of them: it can't be promoted here.
    pub fn is_diskless(&self) -> bool {
        let mut mirrors = self.mirrors.values();
        mirrors.any(|mirror| mirror.says.as_ref().is_some_and(|says| says.diskless))
    }

    /// This node's copy of one of them can't be promoted without the other node.
    pub fn is_untrusted(&self) -> bool {
        let mut mirrors = self.mirrors.values();
        mirrors.any(|mirror| mirror.says.as_ref().is_some_and(|says| says.untrusted))
    }

    /// When the other node's leases have surely ended; `None`: it is connected, and consents.
    pub fn others_lease_ends(&self) -> Option<Time> {
        let apart = self.mirrors.values().filter_map(|m| m.says.as_ref());
        apart
            .filter(|says| !says.connected)
            .map(|says| says.peer_lease_ends)
            .max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(mirror: &str, standing: Standing) -> Says {
        Says {
            mirror: mirror.to_owned(),
            standing,
            connected: matches!(standing, Standing::Session(_)),
            peer_is_primary: false,
            in_sync: false,
            only_copy: false,
            diskless: false,
            untrusted: false,
            peer_lease_ends: Time(500),
        }
    }

    fn basis() -> Basis {
        Basis::new(&["a".to_owned(), "b".to_owned()])
    }

    #[test]
    fn the_earliest_lease_of_all_mirrors_counts() {
        let mut basis = basis();
        assert_eq!(basis.judge(Time(0)), Judged::Ended, "nothing is known");
        assert!(!basis.is_primary());
        basis.take(Time(0), &says("a", Standing::Session(Time(300))));
        assert_eq!(basis.judge(Time(0)), Judged::Ended);
        basis.take(Time(0), &says("b", Standing::Session(Time(200))));
        assert!(basis.is_primary());
        assert_eq!(basis.judge(Time(100)), Judged::Good(Some(Time(200))));
        assert_eq!(basis.judge(Time(200)), Judged::Ended);
        basis.take(Time(210), &says("b", Standing::Alone));
        assert_eq!(basis.judge(Time(210)), Judged::Good(Some(Time(300))));
        basis.take(Time(220), &says("a", Standing::Refused));
        assert_eq!(basis.judge(Time(220)), Judged::Refused);
        assert!(!basis.take(Time(220), &says("other", Standing::Alone)));
    }

    #[test]
    fn a_node_is_ready_whose_copies_are_in_sync_or_the_only_ones() {
        let mut basis = basis();
        assert!(!basis.is_ready(), "nothing is known");
        let copy = |mirror: &str, in_sync, only_copy| Says {
            connected: true,
            in_sync,
            only_copy,
            ..says(mirror, Standing::Secondary)
        };
        basis.take(Time(0), &copy("a", true, false));
        assert!(!basis.is_ready());
        basis.take(Time(0), &copy("b", true, false));
        assert!(basis.is_ready());
        // The other node's disk of one of them fails: here everything is, there it is not.
        basis.take(Time(0), &copy("b", false, true));
        assert!(basis.is_ready());
        basis.take(Time(0), &copy("b", false, false));
        assert!(!basis.is_ready());
        assert!(!basis.is_diskless());
        let gone = Says {
            diskless: true,
            ..copy("b", false, false)
        };
        basis.take(Time(0), &gone);
        assert!(basis.is_diskless(), "one of them is enough");
        assert!(!basis.is_untrusted());
        let stale = Says {
            untrusted: true,
            ..copy("a", false, false)
        };
        basis.take(Time(0), &stale);
        assert!(basis.is_untrusted(), "and here");
    }

    #[test]
    fn a_lease_of_its_own_is_only_made_longer() {
        let mut basis = Basis::leased(Time(300));
        assert_eq!(basis.judge(Time(299)), Judged::Good(Some(Time(300))));
        basis.extend(Time(200));
        assert_eq!(basis.judge(Time(300)), Judged::Ended);
        basis.extend(Time(500));
        assert_eq!(basis.judge(Time(300)), Judged::Good(Some(Time(500))));
        let mut mirrored = Basis::new(&["a".to_owned()]);
        mirrored.extend(Time(500));
        assert_eq!(
            mirrored.judge(Time(100)),
            Judged::Ended,
            "it has no lease of its own"
        );
    }

    #[test]
    fn a_daemon_that_starts_again_takes_nothing_away_before_the_lease_ends() {
        let mut basis = Basis::new(&["a".to_owned()]);
        basis.take(Time(0), &says("a", Standing::Session(Time(300))));
        basis.take(Time(100), &says("a", Standing::Secondary));
        assert_eq!(basis.judge(Time(100)), Judged::Good(Some(Time(300))));
        assert_eq!(basis.secondaries(), ["a"]);
        assert_eq!(basis.judge(Time(300)), Judged::Ended);
        // Alone, only force could give it away.
        basis.take(Time(400), &says("a", Standing::Alone));
        basis.take(Time(500), &says("a", Standing::Secondary));
        let grace = Time(500 + ALONE_GRACE);
        assert_eq!(basis.judge(Time(600)), Judged::Good(Some(grace)));
        // And what it says twice does not prolong it.
        basis.take(Time(900), &says("a", Standing::Secondary));
        assert_eq!(basis.judge(Time(900)), Judged::Good(Some(grace)));
        let mut taken = says("a", Standing::Secondary);
        taken.peer_is_primary = true;
        basis.take(Time(1000), &taken);
        assert_eq!(basis.judge(Time(1000)), Judged::Refused);
        assert!(basis.secondaries().is_empty());
    }
}
