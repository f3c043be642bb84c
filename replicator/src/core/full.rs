//! A store without room for a write: is it the write that fails, or the copy (docs/design.md §5.9)?
//!
//! The copy fails, as with a bad disk, where the other one is known to go on without it: a target's, and a Primary's
//! in sync, once the peer has that very write. In every other case this may be the last copy. The
//! block's content is undefined then, and differs.

use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::superblock::StoredDisk;

use super::link::Phase;
use super::write::{Copy, Origin, WriteKey};
use super::{Actions, DiskFault, Mirror, Store};

impl Mirror {
    /// True if a full store detaches this copy, as a failed one does: the other copy is good, and goes on
    /// without it. In any other case this may be the last one, and only the write fails (docs/design.md §5.9).
    pub(super) fn gives_way_when_full(&self) -> bool {
        let is_target = matches!(self.up().map(|up| &up.phase), Some(Phase::Target(_)))
            && self.record().disk == StoredDisk::Inconsistent;
        let is_carried_then = self.is_primary() && self.is_in_sync();
        // (What ends on a store that has failed since keeps nothing.)
        let is_gone = self.local.store != Store::Usable;
        is_gone || is_target || is_carried_then || planted(Defect::FullCopyDetached)
    }

    /// True if the peer, in sync, has not said what became of this write there.
    pub(super) fn has_word_to_wait_for(&self, key: WriteKey) -> bool {
        self.is_in_sync()
            && matches!(self.writes[key.0].peer, Copy::Owed | Copy::Received)
            && !planted(Defect::FullCopyDetached)
    }

    /// A write failed here, and may be there in part: the block differs.
    pub(super) fn on_store_full(&mut self, key: WriteKey, out: &mut Actions) {
        let carries = self.carries();
        let write = &mut self.writes[key.0];
        write.local = Copy::NoSpace;
        self.bitmap.mark(write.span);
        let of_peer = matches!(write.origin, Origin::Peer { .. });
        if of_peer {
            // Told, that is all there is to it.
            self.advance_write(key, out);
        }
        if !carries {
            // The other copy may have it: it is made equal when both meet again.
            let cause = "the local store is full: a write failed here and may be there";
            self.close_session(cause, out);
        }
        // (It may have been answered as the session ended.)
        if !of_peer && self.writes.contains(key.0) {
            self.advance_write(key, out);
        }
    }

    /// The peer has a write that this copy has no room for: it goes on without this one.
    pub(super) fn give_way(&mut self, key: WriteKey, out: &mut Actions) {
        if !self.is_primary() {
            return self.on_store_full(key, out);
        }
        self.writes[key.0].local = Copy::None;
        self.advance_write(key, out);
        self.on_local_failed(DiskFault::NoSpace, "writing", out);
    }
}
