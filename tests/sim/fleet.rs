//! Several mirrors of one pair of nodes, on one line of time.
//!
//! Each mirror is a [`World`] with its own cores, disks, metadata, register, front ends, operators and checks. What they
//! share is in `member` (machines, daemons, the connection, the arbiter's being there) and `room` (memory). The next
//! thing that happens is the earliest of all worlds', the first world's of equal ones. Whatever that did to the ground,
//! the others meet before anything else happens, and whoever has memory by it goes on.
//!
//! The faults end for all at once. What must hold between mirrors is looked at there: one may be kept from coming to
//! rest (`stall`), and the others must come to rest beside it.

use super::check::Violation;
use super::coverage;
use super::options::Options;
use super::profile::Profile;
use super::replay::Trace;
use super::rng::Rng;
use super::room;
use super::stall::Stall;
use super::stats::Stats;
use super::world::{Checked, Phase, World};

/// The draws are told apart from those of the worlds.
const SALT: u64 = 0x6d69_7272_6f72_7321;

/// The mirrors of a seed.
#[derive(Debug)]
pub struct Fleet {
    /// Each by itself.
    pub worlds: Vec<World>,
    /// Where the trace goes.
    pub trace: Trace,
    rng: Rng,
    is_calm: bool,
}

/// How many mirrors a seed of a profile has.
pub fn mirrors(profile: Profile, seed: u64) -> usize {
    match profile {
        Profile::Mirrors => 2 + (seed % 3) as usize,
        _ => 1,
    }
}

/// What the mirrors after the first are bent towards.
const OTHERS: &[Profile] = &[
    Profile::General,
    Profile::General,
    Profile::General,
    Profile::Guests,
    Profile::FullStores,
    Profile::BadBlocks,
    Profile::HandOver,
    Profile::EarlyAnswers,
    Profile::BusyEnd,
    Profile::Invalidated,
];

impl Fleet {
    /// `count` mirrors of a seed at its beginning.
    pub fn new(profile: Profile, seed: u64, count: usize, trace: Trace) -> Self {
        let mut rng = Rng::new(seed ^ SALT);
        let pages = rng.pick(&[100, 150, 300]) * count;
        let forced = rng.percent(20);
        let pools = [0, 1].map(|_| room::pool(pages));
        let divide = |o: &mut Options| {
            o.requests = (o.requests.min(240) / count as u64).max(20);
            o.room_pages = pages;
            // What went bad in silence must be looked at in peace, and another mirror's disk may restart the daemon.
            o.kit.rot = false;
        };
        let mut first = World::with(profile, seed, trace, divide);
        first.join(0, &pools, None);
        let mut trace = std::mem::take(&mut first.trace);
        let mut worlds = vec![first];
        for nth in 1..count {
            let profile = rng.pick(OTHERS);
            let seed = rng.next_u64();
            let first = &worlds[0];
            let share = |o: &mut Options| {
                divide(o);
                o.share(&first.options);
                o.forced |= forced && nth == 1;
            };
            let mut world = World::with(profile, seed, trace, share);
            world.join(nth, &pools, Some(first));
            trace = std::mem::take(&mut world.trace);
            worlds.push(world);
        }
        Self {
            worlds,
            trace,
            rng,
            is_calm: false,
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first violation.
    pub fn run(&mut self) -> Checked {
        while !self.is_over() {
            let next = (0..self.worlds.len())
                .filter_map(|nth| Some((self.worlds[nth].next_at()?, nth)))
                .min();
            let (_, nth) = next.expect("something is always planned");
            self.with(nth, World::step)?;
            self.settle(nth)?;
            if !self.is_calm && self.worlds.iter().all(World::is_spent) {
                self.calm()?;
            }
            self.free_the_last();
        }
        self.check_no_room_is_lost()
    }

    /// Does something to one of the worlds, which writes to the common trace.
    fn with<T>(&mut self, nth: usize, deed: impl FnOnce(&mut World) -> T) -> T {
        let world = &mut self.worlds[nth];
        std::mem::swap(&mut self.trace, &mut world.trace);
        let done = deed(world);
        std::mem::swap(&mut self.trace, &mut world.trace);
        done
    }

    /// The others meet what the `nth` world did to the ground, and whoever has memory goes on.
    fn settle(&mut self, nth: usize) -> Checked {
        self.spread(nth)?;
        let now = self.worlds[nth].now;
        loop {
            let mut went_on = false;
            for one in 0..self.worlds.len() {
                went_on |= self.with(one, |world| {
                    world.now = now;
                    world.go_on()
                })?;
                self.spread(one)?;
            }
            if !went_on {
                break;
            }
        }
        self.worlds[nth].check_room()
    }

    fn spread(&mut self, nth: usize) -> Checked {
        loop {
            let told = self.worlds[nth].told();
            if told.is_empty() {
                return Ok(());
            }
            let now = self.worlds[nth].now;
            for ground in &told {
                for other in (0..self.worlds.len()).filter(|other| *other != nth) {
                    self.with(other, |world| {
                        world.now = now;
                        world.meet(ground)
                    })?;
                }
            }
        }
    }

    /// The faults end, for all at once; one of the mirrors may be kept from coming to rest.
    fn calm(&mut self) -> Checked {
        self.is_calm = true;
        let now = self.now();
        let mut servers: Vec<_> = self.worlds.iter().filter_map(World::server).collect();
        servers.dedup();
        self.worlds[0].stats.mark(match servers.len() {
            0 | 1 => "several mirrors, served at one node",
            _ => "several mirrors, served at both nodes",
        });
        self.worlds.iter_mut().for_each(World::mend_ground);
        for nth in 0..self.worlds.len() {
            self.with(nth, |world| {
                world.now = now;
                world.calm();
            });
            self.settle(nth)?;
        }
        if self.rng.percent(70) {
            let last = self.rng.below(self.worlds.len() as u64) as usize;
            let stall = Stall::draw(&self.worlds[last].options, &mut self.rng);
            self.with(last, |world| world.stand_still(stall))?;
            self.settle(last)?;
        }
        Ok(())
    }

    /// All others are at rest: the one that was kept from it may come to rest, too.
    fn free_the_last(&mut self) {
        let Some(last) = self.worlds.iter().position(|one| one.stall().is_some()) else {
            return;
        };
        let rests = |world: &World| world.phase == Phase::Over || world.stall().is_some();
        if self.worlds.iter().all(rests) {
            let now = self.now();
            self.with(last, |world| {
                world.now = now;
                world.go_free();
                world.phase = Phase::Calm { since: now };
            });
        }
    }

    fn is_over(&self) -> bool {
        self.worlds.iter().all(|world| world.phase == Phase::Over)
    }

    fn now(&self) -> u64 {
        let all = self.worlds.iter().map(|world| world.now);
        all.max().unwrap_or(0)
    }

    /// *Bounded-memory*: with all at rest, nothing is held of what mirrors share.
    fn check_no_room_is_lost(&mut self) -> Checked {
        // (A daemon that was restarted for the last mirror's sake left the others without a Primary, or under way.)
        if !self.worlds.iter().all(World::is_at_rest) {
            return Ok(());
        }
        self.worlds[0].stats.mark("memory: all of it came back");
        for world in &self.worlds {
            if world.memory_in_use() > 0 {
                let what = format!("all mirrors are at rest{}", world.room_words());
                return Err(Violation::new("Bounded-memory", what));
            }
        }
        Ok(())
    }

    /// The trace so far, also where a world stopped at an assertion.
    pub fn into_trace(self) -> Trace {
        let all = self.worlds.into_iter().map(|world| world.trace);
        let longest = all.chain([self.trace]).max_by_key(Trace::len);
        longest.unwrap_or_default()
    }

    /// What the worlds counted, together, and what none of them may have reached.
    pub fn counted(&self) -> (Stats, Option<Violation>) {
        let mut all = Stats::default();
        let mut impossible = None;
        for world in &self.worlds {
            all.add(&world.stats);
            impossible = impossible.or_else(|| coverage::reached_the_impossible(&world.stats));
        }
        all.virtual_ns = self.now();
        (all, impossible)
    }
}

#[cfg(test)]
mod tests {
    use super::super::net::End;
    use super::super::run_profile;
    use super::*;

    fn fleet(seed: u64) -> Fleet {
        let count = mirrors(Profile::Mirrors, seed);
        Fleet::new(Profile::Mirrors, seed, count, Trace::kept())
    }

    #[test]
    fn a_seed_of_several_is_a_run() {
        let [one, same] = [(); 2].map(|()| run_profile(Profile::Mirrors, 4, Trace::kept()));
        assert_eq!(one.violation, None);
        assert_eq!(one.trace.lines(), same.trace.lines());
    }

    /// All worlds see one pair of machines and one link, after whatever happened to any of them.
    #[test]
    fn the_ground_is_one() {
        let mut deaths = 0;
        for seed in 0..4 {
            let mut fleet = fleet(seed);
            while !fleet.is_calm {
                let next = |world: &World| world.next_at();
                let nth = (0..fleet.worlds.len()).min_by_key(|nth| next(&fleet.worlds[*nth]));
                let nth = nth.expect("there are mirrors");
                fleet.with(nth, World::step).expect("no violation");
                fleet.settle(nth).expect("no violation");
                let ground = |world: &World| {
                    let machines = [0, 1].map(|node| {
                        let at = &world.nodes[node];
                        (at.up, at.boot, at.version, at.clock.local(world.now))
                    });
                    let pools = world.member.as_ref().map(|member| {
                        let [a, b] = &member.rooms;
                        (a.pool.stats(), b.pool.stats())
                    });
                    let link = (world.net.blocked, world.net.slow, world.arbiter.down);
                    (machines, pools, link)
                };
                let first = ground(&fleet.worlds[0]);
                deaths += u64::from(!first.0[0].0);
                for world in &mut fleet.worlds[1..] {
                    assert_eq!(ground(world), first, "seed {seed}");
                }
                if fleet.worlds.iter().all(World::is_spent) {
                    break;
                }
            }
        }
        assert!(deaths > 0, "no machine ever crashed");
    }

    #[test]
    fn a_connection_that_ends_ends_it_for_all() {
        let mut fleet = fleet(1);
        let all_up = |fleet: &mut Fleet| {
            let mut worlds = fleet.worlds.iter_mut();
            worlds.all(|world| (0..2).all(|node| world.net.used_by(node).is_some()))
        };
        while !all_up(&mut fleet) {
            let nth = (0..fleet.worlds.len()).min_by_key(|nth| fleet.worlds[*nth].next_at());
            let nth = nth.expect("there are mirrors");
            fleet.with(nth, World::step).expect("no violation");
            fleet.settle(nth).expect("no violation");
        }
        fleet
            .with(0, |world| world.connection_ends(1, "a test"))
            .expect("no violation");
        fleet.settle(0).expect("no violation");
        for world in &mut fleet.worlds {
            for session in world.net.ids() {
                let open = world.net.session(session).expect("it is there");
                assert_eq!(open.ends[1], End::Closed);
            }
        }
    }

    #[test]
    fn memory_runs_out_and_comes_back_beside_a_mirror_that_stands_still() {
        let marks = [
            "memory: a write waits",
            "memory: a read waits",
            "memory: all of it came back",
            "stands still: no more",
            "several mirrors, served at both nodes",
        ];
        let mut all = Stats::default();
        // One run in four comes to the rarest.
        let mut seeds = 0..40;
        while !marks.iter().all(|mark| all.marks().contains_key(*mark)) {
            let seed = seeds.next();
            let seed = seed.unwrap_or_else(|| panic!("only {:?}", all.marks()));
            let outcome = run_profile(Profile::Mirrors, seed, Trace::off());
            assert_eq!(outcome.violation, None, "seed {seed}");
            all.add(&outcome.stats);
        }
    }
}
