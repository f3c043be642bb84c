//! Pages of the bitmap over the life of a store: a mirror becomes larger, a first write is cut short.
//! Growing keeps every mark, over pages that were never written.

mod common;

use kagami_bitmap::{Block, DirtyBitmap, EXTENT, Fill, Page, Placement, Run};
use proptest::prelude::*;

use common::{Store, superblock};

const EXTENT_BLOCKS: u64 = EXTENT / 4096;

/// Writes every stale page, as the command that grows does.
fn write_pages(store: &mut Store, bitmap: &mut DirtyBitmap, seq: &mut u64) {
    loop {
        let pages: Vec<Page> = bitmap.stale_pages().collect();
        if pages.is_empty() {
            return;
        }
        for page in pages {
            let image = bitmap.page_image(page, *seq);
            bitmap.page_written(page, *seq);
            *seq += 1;
            store.write(store.layout.page_offset(page), &image);
        }
    }
}

proptest! {
    #[test]
    fn marks_stay_and_new_blocks_are_as_told(
        old in 1u64..400,
        more in 1u64..(70 * EXTENT_BLOCKS),
        marks in prop::collection::vec((0u64..400, 1u64..40), 0..8),
        mark_new: bool,
    ) {
        let max = 100 * EXTENT;
        let old = old * 97 % (3 * EXTENT_BLOCKS) + 1;
        let new = old + more;
        // The layout has room for the new size; the record says the old one.
        let mut head = superblock(max, 64, Placement::Own);
        head.record.size = old * 4096;
        let mut store = Store::format(&head, Fill::Blank);
        let recovered = store.recover();
        let (mut bitmap, mut seq) = (recovered.bitmap, recovered.next_page_seq);
        let mut expected = vec![false; new as usize];
        for (first, count) in marks {
            let first = first * 31 % old;
            let run = Run::new(Block(first), count.min(old - first));
            bitmap.mark(run);
            expected[first as usize..run.end().0 as usize].fill(true);
        }
        write_pages(&mut store, &mut bitmap, &mut seq);
        bitmap.grow(new);
        if mark_new {
            bitmap.mark(Run::new(Block(old), more));
            expected[old as usize..].fill(true);
        }
        write_pages(&mut store, &mut bitmap, &mut seq);
        // Before the record says so, nothing has changed; after it, everything is there.
        let before = store.recover();
        prop_assert_eq!(before.bitmap.blocks(), old);
        prop_assert!(before.findings.is_empty(), "{:?}", before.findings);
        let marked = |bitmap: &DirtyBitmap, blocks: u64| -> Vec<bool> {
            (0..blocks).map(|block| bitmap.is_marked(Block(block))).collect()
        };
        prop_assert_eq!(marked(&before.bitmap, old), expected[..old as usize].to_vec());
        let mut grown = before.superblock.clone();
        grown.record.size = new * 4096;
        grown.seq += 1;
        for (offset, bytes) in grown.steps().into_iter().flatten() {
            store.write(offset, &bytes);
        }
        let after = store.recover();
        prop_assert!(after.findings.is_empty(), "{:?}", after.findings);
        prop_assert_eq!(marked(&after.bitmap, new), expected);
    }
}

/// The first write of a page is cut short in sectors behind the mirror's end: no mark has it written
/// again, and the directory must not say that it was written whole.
#[test]
fn a_page_that_was_cut_short_behind_the_end_is_no_damage_later() {
    let mut store = Store::new(2, 64, Fill::Blank);
    let recovered = store.recover();
    let (mut bitmap, seq) = (recovered.bitmap, recovered.next_page_seq);
    bitmap.mark(Run::new(Block(5), 1));
    let page = Page::bitmap(0);
    let image = bitmap.page_image(page, seq);
    store.tear(store.layout.page_offset(page), &image, 0b1);
    for _ in 0..2 {
        let found = store.recover();
        assert!(found.findings.is_empty(), "{:?}", found.findings);
        assert!(found.bitmap.is_marked(Block(5)));
        let (mut bitmap, mut seq) = (found.bitmap, found.next_page_seq);
        write_pages(&mut store, &mut bitmap, &mut seq);
    }
    // Written once more it is whole, and in the directory.
    let found = store.recover();
    let (mut bitmap, mut seq) = (found.bitmap, found.next_page_seq);
    bitmap.mark(Run::new(Block(6), 1));
    write_pages(&mut store, &mut bitmap, &mut seq);
    let found = store.recover();
    assert!(found.findings.is_empty(), "{:?}", found.findings);
    assert_eq!(found.bitmap.count(), 2);
}
