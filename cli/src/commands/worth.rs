//! What a copy is worth that is to be given up, by its own record: the peer has all of it only if that says so.
//!
//! For `replace-disk` and `pair --join … --give-up-copy`.

use std::path::Path;
use std::time::Duration;

use kagami_bitmap::superblock::StoredDisk;
use kagami_replicator::shell::engine::OfflineCopy;
use kagami_replicator::shell::fence::StoreFile;

use crate::render::units::size;

/// A judgement of a copy.
#[derive(Debug)]
pub struct Worth {
    /// What it is, for people: "it is generation 43, Consistent, 212 GiB marked that the peer may lack".
    pub words: String,
    /// Why it may be the only good one, if it may.
    pub needed: Option<String>,
}

impl Worth {
    /// Judges a copy of node `node`'s, which nobody takes up while it is judged. `backing`: its data.
    pub fn of(copy: &OfflineCopy, node: u64, backing: &Path) -> Self {
        let record = copy.record();
        let generation = record.current.map_or_else(
            || "it was never written".to_owned(),
            |current| format!("it is generation {}", current.counter),
        );
        let state = match record.disk {
            StoredDisk::Consistent => "Consistent",
            StoredDisk::Outdated => "Outdated",
            StoredDisk::Inconsistent => "Inconsistent",
        };
        let marked = size(copy.marked_bytes());
        let mut words = format!("{generation}, {state}, {marked} marked that the peer may lack");
        // One that somebody holds can be read all the same.
        let unread = StoreFile::open(backing, Duration::ZERO)
            .err()
            .filter(|error| !error.is_held());
        if let Some(error) = &unread {
            words.push_str(&format!("; its data can't be read now: {error}"));
        }
        let needed = if record.node != node || record.current.is_none() || record.is_bad() {
            None
        } else if record.peer.is_none() {
            Some("it is the only copy")
        } else if record.alone {
            Some("it went on alone, and the peer lacks what was written here")
        } else if unread.is_some() {
            // A disk that died, of a pair: what the peer lacks of it, if anything, was never answered.
            None
        } else {
            Some(
                "nothing says that the peer has a good copy: this node did not leave as a Secondary of a Primary there",
            )
        };
        Self {
            words,
            needed: needed.map(str::to_owned),
        }
    }
}
