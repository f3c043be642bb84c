//! Is a chunk compared before it is sent? A checksum is cheaper than a block where most blocks are equal, and a
//! read of the target's disk for nothing where they are not.

use kagami_bitmap::Run;

use super::Mirror;

/// So many compared blocks say whether more are worth comparing; of late means twice as many at most.
const COMPARED_BLOCKS: u64 = 1024;
/// Comparing is worth it while at least one block in so many is found equal.
const EQUAL_ONE_IN: u64 = 8;
/// Where it is not, one chunk in so many is compared all the same: the rest may be another matter.
const COMPARE_ONE_IN: u32 = 16;

/// What comparing has brought of late.
#[derive(Debug, Default)]
pub(super) struct Compared {
    blocks: u64,
    equal: u64,
    /// Chunks that were not compared since one was.
    passed_over: u32,
}

impl Compared {
    /// So many of these blocks were equal.
    pub fn found(&mut self, blocks: u64, equal: u64) {
        self.blocks += blocks;
        self.equal += equal;
        if self.blocks > 2 * COMPARED_BLOCKS {
            self.blocks /= 2;
            self.equal /= 2;
        }
    }

    /// Whether the next chunk is to be compared.
    fn is_next_worth_it(&mut self) -> bool {
        let worth = self.blocks < COMPARED_BLOCKS
            || self.equal * EQUAL_ONE_IN >= self.blocks
            || self.passed_over + 1 >= COMPARE_ONE_IN;
        self.passed_over = if worth { 0 } else { self.passed_over + 1 };
        worth
    }
}

impl Mirror {
    /// A whole extent is marked when it was hot in a crash, or for a full copy: most of it may be
    /// equal, and a checksum is cheaper than a block. Or it was written whole: then a comparison
    /// is a read of the target's disk for nothing, which the last ones tell.
    pub(super) fn is_worth_comparing(&mut self, run: Run) -> bool {
        let extent = self.geometry.extent_run(run.first.extent());
        self.settings.checksum_first
            && self.bitmap.count_in(extent) == extent.count
            && self
                .source()
                .is_some_and(|source| source.compared.is_next_worth_it())
    }
}

#[cfg(test)]
mod tests {
    use super::super::resync::CHUNK;
    use super::*;

    #[test]
    fn comparing_goes_on_while_it_finds_something_and_is_tried_again_where_it_does_not() {
        let mut compared = Compared::default();
        let mut ask = |chunks: u32, equal: u64| {
            let mut asked = 0;
            for _ in 0..chunks {
                if compared.is_next_worth_it() {
                    asked += 1;
                    compared.found(CHUNK, equal);
                }
            }
            asked
        };
        // Written whole: after the first four, one in sixteen.
        assert_eq!(ask(5, 0), 4);
        assert_eq!(ask(160, 0), 10);
        // The rest is equal: that is noticed within three tries, and from then on all is compared.
        assert!(ask(48, CHUNK) > 3);
        assert_eq!(ask(100, CHUNK), 100);
        // A part is equal all the time: worth it.
        assert_eq!(ask(100, CHUNK / 4), 100);
    }

    #[test]
    fn half_of_what_was_found_is_forgotten_above_twice_what_says_something() {
        let mut compared = Compared::default();
        compared.found(2 * COMPARED_BLOCKS, 0);
        // Of all of these too few are equal; of half of the first and all of these an eighth would be.
        compared.found(CHUNK, 160);
        assert!(!compared.is_next_worth_it());
    }
}
