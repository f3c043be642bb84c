//! What reaches the metadata store: the record of the copy, and bitmap pages. (Activity-log
//! records are cut in `hot`.)
//!
//! The record is replaced whole. Changes that come while one replacement is under way share
//! the next one; each names what happens once it is durable ([`After`]), and nothing that
//! depends on a change happens before.

use std::collections::BTreeSet;

use kagami_bitmap::Page;
use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::superblock::{Record, StoredDisk, Superblock};

use super::action::Steps;
use super::state::{CommandId, MetaId, NodeId, Role, SessionId};
use super::{Action, Actions, DiskFault, Mirror, Store, UnderWay};

/// A metadata write under way.
#[derive(Debug)]
pub(super) enum Work {
    Record,
    Log { seq: u64 },
    Pages(Vec<(Page, u64)>),
}

/// What happens once a change of the record is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// Nothing.
    Nothing,
    /// A generation of its own: this copy may answer alone.
    Minted { by: &'static str },
    /// A generation of its own, answering for a Primary whose disk failed.
    MintedToCarry { session: SessionId },
    /// The operator's word: minted over a rule.
    Forced {
        command: Option<CommandId>,
        promote: bool,
        /// It was Primary already, and held its I/O.
        held: bool,
    },
    /// `was_primary`, as the session's Primary.
    Promoted,
    /// `was_primary` is off.
    Demoted,
    /// `was_primary` is off, so that the peer may be Primary in this session.
    Granted { session: SessionId },
    /// What the handshake's verdict demands.
    Met { session: SessionId },
    /// Step 4 of a resync: `alone` is off.
    Left { session: SessionId },
    /// Step 5: the source's generation is ours.
    Adopted { session: SessionId },
    /// Step 6: in sync.
    Settled { session: SessionId },
    /// Outdated, to leave cleanly.
    Outdated { command: CommandId },
    /// Consistent again: the Primary's disk failed while this node was leaving.
    Reclaimed { command: CommandId },
    /// Inconsistent, because an operator said so.
    Invalidated { command: Option<CommandId> },
    /// The register's instance.
    ArbiterNamed { session: SessionId },
    /// Another peer, or none.
    PeerSet { command: CommandId, peer: NodeId },
}

/// The superblock on disk and the changes on their way to it.
#[derive(Debug)]
pub(super) struct Durable {
    on_disk: Superblock,
    /// With all changes that were asked for.
    next: Record,
    under_way: Option<(Superblock, Vec<After>)>,
    waiting: Vec<After>,
}

impl Durable {
    pub fn new(superblock: Superblock) -> Self {
        Self {
            next: superblock.record.clone(),
            on_disk: superblock,
            under_way: None,
            waiting: Vec::new(),
        }
    }

    /// The record as it would be found after a crash now.
    pub fn record(&self) -> &Record {
        &self.on_disk.record
    }

    /// The record with all changes that are on their way.
    pub fn next_record(&self) -> &Record {
        &self.next
    }

    pub fn superblock(&self) -> &Superblock {
        &self.on_disk
    }

    /// True if a change is not durable yet.
    pub fn is_changing(&self) -> bool {
        self.under_way.is_some() || !self.waiting.is_empty()
    }

    /// True if a change with this consequence is not durable yet.
    pub fn awaits(&self, is: impl Fn(&After) -> bool) -> bool {
        self.waiting.iter().any(&is) || self.under_way.iter().flat_map(|(_, after)| after).any(is)
    }
}

/// Bitmap pages on their way.
#[derive(Debug)]
pub(super) struct Pages {
    next_seq: u64,
    pub under_way: usize,
    /// Write every stale page, not only those that hold up the activity log. Taken back once there is none that is not
    /// on its way.
    all: bool,
    /// Write these, too, as soon as none of their images is on its way.
    wanted: BTreeSet<Page>,
}

/// Pages in one metadata write.
const PAGES_PER_WRITE: usize = 64;
/// Metadata writes with pages under way at once.
const PAGE_WRITES: usize = 4;

impl Pages {
    pub fn new(next_seq: u64) -> Self {
        Self {
            next_seq,
            under_way: 0,
            all: false,
            wanted: BTreeSet::new(),
        }
    }
}

impl Mirror {
    /// Changes the record; `after` happens once that is durable.
    pub(super) fn change_record(&mut self, after: After, change: impl FnOnce(&mut Record)) {
        change(&mut self.durable.next);
        self.durable.waiting.push(after);
    }

    /// Writes the record if a change waits and none is under way.
    pub(super) fn advance_records(&mut self, out: &mut Actions) {
        if self.durable.under_way.is_some() || self.durable.waiting.is_empty() {
            return;
        }
        let mut superblock = self.durable.on_disk.clone();
        superblock.record = self.durable.next.clone();
        superblock.seq += 1;
        let steps = superblock.steps();
        let after = std::mem::take(&mut self.durable.waiting);
        self.durable.under_way = Some((superblock, after));
        self.counters.records += 1;
        self.write_metadata(Work::Record, steps, out);
    }

    pub(super) fn write_metadata(&mut self, work: Work, steps: Steps, out: &mut Actions) {
        let id = MetaId(self.next_meta);
        self.next_meta += 1;
        let since = self.now;
        self.metadata.insert(id, UnderWay { work, since });
        out.push(Action::Metadata { id, steps });
        self.watch_acks();
    }

    pub(super) fn on_metadata(
        &mut self,
        id: MetaId,
        result: Result<(), DiskFault>,
        out: &mut Actions,
    ) {
        let ended = self.metadata.remove(&id);
        assert!(ended.is_some(), "metadata write {id} was not submitted");
        self.on_metadata_answers();
        let work = ended.map(|ended| ended.work);
        if let Err(fault) = result {
            self.on_metadata_failed(work, fault, out);
            return;
        }
        match work {
            Some(Work::Record) => {
                if let Some((superblock, after)) = self.durable.under_way.take() {
                    self.durable.on_disk = superblock;
                    for after in after {
                        self.on_record_durable(after, out);
                    }
                    if planted(Defect::AllMarkedForgottenEarly) {
                        self.forget_all_marked();
                    }
                }
            }
            Some(Work::Log { seq }) => self.on_log_durable(seq, out),
            Some(Work::Pages(pages)) => {
                self.pages.under_way -= 1;
                for (page, seq) in pages {
                    self.bitmap.page_written(page, seq);
                    if !planted(Defect::NamedWithTheNextPages) {
                        self.want_directory(page.named_in());
                    }
                }
                self.forget_all_marked();
            }
            None => {}
        }
    }

    fn on_metadata_failed(&mut self, work: Option<Work>, fault: DiskFault, out: &mut Actions) {
        match work {
            // What waited for it waits for ever: the copy has failed.
            Some(Work::Record) => {
                let lost = self.durable.under_way.take();
                self.on_local_failed(fault, "writing metadata", out);
                for after in lost.into_iter().flat_map(|(_, after)| after) {
                    self.on_record_lost(after, out);
                }
                return;
            }
            Some(Work::Log { seq }) => self.log.record_failed(seq),
            // (They count as under way: none is written any more.)
            Some(Work::Pages(pages)) => {
                for (page, seq) in pages {
                    self.bitmap.page_failed(page, seq);
                }
            }
            None => {}
        }
        self.on_local_failed(fault, "writing metadata", out);
    }

    /// A change can't be made durable: whoever ordered it is told.
    fn on_record_lost(&mut self, after: After, out: &mut Actions) {
        match after {
            After::Demoted => self.on_demoted_durable(out),
            After::Outdated { command } => self.on_outdated_durable(command, out),
            After::Reclaimed { command } => self.on_reclaimed_durable(command, out),
            After::Invalidated { command: Some(id) } => {
                let why = super::Refusal {
                    what: "not invalidated: the metadata store failed".into(),
                    facts: vec![],
                    next: "replace this node's disk".into(),
                };
                self.answer(id, Err(why), out);
            }
            After::PeerSet { command, .. } => self.on_peer_not_set(command, out),
            After::Forced {
                command,
                held: true,
                ..
            } => self.on_not_forced(command, out),
            _ => {}
        }
    }

    fn on_record_durable(&mut self, after: After, out: &mut Actions) {
        match after {
            After::Nothing => {}
            After::Minted { by } => self.on_minted(by, out),
            After::MintedToCarry { session } => self.on_minted_to_carry(session, out),
            After::Forced {
                command,
                promote,
                held,
            } => self.on_forced(command, promote, held, out),
            After::Promoted => self.on_promoted_durable(out),
            After::Demoted => self.on_demoted_durable(out),
            After::Granted { session } => self.on_grant_durable(session, out),
            After::Met { session } => self.on_met_durable(session),
            After::Left { session } => self.on_left_durable(session, out),
            After::Adopted { session } => self.on_adopted_durable(session, out),
            After::Settled { session } => self.on_settled_durable(session, out),
            After::Outdated { command } => self.on_outdated_durable(command, out),
            After::Reclaimed { command } => self.on_reclaimed_durable(command, out),
            After::Invalidated { command } => self.on_invalidated_durable(command, out),
            After::ArbiterNamed { session } => self.on_arbiter_named(session, out),
            After::PeerSet { command, peer } => self.on_peer_set(command, peer, out),
        }
    }

    /// Every page that is stale now is written: one whose older image is on its way is written again after that.
    pub(super) fn want_pages(&mut self) {
        self.pages.all = true;
        self.pages.wanted.extend(self.bitmap.outdated_in_flight());
    }

    /// What the directory does not name yet is named as soon as can be: until then a page that the disk loses passes for
    /// one that was never written. Once in a page's life.
    fn want_directory(&mut self, directory: Page) {
        if self.bitmap.is_page_stale(directory) {
            self.pages.wanted.insert(directory);
        }
    }

    /// A daemon begins: what the one before it left unnamed.
    pub(super) fn want_directories(&mut self) {
        self.pages
            .wanted
            .extend(self.bitmap.stale_directory_pages());
    }

    /// Writes bitmap pages: those that keep extents from cooling, those that are wanted, or all stale ones.
    pub(super) fn advance_pages(&mut self, out: &mut Actions) {
        if self.local.store != Store::Usable {
            self.pages.all = false;
            self.pages.wanted.clear();
            return;
        }
        while self.pages.under_way < PAGE_WRITES {
            let in_the_way = std::mem::take(&mut self.heat.in_the_way);
            self.pages
                .wanted
                .retain(|page| self.bitmap.is_page_stale(*page));
            let wanted = self.pages.wanted.iter().copied();
            let stale = self.pages.all.then(|| self.bitmap.stale_pages());
            let mut batch: Vec<Page> = Vec::new();
            let asked_for = wanted.chain(stale.into_iter().flatten());
            for page in in_the_way.into_iter().map(Page::of).chain(asked_for) {
                if batch.len() == PAGES_PER_WRITE {
                    break;
                }
                if !self.bitmap.is_page_in_flight(page) && !batch.contains(&page) {
                    batch.push(page);
                }
            }
            if batch.is_empty() {
                if self.pages.all {
                    self.pages.all = false;
                    self.forget_all_marked();
                }
                return;
            }
            let mut writes = Vec::with_capacity(batch.len());
            let mut images = Vec::with_capacity(batch.len());
            for page in batch {
                let seq = self.pages.next_seq;
                self.pages.next_seq += 1;
                writes.push((
                    self.durable.superblock().layout.page_offset(page),
                    self.bitmap.page_image(page, seq),
                ));
                images.push((page, seq));
            }
            self.pages.under_way += 1;
            self.counters.pages += images.len() as u64;
            self.write_metadata(Work::Pages(images), vec![writes], out);
        }
    }

    /// All pages are on disk since every block was marked: they say what is marked from now on.
    fn forget_all_marked(&mut self) {
        if self.record().all_marked
            && self.durable.next.all_marked
            && (self.are_pages_written() || planted(Defect::AllMarkedForgottenEarly))
        {
            self.change_record(After::Nothing, |r| r.all_marked = false);
        }
    }

    /// True if all pages say what memory says, durably.
    pub(super) fn are_pages_written(&self) -> bool {
        self.pages.under_way == 0 && self.bitmap.stale_page_count() == 0
    }

    /// True if this copy is neither Inconsistent nor Outdated, and can be used.
    pub(super) fn is_good(&self) -> bool {
        self.local.store == Store::Usable && self.record().disk == StoredDisk::Consistent
    }

    pub(super) fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }
}
