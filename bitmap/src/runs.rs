//! Iterating over the marked blocks, as runs.
//!
//! Resync and status walk the bitmap with these; both also use [`DirtyBitmap::next_run`]
//! directly where the map changes under way.

use crate::dirty::DirtyBitmap;
use crate::geometry::{Block, Run};

/// Maximal runs of marked blocks, in order. Made by [`DirtyBitmap::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    bitmap: &'a DirtyBitmap,
    from: Block,
    max_blocks: u64,
}

impl DirtyBitmap {
    /// The maximal runs of marked blocks, in order.
    pub fn runs(&self) -> Runs<'_> {
        self.runs_up_to(u64::MAX)
    }

    /// The same, each run cut into parts of at most `max_blocks`.
    pub fn runs_up_to(&self, max_blocks: u64) -> Runs<'_> {
        Runs {
            bitmap: self,
            from: Block(0),
            max_blocks,
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let run = self.bitmap.next_run(self.from, self.max_blocks)?;
        self.from = run.end();
        Some(run)
    }
}
