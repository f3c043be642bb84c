//! The superblock: the record of a copy (docs/protocol.md §1), and where its metadata are.
//!
//! Two slots hold it. An update is written to one, flushed, then to the other, flushed; it is
//! durable when both are done. So at every instant one slot is whole, and a single damaged
//! sector loses nothing that was durable. Reading the slots back is slots.rs's; what the
//! record's fields mean to the protocol is the core's.

use bytes::Bytes;

use crate::geometry::Geometry;
use crate::layout::{Layout, LayoutError, Placement};
use crate::sector::{
    self, Kind, PAYLOAD_BYTES, SECTORS_PER_UNIT, le32, le64, le128, put32, put64, put128,
};
use crate::store::NAME_MAX;

/// Earlier generations that are kept; `base` is kept beside them however old.
pub const HISTORY_MAX: usize = 64;

/// Offsets in the superblock's body: the payloads of its eight sectors, one after the other.
pub mod field {
    /// The mirror's uuid, u128.
    pub const MIRROR: usize = 0;
    /// Id of this node, u64.
    pub const NODE: usize = 16;
    /// Id of the peer, u64; valid under flag `PEER`.
    pub const PEER: usize = 24;
    /// Bytes of the mirror, u64.
    pub const SIZE: usize = 32;
    /// Bytes of a logical block, u32: 512 or 4096.
    pub const LOGICAL_BLOCK: usize = 40;
    /// Flags, u32: [`crate::superblock::flag`].
    pub const FLAGS: usize = 44;
    /// Flags that must be understood, u32; none are defined, others than 0 are refused.
    pub const INCOMPATIBLE: usize = 48;
    /// Disk state, u32: 1 Consistent, 2 Outdated, 3 Inconsistent.
    pub const DISK: usize = 52;
    /// The arbiter register's instance, u64; valid under flag `ARBITER`.
    pub const ARBITER: usize = 56;
    /// Current generation, counter u64 and tag u64; valid under flag `CURRENT`.
    pub const CURRENT: usize = 64;
    /// Base generation, likewise; valid under flag `BASE`.
    pub const BASE: usize = 80;
    /// The machine's boot id, u128; valid under flag `BOOT`.
    pub const BOOT: usize = 96;
    /// Seconds since 1970 at creation, u64; for people.
    pub const CREATED: usize = 112;
    /// Where the data begin in the backing store, bytes, u64.
    pub const DATA_OFFSET: usize = 120;
    /// Bytes of the backing store when it was last opened, u64.
    pub const STORE_SIZE: usize = 128;
    /// Layout: the size the mirror may grow to, bytes, u64.
    pub const MAX_SIZE: usize = 136;
    /// Layout: extents that can be hot, u32.
    pub const LOG_CAPACITY: usize = 144;
    /// Layout: placement, u32: 1 own store, 2 tail.
    pub const PLACEMENT: usize = 148;
    /// Layout: offset of the slots, u64.
    pub const SLOTS_OFFSET: usize = 152;
    /// Layout: offset of the log, u64.
    pub const LOG_OFFSET: usize = 160;
    /// Layout: offset of the directory, u64.
    pub const DIRECTORY_OFFSET: usize = 168;
    /// Layout: offset of the pages, u64.
    pub const PAGES_OFFSET: usize = 176;
    /// Layout: records of the log, u32.
    pub const LOG_RECORDS: usize = 184;
    /// Layout: pages of the directory, u32.
    pub const DIRECTORY_PAGES: usize = 188;
    /// Layout: bitmap pages, u32.
    pub const PAGES: usize = 192;
    /// Entries of the history, u32, at most 64.
    pub const HISTORY_LEN: usize = 196;
    /// Layout: bytes of all metadata, u64.
    pub const TOTAL_LEN: usize = 200;
    /// The backing store's name, text, zeroes after it; all zeroes: none. [`NAME_MAX`] bytes.
    pub const STORE_NAME: usize = 208;
    /// The history, newest first: counter u64 and tag u64 each, 1024 bytes.
    pub const HISTORY: usize = 512;
}

/// Bits of the flags field.
pub mod flag {
    /// The store is known to read as zeroes.
    pub const ZEROED: u32 = 1;
    /// `current` was minted for this copy and never offered.
    pub const ALONE: u32 = 1 << 1;
    /// Primary, and not cleanly demoted since.
    pub const WAS_PRIMARY: u32 = 1 << 2;
    /// `current` came from forcing a bad copy.
    pub const FORCED_BAD: u32 = 1 << 3;
    /// Some marks come from a verify that found differences.
    pub const VERIFY_FOUND: u32 = 1 << 4;
    /// Every block counts as marked, whatever the pages say.
    pub const ALL_MARKED: u32 = 1 << 5;
    /// The backing store failed or was not there: what is found next is not taken for it without a name.
    pub const STORE_LOST: u32 = 1 << 6;
    /// The peer's id is valid.
    pub const PEER: u32 = 1 << 8;
    /// The arbiter's instance is valid.
    pub const ARBITER: u32 = 1 << 9;
    /// The current generation is valid.
    pub const CURRENT: u32 = 1 << 10;
    /// The base generation is valid.
    pub const BASE: u32 = 1 << 11;
    /// The boot id is valid.
    pub const BOOT: u32 = 1 << 12;
}

/// A version of the data: a counter for people, and a random tag, which alone is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation {
    /// Counts up with each mint; for people.
    pub counter: u64,
    /// Random.
    pub tag: u64,
}

/// What a copy is good for, as stored. (`UpToDate` is found at run time, never stored.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredDisk {
    /// Good, not known to be the newest.
    Consistent,
    /// Good as of an earlier time, and knows it.
    Outdated,
    /// A mix of versions: a resync did not end.
    Inconsistent,
}

/// The record of a copy: docs/protocol.md §1, but for the marks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the fields of the specification"
)]
pub struct Record {
    /// The mirror's uuid.
    pub mirror: u128,
    /// This node's stable id.
    pub node: u64,
    /// The peer's, once it is known.
    pub peer: Option<u64>,
    /// Bytes of the mirror.
    pub size: u64,
    /// Bytes of a logical block: 512 or 4096.
    pub logical_block: u32,
    /// Instance of the arbiter's register.
    pub arbiter: Option<u64>,
    /// The version of this copy's data; None: never written.
    pub current: Option<Generation>,
    /// The store is known to read as zeroes.
    pub zeroed: bool,
    /// Generations before `current`, newest first, `base` among them.
    pub history: Vec<Generation>,
    /// The last generation in which both copies were equal; none while the peer has `current`.
    pub base: Option<Generation>,
    /// `current` was minted for this copy and never offered to the peer.
    pub alone: bool,
    /// Set before the first write as Primary, cleared by a clean demotion or on adopting.
    pub was_primary: bool,
    /// What the copy is good for.
    pub disk: StoredDisk,
    /// `current` came from forcing an Inconsistent or Outdated copy.
    pub forced_bad: bool,
    /// The machine's boot id when the copies were last in sync, or when this one was written to alone or
    /// as a target after that. None after the disk failed.
    pub boot: Option<u128>,
    /// Some marks come from a verify that found differences.
    pub verify_found: bool,
    /// Every block counts as marked, whatever the pages say: "all marks durable" in one write.
    /// Cleared once the pages were written.
    pub all_marked: bool,
    /// The backing store failed, or was not there at the last start ([`crate::store`]).
    pub store_lost: bool,
}

/// The first 64 bits of a mirror's uuid, which every sector carries.
pub fn mirror_tag(mirror: u128) -> u64 {
    (mirror >> 64) as u64
}

impl Record {
    /// The record of a copy that was never written: no peer, no generation, Consistent.
    pub fn new(mirror: u128, node: u64, size: u64) -> Self {
        Self {
            mirror,
            node,
            peer: None,
            size,
            logical_block: 512,
            arbiter: None,
            current: None,
            zeroed: false,
            history: Vec::new(),
            base: None,
            alone: false,
            was_primary: false,
            disk: StoredDisk::Consistent,
            forced_bad: false,
            boot: None,
            verify_found: false,
            all_marked: false,
            store_lost: false,
        }
    }

    /// The copy is to be written to in this `boot` without being in sync: from its next daemon on, whoever
    /// finds no token knows that such writes may be lost. Nothing changes after a disk that failed. Not yet
    /// durable.
    pub fn may_lose_writes_of(&mut self, boot: u128) {
        if !crate::planted::planted(crate::planted::Defect::BootNamedInSyncAlone) {
            self.boot = self.boot.map(|_| boot);
        }
    }

    /// Mints a generation (docs/protocol.md §1): `tag` is random and new.
    ///
    /// The old current joins the history and, if there was no base, becomes it; the copy is
    /// `alone`, and no longer known to read as zeroes. Not yet durable.
    pub fn mint(&mut self, tag: u64) {
        assert!(!self.in_line(tag), "tag {tag:016x} is not new");
        if let Some(old) = self.current {
            self.history.insert(0, old);
            self.base = self.base.or(Some(old));
        }
        self.current = Some(Generation {
            // For people, and a peer may have sent any: it must not keep this copy from going on.
            counter: self.current.map_or(1, |old| old.counter.saturating_add(1)),
            tag,
        });
        self.alone = true;
        self.zeroed = false;
        self.bound_history();
    }

    /// Gives the copy another peer, or none; `tag` is random and new. What the one before holds
    /// counts for nothing from here on: the data go on as a generation that it never had, with
    /// no base, so that its copy can only ever be overwritten whole (docs/protocol.md §5,
    /// *Another peer*). Every block counts as marked. A copy that was never written, or never
    /// had a peer, only takes the name. Not yet durable.
    pub fn set_peer(&mut self, peer: Option<u64>, tag: u64) {
        let is_new = self.current.is_none_or(|current| current.tag == tag);
        if self.peer.is_some() && self.peer != peer && !is_new {
            self.mint(tag);
            self.base = None;
            self.all_marked = true;
        }
        self.peer = peer;
    }

    /// Drops the oldest generations over [`HISTORY_MAX`], never `base`.
    pub fn bound_history(&mut self) {
        while self.history.len() > HISTORY_MAX {
            let oldest = self.history.len() - 1;
            let is_base = self
                .base
                .is_some_and(|base| base.tag == self.history[oldest].tag);
            self.history
                .remove(if is_base { oldest - 1 } else { oldest });
        }
    }

    /// True if the generation is in the history (not if it is the current one).
    pub fn knows(&self, tag: u64) -> bool {
        self.history.iter().any(|known| known.tag == tag)
    }

    /// True if the generation is the current one or in the history.
    pub fn in_line(&self, tag: u64) -> bool {
        self.current.is_some_and(|current| current.tag == tag) || self.knows(tag)
    }

    /// True for a copy that is never promoted unless forced: Inconsistent or Outdated.
    pub fn is_bad(&self) -> bool {
        self.disk != StoredDisk::Consistent
    }

    /// True for a copy that has no generation.
    pub fn is_never_written(&self) -> bool {
        self.current.is_none()
    }
}

/// Where the data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Where the data begin in the backing store, bytes; 0 but for foreign layouts.
    pub data_offset: u64,
    /// Bytes of the backing store when it was last opened.
    pub store_size: u64,
}

/// All that a superblock holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The update that it is: add 1 for the next, before [`Self::steps`].
    pub seq: u64,
    /// The slot that an update writes first: never the only good one (slots.rs decides).
    pub first_slot: usize,
    /// Where the metadata are.
    pub layout: Layout,
    /// Where the data are.
    pub backing: Backing,
    /// What names the backing store ([`crate::store`]); empty: nothing, or it is not known yet.
    pub store_name: String,
    /// Seconds since 1970 at creation; for people.
    pub created: u64,
    /// The record of the copy.
    pub record: Record,
}

/// A field of a superblock whose checksums are good says what can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value:#x}")]
pub struct BadField {
    /// The field, as in docs/on-disk-format.md.
    pub field: &'static str,
    /// What it holds.
    pub value: u64,
}

const BODY_BYTES: usize = PAYLOAD_BYTES * SECTORS_PER_UNIT;

impl Superblock {
    /// The superblock of a copy that is being created ([`crate::Format`]).
    ///
    /// `created`: seconds since 1970, for people.
    pub fn new(layout: Layout, backing: Backing, created: u64, record: Record) -> Self {
        assert!(record.size <= layout.max_size, "{} bytes", record.size);
        Self {
            seq: 1,
            first_slot: 0,
            layout,
            backing,
            store_name: String::new(),
            created,
            record,
        }
    }

    /// The mirror's size.
    pub fn geometry(&self) -> Geometry {
        Geometry::new(self.record.size).expect("a record has a checked size")
    }

    /// What every sector of this mirror's metadata carries.
    pub fn tag(&self) -> u64 {
        mirror_tag(self.record.mirror)
    }

    /// The writes of this update: offset from the start of the metadata, and 4096 bytes. Each
    /// step is on stable storage before the next begins; after the last the update is durable.
    ///
    /// If a step fails, the store holds the old or the new superblock, and the copy has
    /// failed: read it again ([`crate::read_slots`]), for the order of the next update.
    pub fn steps(&self) -> Vec<Vec<(u64, Bytes)>> {
        if crate::planted::planted(crate::planted::Defect::SlotsTogether) {
            let both = [0, 1].map(|slot| (self.layout.slot_offset(slot), self.encode(slot)));
            return vec![both.into()];
        }
        [self.first_slot, 1 - self.first_slot]
            .map(|slot| vec![(self.layout.slot_offset(slot), self.encode(slot))])
            .into()
    }

    /// Encodes the image of a slot: 4096 bytes.
    pub fn encode(&self, slot: usize) -> Bytes {
        let body = self.body();
        let unit = slot as u32;
        sector::encode_unit(
            Kind::Superblock,
            unit,
            self.seq,
            self.tag(),
            |nth, payload| {
                payload.copy_from_slice(&body[nth * PAYLOAD_BYTES..][..PAYLOAD_BYTES]);
            },
        )
    }

    fn body(&self) -> Vec<u8> {
        let Record { history, .. } = &self.record;
        assert!(history.len() <= HISTORY_MAX, "history of {}", history.len());
        let (record, layout) = (&self.record, &self.layout);
        let mut body = vec![0u8; BODY_BYTES];
        let b = body.as_mut_slice();
        put128(b, field::MIRROR, record.mirror);
        put64(b, field::NODE, record.node);
        put64(b, field::PEER, record.peer.unwrap_or(0));
        put64(b, field::SIZE, record.size);
        put32(b, field::LOGICAL_BLOCK, record.logical_block);
        put32(b, field::FLAGS, flags(record));
        let disk = match record.disk {
            StoredDisk::Consistent => 1,
            StoredDisk::Outdated => 2,
            StoredDisk::Inconsistent => 3,
        };
        put32(b, field::DISK, disk);
        put64(b, field::ARBITER, record.arbiter.unwrap_or(0));
        put_generation(b, field::CURRENT, record.current);
        put_generation(b, field::BASE, record.base);
        put128(b, field::BOOT, record.boot.unwrap_or(0));
        put64(b, field::CREATED, self.created);
        put64(b, field::DATA_OFFSET, self.backing.data_offset);
        put64(b, field::STORE_SIZE, self.backing.store_size);
        put64(b, field::MAX_SIZE, layout.max_size);
        put32(b, field::LOG_CAPACITY, layout.log_capacity);
        let placement = match layout.placement {
            Placement::Own => 1,
            Placement::Tail => 2,
        };
        put32(b, field::PLACEMENT, placement);
        put64(b, field::SLOTS_OFFSET, layout.slots_offset);
        put64(b, field::LOG_OFFSET, layout.log_offset);
        put64(b, field::DIRECTORY_OFFSET, layout.directory_offset);
        put64(b, field::PAGES_OFFSET, layout.pages_offset);
        put32(b, field::LOG_RECORDS, layout.log_records);
        put32(b, field::DIRECTORY_PAGES, layout.directory_pages);
        put32(b, field::PAGES, layout.pages);
        put32(b, field::HISTORY_LEN, history.len() as u32);
        put64(b, field::TOTAL_LEN, layout.total_len);
        let name = self.store_name.as_bytes();
        assert!(name.len() <= NAME_MAX, "a name of {} bytes", name.len());
        b[field::STORE_NAME..][..name.len()].copy_from_slice(name);
        for (nth, &generation) in history.iter().enumerate() {
            put_generation(b, field::HISTORY + nth * 16, Some(generation));
        }
        body
    }

    /// Reads a body of 3776 bytes, whose sectors passed their checks.
    pub(crate) fn from_body(body: &[u8], seq: u64) -> Result<Self, BadField> {
        let bad = |field, value| BadField { field, value };
        let incompatible = le32(body, field::INCOMPATIBLE);
        if incompatible != 0 {
            return Err(bad("the set of incompatible features", incompatible.into()));
        }
        let placement = match le32(body, field::PLACEMENT) {
            1 => Placement::Own,
            2 => Placement::Tail,
            other => return Err(bad("placement", other.into())),
        };
        let max_size = le64(body, field::MAX_SIZE);
        let log_capacity = le32(body, field::LOG_CAPACITY);
        let layout =
            Layout::new(max_size, log_capacity, placement).map_err(|fault| match fault {
                LayoutError::LogCapacity(n) => bad("log capacity", n.into()),
                _ => bad("maximum size", max_size),
            })?;
        // Version 1 has one layout for each size; what is read is then within it.
        for (field, found, expected) in [
            (
                "slots offset",
                le64(body, field::SLOTS_OFFSET),
                layout.slots_offset,
            ),
            (
                "log offset",
                le64(body, field::LOG_OFFSET),
                layout.log_offset,
            ),
            (
                "directory offset",
                le64(body, field::DIRECTORY_OFFSET),
                layout.directory_offset,
            ),
            (
                "pages offset",
                le64(body, field::PAGES_OFFSET),
                layout.pages_offset,
            ),
            (
                "log records",
                le32(body, field::LOG_RECORDS).into(),
                layout.log_records.into(),
            ),
            (
                "directory pages",
                le32(body, field::DIRECTORY_PAGES).into(),
                layout.directory_pages.into(),
            ),
            (
                "pages",
                le32(body, field::PAGES).into(),
                layout.pages.into(),
            ),
            (
                "total length",
                le64(body, field::TOTAL_LEN),
                layout.total_len,
            ),
        ] {
            if found != expected {
                return Err(bad(field, found));
            }
        }
        Ok(Self {
            seq,
            first_slot: 0,
            layout,
            backing: Backing {
                data_offset: le64(body, field::DATA_OFFSET),
                store_size: le64(body, field::STORE_SIZE),
            },
            store_name: store_name(&body[field::STORE_NAME..][..NAME_MAX]),
            created: le64(body, field::CREATED),
            record: record_from_body(body, max_size)?,
        })
    }
}

fn record_from_body(body: &[u8], max_size: u64) -> Result<Record, BadField> {
    let bad = |field, value| BadField { field, value };
    let flags = le32(body, field::FLAGS);
    let is = |flag: u32| flags & flag != 0;
    let size = le64(body, field::SIZE);
    if Geometry::new(size).is_err() || size > max_size {
        return Err(bad("size", size));
    }
    let logical_block = le32(body, field::LOGICAL_BLOCK);
    if logical_block != 512 && logical_block != 4096 {
        return Err(bad("logical block", logical_block.into()));
    }
    let disk = match le32(body, field::DISK) {
        1 => StoredDisk::Consistent,
        2 => StoredDisk::Outdated,
        3 => StoredDisk::Inconsistent,
        other => return Err(bad("disk state", other.into())),
    };
    let history = le32(body, field::HISTORY_LEN);
    if history as usize > HISTORY_MAX {
        return Err(bad("history length", history.into()));
    }
    let history = (0..history as usize).map(|nth| generation(body, field::HISTORY + nth * 16));
    Ok(Record {
        mirror: le128(body, field::MIRROR),
        node: le64(body, field::NODE),
        peer: is(flag::PEER).then(|| le64(body, field::PEER)),
        size,
        logical_block,
        arbiter: is(flag::ARBITER).then(|| le64(body, field::ARBITER)),
        current: is(flag::CURRENT).then(|| generation(body, field::CURRENT)),
        zeroed: is(flag::ZEROED),
        history: history.collect(),
        base: is(flag::BASE).then(|| generation(body, field::BASE)),
        alone: is(flag::ALONE),
        was_primary: is(flag::WAS_PRIMARY),
        disk,
        forced_bad: is(flag::FORCED_BAD),
        boot: is(flag::BOOT).then(|| le128(body, field::BOOT)),
        verify_found: is(flag::VERIFY_FOUND),
        all_marked: is(flag::ALL_MARKED),
        store_lost: is(flag::STORE_LOST),
    })
}

/// What is no text names nothing.
fn store_name(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0);
    let text = std::str::from_utf8(&bytes[..len.unwrap_or(bytes.len())]);
    text.unwrap_or_default().to_owned()
}

fn flags(record: &Record) -> u32 {
    [
        (record.zeroed, flag::ZEROED),
        (record.alone, flag::ALONE),
        (record.was_primary, flag::WAS_PRIMARY),
        (record.forced_bad, flag::FORCED_BAD),
        (record.verify_found, flag::VERIFY_FOUND),
        (record.all_marked, flag::ALL_MARKED),
        (record.store_lost, flag::STORE_LOST),
        (record.peer.is_some(), flag::PEER),
        (record.arbiter.is_some(), flag::ARBITER),
        (record.current.is_some(), flag::CURRENT),
        (record.base.is_some(), flag::BASE),
        (record.boot.is_some(), flag::BOOT),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .fold(0, |flags, (_, flag)| flags | flag)
}

fn put_generation(body: &mut [u8], at: usize, generation: Option<Generation>) {
    if let Some(generation) = generation {
        put64(body, at, generation.counter);
        put64(body, at + 8, generation.tag);
    }
}

fn generation(body: &[u8], at: usize) -> Generation {
    Generation {
        counter: le64(body, at),
        tag: le64(body, at + 8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::EXTENT;

    const SIZE: u64 = 5 * EXTENT;

    fn body() -> Vec<u8> {
        let layout = Layout::new(SIZE, 64, Placement::Own).unwrap();
        let backing = Backing {
            data_offset: 0,
            store_size: SIZE,
        };
        Superblock::new(layout, backing, 0, Record::new(1, 1, SIZE)).body()
    }

    #[test]
    fn a_field_that_says_what_cannot_be_is_named() {
        assert!(Superblock::from_body(&body(), 1).is_ok());
        for (at, value, field) in [
            (field::INCOMPATIBLE, 1, "the set of incompatible features"),
            (field::PLACEMENT, 3, "placement"),
            (field::LOG_CAPACITY, 63, "log capacity"),
            (field::LOG_CAPACITY, 65_537, "log capacity"),
            (field::LOG_RECORDS, 9, "log records"),
            (field::PAGES, 2, "pages"),
            (field::SIZE, 0, "size"),
            (field::SIZE, SIZE as u32 + 512, "size"),
            (field::SIZE, SIZE as u32 - 1, "size"),
            (field::LOGICAL_BLOCK, 1024, "logical block"),
            (field::DISK, 4, "disk state"),
            (field::HISTORY_LEN, HISTORY_MAX as u32 + 1, "history length"),
        ] {
            let mut body = body();
            put32(&mut body, at, value);
            let value = value.into();
            let bad = Superblock::from_body(&body, 1).unwrap_err();
            assert_eq!(bad, BadField { field, value });
        }
        let mut body = body();
        put64(&mut body, field::MAX_SIZE, 7);
        let bad = Superblock::from_body(&body, 1).unwrap_err();
        assert_eq!((bad.field, bad.value), ("maximum size", 7));
    }

    #[test]
    fn the_mirrors_tag_is_the_first_half_of_its_uuid() {
        assert_eq!(
            mirror_tag(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00),
            0x1122_3344_5566_7788
        );
    }

    #[test]
    fn another_peer_has_the_data_go_on_as_a_generation_that_the_one_before_never_had() {
        let mut had = Record::new(1, 1, SIZE);
        had.peer = Some(2);
        had.mint(7);
        had.mint(8);
        for peer in [Some(3), None] {
            let mut record = had.clone();
            record.set_peer(peer, 9);
            assert_eq!(record.peer, peer);
            assert_eq!(record.current.map(|current| current.tag), Some(9));
            assert!(record.knows(8) && record.base.is_none() && record.all_marked);
            // The same word again.
            let once = record.clone();
            record.set_peer(peer, 9);
            assert_eq!(record, once);
        }
        let only_the_name = |record: &Record, peer| {
            let mut after = record.clone();
            after.set_peer(peer, 9);
            let named = Record {
                peer,
                ..record.clone()
            };
            assert_eq!(after, named);
        };
        only_the_name(&had, Some(2));
        let without = Record {
            peer: None,
            ..had.clone()
        };
        only_the_name(&without, Some(3));
        let never_written = Record {
            peer: Some(2),
            ..Record::new(1, 1, SIZE)
        };
        only_the_name(&never_written, Some(3));
        // Cut short after the generation was durable and before it was known to be.
        let begun = Record {
            current: Some(Generation { counter: 3, tag: 9 }),
            ..had
        };
        only_the_name(&begun, Some(3));
    }

    #[test]
    fn a_boot_whose_writes_may_be_lost_is_named_but_for_a_disk_that_failed() {
        for (had, named) in [(Some(4), Some(5)), (Some(5), Some(5)), (None, None)] {
            let mut record = Record::new(1, 1, SIZE);
            record.boot = had;
            let expected = Record {
                boot: named,
                ..record.clone()
            };
            record.may_lose_writes_of(5);
            assert_eq!(record, expected);
        }
    }

    #[test]
    fn a_copy_is_bad_or_never_written() {
        let mut record = Record::new(1, 1, SIZE);
        assert!(record.is_never_written() && !record.is_bad());
        record.mint(7);
        assert!(!record.is_never_written());
        for disk in [StoredDisk::Outdated, StoredDisk::Inconsistent] {
            record.disk = disk;
            assert!(record.is_bad());
        }
    }
}
