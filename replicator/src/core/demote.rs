//! Roles: demote (docs/protocol.md §5, *hand over*). A promotion that waits is withdrawn by it.

use kagami_bitmap::planted::{Defect, planted};

use super::durable::After;
use super::event::{IoError, Refusal, Reply};
use super::flush::FlushOf;
use super::link::Phase;
use super::promote::{Promotion, refusal};
use super::request::Gate;
use super::state::CommandId;
use super::{Action, Actions, DiskOp, DiskWork, Mirror, Store};

/// A demotion under way.
#[derive(Debug)]
pub(super) struct Demoting {
    pub(super) command: Option<CommandId>,
    /// Fail what can't be finished.
    force: bool,
    stage: Demotion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demotion {
    /// Requests under way end.
    Draining,
    /// What is unflushed is flushed.
    Flushing,
    /// The local flush of a Primary without a session is under way.
    FlushingAlone,
    /// `was_primary` is being written.
    Recording,
}

impl Mirror {
    pub(super) fn demote(&mut self, command: Option<CommandId>, force: bool, out: &mut Actions) {
        let reply = |result, out: &mut Actions| {
            if let Some(id) = command {
                out.push(Action::CommandDone { id, result });
            }
        };
        if !self.is_primary() && self.promoting.is_some() {
            let result = self.withdraw_promotion(out);
            return reply(result, out);
        }
        if !self.is_primary() {
            return reply(
                Ok(Reply::Nothing("this node is Secondary already".into())),
                out,
            );
        }
        if let Some(demoting) = &mut self.demoting {
            if force {
                demoting.force = true;
                return reply(Ok(Reply::Started), out);
            }
            return reply(
                Err(refusal(
                    "not demoted: it is under way already",
                    vec![],
                    "wait for it",
                )),
                out,
            );
        }
        if self.is_holding() {
            if !force {
                let facts = vec![format!(
                    "{} requests wait: {}",
                    self.jobs.len(),
                    self.why_held()
                )];
                let next = "connect the peer, or `kagami demote --force` (those requests fail)";
                return reply(
                    Err(refusal(
                        "not demoted: requests wait for the peer",
                        facts,
                        next,
                    )),
                    out,
                );
            }
            self.gate = Gate::Closing;
            self.fail_requests(IoError::NotPrimary, out);
        }
        if !force && self.is_guest_unflushed() && !self.is_served() {
            let facts = vec![format!(
                "node {} answered for this one, may not have flushed it all, and is not connected",
                self.peer
            )];
            let next = "connect it, or `kagami demote --force` (what it has not flushed is lost if its machine crashes)";
            let what = "not demoted: not everything is known to be on the other node's disk";
            return reply(Err(refusal(what, facts, next)), out);
        }
        self.gate = Gate::Closing;
        self.demoting = Some(Demoting {
            command,
            force,
            stage: Demotion::Draining,
        });
    }

    /// Whoever is told to be Secondary does not become Primary by an earlier order, whenever what that waits for comes.
    ///
    /// Errors: what is under way can't be taken back, and ends soon.
    fn withdraw_promotion(&mut self, out: &mut Actions) -> Result<Reply, Refusal> {
        let waits = match self.promoting.as_ref().map(|p| p.stage) {
            None | Some(Promotion::Begin) => true,
            // Permission may be there, and is being written.
            Some(Promotion::Alone) => !self.durable.is_changing(),
            // The peer holds it for Primary as soon as it grants.
            Some(Promotion::Asked | Promotion::Granted | Promotion::Carrier) => false,
        };
        if !waits {
            let what = "not demoted: it is being promoted";
            return Err(refusal(what, vec![], "wait for it: `kagami status`"));
        }
        let next = "`kagami promote`, if it is to be Primary after all";
        let what = "not promoted: it was told to be Secondary meanwhile";
        self.refuse_promotion(refusal(what, vec![], next), out);
        Ok(Reply::Done)
    }

    pub(super) fn advance_demotion(&mut self, out: &mut Actions) {
        let Some(demoting) = &self.demoting else {
            return;
        };
        // (What a guest's source sends has nothing to do with its front ends.)
        let quiet = self.jobs.is_empty()
            && (self.is_guest() || self.runs_in_flight().next().is_none())
            && (!self.has_repairs()
                || self.local.store != Store::Usable
                || planted(Defect::RepairOutlivesTheRole));
        match demoting.stage {
            Demotion::Draining
                if self.is_holding() && (self.stopping.is_some() || demoting.force) =>
            {
                self.fail_requests(IoError::NotPrimary, out);
            }
            Demotion::Draining if quiet && planted(Defect::DemotedUnflushed) => {
                self.record_demotion();
            }
            // It is flushed when the source is back, or its own copy is in sync.
            Demotion::Draining
                if quiet
                    && self.is_guest_unflushed()
                    && !self.is_served()
                    && !demoting.force
                    && self.stopping.is_none() => {}
            Demotion::Draining if quiet => {
                let mirrors = self.is_mirroring();
                if let Some(demoting) = &mut self.demoting {
                    demoting.stage = if mirrors {
                        Demotion::Flushing
                    } else {
                        Demotion::FlushingAlone
                    };
                }
                if mirrors {
                    self.advance_demotion(out);
                } else if self.local.store == Store::Usable {
                    self.submit(
                        DiskWork::Flush(FlushOf::Demote { term: self.term }),
                        DiskOp::Flush,
                        out,
                    );
                } else {
                    self.record_demotion();
                }
            }
            Demotion::Flushing if !self.is_mirroring() => {
                if let Some(demoting) = &mut self.demoting {
                    demoting.stage = Demotion::Draining;
                }
            }
            Demotion::Flushing
                if self.unflushed.is_empty()
                    && !self.is_answerer_unflushed()
                    && !self.flush.is_running() =>
            {
                self.record_demotion()
            }
            Demotion::Flushing => {
                self.flush.wanted = true;
                // Roles come after flushes in the upkeep, and nothing else need happen for a while.
                self.advance_flush(out);
            }
            Demotion::Draining | Demotion::FlushingAlone | Demotion::Recording => {}
        }
    }

    /// A flush that failed has detached the copy; the role is given up all the same. One of an earlier term, which
    /// has ended otherwise, says nothing of what this one has written.
    pub(super) fn on_flushed_to_demote(&mut self, term: u64) {
        if self.demoting.is_some() && term == self.term {
            self.record_demotion();
        }
    }

    /// A clean hand-over forgets `was_primary`: everything is on both disks, unmarked.
    fn record_demotion(&mut self) {
        if let Some(demoting) = &mut self.demoting {
            demoting.stage = Demotion::Recording;
        }
        let clean = self.is_in_sync()
            && self.bitmap.count() == 0
            && (self.unflushed.is_empty() || planted(Defect::DemotedUnflushed));
        self.change_record(After::Demoted, |r| r.was_primary &= !clean);
    }

    pub(super) fn on_demoted_durable(&mut self, out: &mut Actions) {
        let Some(demoting) = self.demoting.take() else {
            return;
        };
        assert!(
            self.jobs.is_empty(),
            "requests under way at the end of a demotion"
        );
        self.lose_role(match demoting.command {
            Some(_) => "demoted",
            None => "it was stopped",
        });
        // Beside a peer without a disk it stays the carrier, and may be Primary again.
        let in_use = matches!(self.up().map(|up| &up.phase), Some(Phase::Serve(_)));
        let carrier = in_use && self.alone.is_some();
        if !carrier {
            self.alone = None;
        }
        if self.local.store != Store::Usable && !self.is_carried() {
            // A Secondary without a disk has no session, unless the peer carries it already and is
            // promoted in it: else the peer, no more in need to carry, would wait in it for ever.
            self.close_session("the local disk failed", out);
        }
        let adopted = self.target_mut().is_some_and(|target| target.adopted);
        self.local.up_to_date =
            self.is_in_sync() || self.is_source() || carrier || adopted && self.local.up_to_date;
        if let Some(command) = demoting.command {
            self.answer(command, Ok(Reply::Done), out);
        }
    }

    /// The Primary is about to go, cleanly demoted.
    pub(super) fn on_peer_bye(&mut self, out: &mut Actions) -> Result<(), String> {
        self.close_session("the peer stops", out);
        Ok(())
    }
}
