//! Watching: when a monitor looks, and when what it saw counts as a failure.

use crate::config::Severity;
use crate::planted::{Defect, planted};

use super::Manager;
use super::action::{Action, Actions};
use super::alert::Object;
use super::event::OpResult;
use super::gate::LOOK_AGAIN;
use super::message::Phase;
use super::right_to_run::{Hold, reason};
use super::state::{MonitorStatus, ResourceState, Time};

/// The shell gives a probe up at its time-out; if it does not say so, the core does, this much later, in milliseconds.
const GRACE: u64 = 1000;

/// A probe that is under way.
#[derive(Clone, Copy, Debug)]
struct Look {
    probe: u64,
    /// When it is given up.
    until: Time,
    /// That time had come before, and it may have been this process that stood still: now the answer is among what has come
    /// until then, or there is none.
    is_last: bool,
}

/// A monitor, what need not outlive the manager.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub status: MonitorStatus,
    look: Option<Look>,
    /// When it looks next.
    next: Time,
    /// Failures in a row that do not count yet.
    failures: u32,
    /// The last failure, or this manager's start.
    pub last_failure: Time,
    /// What could not be done was told.
    pub told: bool,
    /// What the last look warned of was told.
    warned: bool,
}

impl Watch {
    pub fn new(now: Time) -> Self {
        Self {
            status: MonitorStatus::Unused,
            look: None,
            next: now,
            failures: 0,
            last_failure: now,
            told: false,
            warned: false,
        }
    }
}

impl Manager {
    /// It has something to watch here and now.
    fn is_watching(&self, at: usize) -> bool {
        let config = &self.cluster.monitors[at];
        let me = &self.cluster.nodes[self.me];
        let here = config.common.nodes.is_empty() || config.common.nodes.contains(me);
        let active = config.active.as_ref().is_none_or(|(group, resource)| {
            let group = self.cluster.groups.iter().position(|g| g.name == *group);
            group.is_some_and(|group| {
                let at = self.cluster.groups[group].position(resource);
                let record = &self.durable.groups[group];
                self.groups[group].right == Hold::Held
                    && record.bounce.is_empty()
                    && at.is_some_and(|at| record.resources[at].state == ResourceState::Online)
            })
        });
        here && active
            && self.phase == Phase::Running
            && self.durable.ending.is_none()
            && (!self.durable.suspended.value || planted(Defect::SuspendedActs))
            && !self.durable.monitors[at].suspended
            && self.durable.monitors[at].recovering.is_none()
    }

    pub(super) fn watch_monitors(&mut self, out: &mut Actions) {
        let cluster = self.cluster.clone();
        for (at, config) in cluster.monitors.iter().enumerate() {
            let watching = self.is_watching(at);
            let suspended = self.durable.monitors[at].suspended;
            let watch = &mut self.watches[at];
            if !watching {
                watch.look = None;
                watch.failures = 0;
                watch.warned = false;
                watch.status = if suspended {
                    MonitorStatus::Suspended
                } else {
                    MonitorStatus::Unused
                };
                continue;
            }
            if matches!(
                watch.status,
                MonitorStatus::Unused | MonitorStatus::Suspended
            ) {
                watch.status = MonitorStatus::Unknown;
                watch.next = self.now.after(config.common.start_delay.0);
            }
            match &mut watch.look {
                Some(look) if look.until <= self.now && !look.is_last => {
                    look.is_last = true;
                    look.until = self.now.after(LOOK_AGAIN);
                }
                Some(Look { probe, until, .. }) if *until <= self.now => {
                    let probe = *probe;
                    self.on_probed(probe, OpResult::TimedOut, out);
                }
                None if watch.next <= self.now => {
                    let probe = self.next_probe;
                    self.next_probe += 1;
                    let timeout = config.timeout();
                    let until = match timeout.0 {
                        0 => Time(u64::MAX),
                        timeout => self.now.after(timeout + GRACE),
                    };
                    watch.look = Some(Look {
                        probe,
                        until,
                        is_last: false,
                    });
                    out.push(Action::Probe {
                        probe,
                        monitor: at,
                        timeout,
                    });
                }
                _ => {}
            }
        }
    }

    pub(super) fn on_probed(&mut self, probe: u64, result: OpResult, out: &mut Actions) {
        let of = |watch: &Watch| watch.look.is_some_and(|look| look.probe == probe);
        let found = self.watches.iter().position(of);
        let Some(at) = found else {
            return;
        };
        let cluster = self.cluster.clone();
        let config = &cluster.monitors[at];
        let result = if self.durable.monitors[at].made_to_fail {
            OpResult::Failed("an operator lets it fail".to_owned())
        } else {
            result
        };
        let watch = &mut self.watches[at];
        watch.look = None;
        watch.next = self.now.after(config.interval().0);
        let object = Object::Monitor(config.name.clone());
        let warned = std::mem::replace(&mut watch.warned, matches!(result, OpResult::Warned(_)));
        if let OpResult::Warned(why) = result {
            // What it watches is there: the next failure is the first one, and is told.
            watch.status = MonitorStatus::Caution;
            watch.failures = 0;
            watch.told = false;
            if !warned {
                self.alert(out, Severity::Warning, object, "caution", why);
            }
            return;
        }
        if result == OpResult::Done {
            let was = std::mem::replace(&mut watch.status, MonitorStatus::Normal);
            watch.failures = 0;
            watch.told = false;
            if matches!(was, MonitorStatus::Caution | MonitorStatus::Error) {
                self.alert(out, Severity::Info, object, "normal", "");
            }
            return;
        }
        watch.last_failure = self.now;
        watch.failures += 1;
        let at_once = result == OpResult::TimedOut && config.common.no_retry_after_timeout;
        if watch.failures <= config.retries() && !at_once {
            watch.status = MonitorStatus::Caution;
            let what = format!("failure {}, tried again", watch.failures);
            self.alert(out, Severity::Warning, object, what, reason(&result));
            return;
        }
        watch.failures = 0;
        if watch.status != MonitorStatus::Error || !watch.told {
            self.alert(out, Severity::Error, object, "failure", reason(&result));
        }
        self.watches[at].status = MonitorStatus::Error;
        self.recover(at, &result, out);
    }

    pub(super) fn monitor_deadlines(&self, by: &mut impl FnMut(Time)) {
        for (at, watch) in self.watches.iter().enumerate() {
            match (watch.status, watch.look) {
                (MonitorStatus::Unused | MonitorStatus::Suspended, _) => {}
                (_, Some(look)) => by(look.until),
                (_, None) => by(watch.next),
            }
            if self.has_counts(at) {
                by(watch
                    .last_failure
                    .after(self.cluster.monitors[at].common.clear_after.0));
            }
        }
    }
}
