//! What latency the slowest of an application's writes have had, for the [pace](super::pace) of a
//! resynchronisation.

/// So many latencies, counted by quarters of an octave.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    counts: [u32; 256],
    /// How many were added.
    pub count: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            counts: [0; 256],
            count: 0,
        }
    }
}

impl Latencies {
    /// Adds one of so many nanoseconds.
    pub fn add(&mut self, ns: u64) {
        let octave = ns.max(4).ilog2();
        let quarter = (ns.max(4) >> (octave - 2)) & 3;
        self.counts[(u64::from(octave) * 4 + quarter) as usize] += 1;
        self.count += 1;
    }

    /// What one in so many exceeds: the end of its quarter, nanoseconds. `one_in` is at most the count.
    pub fn slow(&self, one_in: u64) -> u64 {
        let mut above = self.count / one_in.max(1);
        for (place, count) in self.counts.iter().enumerate().rev() {
            if above <= u64::from(*count) {
                let (octave, quarter) = (place / 4, place as u64 % 4);
                let end = u128::from(5 + quarter) << octave.saturating_sub(2);
                return u64::try_from(end).unwrap_or(u64::MAX);
            }
            above -= u64::from(*count);
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_in_a_hundred_is_slower() {
        let mut latencies = Latencies::default();
        (0..990).for_each(|_| latencies.add(100_000));
        (0..10).for_each(|_| latencies.add(3_000_000));
        // A quarter of an octave is a fifth.
        assert!((3_000_000..3_700_000).contains(&latencies.slow(100)));
        assert!((100_000..125_000).contains(&latencies.slow(50)));
        assert!((3_000_000..3_700_000).contains(&latencies.slow(1000)));
        latencies.add(u64::MAX);
        assert!(latencies.slow(1001) > 1 << 62);
        latencies.add(0);
    }
}
