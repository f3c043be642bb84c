//! What records, roles and verdicts must show: generations form a line, or a fork that is known.

use kagami_bitmap::superblock::{Record, StoredDisk};
use kagami_replicator::core::decide::{Refused, Row, Strategy, Verdict};
use kagami_replicator::core::register::{ArbiterAnswer, Ask};
use kagami_replicator::core::situation::With;
use kagami_replicator::core::state::{Role, Solo};
use kagami_replicator::core::{DiskFault, DiskState, Notice};

use super::arbiter::Question;
use super::check::{Ghost, by_the_other};
use super::content::SECTORS;
use super::faults::Fault;
use super::history::Level;
use super::node::Seen;
use super::profile::Profile;
use super::world::{Checked, World};

/// A time during which a node was Primary.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// Which node.
    pub node: usize,
    /// The event it began with.
    pub began: u64,
    /// The event it ended with.
    pub ended: Option<u64>,
}

impl Ghost {
    /// Takes note of a record without a check: at the beginning.
    pub fn saw_record(&mut self, node: usize, record: Option<&Record>) {
        if let Some(current) = record.and_then(|record| record.current) {
            self.parents.entry(current.tag).or_insert(None);
        }
        if record.is_some() {
            self.records[node] = record.cloned();
        }
    }

    fn descends(&self, tag: u64, from: u64) -> bool {
        let mut at = Some(tag);
        while let Some(here) = at {
            if here == from {
                return true;
            }
            at = self.parents.get(&here).copied().flatten();
        }
        false
    }
}

impl World {
    /// After each event of a core: its role, its record, and by chance the rest.
    pub(super) fn after_step(&mut self, node: usize) -> Checked {
        let Some(mirror) = &self.nodes[node].mirror else {
            return Ok(());
        };
        let before = self.nodes[node].seen;
        let (role, disk) = (mirror.role(), mirror.disk_state());
        if disk != DiskState::UpToDate {
            self.ghost.not_good[node] = self.now;
        }
        if role == Role::Primary
            && let Some(current) = mirror.record().current
        {
            self.ghost.served.insert(current.tag);
        }
        let mut term = before.term;
        if role != before.role {
            if role == Role::Primary {
                term = Some(self.ghost.terms.len());
                self.ghost.terms.push(Term {
                    node,
                    began: self.tick,
                    ended: None,
                });
                self.stats.mark("promoted");
                self.mark_carrier_promoted(node);
                self.check_promoted(node)?;
            } else {
                self.end_term(node);
                term = None;
                self.stats.mark("demoted");
            }
        }
        self.nodes[node].seen = Seen { role, disk, term };
        self.mark_guest_step(node, before);
        if disk == DiskState::Failed
            && before.disk != DiskState::Failed
            && !self.nodes[node].store_suspect
        {
            self.restart_later(node);
        }
        self.ambush(node);
        self.damage_invalidated();
        if self.check_rng.one_in(48) {
            self.check_marked()?;
            self.check_comes_to_an_end(node)?;
        }
        Ok(())
    }

    /// A full store detaches a copy only where the other one goes on: from a target, or from a Primary in sync.
    fn check_full(&mut self, node: usize) -> Checked {
        let Some(mirror) = &self.nodes[node].mirror else {
            return Ok(());
        };
        self.stats.mark("a full copy detached");
        let is_target = mirror.record().disk == StoredDisk::Inconsistent;
        if is_target || mirror.situation().peer == With::Serving {
            return Ok(());
        }
        let what = format!(
            "{} detaches the only copy it knows of, since its store is full",
            self.nodes[node].name
        );
        Err(self.violation("Liveness", what))
    }

    /// Of a node that is Primary since this moment: as the carrier of the other one?
    fn mark_carrier_promoted(&mut self, node: usize) {
        let mirror = self.nodes[node].mirror.as_ref();
        if mirror.is_some_and(|mirror| mirror.situation().peer == With::Serving) {
            self.stats
                .mark("promoted in the session of a peer without a disk");
        }
    }

    /// The node is not Primary any more.
    pub(super) fn end_term(&mut self, node: usize) {
        if let Some(term) = self.nodes[node].seen.term {
            self.ghost.terms[term].ended = Some(self.tick);
        }
    }

    /// *One-writer*: the node that answered writes in this generation before has ended its time as
    /// Primary before this one's began. Or it had no disk, and what it answered this node's copy
    /// held, which carried it: without that copy it can answer nothing, whatever its role says until
    /// it hears of this one. (If it does, its own answer is the violation: this term has not ended.)
    pub(super) fn check_line_of_write(&mut self, node: usize) -> Checked {
        let disk = self.nodes[node]
            .mirror
            .as_ref()
            .map(|mirror| mirror.disk_state());
        let carried = disk.is_some_and(by_the_other);
        let of = if carried { 1 - node } else { node };
        let Some(current) = self.nodes[of]
            .meta
            .record()
            .and_then(|record| record.current)
        else {
            return Err(self.violation("One-writer", "a write is answered without a generation"));
        };
        let Some(term) = self.nodes[node].seen.term.or(self.newest_term(node)) else {
            return Ok(()); // it became Primary with this very event
        };
        let last = self.ghost.answered_in.insert(current.tag, (term, of));
        if self.is_weak() {
            return Ok(());
        }
        if let Some((last, held_by)) = last.filter(|(last, _)| *last != term) {
            let (last, this) = (self.ghost.terms[last], self.ghost.terms[term]);
            let overlaps = last.ended.is_none_or(|ended| ended > this.began);
            let was_carried_here = held_by == node && of == node;
            if last.node != node && overlaps && !was_carried_here {
                let what = format!(
                    "{} answers a write in generation {}, in which {} answered and is Primary still",
                    self.nodes[node].name, current.counter, self.nodes[last.node].name
                );
                return Err(self.violation("One-writer", what));
            }
        }
        Ok(())
    }

    fn newest_term(&self, node: usize) -> Option<usize> {
        self.ghost.terms.iter().rposition(|term| term.node == node)
    }

    /// A record reached the disk: is what changed allowed?
    pub(super) fn ghost_record(&mut self, node: usize) -> Checked {
        let Some(new) = self.nodes[node].meta.record() else {
            return Ok(()); // one slot is half-way
        };
        if self.ghost.records[node].as_ref() == Some(new) {
            return Ok(());
        }
        let new = new.clone();
        let old = self.ghost.records[node].replace(new.clone());
        let Some(old) = old else { return Ok(()) };
        self.stats.records += 1;
        self.check_handed_over(node, &old, &new)?;
        let name = self.nodes[node].name;
        if new.disk != old.disk {
            self.stats.mark(match new.disk {
                StoredDisk::Consistent => "record: Consistent",
                StoredDisk::Outdated => "record: Outdated",
                StoredDisk::Inconsistent => "record: Inconsistent",
            });
        }
        let Some(current) = new.current else {
            return if old.current.is_some() {
                Err(self.violation("No-silent-fork", format!("{name} forgets its generation")))
            } else {
                Ok(())
            };
        };
        if old.current.map(|old| old.tag) == Some(current.tag) {
            return Ok(());
        }
        let before = old.current.map(|old| old.tag);
        if !self.ghost.parents.contains_key(&current.tag) {
            return self.check_mint(node, &old, &new, current.tag, before);
        }
        self.check_adoption(node, &new, current.tag, before)
    }

    /// *No-stale-promotion*: a bad copy mints by force only, and says so. *No-silent-fork*: what
    /// was before stays in the line.
    fn check_mint(
        &mut self,
        node: usize,
        old: &Record,
        new: &Record,
        tag: u64,
        before: Option<u64>,
    ) -> Checked {
        self.ghost.parents.insert(tag, before);
        self.stats.mark("minted");
        let name = self.nodes[node].name;
        let word = self.options.forced || self.ghost.operator_chose;
        if old.is_bad() && !(new.forced_bad && word) {
            let what = format!("{name} mints a generation as {:?}", old.disk);
            return Err(self.violation("No-stale-promotion", what));
        }
        if let Some(before) = before
            && !new.knows(before)
        {
            return Err(self.violation(
                "No-silent-fork",
                format!("{name} mints, and its line lacks what it was"),
            ));
        }
        Ok(())
    }

    /// *No-silent-fork*: a copy that adopts another line gives up nothing that it went on with
    /// alone, unless somebody chose so.
    fn check_adoption(
        &mut self,
        node: usize,
        new: &Record,
        tag: u64,
        before: Option<u64>,
    ) -> Checked {
        self.stats.mark("adopted");
        let chosen = self.ghost.operator_chose
            || self.options.settings.split_brain
                != kagami_replicator::core::settings::SplitBrainPolicy::default();
        let follows = before.is_none_or(|before| self.ghost.descends(tag, before));
        let word = self.ghost.operator_chose || self.ghost.invalidated;
        if follows || chosen && self.options.may_fork() || word {
            return Ok(());
        }
        let what = format!(
            "{} adopts generation {:?}, and its own was no ancestor of it",
            self.nodes[node].name,
            new.current.map(|current| current.counter)
        );
        Err(self.violation("No-silent-fork", what))
    }

    /// A core tells something.
    pub(super) fn noticed(&mut self, node: usize, notice: &Notice) -> Checked {
        let cause = match notice {
            Notice::Role { cause, .. } => Some(*cause),
            Notice::Connection { cause: why, .. }
            | Notice::Held { why }
            | Notice::ArbiterUnreachable { why } => Some(why.as_str()),
            _ => None,
        };
        if cause == Some("") {
            let text = format!("{} does not say why: {notice:?}", self.nodes[node].name);
            return Err(self.violation("NoCause", text));
        }
        match notice {
            Notice::Verdict { verdict, .. } => self.check_verdict(node, *verdict),
            Notice::PeerFault { what } => {
                let text = format!(
                    "{} says that its peer broke a rule: {what}",
                    self.nodes[node].name
                );
                Err(self.violation("PeerFault", text))
            }
            Notice::Minted { permission, .. } => {
                self.nodes[node].store.remember();
                if *permission == "consent" {
                    self.check_consent(node)?;
                }
                self.stats.mark(match *permission {
                    "arbiter" => "alone by arbiter",
                    "consent" => "alone by consent",
                    "always" => "alone by always",
                    "force" => "alone by force",
                    "fence" => "alone by fence",
                    _ => "alone by another permission",
                });
                Ok(())
            }
            Notice::DiskFailed {
                fault: DiskFault::NoSpace,
                doing: "writing",
            } => self.check_full(node),
            Notice::VerifyFound { run } if self.rot.is_bad() => {
                self.rot_found(*run);
                Ok(())
            }
            // What can't be read counts as different: only without such faults is this a lie.
            Notice::VerifyFound { run } if !self.has_read_faults() => {
                let differs = |block: &u64| {
                    self.nodes[0].store.after_all_landed(*block)
                        != self.nodes[1].store.after_all_landed(*block)
                };
                let what = match (run.first.0..run.end().0).find(differs) {
                    Some(block) => {
                        format!("a verification finds that block {block} differs while in sync")
                    }
                    None => format!("a verification says that {run} differs, and it does not"),
                };
                Err(self.violation("Converges", what))
            }
            Notice::ResyncDone { marked, sent, .. } => {
                self.stats.mark("resync done");
                self.history.has_followed(1 - node, node);
                self.stats.resync_marked += marked;
                self.stats.resync_sent += sent;
                Ok(())
            }
            other => {
                self.stats.notice(other);
                Ok(())
            }
        }
    }

    pub(super) fn has_read_faults(&self) -> bool {
        let faults = [Fault::ReadFails, Fault::DiskFails];
        faults.iter().any(|fault| self.stats.count(*fault) > 0)
    }

    /// A handshake's verdict: the same at both ends, and one that can be.
    fn check_verdict(&mut self, node: usize, verdict: Verdict) -> Checked {
        self.stats.verdict(verdict);
        if let Strategy::Refuse(refused) = verdict.strategy {
            self.ghost.refused = Some((self.now, refused));
        } else {
            self.ghost.refused = None;
        }
        let session = self.net.used_by(node);
        if let Some(session) = session {
            let first = *self.ghost.verdicts.entry(session).or_insert(verdict);
            if first != verdict {
                let what = format!("the two ends of a handshake differ: {first:?} / {verdict:?}");
                return Err(self.violation("No-silent-fork", what));
            }
        }
        self.check_verdict_can_be(verdict)?;
        let lives = session
            .and_then(|session| self.net.session(session))
            .map(|open| open.lives);
        if !lives.is_some_and(|lives| self.lives(0, lives[0]) && self.lives(1, lives[1])) {
            return Ok(()); // the other one has died since it sent its hello
        }
        if self.net.used_by(0) != self.net.used_by(1) {
            return Ok(()); // one has left this session, may have gone on alone, and nothing comes of the verdict
        }
        self.check_source_is_good(verdict)?;
        if let Some(source) = verdict.source() {
            // It was not known then that this copy would have to do.
            let source = usize::from(self.nodes[0].id != source);
            self.nodes[source].store.remember();
            self.history.follows(1 - source, source);
        }
        match verdict.strategy {
            Strategy::Nothing => self.check_marked_as_they_are(None),
            Strategy::Marks { source } => {
                let source = usize::from(self.nodes[0].id != source);
                self.check_source(source, verdict)?;
                self.check_marked_as_they_are(Some(source))
            }
            _ => Ok(()),
        }
    }

    /// A fence script let a node go on, which lost power, fenced itself, when its generation was on disk and it was not Primary
    /// yet: nothing was written in it, and neither copy can know that of the other.
    pub(super) fn is_cut_promotion(&self) -> bool {
        let is_unserved = |record: &Option<Record>| {
            let current = record.as_ref().and_then(|record| record.current);
            current.is_some_and(|current| !self.ghost.served.contains(&current.tag))
        };
        self.options.profile == Profile::Fenced && self.ghost.records.iter().any(is_unserved)
    }

    /// Without a force and with an arbiter (or never alone), no copies fork, go stale or lose the
    /// marks that they need.
    fn check_verdict_can_be(&self, verdict: Verdict) -> Checked {
        let refused = match verdict.strategy {
            Strategy::Refuse(refused) => Some(refused),
            _ => None,
        };
        let by_operator = self.ghost.operator_chose || self.ghost.invalidated;
        let cannot_be = match refused {
            Some(Refused::OtherMirror) => true,
            Some(Refused::OtherSize { .. }) => !self.growth_begun,
            Some(Refused::Impossible) => !self.options.forced && !by_operator,
            Some(Refused::NameSource) => true,
            Some(Refused::ChosenIsBehind { .. }) => !by_operator,
            Some(Refused::TwoPrimaries) => !self.options.may_fork() && !by_operator,
            // A Primary's disk failed while it was ahead: no copy with its writes is left to serve.
            Some(Refused::NewestLost) => false,
            Some(Refused::SplitBrain) if self.is_cut_promotion() => false,
            Some(Refused::SplitBrain | Refused::Unrelated) => {
                !self.options.may_fork() && !by_operator
            }
            Some(Refused::BothStale) => !self.options.may_fork() && !by_operator,
            None => {
                matches!(verdict.strategy, Strategy::Full { .. })
                    && verdict.row != Row::OneUnwritten
                    && !self.options.may_fork()
                    && !by_operator
            }
        };
        if cannot_be {
            let what = format!("a verdict that can't be: {verdict:?}");
            return Err(self.violation("No-silent-fork", what));
        }
        Ok(())
    }

    /// *No-stale-promotion*: a bad copy is the source by an operator's word or policy only, and one
    /// that is partly overwritten not even then.
    fn check_source_is_good(&self, verdict: Verdict) -> Checked {
        let Some(source) = verdict.source() else {
            return Ok(());
        };
        let node = usize::from(self.nodes[0].id != source);
        let Some(record) = self.nodes[node].meta.record() else {
            return Ok(());
        };
        let chosen = matches!(
            verdict.row,
            Row::Forked | Row::Unrelated | Row::AheadForcedBad
        );
        let bad = match record.disk {
            StoredDisk::Consistent => false,
            StoredDisk::Outdated => !chosen,
            StoredDisk::Inconsistent => true,
        };
        if bad {
            let what = format!(
                "{} is {:?}, and the source: {verdict:?}",
                self.nodes[node].name, record.disk
            );
            return Err(self.violation("No-stale-promotion", what));
        }
        Ok(())
    }

    /// *Read-your-writes*: of two copies of one generation, the one that lost answered writes in a
    /// crash is never the source for the one that has them and lost none.
    fn check_source(&self, source: usize, verdict: Verdict) -> Checked {
        if !matches!(verdict.row, Row::SameMarked | Row::SameOneBad) || self.is_weak() {
            return Ok(());
        }
        let target = 1 - source;
        let Some(record) = self.nodes[target].meta.record() else {
            return Ok(());
        };
        if !self.nodes[target].is_unbroken(record) || record.is_bad() {
            return Ok(());
        }
        for sector in self.history.unflushed() {
            let newest = |node: usize| {
                let value = self.nodes[node].store.sector(sector);
                self.history
                    .may_find(sector, value, self.tick, Level::Newest)
            };
            if newest(target) && !newest(source) {
                let what = format!(
                    "{} is the source, and lacks an answered write of sector {sector} (block {}) that {} has: {}",
                    self.nodes[source].name,
                    sector / SECTORS as u64,
                    self.nodes[target].name,
                    self.history.describe(sector)
                );
                return Err(self.violation("Read-your-writes", what));
            }
        }
        Ok(())
    }

    /// *One-writer* at the arbiter: it gives the right only to a copy that it names.
    pub(super) fn check_register(
        &mut self,
        question: &Question,
        answer: &ArbiterAnswer,
    ) -> Checked {
        let (Ask::Swap { register, .. }, ArbiterAnswer::Swapped) = (&question.ask, answer) else {
            return Ok(());
        };
        let asker = self.nodes[question.node].id;
        let ghost = if question.arbiter == self.arbiters {
            &mut self.ghost.register
        } else {
            &mut self.ghost.old_register
        };
        let old = ghost.replace(register.clone());
        self.stats.mark(match (register.copies.len(), &old) {
            (1, _) => "register: alone",
            (_, None) => "register: created",
            _ => "register: both",
        });
        if register.forced || self.options.settings.solo != Solo::Arbiter {
            return Ok(());
        }
        let allowed = match &old {
            None => register.copies.len() == 2,
            Some(old) => {
                register.copies.len() == 2
                    || old.copies.contains(&asker) && register.copies == [asker]
            }
        };
        if !allowed {
            let what = format!(
                "{} takes the register {old:?} and makes it {register:?}",
                self.nodes[question.node].name
            );
            return Err(self.violation("One-writer", what));
        }
        Ok(())
    }

    /// A clean stop leaves nothing to recover.
    pub(super) fn check_clean_stop(&self, node: usize) -> Checked {
        let at = &self.nodes[node];
        // A failed disk keeps its marks: its token is broken, and the next start says so.
        if at.store_suspect || at.token_broken || at.seen.disk == DiskState::Failed {
            return Ok(());
        }
        let Ok(recovered) = at.meta.recover() else {
            return Err(self.violation(
                "No-torn-metadata",
                "metadata can't be read after a clean stop",
            ));
        };
        if !recovered.hot.is_empty() {
            let what = format!(
                "{} stopped cleanly with {} hot extents",
                at.name,
                recovered.hot.len()
            );
            return Err(self.violation("Cleared-only-when-equal", what));
        }
        Ok(())
    }
}
