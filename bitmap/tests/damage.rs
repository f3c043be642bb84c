//! Torn and damaged stores: every mix of sectors, every flipped bit, any bytes at all.

mod common;

use common::{MIRROR, SECTOR, Store, full_record};
use kagami_bitmap::recover::{Recovered, Recovery};
use kagami_bitmap::sector::UNREADABLE;
use kagami_bitmap::superblock::{Generation, HISTORY_MAX, Record, Superblock};
use kagami_bitmap::{
    ActivityLog, Block, EXTENT, Extent, Fill, Finding, Page, Placement, Run, SuperblockFault,
    mirror_tag, read_slots, recover,
};
use proptest::prelude::*;

/// 30 extents: two pages.
fn lived_in() -> Store {
    lived_in_of(30)
}

/// 3 hot extents, some blocks marked on pages, the directory written.
fn lived_in_of(extents: u32) -> Store {
    let mut store = Store::new(extents, 64, Fill::Blank);
    let recovered = store.look();
    let mut bitmap = recovered.bitmap;
    for (first, count) in [(7, 3), (2000, 1500), (25_000, 600)] {
        let run = Run::new(Block(first), count).intersect(bitmap.all());
        run.map(|run| bitmap.mark(run));
    }
    let mut seq = 1;
    while let Some(page) = { bitmap.stale_pages().next() } {
        let image = bitmap.page_image(page, seq);
        store.write(store.layout.page_offset(page), &image);
        bitmap.page_written(page, seq);
        seq += 1;
    }
    let mut log = ActivityLog::resume(recovered.log, mirror_tag(MIRROR));
    for extent in [3, 11, 29] {
        log.want(Extent(extent % extents));
    }
    let cut = log.cut_record(|_| true).unwrap();
    store.write(store.layout.record_offset(cut.index), &cut.image);
    store
}

#[test]
fn an_update_torn_anywhere_leaves_the_old_or_the_new_record() {
    let mut store = Store::new(3, 64, Fill::Blank);
    let old = store.look().superblock;
    let mut new = old.clone();
    new.record = full_record(old.record.size);
    new.seq += 1;
    let steps = new.steps();
    let [first, second] = [&steps[0][0], &steps[1][0]];
    for mask in 0..=255u8 {
        let mut torn = store.clone();
        torn.tear(first.0, &first.1, mask);
        let expected = if mask == 0xff { &new } else { &old };
        check_next_update(&torn, &expected.record, mask);
    }
    store.write(first.0, &first.1);
    for mask in 0..=255u8 {
        let mut torn = store.clone();
        torn.tear(second.0, &second.1, mask);
        check_next_update(&torn, &new.record, mask);
    }
}

/// Reads `record`, and an update made from there may be torn again, also so that every
/// sector is of one of the two attempts (`mask`: those of the first).
fn check_next_update(store: &Store, record: &Record, mask: u8) {
    let found = store.look();
    assert_eq!(&found.superblock.record, record);
    assert!(!found.findings.iter().any(Finding::is_damage));
    let mut next = found.superblock;
    next.seq += 1;
    next.record.mint(0xabcd);
    let mut store = store.clone();
    for (offset, image) in found.repair.iter().flatten() {
        tear_again(&store, *offset, image, mask, &[record]);
        store.write(*offset, image);
    }
    for (offset, image) in next.steps().iter().flatten() {
        tear_again(&store, *offset, image, mask, &[record, &next.record]);
        store.write(*offset, image);
    }
    let found = store.look();
    assert_eq!(found.superblock.record, next.record);
    assert_eq!((found.findings.len(), found.repair.len()), (0, 0));
}

fn tear_again(store: &Store, offset: u64, image: &[u8], mask: u8, may_be: &[&Record]) {
    for mask in [0x00, 0x01, 0x80, 0xaa, !mask] {
        let mut torn = store.clone();
        torn.tear(offset, image, mask);
        assert!(may_be.contains(&&torn.look().superblock.record));
    }
}

#[test]
fn a_record_comes_back_whole() {
    for placement in [Placement::Own, Placement::Tail] {
        let mut superblock = common::superblock(5 * EXTENT + 512, 1024, placement);
        superblock.record = full_record(5 * EXTENT + 512);
        let store = Store::format(&superblock, Fill::Clean);
        let found = store.look();
        assert_eq!(found.superblock.record, superblock.record);
        assert_eq!(found.superblock.layout, superblock.layout);
        assert_eq!(found.findings, []);
    }
}

#[test]
fn minting_follows_the_protocol_and_bounds_the_history() {
    let mut record = Record::new(MIRROR, 1, EXTENT);
    record.zeroed = true;
    record.mint(1);
    assert_eq!(
        (record.current.unwrap().counter, record.history.len()),
        (1, 0)
    );
    assert!(record.alone && record.base.is_none() && !record.zeroed);
    record.mint(2);
    assert_eq!(record.base.unwrap().tag, 1);
    for tag in 3..200 {
        record.mint(tag);
    }
    assert_eq!(record.base.unwrap().tag, 1);
    assert_eq!(record.history.len(), HISTORY_MAX);
    assert_eq!(record.history.last().unwrap().tag, 1, "the base stays");
    assert_eq!(record.history[0].tag, 198);
    assert!(record.knows(1) && record.knows(150) && !record.knows(50) && !record.knows(199));
    assert!(record.in_line(199));
    // A peer may have offered any counter, and this copy adopted it.
    record.current = Some(Generation {
        counter: u64::MAX,
        tag: 1_000,
    });
    record.mint(1_001);
    assert_eq!(record.current.unwrap().tag, 1_001);
}

#[test]
fn a_flipped_bit_in_a_superblock_slot_is_seen_and_survived() {
    let mut store = lived_in();
    let superblock = store.look().superblock;
    let slots = 2 * 4096;
    for bit in 0..slots * 8 {
        store.flip(bit);
        let read = read_slots(&store.bytes[..slots], store.layout.total_len, Some(MIRROR)).unwrap();
        assert_eq!(read.superblock.record, superblock.record, "bit {bit}");
        let (slot, _) = read.repair.unwrap_or_else(|| panic!("bit {bit} unseen"));
        assert_eq!((slot, read.superblock.first_slot), (bit / 8 / 4096, slot));
        store.flip(bit);
    }
}

#[test]
fn a_flipped_bit_in_the_log_marks_everything() {
    let mut store = lived_in_of(4);
    let start = store.layout.log_offset as usize * 8;
    // Each bit of the newest record: replay.rs. Here the whole ring, in steps, to the end.
    let ring = start..start + store.layout.log_records as usize * 4096 * 8;
    for bit in ring.step_by(251) {
        store.flip(bit);
        let found = store.look();
        assert_eq!(found.bitmap.count(), found.bitmap.blocks(), "bit {bit}");
        assert!(found.findings.iter().any(Finding::is_damage), "bit {bit}");
        store.flip(bit);
    }
    assert_eq!(store.look().findings, []);
}

#[test]
fn a_flipped_bit_in_a_page_marks_what_its_sector_covers() {
    let mut store = lived_in_of(6);
    let sound = store.look().bitmap;
    let page = store.layout.page_offset(Page::bitmap(0)) as usize;
    for bit in page * 8..(page + 2 * SECTOR) * 8 {
        store.flip(bit);
        let found = store.look();
        let sector = (bit / 8 - page) / SECTOR;
        let covered = Run::new(Block(sector as u64 * 3 * 1024), 3 * 1024);
        assert_eq!(found.bitmap.count_in(covered), covered.count, "bit {bit}");
        assert!(found.bitmap.is_page_stale(Page::bitmap(0)));
        assert!(found.findings.iter().any(Finding::is_damage), "bit {bit}");
        for run in sound.runs() {
            assert_eq!(found.bitmap.count_in(run), run.count);
        }
        store.flip(bit);
    }
}

#[test]
fn a_flipped_bit_in_the_directory_is_seen() {
    let mut store = lived_in_of(6);
    let sound = store.look().bitmap;
    let directory = store.layout.directory_offset as usize;
    for bit in directory * 8..(directory + SECTOR) * 8 {
        store.flip(bit);
        let found = store.look();
        assert!(found.findings.iter().all(Finding::is_damage), "bit {bit}");
        assert_eq!(found.findings.len(), 1);
        assert!(found.bitmap.is_page_stale(Page::directory(0)));
        assert!(sound.runs().eq(found.bitmap.runs()), "no page is blank");
        store.flip(bit);
    }
}

/// One damage is noticed; the power fails somewhere in its repair, with any part of the step under way on
/// the disk; then any other sector goes bad. Until the repair is durable the worst is assumed anew at
/// each reading, from the bad sector itself; afterwards the record says it.
#[test]
fn a_second_damage_while_the_repair_of_the_first_is_cut_short_loses_no_mark() {
    let sound = lived_in_of(6);
    let marks = sound.look().bitmap;
    let sectors = sound.bytes.len() / SECTOR;
    let bits = |nth: usize| (0..sectors).map(move |at| at * SECTOR * 8 + nth);
    let (mut refused, mut cut) = (0, 0);
    for first in bits(300).step_by(5) {
        let mut store = sound.clone();
        store.flip(first);
        let repair = store.look().repair;
        for (nth, step) in repair.iter().enumerate() {
            for mask in [0x00, 0x81, 0x7e_u8] {
                let mut store = store.clone();
                for (offset, image) in repair.iter().take(nth).flatten() {
                    store.write(*offset, image);
                }
                for (at, (offset, image)) in (0u32..).zip(step) {
                    store.tear(*offset, image, mask.rotate_left(at));
                }
                cut += 1;
                for second in bits(2000).filter(|at| at / 4096 != first / 4096) {
                    store.flip(second);
                    match recover(&store.bytes, store.layout.placement, Some(MIRROR)) {
                        Ok(found) => {
                            for run in marks.runs() {
                                let kept = found.bitmap.count_in(run);
                                assert_eq!(
                                    kept, run.count,
                                    "bits {first} and {second}, {nth} {mask}"
                                );
                            }
                        }
                        // A slot that the cut left torn, and the other.
                        Err(SuperblockFault::BothDamaged { .. }) => refused += 1,
                        Err(fault) => panic!("bits {first} and {second}: {fault}"),
                    }
                    store.flip(second);
                }
            }
        }
    }
    assert!(
        cut > 100 && refused > 0,
        "{cut} repairs cut, {refused} refused"
    );
}

#[test]
fn a_wiped_page_under_a_damaged_directory_is_marked() {
    let mut store = lived_in();
    let page = Page::bitmap(0);
    store.write(store.layout.page_offset(page), &[0; 4096]);
    let directory = store.layout.directory_offset as usize;
    store.flip(directory * 8 + 77);
    let found = store.look().bitmap;
    let all = Run::new(Block(0), 24 * 1024);
    assert_eq!(found.count_in(all), all.count);
}

#[test]
fn each_wrong_store_has_its_error() {
    let store = lived_in();
    let read = |bytes: &[u8], expected| {
        let error = recover(bytes, Placement::Own, expected).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("next: "), "{text}");
        error
    };
    let total = store.bytes.len();
    assert_eq!(read(&vec![0; total], None), SuperblockFault::Blank);
    assert_eq!(read(&vec![0xe5; total], None), SuperblockFault::Foreign);
    let other = SuperblockFault::OtherMirror {
        found: MIRROR,
        expected: 5,
    };
    assert_eq!(read(&store.bytes, Some(5)), other);
    for has in [0, 4096, 8191, 8192, total - 1] {
        let error = read(&store.bytes[..has], None);
        assert!(
            matches!(error, SuperblockFault::Truncated { .. }),
            "{has}: {error}"
        );
    }
    let mut both = store.clone();
    both.flip(700 * 8);
    both.flip(4096 * 8 + 9);
    assert!(matches!(
        read(&both.bytes, None),
        SuperblockFault::BothDamaged { .. }
    ));
    // What can't be read is nobody else's.
    for slots in [0..8192, 0..512, 4096..8192] {
        let mut unread = vec![0xe5; total];
        unread[slots].fill(UNREADABLE);
        let error = read(&unread, None);
        assert!(matches!(error, SuperblockFault::BothDamaged { .. }));
        let text = error.to_string();
        assert!(text.contains("the disk refuses to read it"), "{text}");
        assert!(text.contains("what is wrong with the disk"), "{text}");
    }
    let mut newer = store.clone();
    for sector in newer.bytes[..8192].chunks_exact_mut(SECTOR) {
        sector[8] = 2;
        sector[12..16].fill(0);
        let crc = crc32c::crc32c(sector);
        sector[12..16].copy_from_slice(&crc.to_le_bytes());
    }
    assert_eq!(
        read(&newer.bytes, None),
        SuperblockFault::Newer { found: 2 }
    );
}

#[test]
fn an_interrupted_creation_is_no_store() {
    let superblock = common::superblock(30 * EXTENT, 64, Placement::Own);
    let old = lived_in();
    let chunks: Vec<_> = kagami_bitmap::Format::new(&superblock, Fill::Marked).collect();
    assert!(chunks[1].flush_before && chunks[chunks.len() - 2].flush_before);
    let mut store = old.clone();
    for (done, chunk) in chunks.iter().enumerate() {
        if (1..=chunks.len() - 2).contains(&done) {
            let error = recover(&store.bytes, Placement::Own, None).unwrap_err();
            assert_eq!(error, SuperblockFault::Blank, "after {done} chunks");
        }
        store.write(chunk.offset, &chunk.bytes);
    }
    let found = store.look();
    assert_eq!(found.bitmap.count(), found.bitmap.blocks());
    assert_eq!(
        (found.findings.len(), found.bitmap.stale_page_count()),
        (0, 0)
    );
}

#[test]
fn marks_of_everything_fit_one_superblock_write() {
    let mut store = Store::new(30, 64, Fill::Blank);
    let mut superblock: Superblock = store.look().superblock;
    superblock.seq += 1;
    superblock.record.all_marked = true;
    for (offset, bytes) in superblock.steps().iter().flatten() {
        store.write(*offset, bytes);
    }
    let found = store.look();
    assert_eq!(found.bitmap.count(), found.bitmap.blocks());
    assert_eq!(found.findings, [Finding::AllMarked]);
}

#[test]
fn sectors_that_follow_each_other_are_one_finding() {
    let mut store = lived_in();
    let page = store.layout.page_offset(Page::bitmap(0)) as usize;
    for sector in [1, 2, 3, 6, 7, 8] {
        store.flip((page + sector * SECTOR + 100) * 8);
    }
    let found = store.look().findings;
    let spans: Vec<_> = found
        .iter()
        .map(|finding| match finding {
            Finding::Pages {
                first_sector,
                sectors,
                ..
            } => (*first_sector, *sectors),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(spans, [(1, 3), (6, 3)]);
}

#[test]
fn a_damaged_sector_of_the_directory_has_the_page_that_it_is_in_written() {
    // Room to grow to what takes a second page of the directory; that one is not this bitmap's.
    let mut head = common::superblock(3 << 40, 64, Placement::Own);
    head.record.size = 2 * EXTENT;
    let mut store = Store::format(&head, Fill::Blank);
    assert_eq!(store.layout.directory_pages, 2);
    for sector in 0..16 {
        let bit = (store.layout.directory_offset as usize + sector * SECTOR + 100) * 8;
        store.flip(bit);
        let found = store.look();
        assert!(found.findings.iter().all(Finding::is_damage));
        let stale = found.bitmap.stale_pages();
        let stale: Vec<_> = stale.filter(|page| page.is_directory()).collect();
        let expected = if sector < 8 {
            vec![Page::directory(0)]
        } else {
            Vec::new()
        };
        assert_eq!(stale, expected, "sector {sector}");
        store.flip(bit);
    }
}

#[test]
fn pages_behind_the_present_size_are_not_looked_at() {
    let mut head = common::superblock(60 * EXTENT, 64, Placement::Own);
    head.record.size = 24 * EXTENT;
    let store = Store::format(&head, Fill::Clean);
    let (layout, slots) = (store.layout, &store.bytes[..8192]);
    let area = |offset: u64, units: u32| &store.bytes[offset as usize..][..units as usize * 4096];
    let mut recovery = Recovery::new(read_slots(slots, layout.total_len, None).unwrap());
    recovery.log(area(layout.log_offset, layout.log_records));
    recovery.directory(area(layout.directory_offset, layout.directory_pages));
    assert_eq!((recovery.pages_wanted(), layout.pages), (1, 3));
    recovery.pages(area(layout.pages_offset, layout.pages));
    let found = recovery.finish();
    assert_eq!((found.findings.len(), found.bitmap.count()), (0, 0));
}

#[test]
fn what_a_new_store_holds_is_known_without_reading_it() {
    for all_marked in [false, true] {
        let mut superblock = common::superblock(30 * EXTENT, 64, Placement::Own);
        superblock.record.all_marked = all_marked;
        let found = Store::format(&superblock, Fill::Blank).look();
        let known = Recovered::of_new(superblock);
        assert_eq!(format!("{found:?}"), format!("{known:?}"));
    }
}

#[test]
fn a_page_that_the_directory_does_not_tell_of_yet_is_told_of_at_the_next_opportunity() {
    let mut store = Store::new(30, 64, Fill::Blank);
    let mut bitmap = store.look().bitmap;
    bitmap.mark(Run::new(Block(7), 3));
    let image = bitmap.page_image(Page::bitmap(0), 1);
    store.write(store.layout.page_offset(Page::bitmap(0)), &image);
    let found = store.look();
    assert_eq!((found.findings.len(), found.bitmap.count()), (0, 3));
    let stale: Vec<_> = found.bitmap.stale_pages().collect();
    assert_eq!(stale, [Page::directory(0)]);
}

#[test]
fn two_whole_slots_that_no_sequence_of_updates_leaves_are_refused() {
    let store = Store::new(3, 64, Fill::Blank);
    let sound = store.look().superblock;
    let with_second = |second: &Superblock| {
        let mut store = store.clone();
        store.write(4096, &second.encode(1));
        recover(&store.bytes, Placement::Own, None).map(|found| found.superblock.record)
    };
    let disagree = |second: &Superblock| {
        let expected = SuperblockFault::SlotsDisagree {
            first: sound.seq,
            second: second.seq,
        };
        assert_eq!(with_second(second).unwrap_err(), expected);
    };
    let mut other = sound.clone();
    other.record.mirror += 1 << 64;
    disagree(&other);
    other.seq += 1;
    disagree(&other);
    let mut same_number = sound.clone();
    same_number.record.mint(9);
    disagree(&same_number);
    let mut next = same_number;
    next.seq += 1;
    assert_eq!(with_second(&next).unwrap(), next.record);
    assert_eq!(with_second(&sound).unwrap(), sound.record);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_are_read_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..20_000),
        at in 0..60_000usize,
    ) {
        let _ = recover(&bytes, Placement::Own, None);
        let _ = recover(&bytes, Placement::Tail, None);
        // Garbage over a part of a good store: an error, or more marks and a finding.
        let mut store = lived_in();
        let sound = store.look();
        let at = at % store.bytes.len();
        let len = bytes.len().min(store.bytes.len() - at);
        store.bytes[at..at + len].copy_from_slice(&bytes[..len]);
        if let Ok(found) = recover(&store.bytes, Placement::Own, None) {
            prop_assert!(sound.bitmap.runs().all(|run| found.bitmap.count_in(run) == run.count));
            let seen = found.findings.iter().any(Finding::is_damage);
            prop_assert!(seen || len < 16 || store.bytes == lived_in().bytes);
        }
    }

    #[test]
    fn a_valid_sector_with_any_payload_does_no_harm(payload in prop::collection::vec(any::<u8>(), 472), nth in 0..8usize) {
        // A good checksum over nonsense (our own bug, or a clever foe): no panic.
        let mut store = lived_in();
        for area in [0, store.layout.log_offset, store.layout.directory_offset, store.layout.pages_offset] {
            let start = area as usize + nth * SECTOR;
            let sector = &mut store.bytes[start..start + SECTOR];
            sector[40..].copy_from_slice(&payload);
            sector[12..16].fill(0);
            let crc = crc32c::crc32c(sector);
            store.bytes[start + 12..start + 16].copy_from_slice(&crc.to_le_bytes());
            let _ = recover(&store.bytes, Placement::Own, None);
        }
    }
}
