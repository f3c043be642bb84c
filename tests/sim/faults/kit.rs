//! What a seed draws beside the common faults, from a generator of its own.
//!
//! So the common draws of a seed stay what they are when a kind is added here, and most seeds meet
//! few of these kinds: some none, most one to three, and half of those with fewer common faults
//! beside them, so that one kind is met often and by itself.

use std::fmt;

use super::super::orders::Order;
use super::super::rng::Rng;
use super::Fault;

/// The draws are told apart from those of the world.
const SALT: u64 = 0x6661_756c_7473_2b2b;

/// What is drawn here and is no fault that happens at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kit {
    /// The arbiter's questions and answers take long, come twice, and reach the daemon that
    /// follows the asker.
    pub late_answers: bool,
    /// A front end whose connection breaks, or whose daemon dies, asks again for all that was not
    /// answered.
    pub asks_again: bool,
    /// Each boot has a clock of another rate, up to 1 % off.
    pub clocks: bool,
    /// Nodes change between this link protocol version and the one before at restarts.
    pub versions: bool,
    /// Once in sync, data of one copy go bad in silence, and a verification is to find just that.
    pub rot: bool,
    /// Operators order something whenever a connection changes.
    pub ambush: bool,
    /// The protocol may change: any write may have been answered early.
    pub protocols: bool,
    /// The arbiter is replaced again and again, and little else happens.
    pub replacing: bool,
    /// By how many blocks the mirror grows, if anybody orders it.
    pub growth: u64,
}

impl Kit {
    /// Draws the kit of a seed, and adds its faults to the common ones.
    pub fn draw(
        seed: u64,
        faults: &mut Vec<(Fault, u64)>,
        orders: &mut Vec<(Order, u64)>,
        forced: bool,
    ) -> Self {
        let mut rng = Rng::new(seed ^ SALT);
        let kinds = rng.pick(&[0, 0, 0, 1, 1, 1, 2, 2, 3, 5]);
        if kinds > 0 && rng.coin() {
            for (_, weight) in faults.iter_mut() {
                *weight *= u64::from(rng.percent(35));
            }
        }
        let mut kit = Self::default();
        for _ in 0..kinds {
            let fault = rng.pick(Fault::MORE);
            let weight = rng.pick(&[1, 2, 6]);
            match fault {
                Fault::ArbiterLate => kit.late_answers = true,
                Fault::AsksAgain => kit.asks_again = true,
                _ => {}
            }
            if !faults.iter().any(|(drawn, _)| *drawn == fault) {
                faults.push((fault, weight));
            }
        }
        kit.clocks = rng.percent(10);
        kit.versions = rng.percent(10);
        kit.rot = rng.percent(6);
        kit.ambush = rng.percent(15);
        for _ in 0..rng.pick(&[0, 0, 0, 0, 1, 1, 2]) {
            let order = rng.pick(Order::MORE);
            let growth = rng.pick(&[1, 40, 1100]);
            match order {
                Order::ForceBoth if !forced => continue,
                Order::Protocol => kit.protocols = true,
                Order::Grow => kit.growth = growth,
                _ => {}
            }
            orders.push((order, rng.pick(&[1, 3])));
        }
        kit.replacing = rng.percent(3);
        if rng.percent(12) {
            orders.push((Order::PromoteTarget, rng.pick(&[2, 8])));
        }
        if rng.percent(6) {
            faults.push((Fault::FlushFailsUnheard, rng.pick(&[1, 4])));
        }
        kit
    }
}

impl fmt::Display for Kit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (on, name) in [
            (self.ambush, "orders at the worst moment"),
            (self.clocks, "another clock at each boot"),
            (self.versions, "versions change at restarts"),
            (self.rot, "data go bad once in sync"),
        ] {
            if on {
                write!(f, "; {name}")?;
            }
        }
        Ok(())
    }
}
