//! The pure core: one mirror on one node. Events in, actions out; it knows no clock, random
//! number, file or socket.
//!
//! A host hands in every [`Event`] with its time through [`Mirror::handle`] and carries out the
//! [`Action`]s in their order. Its duties:
//!
//! - the steps of [`Action::Metadata`] are durable one after the other before its completion;
//! - [`Action::CloseSession`] takes effect at once; events of a session that is closed are ignored;
//! - [`Action::SetTimer`] replaces the deadline before it; [`Action::DrawTags`] is answered, and so is each
//!   [`Action::Room`], as soon as there is memory;
//! - what recovery wants repaired is written, durably, before the `Mirror` is made;
//! - a new `Mirror` starts only when no disk request of an earlier one can be in flight
//!   (*Fenced*).
//!
//! | module | |
//! |---|---|
//! | [`event`], [`action`], [`disk`], [`message`], [`notice`] | what goes in, and what comes out: to the host, the disks, the peer, people |
//! | [`state`], [`settings`], [`register`], [`status`] | the words of a mirror's state; what the operator set; the arbiter's register; what `kagami status` shows |
//! | `request` | a front end's I/O is admitted, begun, or held |
//! | `write`, `edges`, `read`, `memory`, `full` | its life; writes of parts of blocks, and where they are put together; a store without room |
//! | `spans`, `hot`, `unflushed`, `flush` | locks on blocks; the activity log; what a power cut would lose; the disks' caches |
//! | `link`, `handshake`, [`decide`] | the session with the peer, how the two meet, the table of verdicts |
//! | `overdue` | what the peer or a disk owes for too long |
//! | `promote`, `demote`, `solo`, `attempt`, `diskless` | who may go on, and by which permission; the arbiter asked; a Primary without a disk |
//! | `peer`, `served` | another node takes the peer's place; who answers for a target that is Primary |
//! | `secondary`, `applied` | what the peer sends is applied |
//! | `resync`, `compare`, `pace`, `latencies`, `settle` | one copy is brought up to date: the blocks, checksums first, how fast and beside which of the application's latencies, and its end |
//! | `word` | an operator's word on whose copy stays |
//! | `verify` | the copies are compared |
//! | `durable` | the record and the bitmap's pages are written |
//! | `command`, `timers` | an operator's orders; deadlines |
//! | `invariant`, [`situation`] | what holds between any two events; where a mirror stands, for the simulator's coverage |

pub mod action;
mod applied;
mod attempt;
mod command;
mod compare;
pub mod decide;
mod demote;
pub mod disk;
mod diskless;
mod durable;
mod edges;
pub mod event;
mod flush;
mod full;
mod handshake;
mod hot;
mod invariant;
mod latencies;
mod link;
mod memory;
pub mod message;
pub mod notice;
mod overdue;
mod pace;
mod peer;
mod promote;
mod read;
pub mod register;
mod request;
mod resync;
mod secondary;
mod served;
pub mod settings;
mod settle;
pub mod situation;
mod solo;
mod spans;
pub mod state;
pub mod status;
mod timers;
mod unflushed;
mod verify;
mod word;
mod write;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::recover::Recovered;
use kagami_bitmap::superblock::Record;
use kagami_bitmap::{ActivityLog, DirtyBitmap, Geometry, Run};
use slab::Slab;

pub use action::{Action, Actions, Class};
pub use disk::{DiskFault, DiskOp, DiskResult};
pub use event::{Command, Event, IoError, Refusal, Reply, Request};
pub use memory::{Heap, Memory};
pub use message::Message;
pub use notice::Notice;
pub use read::PEER_READ;
pub use settings::Settings;
pub use state::{Connection, DiskState, NodeId, Replication, Role, Time};
pub use status::Status;
pub use verify::FOUND_BY_VERIFY;

use state::{CommandId, DiskId, MetaId, RequestId};
use timers::{Timer, Timers};

/// What a mirror starts from.
#[derive(Debug)]
pub struct Start {
    /// This node.
    pub node: NodeId,
    /// The other one; [`NodeId::NOBODY`]: there is none.
    pub peer: NodeId,
    /// What the metadata store holds.
    pub recovered: Recovered,
    /// What the operator set.
    pub settings: Settings,
    /// This boot of the machine.
    pub boot: u128,
    /// The token that a failed disk removes is there (docs/protocol.md §1).
    pub token: bool,
    /// The backing store could be opened.
    pub disk_usable: bool,
    /// The backing store unmaps to zeroes.
    pub unmap_zeroes: bool,
    /// Random tags, at least [`TAGS`].
    pub tags: Vec<u64>,
    /// Where blocks are put together.
    pub memory: Box<dyn Memory>,
}

/// Random tags that the core keeps in stock.
pub const TAGS: usize = 16;

/// One mirror on one node.
#[derive(Debug)]
pub struct Mirror {
    now: Time,
    started: Time,
    me: NodeId,
    peer: NodeId,
    geometry: Geometry,
    boot: u128,
    unmap_zeroes: bool,
    settings: Settings,
    tags: Vec<u64>,
    tags_asked: bool,

    // What is durable, and on its way to be.
    durable: durable::Durable,
    bitmap: DirtyBitmap,
    log: ActivityLog,
    metadata: BTreeMap<MetaId, UnderWay<durable::Work>>,
    /// The metadata store was told to be slow, and owes still what it was told for.
    told_metadata: bool,
    next_meta: u64,
    pages: durable::Pages,

    // The local copy and what may be done with it.
    local: Local,
    role: Role,
    /// Why it has that role, for people.
    role_cause: &'static str,
    term: u64,
    alone: Option<solo::Alone>,
    attempt: Option<attempt::Attempt>,
    solo: solo::Outlook,

    // The peer.
    link: Option<link::Link>,
    door: link::Door,
    /// When this node last echoed a ping of the peer: its lease may run that long (§8).
    echoed_peer: Option<Time>,

    // I/O.
    disk: Slab<UnderWay<DiskWork>>,
    /// The local disk was told to be slow, and owes still what it was told for.
    told_disk: bool,
    jobs: Slab<request::Job>,
    held: VecDeque<request::Held>,
    /// Requests are not even begun: a hand-over, a leave or the end is near.
    gate: request::Gate,
    writes: Slab<write::Write>,
    /// Writes that wait for their span, in order of arrival.
    blocked: VecDeque<write::WriteKey>,
    /// Writes that may not be started: permission or the peer is missing.
    parked: Vec<write::WriteKey>,
    /// Of a guest: what its source sent of writes whose spans the guest itself holds.
    unlocked: Vec<write::WriteKey>,
    spans: spans::Spans,
    heat: hot::Heat,
    reads: Slab<read::Read>,
    /// Reads that wait for memory to ask the peer for.
    rooms: BTreeMap<RequestId, read::ReadKey>,
    memory: Box<dyn Memory>,
    unflushed: unflushed::Unflushed,
    flush: flush::Flushing,

    promoting: Option<promote::Promoting>,
    demoting: Option<demote::Demoting>,
    /// What a Primary that its source answers for remembers.
    guest: served::Guest,
    stopping: Option<CommandId>,
    stop_progress: command::Stopping,
    verify: Option<verify::Verify>,
    /// Verifications that did not come to their end.
    verifications: u64,
    pace: pace::Pace,

    timers: Timers,
    counters: status::Counters,
    last_verdict: Option<decide::Verdict>,
    last_told: Told,
}

/// The local copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Local {
    store: Store,
    /// Known to be the newest: in sync, or alone with permission.
    up_to_date: bool,
    /// No completed write was lost since the copies were last in sync (docs/protocol.md §1).
    unbroken: bool,
    /// No write that a flush did not cover was lost to a failing disk in this boot, as far as is known.
    token: bool,
    /// The peer lacks writes that protocol A or B answered before it had them.
    ahead: bool,
    /// A write may have failed since the copies were last in sync, and a cache may answer for it: what is read here is
    /// not known to be on the disk.
    doubted: bool,
}

impl Local {
    fn at_start(record: &Record, boot: u128, token: bool, usable: bool) -> Self {
        let same_boot = record.boot == Some(boot) || planted(Defect::BootAtAnyRestart);
        // A token of another boot says nothing of what this one loses.
        let token = token && (same_boot || record.boot.is_none());
        // It failed in this boot, or before its daemon could say when. (A lost cache answers for nothing after a reboot.)
        let failed_before = record.boot.is_none() && record.current.is_some();
        Self {
            store: if usable {
                Store::Usable
            } else {
                Store::Diskless
            },
            up_to_date: false,
            unbroken: token && usable && same_boot,
            token,
            ahead: false,
            doubted: failed_before || same_boot && !token,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Usable,
    Failed,
    Diskless,
}

/// What was reported last, so that a change is told once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    role: Role,
    disk: DiskState,
    connection: Connection,
    replication: Replication,
    peer: Option<(Role, DiskState)>,
    held: bool,
}

/// A disk operation that was submitted.
#[derive(Debug)]
struct UnderWay<Work> {
    work: Work,
    since: Time,
}

/// What a disk operation belongs to.
#[derive(Debug)]
enum DiskWork {
    Write(write::WriteKey),
    /// A block of a write that does not cover it.
    Edge {
        write: write::WriteKey,
        last: bool,
    },
    Read(read::ReadKey),
    /// The local half of a flush; `peer`: of a flush that the peer asked for.
    Flush(flush::FlushOf),
    /// What a failed read was repaired with.
    Repair(Run),
    /// A block read for the peer.
    PeerRead {
        session: state::SessionId,
        id: u64,
    },
    /// Blocks read to be compared for the peer.
    PeerCompare {
        session: state::SessionId,
        id: u64,
        hashes: Vec<message::BlockHash>,
    },
    /// Blocks read to be sent to the target, or to be compared with it.
    Resync {
        session: state::SessionId,
        run: Run,
        purpose: resync::Purpose,
    },
    /// Blocks read to be verified.
    Verify {
        session: state::SessionId,
        run: Run,
        locked: bool,
        number: u64,
    },
}

impl Mirror {
    /// The mirror as its metadata left it, Secondary and without a session.
    pub fn new(start: Start, now: Time, out: &mut Actions) -> Self {
        assert!(start.tags.len() >= TAGS, "the host draws {TAGS} tags");
        assert_ne!(start.node, start.peer, "a node is not its own peer");
        let Recovered {
            superblock,
            bitmap,
            log,
            next_page_seq,
            repair,
            ..
        } = start.recovered;
        assert!(
            repair.is_empty(),
            "the host carries out what recovery wants repaired, first"
        );
        let record = &superblock.record;
        assert_eq!(
            record.node, start.node.0,
            "the record of another node's copy"
        );
        let local = Local::at_start(record, start.boot, start.token, start.disk_usable);
        let mut mirror = Self {
            now,
            started: now,
            me: start.node,
            peer: start.peer,
            geometry: superblock.geometry(),
            boot: start.boot,
            unmap_zeroes: start.unmap_zeroes,
            settings: start.settings,
            tags: start.tags,
            tags_asked: false,
            bitmap,
            log: ActivityLog::resume(log, superblock.tag()),
            durable: durable::Durable::new(superblock),
            metadata: BTreeMap::new(),
            told_metadata: false,
            next_meta: 1,
            pages: durable::Pages::new(next_page_seq),
            local,
            role: Role::Secondary,
            role_cause: "its daemon began",
            term: 0,
            alone: None,
            attempt: None,
            solo: solo::Outlook::default(),
            link: None,
            door: link::Door::default(),
            echoed_peer: None,
            disk: Slab::new(),
            told_disk: false,
            jobs: Slab::new(),
            held: VecDeque::new(),
            gate: request::Gate::default(),
            writes: Slab::new(),
            blocked: VecDeque::new(),
            parked: Vec::new(),
            unlocked: Vec::new(),
            spans: spans::Spans::default(),
            heat: hot::Heat::default(),
            reads: Slab::new(),
            rooms: BTreeMap::new(),
            memory: start.memory,
            unflushed: unflushed::Unflushed::default(),
            flush: flush::Flushing::default(),
            promoting: None,
            demoting: None,
            guest: served::Guest::default(),
            stopping: None,
            stop_progress: command::Stopping::default(),
            verify: None,
            verifications: 0,
            pace: pace::Pace::default(),
            timers: Timers::default(),
            counters: status::Counters::default(),
            last_verdict: None,
            last_told: Told::default(),
        };
        if !start.disk_usable || start.token && !mirror.local.token {
            out.push(Action::BreakToken);
        }
        mirror.record_first_peer();
        mirror.want_directories();
        mirror.open_door(out);
        mirror.upkeep(out);
        mirror
    }

    /// Takes in one event. `now` is the time after it was reaped, and never goes back.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Actions) {
        assert!(
            now >= self.now,
            "time went back from {:?} to {now:?}",
            self.now
        );
        self.now = now;
        match event {
            Event::Request { id, request } => self.on_request(id, request, out),
            Event::Room { id } => self.on_room(id, out),
            Event::Disk { id, result } => self.on_disk(id, result, out),
            Event::MetadataDone { id, result } => self.on_metadata(id, result, out),
            Event::LinkUp { session, version } => self.on_link_up(session, version, out),
            Event::LinkDown { session, reason } => self.on_link_down(session, &reason, out),
            Event::Message { session, message } => self.on_message(session, message, out),
            Event::Arbiter { attempt, answer } => self.on_arbiter(attempt, answer, out),
            Event::Timer => self.on_timer(out),
            Event::Command { id, command } => self.on_command(id, command, out),
            Event::Tags(tags) => {
                self.tags.extend(tags);
                self.tags_asked = false;
            }
        }
        self.upkeep(out);
    }

    /// After each event: whatever became possible is begun, what changed is told.
    fn upkeep(&mut self, out: &mut Actions) {
        self.advance_handshake(out);
        self.advance_solo(out);
        self.advance_requests(out);
        self.advance_heat(out);
        self.advance_resync(out);
        self.advance_verify(out);
        self.advance_flush(out);
        self.advance_serving(out);
        self.advance_roles(out);
        self.advance_records(out);
        self.advance_pages(out);
        self.tell_changes(out);
        if self.tags.len() < TAGS / 2 && !self.tags_asked {
            self.tags_asked = true;
            out.push(Action::DrawTags(TAGS));
        }
        if let Some(at) = self.timers.changed() {
            out.push(Action::SetTimer { at });
        }
    }

    fn on_disk(&mut self, id: DiskId, result: DiskResult, out: &mut Actions) {
        assert!(
            self.disk.contains(id.0 as usize),
            "disk operation {id} was not submitted"
        );
        let ended = self.disk.remove(id.0 as usize);
        self.on_disk_answers(out);
        match ended.work {
            DiskWork::Write(key) => self.on_write_local(key, result.map(drop), out),
            DiskWork::Edge { write, last } => self.on_edge(write, last, result, false, out),
            DiskWork::Read(key) => self.on_read_local(key, result, out),
            DiskWork::Flush(of) => self.on_flush_local(of, result.map(drop), out),
            DiskWork::Repair(run) => self.on_repaired(run, result.map(drop), out),
            DiskWork::PeerRead { session, id } => self.on_peer_read(session, id, result, out),
            DiskWork::PeerCompare {
                session,
                id,
                hashes,
            } => {
                self.on_peer_compare(session, id, &hashes, result, out);
            }
            DiskWork::Resync {
                session,
                run,
                purpose,
            } => self.on_resync_read(session, run, purpose, result, out),
            DiskWork::Verify {
                session,
                run,
                locked,
                number,
            } => self.on_verify_read(session, run, locked, number, result, out),
        }
    }

    fn on_timer(&mut self, out: &mut Actions) {
        self.timers.called();
        let now = self.now;
        if self.timers.take_due(Timer::PeerSilent, now) {
            self.on_peer_silent(out);
        }
        if self.timers.take_due(Timer::Ping, now) {
            self.on_ping_due(out);
        }
        if self.timers.take_due(Timer::AckOverdue, now) {
            self.on_overdue(out);
        }
        if self.timers.take_due(Timer::Attempt, now) {
            self.on_attempt_timer(out);
        }
        if self.timers.take_due(Timer::AskAgain, now) {
            self.on_ask_again(out);
        }
        if self.timers.take_due(Timer::AutoFlush, now) {
            self.flush.wanted = true;
        }
        if self.timers.take_due(Timer::WritePages, now) {
            self.want_pages();
        }
        if self.timers.take_due(Timer::Resync, now) {
            self.on_resync_timer(out);
        }
    }

    /// The copy's marks, unflushed writes not included.
    pub fn dirty(&self) -> &DirtyBitmap {
        &self.bitmap
    }

    /// True if the peer may lack a block of the run, unflushed writes included.
    pub fn lacks(&self, run: Run) -> bool {
        self.bitmap.any(run) || self.unflushed.any(run)
    }

    /// The durable record, as of now.
    pub fn record(&self) -> &Record {
        self.durable.record()
    }

    /// The peer of this mirror; [`NodeId::NOBODY`] where there is none.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// This node's role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// How often this node has stopped being Primary since its daemon began. Where it is Primary at two moments with
    /// the same number, it was so without a break.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// What the operator set.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the local copy is worth.
    pub fn disk_state(&self) -> DiskState {
        use kagami_bitmap::superblock::StoredDisk;
        match (self.local.store, self.record().disk) {
            (Store::Failed, _) => DiskState::Failed,
            (Store::Diskless, _) => DiskState::Diskless,
            (Store::Usable, StoredDisk::Inconsistent) => DiskState::Inconsistent,
            (Store::Usable, StoredDisk::Outdated) => DiskState::Outdated,
            (Store::Usable, StoredDisk::Consistent) if self.local.up_to_date => DiskState::UpToDate,
            (Store::Usable, StoredDisk::Consistent) => DiskState::Consistent,
        }
    }

    /// Everything that `kagami status` shows.
    pub fn status(&self, now: Time) -> Status {
        let told = self.last_told;
        Status {
            size: self.geometry.size(),
            role: self.role,
            term: self.term,
            disk: self.disk_state(),
            peer_role: self.up().map(|up| up.peer.role),
            peer_disk: self.up().map_or(DiskState::Unknown, |up| up.peer.disk),
            connection: told.connection,
            connection_since: self.door.since,
            replication: self.replication(),
            generation: self.record().current,
            was_primary: self.record().was_primary,
            alone_since: self.alone.as_ref().map(|a| a.since),
            alone_by: self.alone.as_ref().map(|a| a.by),
            marked_blocks: self.bitmap.count(),
            in_flight: self.jobs.len(),
            standing: self.standing(),
            peer_lease_ends: self.peer_lease_ends(),
            held: self.held_because(),
            arbiter_fault: self.arbiter_fault(),
            verdict: self.last_verdict,
            chosen: self.chosen(now),
            progress: self.progress(now),
            round_trip_ns: self.link.as_ref().and_then(|l| l.round_trip_ns),
            counters: self.counters,
        }
    }

    fn tell_changes(&mut self, out: &mut Actions) {
        let before = self.last_told;
        let told = Told {
            role: self.role,
            disk: self.disk_state(),
            connection: self.connection(),
            replication: self.replication(),
            peer: self.up().map(|up| (up.peer.role, up.peer.disk)),
            held: self.is_holding(),
        };
        if told == before {
            return;
        }
        self.last_told = told;
        let mut tell = |notice| out.push(Action::Report(notice));
        if told.connection != before.connection {
            self.door.since = self.now;
            let cause = self.door.cause.clone();
            tell(Notice::Connection {
                from: before.connection,
                to: told.connection,
                cause,
            });
        }
        if told.role != before.role {
            tell(Notice::Role {
                from: before.role,
                to: told.role,
                cause: self.role_cause,
            });
        }
        if told.disk != before.disk {
            tell(Notice::Disk {
                from: before.disk,
                to: told.disk,
            });
        }
        if told.replication != before.replication {
            tell(Notice::Replication {
                from: before.replication,
                to: told.replication,
            });
        }
        if let Some((role, disk)) = told.peer.filter(|_| told.peer != before.peer) {
            tell(Notice::Peer { role, disk });
        }
        if told.held != before.held {
            tell(if told.held {
                Notice::Held {
                    why: self.held_because().unwrap_or_default(),
                }
            } else {
                Notice::Released
            });
        }
        if told.role != before.role || told.disk != before.disk {
            self.tell_peer_state(out);
        }
    }

    fn draw_tag(&mut self) -> u64 {
        let tag = self.tags.pop();
        assert!(
            tag.is_some(),
            "the host did not draw the tags it was asked for"
        );
        tag.unwrap_or_default()
    }

    fn submit(&mut self, work: DiskWork, op: DiskOp, out: &mut Actions) {
        let since = self.now;
        let id = DiskId(self.disk.insert(UnderWay { work, since }) as u64);
        out.push(Action::Disk { id, op });
        self.watch_acks();
    }

    fn complete(id: RequestId, result: Result<Bytes, IoError>, out: &mut Actions) {
        out.push(Action::Complete { id, result });
    }
}
