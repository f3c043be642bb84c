//! Faults of the link beside its loss: flapping, long delays, and what it carries for others.
//!
//! Mirrors that share a link share its fate and its room, and nothing else: their cores know nothing
//! of each other, and each has streams of its own (`replicator/src/shell/quic`). So what another
//! mirror can do to this one is what is done here: the loss of the link at the same moment, and
//! messages that wait behind another's.

use super::super::member::Ground;
use super::super::net::CLASSES;
use super::super::world::{Happening, MS, Phase, World};
use super::Fault;

impl World {
    pub(super) fn inject_link(&mut self, fault: Fault, node: usize, lasts: u64) -> bool {
        match fault {
            Fault::LinkFlaps => {
                let times = self.fault_rng.between(3, 24);
                self.flap(times);
            }
            Fault::LinkSlow => {
                self.net.slow = self.fault_rng.pick(&[5, 30, 200]);
                let slow = self.net.slow;
                self.tell(|| Ground::Slow(slow));
                let change = 0;
                self.plan(
                    lasts,
                    Happening::Mend {
                        fault,
                        node,
                        change,
                    },
                );
            }
            Fault::StreamStalls => {
                let class = self.fault_rng.below(CLASSES.len() as u64) as usize;
                let stalled = &mut self.net.stalled_until[node][class];
                *stalled = (*stalled).max(self.now + lasts);
            }
            Fault::LinkCrowded => {
                // bulk goes behind control, and both ways are not equally full
                let most = lasts.min(self.options.settings.timeout_ms * MS);
                for from in 0..2 {
                    for class in 0..CLASSES.len() {
                        let share = [most / 8, most / 2, most][class];
                        let until = self.now + self.fault_rng.below(share + 1);
                        let stalled = &mut self.net.stalled_until[from][class];
                        *stalled = until.max(*stalled);
                    }
                }
            }
            _ => return false,
        }
        true
    }

    /// The link changes between cut and whole, `left` times more, and is whole at the end.
    pub(super) fn flap(&mut self, left: u64) {
        if self.phase != Phase::Storm {
            return;
        }
        let blocked = match left {
            0 => [false, false],
            left if left % 2 == 0 => [false, false],
            _ if self.fault_rng.percent(70) => [true, true],
            _ if self.fault_rng.coin() => [true, false],
            _ => [false, true],
        };
        self.block(blocked);
        if left > 0 {
            let delay = self.fault_rng.between(MS / 2, 60 * MS);
            let (fault, node, change) = (Fault::LinkFlaps, 0, left - 1);
            self.plan(
                delay,
                Happening::Mend {
                    fault,
                    node,
                    change,
                },
            );
        }
    }
}
