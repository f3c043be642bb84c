//! Locks on runs of blocks: of two requests for overlapping blocks the later one waits.
//!
//! What is held never overlaps. Who waits is kept by the caller; see `write`.

use std::collections::BTreeMap;

use kagami_bitmap::Run;

/// The locked runs, by their first block.
#[derive(Debug, Default)]
pub(super) struct Spans {
    held: BTreeMap<u64, u64>,
}

impl Spans {
    /// True if no lock overlaps `run`.
    pub fn is_free(&self, run: Run) -> bool {
        // Held runs are disjoint: only the last one that begins before the end can overlap.
        self.held
            .range(..run.end().0)
            .next_back()
            .is_none_or(|(_, end)| *end <= run.first.0)
    }

    /// Locks `run` if it is free.
    pub fn try_lock(&mut self, run: Run) -> bool {
        let free = self.is_free(run);
        if free {
            self.held.insert(run.first.0, run.end().0);
        }
        free
    }

    /// Gives back a lock; `run` is what was locked.
    pub fn unlock(&mut self, run: Run) {
        let end = self.held.remove(&run.first.0);
        assert_eq!(end, Some(run.end().0), "{run} was not locked");
    }

    /// Number of locks.
    pub fn len(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use kagami_bitmap::Block;

    use super::*;

    fn run(first: u64, count: u64) -> Run {
        Run::new(Block(first), count)
    }

    #[test]
    fn overlap_is_refused_and_neighbours_are_not() {
        let mut spans = Spans::default();
        assert!(spans.try_lock(run(10, 5)));
        assert!(!spans.try_lock(run(14, 1)));
        assert!(!spans.try_lock(run(0, 11)));
        assert!(!spans.try_lock(run(12, 1)));
        assert!(!spans.try_lock(run(0, 100)));
        assert!(spans.try_lock(run(15, 1)));
        assert!(spans.try_lock(run(0, 10)));
        spans.unlock(run(10, 5));
        assert!(spans.try_lock(run(11, 2)));
        assert_eq!(spans.len(), 3);
    }
}
