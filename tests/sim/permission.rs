//! Permission, as it shows from outside: a node is Primary, alone or in sync only as
//! docs/protocol.md §3 and §5 allow, and what it waits for comes to an end.

use kagami_bitmap::superblock::Record;
use kagami_replicator::core::register::ArbiterAnswer;
use kagami_replicator::core::state::{Role, Solo};
use kagami_replicator::core::{Connection, Replication, Status};

use super::arbiter::Question;
use super::history::Level;
use super::world::{Checked, MS, World};

impl World {
    fn status(&self, node: usize) -> Option<Status> {
        let mirror = self.nodes[node].mirror.as_ref()?;
        Some(mirror.status(self.local(node)))
    }

    /// *One-writer*: a node becomes Primary in a session, whose peer granted it, or with
    /// permission to go on alone (`always`: with the first write).
    pub(super) fn check_promoted(&self, node: usize) -> Checked {
        let Some(status) = self.status(node) else {
            return Ok(());
        };
        if status.connection == Connection::Connected
            || status.alone_since.is_some()
            // In the session, and the end of a verification closed it at once.
            || self.ghost.met_anew[node] == self.tick
            || self.options.settings.solo == Solo::Always
            || self.options.forced
        {
            return Ok(());
        }
        let what = format!(
            "{} becomes Primary without a session, and not alone either",
            self.nodes[node].name
        );
        Err(self.violation("One-writer", what))
    }

    /// *One-writer*: who goes on alone by consent has it from a copy that is durably bad (§3).
    pub(super) fn check_consent(&self, node: usize) -> Checked {
        let by_operator = self.options.forced || self.ghost.operator_chose;
        let Some(record) = self.nodes[1 - node].meta.record() else {
            return Ok(()); // one slot is half-way
        };
        // (One that was never written is a new disk in the place of the one that consented.)
        let bad = record.is_bad() || record.is_never_written();
        if bad || by_operator || self.has_adopted(node, record) {
            return Ok(());
        }
        let what = format!(
            "{} goes on alone by consent of {}, which is durably {:?}",
            self.nodes[node].name,
            self.nodes[1 - node].name,
            record.disk
        );
        Err(self.violation("One-writer", what))
    }

    /// The consent was for a resynchronisation that has come to its end since.
    fn has_adopted(&self, node: usize, theirs: &Record) -> bool {
        let mine = self.nodes[node].meta.record();
        mine.is_some_and(|mine| mine.current == theirs.current)
    }

    /// *Durable-both*: a clean demotion forgets that the node was Primary, and leaves nothing
    /// unflushed behind (§5, hand over).
    pub(super) fn check_handed_over(&mut self, node: usize, old: &Record, new: &Record) -> Checked {
        let demoted = old.was_primary && !new.was_primary && old.current == new.current;
        if !demoted || self.nodes[node].seen.role != Role::Primary {
            return Ok(());
        }
        for sector in self.history.unflushed().collect::<Vec<_>>() {
            self.check_durable(node, sector, self.tick, Level::Newest, "demotion")?;
        }
        Ok(())
    }

    /// The arbiter's register, as it is now, tells a node that is alone by it, and waits for the
    /// answer still, that it is not named.
    pub(super) fn is_told_to_stop(&self, question: &Question, answer: &ArbiterAnswer) -> bool {
        let node = question.node;
        let waits = self.options.settings.arbiter_timeout_ms * MS / 2;
        let ArbiterAnswer::Register(Some(told)) = answer else {
            return false;
        };
        let now = self.arbiter.register();
        let is_now = now.is_some_and(|now| (now.instance, now.seq) == (told.instance, told.seq));
        is_now
            && self.now - question.asked < waits
            // A hello ends its attempt: it asks anew.
            && question.asked > self.nodes[node].greeted
            && !told.copies.contains(&self.nodes[node].id)
            && self.status(node).is_some_and(|status| {
                status.alone_by == Some("arbiter") && status.connection != Connection::Connected
            })
    }

    /// *One-writer*: and so it does not go on (§3).
    pub(super) fn check_stopped(&self, node: usize) -> Checked {
        let goes_on = self
            .status(node)
            .is_some_and(|status| status.alone_since.is_some());
        if goes_on {
            let what = format!(
                "{} is told that the register names the other copy, and goes on alone",
                self.nodes[node].name
            );
            return Err(self.violation("One-writer", what));
        }
        Ok(())
    }

    /// Since when nothing stands still and nothing is cut, or slower than it was drawn; the future if
    /// something is.
    fn calm_since(&self) -> u64 {
        let answers = !self.arbiter.down && !self.options.kit.late_answers;
        let whole = self.net.is_whole() && self.net.slow == 1 && answers;
        if !whole || self.nodes.iter().any(|at| at.slow > 1) {
            return u64::MAX;
        }
        self.stalls_end()
    }

    /// When the last stall that was begun ends, or has ended.
    pub(super) fn stalls_end(&self) -> u64 {
        let stalls = self
            .nodes
            .iter()
            .flat_map(|at| [at.stalled_until, at.paused_until, at.meta.stalled_until]);
        let streams = self.net.stalled_until.iter().flatten().copied();
        let last = self.ghost.last_fault.max(self.ghost.drags_until);
        stalls.chain(streams).fold(last, u64::max)
    }

    /// What begins on a disk or link that is slow drags on when that has come to its end.
    pub(super) fn drags(&mut self, slow: u64, delay: u64) {
        if slow > 1 {
            self.ghost.drags_until = self.ghost.drags_until.max(self.now + delay);
        }
    }

    /// *Converges*: a source with nothing left to copy comes to the end, whatever its load (§5
    /// step 4, the freeze).
    pub(super) fn check_comes_to_an_end(&mut self, node: usize) -> Checked {
        let session = self.net.used_by(node);
        let nothing_left = self.status(node).is_some_and(|status| {
            status.replication == Replication::SyncSource && status.marked_blocks == 0
        });
        let (Some(session), true) = (session, nothing_left) else {
            self.ghost.nothing_left[node] = None;
            return Ok(());
        };
        let since = match self.ghost.nothing_left[node] {
            Some((in_session, since)) if in_session == session => since,
            _ => self.now,
        };
        self.ghost.nothing_left[node] = Some((session, since));
        let o = &self.options;
        // each part takes at most 20 times its mean, and the end has about ten steps
        let mut most = 200 * MS + 100 * (o.net_ns + o.disk_ns + o.meta_ns);
        if o.settings.solo == Solo::Arbiter {
            // One question in seven or its answer is lost or late, and then it is asked again when
            // the time-out has passed, and as much once more: ten in a row are no chance.
            let timeout = o.settings.arbiter_timeout_ms;
            most += 10 * MS * (timeout + timeout.max(1000)) + 100 * o.arbiter_ns;
        }
        if self.has_read_faults() {
            // It waits before it reads again what could not be read; a write may have come there since.
            most += 1_000 * MS;
        }
        if self.now.saturating_sub(since.max(self.calm_since())) > most {
            let what = format!(
                "{} has had nothing left to copy for {} ms, and is not in sync",
                self.nodes[node].name,
                (self.now - since) / MS
            );
            return Err(self.violation("Converges", what));
        }
        Ok(())
    }
}
