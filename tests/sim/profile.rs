//! Profiles: runs that are drawn as all others are and then bent towards one situation.
//!
//! The general mix meets everything, and some of it once in many thousand seeds. A profile fixes
//! what such a situation needs - which delays are close to which, what breaks, what is ordered,
//! and what tends to follow what ([`Sequel`]) - and leaves the rest to the seed. The checks are
//! the same in every profile.

mod bends;

use super::faults::Fault;
use super::options::Options;
use super::orders::Order;
use super::rng::Rng;
use super::world::{Happening, World};

/// What runs are bent towards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Nothing: the general mix.
    #[default]
    General,
    /// The Secondary takes over while the Primary's lease may still run, with reads under way.
    LeaseRace,
    /// The arbiter is as slow as anybody waits for it, and sessions come and go meanwhile.
    LateAnswers,
    /// Protocols A and B: what was answered early is on one copy when its disk and its link go.
    EarlyAnswers,
    /// Roles change hands in session, cleanly or by the death of a daemon.
    HandOver,
    /// More extents are written than may be hot, in sync and alone.
    Cooling,
    /// A Secondary leaves cleanly and loses power.
    CleanLeave,
    /// Copies are invalidated, for good reason, and lose power.
    Invalidated,
    /// A disk is put back that holds an old copy.
    OldCopies,
    /// A resynchronisation ends under load that never pauses.
    BusyEnd,
    /// An operator forces the copy that the arbiter does not name.
    Forced,
    /// A failover manager without an arbiter has the other machine switched off, which comes back.
    Fenced,
    /// The service goes home before its copy is in sync, and the source comes and goes meanwhile.
    Guests,
    /// A Primary's disk fails, and whoever carries it comes and goes, or serves itself meanwhile.
    Carried,
    /// Stores are full, one or both, while links and daemons come and go.
    FullStores,
    /// Blocks can't be read, are slow to write, and the service goes from node to node.
    BadBlocks,
    /// Disks hang, daemons are killed for it, and flushes fail that nobody hears of.
    Unheard,
    /// A disk hangs behind a daemon that answers pings.
    Hanging,
    /// Several mirrors on the same two nodes.
    Mirrors,
    /// An operator says whose copy stays while the nodes do not hear each other, and the service goes on.
    Words,
}

/// What a cause draws after it, on the same node.
#[derive(Clone, Copy, Debug)]
pub struct Sequel {
    /// What was before.
    pub after: Cause,
    /// What follows.
    pub then: Cause,
    /// Within this time, ns.
    pub within_ns: u64,
    /// In so many of a hundred cases.
    pub percent: u64,
}

/// A fault or an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Something broke.
    Fault(Fault),
    /// An operator ordered something.
    Order(Order),
}

impl Profile {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::General,
        Self::LeaseRace,
        Self::LateAnswers,
        Self::EarlyAnswers,
        Self::HandOver,
        Self::Cooling,
        Self::CleanLeave,
        Self::Invalidated,
        Self::OldCopies,
        Self::BusyEnd,
        Self::Forced,
        Self::Fenced,
        Self::Guests,
        Self::Carried,
        Self::FullStores,
        Self::BadBlocks,
        Self::Unheard,
        Self::Hanging,
        Self::Mirrors,
        Self::Words,
    ];

    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::General => "general",
            Self::LeaseRace => "lease-race",
            Self::LateAnswers => "late-answers",
            Self::EarlyAnswers => "early-answers",
            Self::HandOver => "hand-over",
            Self::Cooling => "cooling",
            Self::CleanLeave => "clean-leave",
            Self::Invalidated => "invalidated",
            Self::OldCopies => "old-copies",
            Self::BusyEnd => "busy-end",
            Self::Forced => "forced",
            Self::Fenced => "fenced",
            Self::Guests => "guests",
            Self::Carried => "carried",
            Self::FullStores => "full-stores",
            Self::BadBlocks => "bad-blocks",
            Self::Unheard => "unheard",
            Self::Hanging => "hanging",
            Self::Mirrors => "mirrors",
            Self::Words => "words",
        }
    }

    /// The profile of this name.
    ///
    /// # Errors
    /// There is none: which there are.
    pub fn parse(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|one| one.name() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|one| one.name()).collect();
            format!("no profile {name:?}; there are: {}", names.join(", "))
        })
    }

    /// Bends what a seed drew.
    pub fn bend(self, o: &mut Options, rng: &mut Rng) {
        o.profile = self;
        match self {
            // How many there are, and what they share, is `fleet`'s.
            Self::General | Self::Mirrors => {}
            Self::LeaseRace => bends::lease_race(o, rng),
            Self::LateAnswers => bends::late_answers(o, rng),
            Self::EarlyAnswers => bends::early_answers(o, rng),
            Self::HandOver => bends::hand_over(o, rng),
            Self::Cooling => bends::cooling(o, rng),
            Self::CleanLeave => bends::clean_leave(o, rng),
            Self::Invalidated => bends::invalidated(o, rng),
            Self::OldCopies => bends::old_copies(o, rng),
            Self::BusyEnd => bends::busy_end(o, rng),
            Self::Forced => bends::forced(o, rng),
            Self::Words => bends::words(o, rng),
            Self::Fenced => bends::fenced(o, rng),
            Self::Guests => bends::guests(o, rng),
            Self::Carried => bends::carried(o, rng),
            Self::FullStores => bends::full_stores(o, rng),
            Self::BadBlocks => bends::bad_blocks(o, rng),
            Self::Unheard => bends::unheard(o, rng),
            Self::Hanging => bends::hanging(o, rng),
        }
    }
}

impl World {
    /// Plans what tends to follow.
    pub(super) fn sequels(&mut self, cause: Cause, node: usize) {
        for nth in 0..self.options.sequels.len() {
            let sequel = self.options.sequels[nth];
            if sequel.after == cause && self.fault_rng.percent(sequel.percent) {
                let delay = self.fault_rng.below(sequel.within_ns);
                let then = sequel.then;
                self.plan(delay, Happening::Sequel { node, then });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::replay::Trace;
    use super::super::run_profile;
    use super::*;

    #[test]
    fn a_profile_is_found_by_its_name() {
        for profile in Profile::ALL {
            assert_eq!(Profile::parse(profile.name()), Ok(*profile));
        }
        assert!(Profile::parse("nothing").is_err());
    }

    #[test]
    fn no_profile_breaks_what_is_sound() {
        for profile in Profile::ALL {
            let outcome = run_profile(*profile, 1, Trace::off());
            assert_eq!(outcome.violation, None, "{}", profile.name());
        }
    }
}
