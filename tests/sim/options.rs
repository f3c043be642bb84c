//! What a seed draws before its run begins: the mirror, its settings, the load, the faults.
//!
//! Kinds of faults and of commands are each in or out for a whole run, so that some runs meet one
//! fault often and by itself, and others all of them together.

use std::fmt;

use kagami_replicator::core::settings::{AfterSb0, AfterSb1, Settings, SplitBrainPolicy};
use kagami_replicator::core::state::{NodeId, Protocol, Solo};

use super::faults::Fault;
use super::faults::kit::Kit;
use super::member::SHARED;
use super::orders::Order;
use super::profile::{Profile, Sequel};
use super::rng::Rng;

/// How the two copies begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Both stores read as zeroes.
    Zeroed,
    /// One holds data that is to be kept; the other was never written.
    Keep(usize),
}

/// What a seed draws.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed itself.
    pub seed: u64,
    /// What the run is bent towards.
    pub profile: Profile,
    /// Size of the mirror, bytes.
    pub size: u64,
    /// Extents that may be hot at once.
    pub log_capacity: u32,
    /// The nodes' ids.
    pub ids: [NodeId; 2],
    /// The same on both nodes.
    pub settings: Settings,
    /// Whether each store unmaps to zeroes.
    pub unmap_zeroes: [bool; 2],
    /// How the copies begin.
    pub first: First,
    /// How much each clock is off, in parts per million.
    pub drift_ppm: [i64; 2],
    /// Requests that a front end sends in all.
    pub requests: u64,
    /// Most of them at a time.
    pub depth: usize,
    /// Mean time between requests, ns.
    pub think_ns: u64,
    /// Mean time of a disk operation, ns.
    pub disk_ns: u64,
    /// Mean time of a metadata write, ns.
    pub meta_ns: u64,
    /// Mean time of a message, ns.
    pub net_ns: u64,
    /// Mean time of a question to the arbiter, one way, ns.
    pub arbiter_ns: u64,
    /// Mean time between faults, ns; `None`: none.
    pub fault_every_ns: Option<u64>,
    /// The weight of each fault.
    pub faults: Vec<(Fault, u64)>,
    /// Mean time between orders of operators, ns.
    pub order_every_ns: u64,
    /// The weight of each order.
    pub orders: Vec<(Order, u64)>,
    /// An operator forces, so two copies may fork.
    pub forced: bool,
    /// Blocks that most requests go to.
    pub hot_spots: Vec<u64>,
    /// The size that it has when both copies were grown, bytes.
    pub grown: u64,
    /// What else was drawn.
    pub kit: Kit,
    /// One after the other, not by chance.
    pub in_turn: bool,
    /// How long faults last in the mean, ns; `None`: mostly short against the time-out.
    pub faults_last_ns: Option<u64>,
    /// What tends to follow what.
    pub sequels: Vec<Sequel>,
    /// Pages of memory that a daemon has for all its mirrors, if there are several.
    pub room_pages: usize,
}

impl Options {
    /// Draws them.
    pub fn draw(seed: u64, rng: &mut Rng) -> Self {
        let solo = rng.pick(&[
            Solo::Arbiter,
            Solo::Arbiter,
            Solo::Arbiter,
            Solo::Arbiter,
            Solo::Never,
            Solo::Always,
        ]);
        let protocol = rng.pick(&[
            Protocol::C,
            Protocol::C,
            Protocol::C,
            Protocol::A,
            Protocol::B,
        ]);
        let forced = rng.percent(6);
        let blocks = match rng.below(100) {
            0..45 => rng.between(16, 512),
            45..80 => rng.between(513, 2_500),
            80..97 => rng.between(2_501, 8_000),
            // more extents than may be hot at once
            _ => rng.between(66 * 1024, 72 * 1024),
        };
        let size = blocks * 4096
            - if rng.percent(20) {
                512 * rng.between(1, 7)
            } else {
                0
            };
        let ids = if rng.coin() { [1, 2] } else { [9, 4] };
        let timeout_ms = rng.pick(&[200, 500, 1000, 2000]);
        let settings = Settings {
            protocol,
            solo,
            timeout_ms,
            ack_timeout_ms: timeout_ms * rng.pick(&[1, 2, 5]),
            arbiter_timeout_ms: timeout_ms * rng.pick(&[1, 2]) / 2,
            flush_after_ms: rng.pick(&[20, 200, 1000]),
            resync_window: rng.pick(&[4096, 64 << 10, 1 << 20, 8 << 20]),
            resync_max_rate: None,
            checksum_first: rng.coin(),
            split_brain: Self::split_brain(rng),
            ..Settings::default()
        };
        let faulty = !rng.percent(3);
        // Enough of them on a large mirror that extents have to leave the activity log.
        let spots = rng.pick(&[4, 12, 40]) * if blocks > 66 * 1024 { 6 } else { 1 };
        let mut options = Self {
            seed,
            profile: Profile::General,
            size,
            log_capacity: 64,
            ids: ids.map(NodeId),
            settings,
            unmap_zeroes: [rng.percent(80), rng.percent(80)],
            first: if rng.percent(85) {
                First::Zeroed
            } else {
                First::Keep(rng.node())
            },
            drift_ppm: [(); 2].map(|()| rng.between(0, 19_000) as i64 - 9_500),
            requests: rng.pick(&[20, 100, 200, 400]),
            depth: rng.pick(&[1, 4, 16]),
            think_ns: rng.pick(&[200_000, 3_000_000, 20_000_000]),
            disk_ns: rng.pick(&[20_000, 100_000, 1_000_000]),
            meta_ns: rng.pick(&[50_000, 200_000, 2_000_000]),
            net_ns: rng.pick(&[30_000, 200_000, 2_000_000, 10_000_000]),
            arbiter_ns: rng.pick(&[200_000, 5_000_000, 50_000_000]),
            fault_every_ns: faulty.then(|| rng.pick(&[100_000_000, 400_000_000, 1_500_000_000])),
            faults: Fault::ALL
                .iter()
                .map(|fault| {
                    (
                        *fault,
                        if rng.percent(40) {
                            rng.pick(&[1, 1, 4])
                        } else {
                            0
                        },
                    )
                })
                .collect(),
            order_every_ns: rng.pick(&[100_000_000, 500_000_000, 2_000_000_000]),
            orders: Order::ALL
                .iter()
                .map(|order| {
                    let wanted = match order {
                        Order::Promote => true,
                        // no draw: it would make every seed another run
                        Order::TakeOver => seed.is_multiple_of(3),
                        Order::MoveAway => seed % 9 == 2,
                        Order::Force | Order::Part => forced,
                        _ => rng.percent(30),
                    };
                    (*order, if wanted { order.weight() } else { 0 })
                })
                .collect(),
            forced,
            hot_spots: (0..spots).map(|_| rng.below(blocks)).collect(),
            grown: 0,
            kit: Kit::default(),
            in_turn: false,
            faults_last_ns: None,
            sequels: Vec::new(),
            room_pages: 0,
        };
        options.kit = Kit::draw(seed, &mut options.faults, &mut options.orders, forced);
        if options.kit.replacing {
            options.replace_arbiter_often();
        }
        // Beside an arbiter nobody fences: its word may name the one that was switched off.
        if options.settings.solo == Solo::Never && seed.is_multiple_of(2) {
            options.orders.push((Order::Fence, 3));
        }
        options.grow_from_here();
        options
    }

    /// What is the nodes' and not the mirror's is as `first` has it; its faults are drawn there.
    pub fn share(&mut self, first: &Self) {
        self.ids = first.ids;
        self.drift_ppm = first.drift_ppm;
        self.net_ns = first.net_ns;
        self.arbiter_ns = first.arbiter_ns;
        let (ours, theirs) = (&mut self.settings, &first.settings);
        ours.timeout_ms = theirs.timeout_ms;
        ours.ack_timeout_ms = theirs.ack_timeout_ms;
        ours.arbiter_timeout_ms = theirs.arbiter_timeout_ms;
        self.kit.clocks = first.kit.clocks;
        self.kit.versions = first.kit.versions;
        self.faults.retain(|(fault, _)| !SHARED.contains(fault));
    }

    /// The size to grow to, from the one that there is now.
    pub fn grow_from_here(&mut self) {
        self.grown = match self.kit.growth {
            0 => self.size,
            more => (self.blocks() + more) * 4096,
        };
    }

    /// Arbiters come and go, roles change, and the link is cut for moments: nothing else.
    pub fn replace_arbiter_often(&mut self) {
        self.forced = false;
        self.settings.solo = Solo::Arbiter;
        self.settings.timeout_ms = 200;
        self.settings.arbiter_timeout_ms = 100;
        self.arbiter_ns = 200_000;
        self.orders = vec![(Order::Promote, 6), (Order::Demote, 6), (Order::Arbiter, 4)];
        self.order_every_ns = 30_000_000;
        self.faults = vec![
            (Fault::LinkFlaps, 3),
            (Fault::LinkCut, 4),
            (Fault::SessionEnds, 3),
        ];
        self.fault_every_ns = Some(60_000_000);
        self.grown = self.size;
        self.kit = Kit::default();
    }

    fn split_brain(rng: &mut Rng) -> SplitBrainPolicy {
        if rng.percent(70) {
            return SplitBrainPolicy::default();
        }
        SplitBrainPolicy {
            after_sb_0pri: rng.pick(&[
                AfterSb0::Disconnect,
                AfterSb0::DiscardZeroChanges,
                AfterSb0::DiscardLeastChanges,
            ]),
            after_sb_1pri: rng.pick(&[
                AfterSb1::Disconnect,
                AfterSb1::DiscardSecondary,
                AfterSb1::Consensus,
            ]),
            ..SplitBrainPolicy::default()
        }
    }

    /// Blocks of the mirror, a partial last one included.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(4096)
    }

    /// Blocks of the stores.
    pub fn store_blocks(&self) -> u64 {
        self.grown.div_ceil(4096)
    }

    /// Whole sectors of the mirror.
    pub fn sectors(&self) -> u64 {
        self.size / 512
    }

    /// True where two copies may fork, so that a read after a cut is promised nothing.
    pub fn may_fork(&self) -> bool {
        self.forced || self.settings.solo == Solo::Always
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.settings;
        let solo = match s.solo {
            Solo::Never => "never",
            Solo::Arbiter => "arbiter",
            Solo::Always => "always",
        };
        writeln!(
            f,
            "seed {}{}: protocol {:?}, solo {solo}{}, {} blocks, ids a={} b={}, begins {:?}",
            self.seed,
            match self.profile {
                Profile::General => String::new(),
                profile => format!(" of {}", profile.name()),
            },
            s.protocol,
            if self.forced { ", forced" } else { "" },
            self.blocks(),
            self.ids[0],
            self.ids[1],
            self.first,
        )?;
        writeln!(
            f,
            "  timeout {} ms, ack {} ms, arbiter {} ms, flush after {} ms, window {} KiB, checksum first {}, {:?}",
            s.timeout_ms,
            s.ack_timeout_ms,
            s.arbiter_timeout_ms,
            s.flush_after_ms,
            s.resync_window >> 10,
            s.checksum_first,
            s.split_brain,
        )?;
        writeln!(
            f,
            "  {} requests, {} at a time, one in {} us; disk {} us, metadata {} us, link {} us, arbiter {} us; clocks {:+} {:+} ppm; unmap {:?}",
            self.requests,
            self.depth,
            self.think_ns / 1000,
            self.disk_ns / 1000,
            self.meta_ns / 1000,
            self.net_ns / 1000,
            self.arbiter_ns / 1000,
            self.drift_ppm[0],
            self.drift_ppm[1],
            self.unmap_zeroes,
        )?;
        let faults: Vec<_> = self
            .faults
            .iter()
            .filter(|(_, weight)| *weight > 0)
            .map(|(fault, _)| fault.name())
            .collect();
        let orders: Vec<_> = self
            .orders
            .iter()
            .filter(|(_, weight)| *weight > 0)
            .map(|(order, _)| order.name())
            .collect();
        match self.fault_every_ns {
            Some(every) => writeln!(
                f,
                "  a fault in {} ms: {}",
                every / 1_000_000,
                faults.join(", ")
            )?,
            None => writeln!(f, "  no faults")?,
        }
        write!(
            f,
            "  an order in {} ms: {}{}",
            self.order_every_ns / 1_000_000,
            orders.join(", "),
            self.kit,
        )
    }
}
