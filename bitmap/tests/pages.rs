//! When a bitmap page has to be written, and when not: the book-keeping that decides whether an
//! extent may cool. (What pages hold after a crash: `bitmap_model.rs`.)

use kagami_bitmap::{Block, DirtyBitmap, Extent, Page, Run};

fn page() -> Page {
    Page::bitmap(0)
}

fn directory() -> Page {
    Page::directory(0)
}

fn run(first: u64, count: u64) -> Run {
    Run::new(Block(first), count)
}

fn bitmap() -> DirtyBitmap {
    DirtyBitmap::new(30 * 1024)
}

/// Writes all that is stale.
fn write_all(bitmap: &mut DirtyBitmap, seq: &mut u64) {
    loop {
        let next = bitmap.stale_pages().next();
        let Some(page) = next else { break };
        write(bitmap, page, seq);
    }
    assert_eq!(bitmap.stale_page_count(), 0);
}

fn write(bitmap: &mut DirtyBitmap, page: Page, seq: &mut u64) {
    *seq += 1;
    bitmap.page_image(page, *seq);
    bitmap.page_written(page, *seq);
}

#[test]
fn the_first_write_of_a_page_makes_its_directory_stale_and_no_later_one() {
    let (mut bitmap, mut seq) = (bitmap(), 0);
    assert_eq!(bitmap.stale_page_count(), 0);
    bitmap.mark(run(5, 1));
    assert_eq!(bitmap.stale_pages().collect::<Vec<_>>(), [page()]);
    bitmap.mark(run(25 * 1024, 1));
    assert_eq!(bitmap.stale_page_count(), 2);
    write(&mut bitmap, page(), &mut seq);
    assert_eq!(
        bitmap.stale_pages().collect::<Vec<_>>(),
        [Page::bitmap(1), directory()]
    );
    assert_eq!(bitmap.stale_page_count(), 2);
    write_all(&mut bitmap, &mut seq);
    bitmap.mark(run(6, 1));
    write(&mut bitmap, page(), &mut seq);
    assert_eq!(bitmap.stale_page_count(), 0);
}

#[test]
fn what_changes_nothing_makes_no_page_stale() {
    let (mut bitmap, mut seq) = (bitmap(), 0);
    bitmap.mark(run(5, 1));
    write_all(&mut bitmap, &mut seq);
    let words = bitmap.extent_words(Extent(0));
    assert_eq!(bitmap.mark(run(5, 1)), 0);
    assert_eq!(bitmap.clear(run(6, 3)), 0);
    assert_eq!(bitmap.or_extent(Extent(0), &words), 0);
    assert_eq!(bitmap.stale_page_count(), 0);
}

#[test]
fn a_page_stays_stale_while_one_of_its_extents_is() {
    let mut bitmap = bitmap();
    bitmap.mark(run(5, 1));
    bitmap.mark(run(1030, 1));
    bitmap.clear(run(1030, 1));
    assert!(bitmap.is_page_stale(page()) && bitmap.lacks_marks(Extent(0)));
    assert!(!bitmap.lacks_marks(Extent(1)));
    bitmap.clear(run(5, 1));
    assert!(!bitmap.is_page_stale(page()));
}

#[test]
fn an_extent_lacks_its_marks_until_the_page_with_them_has_landed() {
    let (mut bitmap, mut seq) = (bitmap(), 0);
    bitmap.mark(run(5, 1));
    write_all(&mut bitmap, &mut seq);
    assert!(!bitmap.lacks_marks(Extent(0)));
    bitmap.mark(run(1030, 1));
    bitmap.page_image(page(), 9);
    assert!(bitmap.lacks_marks(Extent(1)), "its marks are on the way");
    assert!(!bitmap.lacks_marks(Extent(0)), "its marks are on disk");
    bitmap.page_failed(page(), 9);
    assert!(bitmap.lacks_marks(Extent(1)) && bitmap.is_page_stale(page()));
    assert!(!bitmap.lacks_marks(Extent(0)));
}

#[test]
fn marks_too_many_on_disk_are_not_forgotten_when_a_write_fails() {
    for extent in [0, 3, 23] {
        let (mut bitmap, mut seq) = (bitmap(), 0);
        let block = run(extent * 1024 + 7, 1);
        bitmap.mark(block);
        write_all(&mut bitmap, &mut seq);
        bitmap.clear(block);
        assert!(bitmap.is_page_stale(page()));
        bitmap.page_image(page(), 9);
        assert!(!bitmap.is_page_stale(page()));
        bitmap.page_failed(page(), 9);
        assert!(bitmap.is_page_stale(page()), "extent {extent}");
    }
}

#[test]
fn a_directory_page_that_was_not_written_is_stale_again() {
    let (mut bitmap, mut seq) = (bitmap(), 0);
    bitmap.mark(run(5, 1));
    write(&mut bitmap, page(), &mut seq);
    bitmap.page_image(directory(), 9);
    assert!(!bitmap.is_page_stale(directory()));
    bitmap.page_failed(directory(), 9);
    assert!(bitmap.is_page_stale(directory()));
}

#[test]
fn a_span_ends_before_its_end() {
    let mut bitmap = bitmap();
    bitmap.mark(run(10, 1));
    assert!(!bitmap.any(run(5, 5)) && bitmap.any(run(5, 6)));
    assert!(!bitmap.any(run(10, 0)) && !bitmap.any(run(11, 5)));
}

#[test]
#[should_panic(expected = "in a bitmap of 30720 blocks")]
fn a_span_beyond_the_end_is_no_question() {
    bitmap().any(run(30 * 1024 - 1, 2));
}
