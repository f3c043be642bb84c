//! What holds between any two events, asserted: one function for each name of docs/design.md §4
//! that one node alone can check. The simulator calls it after every event, and checks from
//! outside what takes both nodes.

use kagami_bitmap::superblock::StoredDisk;

use super::durable::After;
use super::link::Phase;
use super::write::{Copy, Origin, Stage};
use super::{Mirror, Store};

impl Mirror {
    /// Asserts everything below.
    pub fn check(&self) {
        self.one_writer();
        self.no_stale_promotion();
        self.marked_before_different();
        self.named_at_once();
        self.read_your_writes();
        self.cleared_only_when_equal();
        self.durable_both();
    }

    /// *One-writer*: alone only in a generation that was never offered, and never in sync.
    fn one_writer(&self) {
        if self.alone.is_some() {
            assert!(
                self.record().alone,
                "One-writer: alone, and the record does not say so"
            );
            assert!(!self.is_in_sync(), "One-writer: alone while in sync");
        }
    }

    /// *No-stale-promotion*: a Primary's copy is good, or failed after it became Primary, or nothing is
    /// answered from it (a guest).
    fn no_stale_promotion(&self) {
        if self.is_guest() {
            assert!(
                self.alone.is_none() && self.attempt.is_none(),
                "No-stale-promotion: a guest has a permission of its own"
            );
            assert!(
                self.reads_local().next().is_none() && !self.owes_disk_writes(|w| w.pinned),
                "No-stale-promotion: a guest uses its own copy"
            );
        } else if self.is_primary() && self.local.store == Store::Usable {
            assert_eq!(
                self.record().disk,
                StoredDisk::Consistent,
                "No-stale-promotion"
            );
            assert!(
                self.record().was_primary,
                "a Primary has recorded that it is"
            );
        }
        if let Some(Phase::Target(target)) = self.up().map(|up| &up.phase) {
            assert!(
                !self.is_primary() || self.is_guest() || target.adopted,
                "No-stale-promotion: a target is Primary"
            );
        }
    }

    /// *Marked-before-different*: what is under way or unflushed lies in hot extents; in sync, or as
    /// a source, unflushed blocks are in a set of their own, else in the bitmap.
    fn marked_before_different(&self) {
        if self.local.store != Store::Usable {
            return;
        }
        for (_, write) in self
            .writes
            .iter()
            .filter(|(_, w)| w.stage == Stage::Started)
        {
            if matches!(write.origin, Origin::Peer { .. }) && !write.pinned {
                continue;
            }
            if !write.pinned {
                continue;
            }
            for extent in write.span.extents() {
                assert!(
                    self.log.is_hot(extent),
                    "Marked-before-different: {extent} is cold under a write"
                );
            }
            if write.local != Copy::Done || write.peer == Copy::Lost {
                assert!(
                    self.lacks(write.span),
                    "Marked-before-different: {} is not marked",
                    write.span
                );
            }
        }
        if self.up().is_none() {
            assert!(
                self.unflushed.is_empty(),
                "Marked-before-different: unflushed blocks without a session"
            );
        }
    }

    /// *Marked-before-different*, whatever the disk loses: what was written is named in the directory, or about to be.
    fn named_at_once(&self) {
        if self.local.store != Store::Usable || self.pages.under_way > 0 {
            return;
        }
        let mut stale = self.bitmap.stale_directory_pages();
        assert_eq!(
            stale.next(),
            None,
            "Marked-before-different: a page that is lost would pass for one never written"
        );
    }

    /// *Read-your-writes*: locked spans belong to somebody.
    fn read_your_writes(&self) {
        if self.writes.is_empty()
            && self.reads.is_empty()
            && self.verify.is_none()
            && !self.is_source()
            && self.disk.is_empty()
            // A verification may be over, and the peer still reading blocks for it.
            && self.up().is_none_or(|up| up.reads.is_empty())
        {
            assert_eq!(
                self.spans.len(),
                0,
                "Read-your-writes: a span is locked by nobody"
            );
        }
    }

    /// *Cleared-only-when-equal*: "nothing to do" while marks are there is no state of a mirror.
    fn cleared_only_when_equal(&self) {
        let explained = self.record().verify_found
            || self.durable.is_changing()
            || self
                .durable
                .awaits(|after| matches!(after, After::Invalidated { .. }));
        if self.is_in_sync() && !explained {
            assert_eq!(
                self.bitmap.count(),
                0,
                "Cleared-only-when-equal: in sync with marked blocks"
            );
        }
    }

    /// *Durable-both*: who waits for a flush waits in one place.
    fn durable_both(&self) {
        if self.jobs.is_empty() {
            assert!(
                self.flush.requests.is_empty() && self.held.is_empty(),
                "a request without a job waits"
            );
        }
    }
}
