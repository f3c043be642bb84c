//! A node's host: what its core wants done is carried out, and the core is told how that ended.
//!
//! What a disk or a metadata store makes of it is theirs (`disk`, `meta`); how long it takes is drawn here.

use kagami_replicator::core::disk::{DiskFault, DiskOp};
use kagami_replicator::core::event::Event;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::{DiskId, MetaId};
use kagami_replicator::core::{Action, Actions, FOUND_BY_VERIFY};

use super::arbiter::Question;
use super::world::{Checked, Happening, MS, World};

impl World {
    /// Carries out a core's actions in their order.
    pub fn carry_out(&mut self, node: usize, actions: &mut Actions) -> Checked {
        let life = self.nodes[node].life;
        for action in actions.drain(..) {
            if !self.lives(node, life) {
                break; // a clean stop was among them
            }
            self.trace.action(self.nodes[node].name, &action);
            self.carry_out_one(node, life, action)?;
        }
        Ok(())
    }

    fn carry_out_one(&mut self, node: usize, life: u64, action: Action) -> Checked {
        match action {
            Action::Disk { id, op } => {
                self.check_disk_op(node, &op)?;
                let op_id = life << 40 | id.0;
                if self.room_to_read(node, op_id, &op) {
                    self.submit(node, op_id, op);
                }
            }
            Action::Metadata { id, steps } => {
                assert!(!steps.is_empty(), "a metadata write of nothing");
                let write = life << 40 | id.0;
                self.nodes[node].meta.submit(write, steps);
                let delay = self.rng.around(self.options.meta_ns);
                self.plan(delay, Happening::Metadata { node, write });
            }
            Action::Send {
                session,
                class,
                message,
            } => {
                match &message {
                    Message::Hello(hello) => {
                        self.nodes[node].greeted = self.now;
                        self.hear_hello(node, session.0, hello)?;
                    }
                    Message::Ready => self.check_word(node, session.0)?,
                    _ => {}
                }
                self.send(node, session, class, &message)?;
            }
            Action::CloseSession { session, reason } => {
                if reason == FOUND_BY_VERIFY {
                    self.ghost.met_anew[node] = self.tick;
                }
                self.close(session, node)
            }
            Action::WantSession { from } => {
                self.nodes[node].want = from;
                if let Some(from) = from {
                    let at = self.nodes[node].clock.world(from);
                    let delay = self.rng.around(2 * MS);
                    self.plan_at(at.saturating_add(delay), Happening::Dial);
                }
            }
            Action::AskArbiter { attempt, ask } => {
                let question = Question {
                    node,
                    life,
                    attempt,
                    arbiter: self.arbiters - u32::from(self.nodes[node].old_arbiter),
                    ask,
                    asked: self.now,
                };
                self.ask_arbiter(question);
            }
            Action::Room { id, len } => {
                if self.room_for_answer(node, id, len) {
                    return Ok(());
                }
                // Most often there is memory at once.
                let wait = if id.0 % 4 == 0 {
                    self.rng.around(2 * MS)
                } else {
                    0
                };
                self.plan(wait, Happening::Room { node, life, id });
            }
            Action::Complete { id, result } => self.complete(node, id.0, result)?,
            Action::CommandDone { id, result } => self.command_done(node, id.0, result)?,
            Action::SetTimer { at } => {
                self.nodes[node].timer += 1;
                if let Some(at) = at {
                    let timer = self.nodes[node].timer;
                    // the host is woken a little late
                    let at = self.nodes[node]
                        .clock
                        .world(at)
                        .saturating_add(self.rng.around(50_000));
                    self.plan_at(at, Happening::Timer { node, life, timer });
                }
            }
            Action::DrawTags(_) => self.plan(10_000, Happening::Tags { node, life }),
            Action::BreakToken => {
                let at = &mut self.nodes[node];
                (at.token, at.token_broken) = (false, true);
            }
            Action::MakeToken => {
                let at = &mut self.nodes[node];
                (at.token, at.token_broken) = (true, false);
            }
            Action::Report(notice) => self.noticed(node, &notice)?,
        }
        Ok(())
    }

    /// A disk operation sets out.
    pub(super) fn submit(&mut self, node: usize, op_id: u64, op: DiskOp) {
        let mends = self.nodes[node].store.mends(&op);
        let now = self.now;
        self.nodes[node].store.submit(op_id, op, now, &mut self.rng);
        let mut delay = self.disk_delay(node);
        if mends {
            // A disk takes its time for a bad block, and does other things meanwhile.
            let timeout = self.options.settings.timeout_ms * MS;
            delay += self.rng.between(0, 2 * timeout);
        }
        self.plan(delay, Happening::Disk { node, op: op_id });
    }

    fn disk_delay(&mut self, node: usize) -> u64 {
        let at = &self.nodes[node];
        let (waits, slow) = (at.stalled_until.saturating_sub(self.now), at.slow);
        let delay = waits + self.rng.around(self.options.disk_ns * slow);
        self.drags(slow, delay);
        delay
    }

    /// A disk operation ends, and its daemon hears of it if it lives.
    pub(super) fn end_disk(&mut self, node: usize, op: u64) -> Checked {
        let heard = self.lives(node, op >> 40);
        let at = &mut self.nodes[node];
        if !at.store.has(op) {
            return Ok(()); // the machine crashed since
        }
        if at.stalled_until > self.now {
            let until = at.stalled_until;
            let delay = self.rng.around(self.options.disk_ns);
            self.plan_at(until + delay, Happening::Disk { node, op });
            return Ok(());
        }
        if !at.store.unreadable.is_empty() {
            self.ghost.unreadable_until[node] = Some(self.now);
        }
        let touched = &mut self.ghost.touched;
        let is_write = at.store.is_write(op);
        let result = at.store.complete(op, heard, &mut |block| {
            touched.insert(block);
        });
        let result = self.read_into(node, op, result);
        let (life, id) = (op >> 40, DiskId(op & ((1 << 40) - 1)));
        if self.lives(node, life) {
            self.nodes[node].store.told |= is_write && matches!(result, Err(DiskFault::Io(_)));
            return self.feed(node, Event::Disk { id, result });
        }
        if is_write && matches!(result, Err(DiskFault::Io(_))) {
            self.failed_unheard(node);
        }
        self.trace.line(|| {
            format!(
                "          {} a dead daemon's disk operation ends",
                self.nodes[node].name
            )
        });
        Ok(())
    }

    /// A step of a metadata write is durable, or fails.
    pub(super) fn step_metadata(&mut self, node: usize, write: u64) -> Checked {
        if !self.nodes[node].meta.has(write) {
            return Ok(()); // the machine crashed since
        }
        match self.fail_metadata(node, write) {
            None => return Ok(()),
            Some(true) => return self.metadata_failed(node, write),
            Some(false) => {}
        }
        let heard = self.lives(node, write >> 40) || self.nodes[node].repairing == Some(write);
        let last = self.nodes[node].meta.step(write, heard);
        self.ghost_record(node)?;
        if !last {
            let delay = self.rng.around(self.options.meta_ns);
            self.plan(delay, Happening::Metadata { node, write });
            return Ok(());
        }
        let (life, id) = (write >> 40, MetaId(write & ((1 << 40) - 1)));
        if self.nodes[node].repairing == Some(write) {
            return self.repaired(node);
        }
        if self.lives(node, life) {
            return self.feed(node, Event::MetadataDone { id, result: Ok(()) });
        }
        Ok(())
    }
}
