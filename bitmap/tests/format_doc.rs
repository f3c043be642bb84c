//! docs/on-disk-format.md says what the code does: its tables are read and compared.

use kagami_bitmap::layout::Layout;
use kagami_bitmap::page::{
    DIRECTORY_WORDS_PER_SECTOR, EXTENTS_PER_PAGE, EXTENTS_PER_SECTOR, PAGES_PER_DIRECTORY_PAGE,
};
use kagami_bitmap::record::{DEFAULT_CAPACITY, field as log};
use kagami_bitmap::sector::{PAYLOAD_BYTES, SECTOR_BYTES, field as sector};
use kagami_bitmap::superblock::{field as body, flag};
use kagami_bitmap::{Placement, WORDS_PER_EXTENT};

const PAGE: &str = include_str!("../../docs/on-disk-format.md");

/// The rows of the first table under `heading` whose head begins with `head`.
fn table(heading: &str, head: &str) -> Vec<Vec<&'static str>> {
    let section = PAGE.split(&format!("\n## {heading}\n")).nth(1);
    let section = section.unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let table = section.split(&format!("\n| {head} |")).nth(1);
    let table = table.unwrap_or_else(|| panic!("no table {head} in {heading}"));
    table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

fn number(text: &str) -> usize {
    let digits = text.replace(',', "");
    digits
        .parse()
        .unwrap_or_else(|_| panic!("{text} is no number"))
}

/// The rows follow each other without a gap up to `end`, and are at the code's offsets.
fn check(heading: &str, end: usize, offsets: &[(&str, usize)]) {
    let mut next = 0;
    for row in table(heading, "field") {
        let (name, offset, size) = (row[0], number(row[1]), number(row[2]));
        assert_eq!(offset, next, "{heading}: {name}");
        next = offset + size;
        let in_code = offsets.iter().find(|(code, _)| *code == name);
        match in_code {
            Some((_, in_code)) => assert_eq!(*in_code, offset, "{heading}: {name}"),
            None => assert!(
                name.starts_with("RESERVED"),
                "{heading}: {name} is not in the code"
            ),
        }
    }
    assert_eq!(next, end, "{heading}: the end");
    for (name, _) in offsets {
        let known = table(heading, "field").iter().any(|row| row[0] == *name);
        assert!(known, "{heading}: {name} is not on the page");
    }
}

/// Names and values of a module's constants.
macro_rules! offsets {
    ($module:ident: $($name:ident)*) => { &[$((stringify!($name), $module::$name)),*] };
}

#[test]
fn the_fields_are_where_the_page_says() {
    check(
        "Sector",
        SECTOR_BYTES,
        offsets!(sector: MAGIC VERSION RESERVED_A CRC INDEX RESERVED_B SEQ TAG PAYLOAD),
    );
    check(
        "Superblock",
        PAYLOAD_BYTES * 8,
        offsets!(body: MIRROR NODE PEER SIZE LOGICAL_BLOCK FLAGS INCOMPATIBLE DISK ARBITER CURRENT
            BASE BOOT CREATED DATA_OFFSET STORE_SIZE MAX_SIZE LOG_CAPACITY PLACEMENT SLOTS_OFFSET
            LOG_OFFSET DIRECTORY_OFFSET PAGES_OFFSET LOG_RECORDS DIRECTORY_PAGES PAGES HISTORY_LEN
            TOTAL_LEN STORE_NAME HISTORY),
    );
    check(
        "Activity log",
        PAYLOAD_BYTES,
        offsets!(log: KIND CHANGES WINDOW_LEN CAPACITY WINDOW_FIRST RESERVED PREVIOUS CHANGE_LIST
            WINDOW),
    );
    let extent = WORDS_PER_EXTENT * 8;
    check(
        "Bitmap page",
        PAYLOAD_BYTES,
        &[("FIRST", 0), ("SECOND", extent), ("THIRD", 2 * extent)],
    );
    check("Directory of written pages", PAYLOAD_BYTES, &[("WORDS", 0)]);
    let words = &table("Directory of written pages", "field")[0];
    assert_eq!(number(words[2]), DIRECTORY_WORDS_PER_SECTOR * 8);
    assert_eq!((EXTENTS_PER_SECTOR, EXTENTS_PER_PAGE), (3, 24));
    assert_eq!(PAGES_PER_DIRECTORY_PAGE, 28_672);
}

#[test]
fn the_flags_are_the_bits_that_the_page_says() {
    let flags = [
        ("ZEROED", flag::ZEROED),
        ("ALONE", flag::ALONE),
        ("WAS_PRIMARY", flag::WAS_PRIMARY),
        ("FORCED_BAD", flag::FORCED_BAD),
        ("VERIFY_FOUND", flag::VERIFY_FOUND),
        ("ALL_MARKED", flag::ALL_MARKED),
        ("STORE_LOST", flag::STORE_LOST),
        ("PEER", flag::PEER),
        ("ARBITER", flag::ARBITER),
        ("CURRENT", flag::CURRENT),
        ("BASE", flag::BASE),
        ("BOOT", flag::BOOT),
    ];
    let rows = table("Superblock", "flag");
    assert_eq!(rows.len(), flags.len());
    for (row, (name, bit)) in rows.iter().zip(flags) {
        assert_eq!((row[0], 1 << number(row[1])), (name, bit));
    }
}

#[test]
fn the_sizes_are_those_of_the_layout() {
    for row in table("The metadata store", "max_size") {
        let mut words = row[0].split(' ');
        let size = number(words.next().unwrap()) as u64;
        let unit = match words.next() {
            Some("GiB") => 30,
            Some("TiB") => 40,
            other => panic!("{other:?}"),
        };
        let layout = Layout::new(size << unit, DEFAULT_CAPACITY, Placement::Own).unwrap();
        assert_eq!(number(row[1]), layout.pages as usize, "{row:?}");
        assert_eq!(number(row[2]), layout.directory_pages as usize, "{row:?}");
        assert_eq!(number(row[3]), layout.log_records as usize, "{row:?}");
        let (total, shift) = row[4].split_once(' ').unwrap();
        let shift = ["KiB", "MiB", "GiB"]
            .iter()
            .position(|unit| *unit == shift)
            .unwrap();
        let written: f64 = total.parse().unwrap();
        let exact = layout.total_len as f64 / (1u64 << (10 * (shift + 1))) as f64;
        assert!((written / exact - 1.0).abs() < 0.005, "{row:?}: {exact}");
    }
}
