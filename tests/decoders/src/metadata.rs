//! What a metadata store holds: superblock, activity log, directory and pages; and what tells a
//! store that is used by others.
//!
//! A store that was lived in is changed where the input says, and the checksums are put right or
//! not: behind a good checksum are our own bugs, and a store that somebody forged.

use std::sync::OnceLock;

use kagami_bitmap::recover::Recovered;
use kagami_bitmap::sector::SECTOR_BYTES;
use kagami_bitmap::superblock::{Backing, Record, Superblock};
use kagami_bitmap::{
    ActivityLog, Block, EXTENT, Extent, Fill, Format, Layout, Placement, Run, mirror_tag,
    read_slots, recover,
};
use kagami_replicator::shell::signature::look;

use crate::input::Input;

const MIRROR: u128 = 0x6b61_6761_6d69_0000_0000_0000_0000_0001;
const CAPACITY: u32 = 64;

/// A metadata store in memory.
#[derive(Clone)]
struct Image {
    bytes: Vec<u8>,
    layout: Layout,
}

impl Image {
    /// 30 extents on two pages, 3 of them hot, some blocks marked, the directory written. (Made once.)
    fn new(placement: Placement) -> Self {
        static OWN: OnceLock<Image> = OnceLock::new();
        static TAIL: OnceLock<Image> = OnceLock::new();
        let made = match placement {
            Placement::Own => &OWN,
            Placement::Tail => &TAIL,
        };
        made.get_or_init(|| Self::make(placement)).clone()
    }

    fn make(placement: Placement) -> Self {
        let size = 30 * EXTENT;
        let layout = Layout::new(size, CAPACITY, placement).expect("a layout");
        let backing = Backing {
            data_offset: 0,
            store_size: size,
        };
        let mut record = Record::new(MIRROR, 1, size);
        record.peer = Some(2);
        record.mint(7);
        let superblock = Superblock::new(layout, backing, 1_750_000_000, record);
        let mut image = Self {
            bytes: vec![0; layout.total_len as usize],
            layout,
        };
        for chunk in Format::new(&superblock, Fill::Blank) {
            image.write(chunk.offset, &chunk.bytes);
        }
        let recovered = image.recover().expect("a store just made");
        let mut bitmap = recovered.bitmap;
        for (first, count) in [(7, 3), (2000, 1500), (25_000, 600)] {
            bitmap.mark(Run::new(Block(first), count));
        }
        let mut seq = 1;
        while let Some(page) = { bitmap.stale_pages().next() } {
            let bytes = bitmap.page_image(page, seq);
            image.write(layout.page_offset(page), &bytes);
            bitmap.page_written(page, seq);
            seq += 1;
        }
        let mut log = ActivityLog::resume(recovered.log, mirror_tag(MIRROR));
        for extent in [3, 11, 29] {
            log.want(Extent(extent));
        }
        let cut = log.cut_record(|_| true).expect("there is something to say");
        image.write(layout.record_offset(cut.index), &cut.image);
        image
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn recover(&self) -> Option<Recovered> {
        recover(&self.bytes, self.layout.placement, None).ok()
    }
}

/// Puts the checksum of every sector right.
fn put_right(bytes: &mut [u8]) {
    for sector in bytes.chunks_exact_mut(SECTOR_BYTES) {
        if sector.iter().any(|byte| *byte != 0) {
            sector[12..16].fill(0);
            let sum = crc32c::crc32c(sector);
            sector[12..16].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// The two slots of a superblock.
pub fn superblock(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.u8();
    let placement = if how & 1 == 0 {
        Placement::Own
    } else {
        Placement::Tail
    };
    let image = Image::new(placement);
    let at = image.layout.slot_offset(0) as usize;
    let mut slots = image.bytes[at..at + 8192].to_vec();
    if how & 2 != 0 {
        // Both alike, as an update leaves them: a slot at a time would only be the one that loses.
        input.patch(&mut slots[..4096]);
        let (first, second) = slots.split_at_mut(4096);
        for (from, to) in first.chunks(512).zip(second.chunks_mut(512)) {
            to[..8].copy_from_slice(&from[..8]);
            to[20..].copy_from_slice(&from[20..]);
        }
    } else {
        input.patch(&mut slots);
    }
    if how & 4 != 0 {
        put_right(&mut slots);
    }
    let store_len = if how & 8 == 0 {
        image.layout.total_len
    } else {
        input.u64()
    };
    let expected = (how & 16 != 0).then_some(MIRROR);
    let Ok(read) = read_slots(&slots, store_len, expected) else {
        return;
    };
    let found = read.superblock;
    assert!(
        found.layout.total_len <= store_len,
        "more than the store has"
    );
    assert!(found.record.size <= found.layout.max_size);
    assert!(found.geometry().blocks() > 0);
    // What was understood can be written, and is understood the same.
    let spelled = [found.encode(0), found.encode(1)].concat();
    let back = read_slots(&spelled, store_len, expected).expect("what was written can be read");
    assert!(back.repair.is_none());
    assert_eq!(back.superblock.record, found.record);
    assert_eq!(back.superblock.layout, found.layout);
    assert_eq!(back.superblock.backing, found.backing);
}

/// The ring of the activity log, and the log's life after it was read.
pub fn activity_log(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.u8();
    let mut image = Image::new(Placement::Own);
    let ring = image.layout.log_offset as usize..image.layout.directory_offset as usize;
    input.patch(&mut image.bytes[ring.clone()]);
    if how & 1 != 0 {
        put_right(&mut image.bytes[ring]);
    }
    let Some(recovered) = image.recover() else {
        panic!("the superblock is whole");
    };
    for extent in &recovered.hot {
        let run = recovered.superblock.geometry().extent_run(*extent);
        assert_eq!(
            recovered.bitmap.count_in(run),
            run.count,
            "hot means marked"
        );
    }
    for (offset, bytes) in recovered.repair.iter().flatten() {
        image.write(*offset, bytes);
    }
    live(&mut input, &mut image, recovered);
}

/// Heats and cools extents; after each record the store tells the same hot set.
fn live(input: &mut Input<'_>, image: &mut Image, recovered: Recovered) {
    let extents = recovered.bitmap.extents();
    let mut log = ActivityLog::resume(recovered.log, mirror_tag(MIRROR));
    for _ in 0..input.below(12) {
        for _ in 0..input.below(9) {
            let extent = Extent(u32::from(input.u8()) % extents);
            if log.is_hot(extent) {
                log.touch(extent);
                if input.coin() {
                    log.cool(extent);
                }
            } else {
                log.want(extent);
            }
        }
        let Some(cut) = log.cut_record(|_| true) else {
            continue;
        };
        if input.below(5) == 0 {
            log.record_failed(cut.seq);
            continue;
        }
        image.write(image.layout.record_offset(cut.index), &cut.image);
        log.record_done(cut.seq);
        let mut found = image.recover().expect("the superblock is whole").hot;
        let mut hot: Vec<Extent> = log.hot().collect();
        found.sort_unstable();
        hot.sort_unstable();
        assert_eq!(found, hot, "the store tells another hot set");
    }
}

/// A whole store, recovered; and again after the repair that it asked for.
pub fn image(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.u8();
    let placement = if how & 1 == 0 {
        Placement::Own
    } else {
        Placement::Tail
    };
    let mut image = Image::new(placement);
    // Pages are far apart from the rest: each part gets its patches.
    let layout = image.layout;
    for (offset, len) in [
        (layout.slots_offset, 8192),
        (layout.directory_offset, 512),
        (layout.pages_offset, u64::from(layout.pages) * 4096),
        (layout.log_offset, u64::from(layout.log_records) * 4096),
    ] {
        if input.coin() {
            input.patch(&mut image.bytes[offset as usize..(offset + len) as usize]);
        }
    }
    if how & 2 != 0 {
        put_right(&mut image.bytes);
    }
    let Some(found) = image.recover() else {
        return;
    };
    assert_eq!(
        found.superblock.layout, layout,
        "version 1 has one layout for a size"
    );
    for (offset, bytes) in found.repair.iter().flatten() {
        image.write(*offset, bytes);
    }
    let again = image.recover().expect("a repaired store");
    assert!(
        again.repair.is_empty(),
        "one repair is enough: {:?}",
        again.findings
    );
    for run in found.bitmap.runs() {
        assert_eq!(again.bitmap.count_in(run), run.count, "a repair lost marks");
    }
}

/// What is seen of a store's start (ZFS signs up to there) and of its end, bytes.
const HEAD_BYTES: usize = 256 << 10;
const TAIL_BYTES: usize = 64 << 10;

/// What another may have left on a store.
pub fn foreign(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let lens = [input.u32() as usize, input.u32() as usize];
    let mut head = vec![0; lens[0] % (HEAD_BYTES + 1)];
    let mut tail = vec![0; lens[1] % (TAIL_BYTES + 1)];
    input.patch(&mut head);
    input.patch(&mut tail);
    let tail_start = (head.len() as u64).next_multiple_of(4096);
    let size = tail_start + tail.len() as u64;
    let used = look(&[(0, &head), (tail_start, &tail)], size);
    let blank = head.iter().chain(&tail).all(|byte| *byte == 0);
    assert_eq!(used.is_none(), blank, "{used:?}");
    if let Some(used) = used {
        assert!(!used.to_string().is_empty());
    }
}
