//! The lives of daemons and machines: start, death, crash, boot.
//!
//! A daemon starts from what its metadata store says, and only when nothing that an earlier one
//! asked of the stores is under way. It first writes the repairs that its recovery asks for.

use kagami_bitmap::planted::{Defect, planted};
use kagami_replicator::core::{Actions, Mirror, Start, TAGS};

use super::check::Violation;
use super::content::Value;
use super::faults::Fault;
use super::member::Ground;
use super::node::UNSEEN;
use super::world::{Checked, Happening, MS, World};

/// The metadata write of a repair, beside the ids that cores choose.
const REPAIR: u64 = (1 << 40) - 1;

impl World {
    /// The daemon starts, if its machine runs and the fence lets it.
    pub(super) fn start(&mut self, node: usize) -> Checked {
        let at = &self.nodes[node];
        if !at.up || at.mirror.is_some() || at.repairing.is_some() || !at.starting {
            return Ok(());
        }
        if let Some(until) = self.daemon_is_down(node) {
            self.plan_at(until, Happening::Start { node });
            return Ok(());
        }
        if !at.is_idle() && !planted(Defect::SuccessorStartsEarly) {
            let delay = self.rng.around(MS);
            self.plan(delay, Happening::Start { node });
            return Ok(());
        }
        let at = &mut self.nodes[node];
        at.meta.open(&mut self.rng);
        if self.harm_metadata(node)? {
            return Ok(());
        }
        self.grow_copy(node)?;
        let mut recovered = self.recover(node)?;
        self.nodes[node].meet_store(&mut recovered);
        self.ghost_record(node)?; // what a crash let through
        let steps = recovered.repair;
        if steps.is_empty() {
            return self.serve(node);
        }
        let write = self.nodes[node].life << 40 | REPAIR;
        self.nodes[node].repairing = Some(write);
        self.nodes[node].meta.submit(write, steps);
        let delay = self.rng.around(self.options.meta_ns);
        self.plan(delay, Happening::Metadata { node, write });
        Ok(())
    }

    pub(super) fn repaired(&mut self, node: usize) -> Checked {
        self.nodes[node].repairing = None;
        self.serve(node)
    }

    fn recover(&mut self, node: usize) -> Checked<kagami_bitmap::Recovered> {
        let name = self.nodes[node].name;
        let recovered = self.nodes[node].meta.recover();
        let recovered = recovered.map_err(|fault| {
            Violation::new(
                "No-torn-metadata",
                format!("{name} can't read its metadata: {fault}"),
            )
        })?;
        self.check_findings(node, &recovered.findings)?;
        Ok(recovered)
    }

    fn serve(&mut self, node: usize) -> Checked {
        let recovered = self.recover(node)?;
        if !recovered.repair.is_empty() {
            let what = format!(
                "{} repairs its metadata without an end",
                self.nodes[node].name
            );
            return Err(Violation::new("No-torn-metadata", what));
        }
        self.draw_version(node);
        let tags = (0..TAGS).map(|_| self.rng.next_u64()).collect();
        let now = self.local(node);
        let at = &mut self.nodes[node];
        at.starting = false;
        at.want = None;
        at.store.told |= at.store.failed;
        at.hangs = false;
        if !at.store.failed {
            self.open_store(node);
        }
        let memory = self.open_account(node);
        let at = &mut self.nodes[node];
        let start = Start {
            node: at.id,
            peer: at.peer,
            recovered,
            settings: at.settings.clone(),
            boot: at.boot,
            token: at.token,
            disk_usable: !at.store.failed,
            unmap_zeroes: self.options.unmap_zeroes[node],
            tags,
            memory,
        };
        let name = at.name;
        self.trace.line(|| {
            format!(
                "{:>10} {name} starts, disk usable {}, token {}",
                self.now / 1000,
                start.disk_usable,
                start.token
            )
        });
        self.tick += 1;
        self.stats.steps += 1;
        let mut actions = Actions::new();
        let mirror = Mirror::new(start, now, &mut actions);
        mirror.check();
        self.nodes[node].mirror = Some(mirror);
        self.carry_out(node, &mut actions)?;
        self.after_step(node)
    }

    /// Plans a start of the daemon.
    pub(super) fn start_in(&mut self, node: usize, delay: u64) {
        self.nodes[node].starting = true;
        self.plan(delay, Happening::Start { node });
        self.tell_start(node, delay);
    }

    /// This mirror's part of the daemon is gone; its disk operations go on.
    pub(super) fn die(&mut self, node: usize) {
        let life = self.nodes[node].life;
        self.end_of_life(node);
        let at = &mut self.nodes[node];
        at.meta.daemon_died(&mut self.rng);
        let name = at.name;
        self.trace
            .line(|| format!("{:>10} {name} daemon {life} is dead", self.now / 1000));
    }

    /// The machine crashes: the cache of its disk, its daemon and its clock are gone.
    pub(super) fn crash_copy(&mut self, node: usize) {
        self.end_of_life(node);
        let at = &mut self.nodes[node];
        let lost = at.store.crash(&mut self.rng);
        at.meta.crash(&mut self.rng);
        at.up = false;
        let name = at.name;
        self.lose(node, &lost);
        self.trace
            .line(|| format!("{:>10} {name} machine crashes", self.now / 1000));
    }

    /// A crash took these from the node's copy.
    pub(super) fn lose(&mut self, node: usize, lost: &[(u64, Value)]) {
        for (sector, value) in lost {
            self.history.lost(*sector, *value, node);
        }
    }

    fn end_of_life(&mut self, node: usize) {
        self.drop_ends(node);
        self.give_up_requests(node);
        self.give_up_orders(node);
        self.end_term(node);
        self.close_account(node);
        let at = &mut self.nodes[node];
        at.mirror = None;
        at.repairing = None;
        at.starting = false;
        at.paused_until = 0;
        at.waiting.clear();
        at.want = None;
        at.life += 1;
        at.timer += 1;
        at.seen = UNSEEN;
    }

    /// The daemon has stopped by itself, cleanly.
    pub(super) fn stopped(&mut self, node: usize) {
        // As the shell does: what is on its way yet may fail when nobody hears it any more.
        let at = &mut self.nodes[node];
        if !at.is_idle() {
            (at.token, at.token_broken) = (false, true);
        }
        self.die(node);
    }

    pub(super) fn boot(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        let mut ppm = self.options.drift_ppm[node];
        if self.options.kit.clocks {
            ppm = self.fault_rng.between(0, 19_800) as i64 - 9_900;
            self.stats.fault(Fault::ClockChanges);
        }
        let now = self.now;
        self.nodes[node].boot(now, ppm, &mut self.rng);
        let delay = self.rng.around(20 * MS);
        self.start_in(node, delay);
        let (clock, boot) = (self.nodes[node].clock, self.nodes[node].boot);
        self.tell(|| Ground::Boot {
            node,
            clock,
            boot,
            delay,
        });
    }
}
