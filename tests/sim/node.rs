//! A node: a machine with its clock, its two stores, and a daemon that lives or does not.
//!
//! The machine outlives the daemon; the stores outlive the machine. What the daemon asked of the
//! stores goes on when it dies, and the next one starts only after that has ended (*Fenced*).

use std::collections::VecDeque;

use kagami_bitmap::superblock::{Backing, Record, Superblock};
use kagami_bitmap::{Fill, Format, FoundStore, Layout, Placement, Recovered};
use kagami_replicator::core::settings::Settings;
use kagami_replicator::core::state::{NodeId, Role, Time};
use kagami_replicator::core::{DiskState, Event, Mirror};

use kagami_replicator::shell::quic::SUPPORTED;

use super::disk::Store;
use super::faults::orders::Moment;
use super::meta::Metadata;
use super::options::{First, Options};
use super::rng::Rng;
use super::workload::Op;
use super::world::Happening;

/// A machine's `CLOCK_BOOTTIME`: it starts anew with each boot and runs a little fast or slow.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    booted: u64,
    offset: u64,
    ppm: i64,
}

impl Clock {
    /// A clock that starts now.
    pub fn new(booted: u64, offset: u64, ppm: i64) -> Self {
        Self {
            booted,
            offset,
            ppm,
        }
    }

    /// What it shows at a moment of the world's time.
    pub fn local(&self, now: u64) -> Time {
        let elapsed = i128::from(now - self.booted);
        Time(self.offset + (elapsed * i128::from(1_000_000 + self.ppm) / 1_000_000) as u64)
    }

    /// The first moment of the world's time at which it shows this.
    pub fn world(&self, local: Time) -> u64 {
        let elapsed = u128::from(local.0.saturating_sub(self.offset));
        let rate = (1_000_000 + self.ppm) as u128;
        let elapsed = (elapsed * 1_000_000).div_ceil(rate);
        self.booted
            .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// "a" or "b", for people.
    pub name: &'static str,
    /// Its stable id.
    pub id: NodeId,
    /// The other's.
    pub peer: NodeId,
    /// The machine runs.
    pub up: bool,
    /// Its boot.
    pub boot: u128,
    /// Its clock.
    pub clock: Clock,
    /// Counts the daemons that there were; the one that lives, or will be the next.
    pub life: u64,
    /// The first daemon that had the disk that there is now.
    pub disk_since: u64,
    /// What names that disk.
    pub disk_name: String,
    /// The daemon, if it lives.
    pub mirror: Option<Mirror>,
    /// The daemon repairs its metadata before it serves: the write under way.
    pub repairing: Option<u64>,
    /// A start of the daemon is due.
    pub starting: bool,
    /// The backing store.
    pub store: Store,
    /// The disk has failed, or is about to; an operator will restart the daemon with it.
    pub store_suspect: bool,
    /// The metadata store.
    pub meta: Metadata,
    /// The token that a copy in sync has, which a failed disk breaks and a reboot removes.
    pub token: bool,
    /// It was broken, and not made anew since.
    pub token_broken: bool,
    /// The disk hangs, and is to fail when the daemon is gone.
    pub hangs: bool,
    /// Disk operations take at least until then.
    pub stalled_until: u64,
    /// The daemon stands still until then.
    pub paused_until: u64,
    /// What it finds when it goes on, in order of arrival.
    pub waiting: VecDeque<Waiting>,
    /// Disk operations take this many times as long.
    pub slow: u64,
    /// The newest link protocol version that it speaks.
    pub version: u16,
    /// What its operator set.
    pub settings: Settings,
    /// It asks the arbiter that is being replaced.
    pub old_arbiter: bool,
    /// Its copy is to grow before it starts.
    pub grow: bool,
    /// What its status showed last.
    pub moment: Option<Moment>,
    /// What front ends ask for again as soon as this node serves.
    pub unanswered: Vec<Op>,
    /// From when on the daemon wants a session.
    pub want: Option<Time>,
    /// When it sent its last hello, ns.
    pub greeted: u64,
    /// Counts deadlines, to tell a replaced one.
    pub timer: u64,
    /// What was seen of the daemon last.
    pub seen: Seen,
}

/// What a daemon that stands still finds when it goes on.
#[derive(Clone, Debug)]
pub enum Waiting {
    /// Handed to it by its kernel.
    Event(Event),
    /// Something that its own part of the link, or its runtime, has to do first.
    Happening(Happening),
}

/// What a daemon showed after its last event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its role.
    pub role: Role,
    /// Its copy.
    pub disk: DiskState,
    /// The number of its time as Primary.
    pub term: Option<usize>,
}

/// Nothing is seen of a daemon that does not live.
pub const UNSEEN: Seen = Seen {
    role: Role::Secondary,
    disk: DiskState::Unknown,
    term: None,
};

/// What names the disk that a node begins with.
const FIRST_DISK: &str = "serial 1";

/// The mirror's uuid.
pub const MIRROR: u128 = 0x6b61_6761_6d69_0000_0000_0000_0000_0001;

impl Node {
    /// A node with new stores, its machine running and its daemon not started.
    pub fn new(index: usize, options: &Options, rng: &mut Rng) -> Self {
        let mut record = Record::new(MIRROR, options.ids[index].0, options.size);
        record.peer = Some(options.ids[1 - index].0);
        record.zeroed = true;
        let mut fill = Fill::Blank;
        if let First::Keep(keeper) = options.first {
            record.zeroed = false;
            if keeper == index {
                record.mint(rng.next_u64());
                record.alone = false;
            }
            fill = Fill::Clean;
        }
        Self {
            name: ["a", "b"][index],
            id: options.ids[index],
            peer: options.ids[1 - index],
            up: true,
            boot: boot_id(rng),
            clock: Clock::new(0, rng.below(1 << 40), options.drift_ppm[index]),
            life: 1,
            disk_since: 1,
            disk_name: FIRST_DISK.to_owned(),
            mirror: None,
            repairing: None,
            starting: false,
            store: Store::new(options.store_blocks()),
            store_suspect: false,
            meta: Metadata::new(format(options, record, fill, FIRST_DISK)),
            settings: options.settings.clone(),
            old_arbiter: false,
            grow: false,
            moment: None,
            token: false,
            token_broken: false,
            hangs: false,
            stalled_until: 0,
            paused_until: 0,
            waiting: VecDeque::new(),
            slow: 1,
            greeted: 0,
            version: SUPPORTED[0],
            unanswered: Vec::new(),
            want: None,
            timer: 0,
            seen: UNSEEN,
        }
    }

    /// Holds its disk against what the metadata say, as a daemon does when it starts.
    pub fn meet_store(&self, recovered: &mut Recovered) {
        let names = [self.disk_name.clone()];
        let size = self.store.blocks() * 4096;
        let found = FoundStore {
            names: &names,
            size,
        };
        recovered.meet_store((!self.store.failed).then_some(found));
    }

    /// True if nothing that a daemon asked of the stores is under way.
    pub fn is_idle(&self) -> bool {
        self.store.is_idle() && self.meta.is_idle()
    }

    /// True if this boot of the machine has lost no completed write of the copy since both were
    /// in sync, as the next daemon would find.
    pub fn is_unbroken(&self, record: &Record) -> bool {
        self.token && record.boot == Some(self.boot)
    }

    /// The machine starts anew: another boot, another clock.
    pub fn boot(&mut self, now: u64, ppm: i64, rng: &mut Rng) {
        self.up = true;
        self.boot = boot_id(rng);
        // It goes with the boot where its folder is a tmpfs. On the other machines the boot's id alone tells.
        (self.token, self.token_broken) = (self.token && self.boot.is_multiple_of(4), false);
        self.clock = Clock::new(now, rng.below(1 << 34), ppm);
    }
}

fn boot_id(rng: &mut Rng) -> u128 {
    u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64())
}

/// A new disk for a node, its copy never written.
pub fn fresh_copy(index: usize, options: &Options, name: &str) -> (Store, Metadata) {
    let mut record = Record::new(MIRROR, options.ids[index].0, options.size);
    record.peer = Some(options.ids[1 - index].0);
    record.zeroed = true;
    let meta = Metadata::new(format(options, record, Fill::Blank, name));
    (Store::new(options.store_blocks()), meta)
}

/// The bytes of a new metadata store.
fn format(options: &Options, record: Record, fill: Fill, name: &str) -> Vec<u8> {
    let layout =
        Layout::new(options.grown, options.log_capacity, Placement::Own).expect("a layout");
    let backing = Backing {
        data_offset: 0,
        store_size: options.store_blocks() * 4096,
    };
    let mut superblock = Superblock::new(layout, backing, 0, record);
    name.clone_into(&mut superblock.store_name);
    let mut bytes = vec![0; layout.total_len as usize];
    for chunk in Format::new(&superblock, fill) {
        bytes[chunk.offset as usize..][..chunk.bytes.len()].copy_from_slice(&chunk.bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_a_deadline_when_it_is_reached_and_not_before() {
        for ppm in [-10_000, -1, 0, 3, 10_000] {
            let clock = Clock::new(1_000, 77, ppm);
            for deadline in [77, 78, 1_000_000_077, 123_456_789_012] {
                let at = clock.world(Time(deadline));
                assert!(clock.local(at) >= Time(deadline), "{ppm} {deadline}");
                assert!(
                    at == 1_000 || clock.local(at - 1) < Time(deadline),
                    "{ppm} {deadline}"
                );
            }
        }
    }
}
