//! A copy's metadata while no daemon has them: for commands that change what a running mirror can't.
//!
//! The fence is the daemon's own ([`StoreFile`]): a copy that is served, or that a killed daemon's
//! writes are still landing on, is not opened. Every change is durable when it returns. What is
//! allowed is the command's to know; here is only how it is written. All of it blocks.

use std::path::Path;
use std::time::Duration;

use kagami_bitmap::superblock::{Record, Superblock};
use kagami_bitmap::{BLOCK, Block, Page, Placement, Recovered, Run};

use super::start::{Reader, StartError};
use crate::shell::fence::StoreFile;
use crate::shell::storage::Area;

/// Pages cut and written at a time.
const PAGES_AT_ONCE: usize = 256;

/// The metadata of one copy, open and fenced.
#[derive(Debug)]
pub struct OfflineCopy {
    name: String,
    store: StoreFile,
    area: Area,
    recovered: Recovered,
}

impl OfflineCopy {
    /// Opens the metadata store of mirror `name`, whose id is `mirror`, and repairs what a crash
    /// left. A store that somebody holds is tried for `wait`.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing was changed in a store that is refused.
    pub fn open(
        name: &str,
        mirror: u128,
        metadata: &Path,
        wait: Duration,
    ) -> Result<Self, StartError> {
        let store = StoreFile::open(metadata, wait).map_err(|error| StartError::Fence {
            mirror: name.to_owned(),
            error,
        })?;
        let reader = Reader::new(&store, name)?;
        let (mut recovered, area) = reader.recover(Placement::Own, mirror)?;
        reader.repair(area, &mut recovered)?;
        Ok(Self {
            name: name.to_owned(),
            area,
            recovered,
            store,
        })
    }

    /// The superblock, as it is on disk.
    pub fn superblock(&self) -> &Superblock {
        &self.recovered.superblock
    }

    /// The record of the copy.
    pub fn record(&self) -> &Record {
        &self.recovered.superblock.record
    }

    /// Bytes of marked blocks.
    pub fn marked_bytes(&self) -> u64 {
        self.recovered.bitmap.count() * BLOCK
    }

    /// Replaces the record.
    ///
    /// # Errors
    ///
    /// The store can't be written: it holds the old record or the new one.
    pub fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), StartError> {
        let mut superblock = self.recovered.superblock.clone();
        change(&mut superblock.record);
        superblock.seq += 1;
        let reader = Reader::new(&self.store, &self.name)?;
        reader.write(self.area, superblock.steps(), "writing the record")?;
        self.recovered.superblock = superblock;
        Ok(())
    }

    /// Makes the mirror `size` bytes long: more than it is, a multiple of 4096, at most the
    /// layout's maximum. What is new counts as marked unless it is known to read as zeroes on this
    /// store (`zeroed`). A crash on the way leaves it as long as it was.
    ///
    /// # Errors
    ///
    /// The store can't be written.
    pub fn grow(&mut self, size: u64, zeroed: bool) -> Result<(), StartError> {
        let old = self.record().size;
        assert!(
            size > old && size.is_multiple_of(BLOCK) && size <= self.superblock().layout.max_size,
            "from {old} to {size} bytes"
        );
        let (first, end) = (old / BLOCK, size / BLOCK);
        let bitmap = &mut self.recovered.bitmap;
        bitmap.grow(end);
        if !zeroed {
            bitmap.mark(Run::new(Block(first), end - first));
        }
        // Behind the present end the pages say nothing to anybody until the record counts them in.
        let reader = Reader::new(&self.store, &self.name)?;
        loop {
            let pages: Vec<Page> = bitmap.stale_pages().take(PAGES_AT_ONCE).collect();
            if pages.is_empty() {
                break;
            }
            let mut writes = Vec::with_capacity(pages.len());
            for page in &pages {
                let seq = self.recovered.next_page_seq;
                self.recovered.next_page_seq += 1;
                let offset = self.recovered.superblock.layout.page_offset(*page);
                writes.push((offset, bitmap.page_image(*page, seq)));
                bitmap.page_written(*page, seq);
            }
            reader.write(self.area, vec![writes], "writing the bitmap")?;
        }
        self.change(|record| {
            record.size = size;
            record.zeroed &= zeroed;
        })
    }
}
