//! What a seed draws beside the common faults, from a generator of its own.
//!
//! So the common draws of a seed stay what they are when a kind is added here, and most seeds meet
//! few of these kinds: some none, most one to three, and half of those with fewer common faults
//! beside them, so that one kind is met often and by itself.

use super::super::rng::Rng;
use super::Fault;

/// The draws are told apart from those of the world.
const SALT: u64 = 0x6661_756c_7473_2b2b;

/// What is drawn here and is no fault that happens at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kit {
    /// Some fault of [`Fault::MORE`] may happen.
    pub any: bool,
}

impl Kit {
    /// Draws the kit of a seed, and adds its faults to the common ones.
    pub fn draw(seed: u64, faults: &mut Vec<(Fault, u64)>) -> Self {
        let mut rng = Rng::new(seed ^ SALT);
        let mut kit = Self::default();
        let kinds = rng.pick(&[0, 0, 0, 1, 1, 1, 2, 2, 3, 5]);
        if kinds > 0 && rng.coin() {
            for (_, weight) in faults.iter_mut() {
                *weight *= u64::from(rng.percent(35));
            }
        }
        for _ in 0..kinds {
            let fault = rng.pick(Fault::MORE);
            let weight = rng.pick(&[1, 2, 6]);
            faults.push((fault, weight));
            kit.any = true;
        }
        kit
    }
}
