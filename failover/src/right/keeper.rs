//! The manager's side of the right: carries out what the core asks for, and tells it what came of it.
//!
//! One task for all groups. A group that is asked for is put under guard first, then its mirrors are
//! promoted, one after the other; a node that takes over waits, after its permission, for as long as
//! the other one may still be frozen with its address ([`MARGIN`]). To give it up is to demote
//! them all, and so it is after it was lost: a mirror that stays Primary would keep the other node from it.
//! While the daemon is gone nothing is Primary, so the right is given up at once and demoted when it is
//! back. A group without a mirror has a lease of its own at the arbiter ([`super::tenancy`]); without
//! an arbiter its right is what the managers tell each other.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::clock;
use crate::config::resource::Kind;
use crate::config::{Cluster, Severity};
use crate::core::{Alert, Event, GroupId, Object, Right, Time};
use crate::guard_process::client::Guards;
use crate::guard_process::message::Watched;
use crate::manager::{Handle, Rights};

use super::basis::{Basis, Judged};
use super::lease;
use super::promotion::{NOT_SERVED, Question, Refusal, Refusals, SEEN_WITHIN, promote_all};
use super::tenancy::Tenancy;
use super::{MARGIN, Mirrors, Word};

/// A demotion that was refused is tried again after this, in milliseconds.
const DEMOTE_AGAIN: u64 = 500;
/// A mirror that is not Primary any more, though it should be, is promoted again after this.
const PROMOTE_AGAIN: Duration = Duration::from_millis(200);
/// A daemon that was only started again is back within this, in milliseconds.
const BACK_WITHIN: u64 = 5000;

/// Where a group's control group is, if it has one.
pub type ControlGroupOf = Arc<dyn Fn(&str) -> Option<std::path::PathBuf> + Send + Sync>;

#[derive(Debug)]
enum Input {
    Ask(GroupId, Question),
    Release(GroupId),
    Stopped(GroupId),
    Reset(String),
    Word(Word),
    Lost(String),
    /// The mirrors are Primary; the other node may still have the address.
    MirrorsOnly(GroupId, u64),
    Promoted(GroupId, u64, Result<(), Refusal>),
    Demoted(GroupId, u64, Result<(), Stuck>),
}

/// A mirror that is Primary still.
#[derive(Debug)]
struct Stuck {
    mirror: String,
    why: String,
}

/// The core's word to the keeper.
#[derive(Debug)]
pub struct Keeper {
    inputs: mpsc::UnboundedSender<Input>,
    task: AbortHandle,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Rights for Keeper {
    fn ask(&mut self, group: GroupId, fenced: bool, begun: bool) {
        let question = Question { fenced, begun };
        let _ = self.inputs.send(Input::Ask(group, question));
    }

    fn release(&mut self, group: GroupId) {
        let _ = self.inputs.send(Input::Release(group));
    }

    fn stopped(&mut self, group: GroupId) {
        let _ = self.inputs.send(Input::Stopped(group));
    }

    fn reset(&mut self, why: String) {
        let _ = self.inputs.send(Input::Reset(why));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Idle,
    /// The mirrors are being promoted.
    Asking,
    /// They were, and what came of it is to be seen by then.
    Seeing(Time),
    Held,
    /// The lease has ended.
    Ended,
    /// The mirrors are being demoted, and the core waits for the word.
    Releasing,
    /// They are being demoted all the same: the right was lost, or refused, or the daemon is gone.
    Yielding,
}

struct Group {
    name: String,
    mirrors: Vec<String>,
    basis: Basis,
    at: At,
    ready: Option<bool>,
    diskless: bool,
    untrusted: bool,
    /// Raised with each thing that is begun: what an earlier one brings is nothing.
    turn: u64,
    under_way: Option<AbortHandle>,
    promoting_again: bool,
    /// What it was asked for last.
    question: Question,
    /// That came while the mirrors were being demoted: it is taken afterwards.
    next: Option<Question>,
    /// Of a group that is active already: it is asked for again after each.
    refusals: Refusals,
    /// Why it is refused, to be told when the mirrors were asked to be demoted.
    refused: Option<String>,
    /// A demotion that was refused is tried again then.
    demote_at: Option<Time>,
    /// That it was refused was told.
    told: bool,
}

struct Task<M> {
    cluster: Arc<Cluster>,
    mirrors: Arc<M>,
    tenancy: Option<Tenancy>,
    guards: Guards,
    control_group: ControlGroupOf,
    handle: Handle,
    inputs: mpsc::UnboundedSender<Input>,
    groups: Vec<Group>,
    /// Since when the daemon is gone.
    gone: Option<Time>,
}

impl Keeper {
    /// Starts the keeper of all groups. `lost` is what [`Guards`] brings; `tenancy` has the leases of
    /// groups without mirrors, where there is an arbiter.
    pub fn start<M: Mirrors>(
        cluster: Arc<Cluster>,
        mirrors: Arc<M>,
        tenancy: Option<Tenancy>,
        guards: Guards,
        mut lost: mpsc::UnboundedReceiver<String>,
        control_group: ControlGroupOf,
        handle: Handle,
    ) -> Self {
        let (inputs, mut queue) = mpsc::unbounded_channel();
        let group = |config: &crate::config::Group| {
            let mirrors: Vec<String> = config.mirrors().map(str::to_owned).collect();
            Group {
                name: config.name.clone(),
                basis: Basis::new(&mirrors),
                mirrors,
                at: At::Idle,
                ready: None,
                diskless: false,
                untrusted: false,
                turn: 0,
                under_way: None,
                promoting_again: false,
                question: Question {
                    fenced: false,
                    begun: false,
                },
                next: None,
                refusals: Refusals::default(),
                refused: None,
                demote_at: None,
                told: false,
            }
        };
        let groups: Vec<Group> = cluster.groups.iter().map(group).collect();
        let all: Vec<String> = groups.iter().flat_map(|g| g.mirrors.clone()).collect();
        let mut task = Task {
            cluster,
            tenancy,
            guards,
            control_group,
            handle,
            inputs: inputs.clone(),
            groups,
            gone: None,
            mirrors: Arc::clone(&mirrors),
        };
        let running = tokio::spawn(async move {
            // Without mirrors nothing is asked of a daemon.
            let (_nobody, nothing) = mpsc::unbounded_channel();
            let mut words = if all.is_empty() {
                nothing
            } else {
                mirrors.watch(all, true)
            };
            loop {
                let next = task.next_deadline();
                let wait = Duration::from_millis(next.since(clock::now()).min(3_600_000));
                let input = tokio::select! {
                    input = queue.recv() => input,
                    word = words.recv() => word.map(Input::Word),
                    group = lost.recv() => group.map(Input::Lost),
                    () = sleep(wait) => None,
                };
                if let Some(input) = input {
                    task.take(input);
                }
                task.look();
            }
        });
        Self {
            inputs,
            task: running.abort_handle(),
        }
    }
}

impl<M: Mirrors> Task<M> {
    fn say(&self, group: GroupId, change: Right) {
        self.handle.event(Event::Right { group, change });
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Ask(group, question) => self.ask(group, question),
            Input::Release(group) => self.release(group),
            Input::Stopped(group) => {
                if let Some(tenancy) = self.leased(group) {
                    return tenancy.say(group, lease::Event::Stopped);
                }
                if self.groups[group].mirrors.is_empty() {
                    self.guards.begin_disarm(&self.groups[group].name);
                } else {
                    self.give_up(group, At::Yielding);
                }
            }
            Input::Reset(why) => self.guards.begin_reset(why),
            Input::Word(Word::Gone) => {
                self.gone.get_or_insert(clock::now());
            }
            Input::Word(Word::Says(says)) => {
                let now = clock::now();
                self.gone = None;
                for group in &mut self.groups {
                    group.basis.take(now, &says);
                }
            }
            Input::Lost(name) => {
                let found = self.groups.iter().position(|group| group.name == name);
                if let Some(group) = found {
                    if let Some(tenancy) = self.leased(group) {
                        return tenancy.say(group, lease::Event::Lost);
                    }
                    // The core has given it up itself, or has heard of it already.
                    if self.groups[group].is_demoting() {
                        return;
                    }
                    self.begin(group, At::Idle, None);
                    self.say(group, Right::Lost);
                }
            }
            Input::MirrorsOnly(group, turn) => {
                if self.groups[group].turn == turn {
                    // From now on something of it may be active.
                    self.groups[group].question.begun = true;
                    self.say(group, Right::MirrorsOnly);
                }
            }
            Input::Promoted(group, turn, result) => self.promoted(group, turn, result),
            Input::Demoted(group, turn, result) => self.demoted(group, turn, result),
        }
    }

    /// What was under way for a group ends; `task` is under way instead.
    fn begin(&mut self, group: GroupId, at: At, task: Option<AbortHandle>) {
        let group = &mut self.groups[group];
        if let Some(before) = group.under_way.take() {
            before.abort();
        }
        group.at = at;
        group.under_way = task;
    }

    fn leased(&self, group: GroupId) -> Option<&Tenancy> {
        self.tenancy.as_ref().filter(|tenancy| tenancy.has(group))
    }

    fn ask(&mut self, group: GroupId, question: Question) {
        if self.groups[group].mirrors.is_empty() {
            return match self.leased(group) {
                // Where there is an arbiter no fence script is asked.
                Some(tenancy) => tenancy.say(group, lease::Event::Ask),
                None if !self.cluster.has_arbiter() => {
                    self.say(group, Right::Granted);
                }
                None => {
                    let why = "it has no mirror, and nobody keeps its lease".to_owned();
                    self.say(group, Right::Refused(why));
                }
            };
        }
        match self.groups[group].at {
            At::Held => self.say(group, Right::Granted),
            At::Ended => self.say(group, Right::LeaseEnded),
            At::Asking | At::Seeing(_) => {}
            At::Releasing | At::Yielding => {
                self.groups[group].at = At::Yielding;
                self.groups[group].next = Some(question);
            }
            At::Idle => {
                self.groups[group].question = question;
                self.groups[group].refusals = Refusals::default();
                self.promote(group, Duration::ZERO);
            }
        }
    }

    /// Has the mirrors promoted, after `pause`.
    fn promote(&mut self, group: GroupId, pause: Duration) {
        let of = &mut self.groups[group];
        of.turn += 1;
        let (turn, names, question) = (of.turn, of.mirrors.clone(), of.question);
        let watched = watched(&self.cluster, group, &self.control_group);
        let (mirrors, guards) = (Arc::clone(&self.mirrors), self.guards.clone());
        let inputs = self.inputs.clone();
        let task = tokio::spawn(async move {
            sleep(pause).await;
            let early = inputs.clone();
            let are_ours = move || {
                let _ = early.send(Input::MirrorsOnly(group, turn));
            };
            let result = promote_all(mirrors, guards, watched, names, question, are_ours).await;
            let _ = inputs.send(Input::Promoted(group, turn, result));
        });
        self.begin(group, At::Asking, Some(task.abort_handle()));
    }

    fn promoted(&mut self, group: GroupId, turn: u64, result: Result<(), Refusal>) {
        if self.groups[group].turn != turn {
            return;
        }
        match result {
            Ok(()) => {
                let by = clock::now().after(SEEN_WITHIN);
                self.begin(group, At::Seeing(by), None);
            }
            Err(Refusal::Stopping) => {
                self.begin(group, At::Idle, None);
                self.say(group, Right::Lost);
            }
            Err(Refusal::Mirror(why)) => self.refuse(group, why),
        }
    }

    /// It is not to be had; what was promoted on the way is given back.
    fn refuse(&mut self, group: GroupId, why: String) {
        let of = &mut self.groups[group];
        if of.question.begun {
            // The daemon may be on its way back. Nothing is taken away before the guard says so: it
            // watches this group, and does until nothing of it is active.
            tracing::debug!("group {}: asked for again: {why}", of.name);
            if of.refusals.is_news(clock::now(), &why) {
                self.handle.alert(Alert {
                    severity: Severity::Warning,
                    object: Object::Group(of.name.clone()),
                    what: "it is active here, and a mirror of it is not made Primary".to_owned(),
                    cause: why,
                });
            }
            return self.promote(group, PROMOTE_AGAIN);
        }
        of.refused = Some(why);
        self.give_up(group, At::Yielding);
    }

    fn release(&mut self, group: GroupId) {
        if self.groups[group].mirrors.is_empty() {
            return match self.leased(group) {
                Some(tenancy) => tenancy.say(group, lease::Event::Release),
                None => self.say(group, Right::Released),
            };
        }
        self.groups[group].refused = None;
        self.give_up(group, At::Releasing);
    }

    /// Has the mirrors demoted; nothing of the group runs here. `at`: whether the core waits for it.
    fn give_up(&mut self, group: GroupId, at: At) {
        let of = &mut self.groups[group];
        of.next = None;
        if of.is_demoting() {
            // An order that is under way is not given up: the daemon would refuse the next one.
            of.at = at;
            return;
        }
        of.told = false;
        self.begin(group, at, None);
        self.demote(group);
    }

    fn demote(&mut self, group: GroupId) {
        let of = &mut self.groups[group];
        of.turn += 1;
        of.demote_at = None;
        let (turn, names, name) = (of.turn, of.mirrors.clone(), of.name.clone());
        // What waits for a permission that does not come can't be finished.
        let force = !matches!(of.basis.judge(clock::now()), Judged::Good(_));
        let (mirrors, guards) = (Arc::clone(&self.mirrors), self.guards.clone());
        let inputs = self.inputs.clone();
        let task = tokio::spawn(async move {
            guards.disarm(&name).await;
            let mut result = Ok(());
            for mirror in names {
                if let Err(why) = mirrors.demote(&mirror, force).await {
                    result = result.and(Err(Stuck { mirror, why }));
                }
            }
            let _ = inputs.send(Input::Demoted(group, turn, result));
        });
        of.under_way = Some(task.abort_handle());
    }

    fn demoted(&mut self, group: GroupId, turn: u64, result: Result<(), Stuck>) {
        let gone = self.gone.is_some();
        let of = &mut self.groups[group];
        if of.turn != turn {
            return;
        }
        let refused = of.refused.take();
        match result {
            Ok(()) => {
                let (before, next) = (of.at, of.next.take());
                of.at = At::Idle;
                if before == At::Releasing {
                    self.say(group, Right::Released);
                }
                if let Some(question) = next {
                    self.ask(group, question);
                }
            }
            Err(Stuck { mirror, why }) => {
                of.demote_at = Some(clock::now().after(DEMOTE_AGAIN));
                if !gone && refused.is_none() && !std::mem::replace(&mut of.told, true) {
                    self.handle.alert(Alert {
                        severity: Severity::Warning,
                        object: Object::Group(of.name.clone()),
                        what: format!("mirror {mirror} is Primary here still"),
                        cause: why,
                    });
                }
            }
        }
        if let Some(why) = refused {
            self.say(group, Right::Refused(why));
        }
    }

    /// The daemon was not just started again.
    fn is_away(&self, now: Time) -> bool {
        self.gone
            .is_some_and(|since| now.since(since) >= BACK_WITHIN)
    }

    /// Nothing is Primary while the daemon is gone: nobody waits for it.
    fn without_the_daemon(&mut self, group: GroupId) {
        let of = &mut self.groups[group];
        match of.at {
            At::Releasing => {
                of.at = At::Yielding;
                self.say(group, Right::Released);
            }
            At::Yielding if of.next.take().is_some() => {
                let why = "the mirrors' daemon is gone".to_owned();
                self.say(group, Right::Refused(why));
            }
            _ => {}
        }
    }

    fn next_deadline(&self) -> Time {
        let now = clock::now();
        let of = |group: &Group| match (group.at, group.basis.judge(now)) {
            (At::Held, Judged::Good(until)) => until,
            (At::Seeing(by), _) => Some(by),
            (At::Releasing | At::Yielding, _) => group.demote_at,
            _ => None,
        };
        let away = self.gone.map(|since| since.after(BACK_WITHIN));
        let all = self.groups.iter().filter_map(of);
        let all = all.chain(away.filter(|at| *at > now));
        all.min().unwrap_or(Time(u64::MAX))
    }

    /// Tells the core what has changed.
    fn look(&mut self) {
        let now = clock::now();
        let away = self.is_away(now);
        for group in 0..self.groups.len() {
            let of = &mut self.groups[group];
            if of.mirrors.is_empty() {
                continue;
            }
            // What it said of its copies counts no more; what it said of a lease, until that ends.
            let ready = of.basis.is_ready() && !away;
            if of.ready.replace(ready) != Some(ready) {
                self.handle.event(Event::Ready { group, ready });
            }
            let of = &mut self.groups[group];
            let diskless = of.basis.is_diskless() || away;
            if std::mem::replace(&mut of.diskless, diskless) != diskless {
                self.handle.event(Event::Diskless { group, diskless });
            }
            let of = &mut self.groups[group];
            let untrusted = of.basis.is_untrusted();
            if std::mem::replace(&mut of.untrusted, untrusted) != untrusted {
                self.handle.event(Event::Untrusted { group, untrusted });
            }
            if away {
                self.without_the_daemon(group);
            }
            let of = &mut self.groups[group];
            if of.is_demoting() && of.demote_at.is_some_and(|at| at <= now) {
                self.demote(group);
            }
            let of = &mut self.groups[group];
            let judged = of.basis.judge(now);
            match (of.at, judged) {
                (At::Seeing(_), Judged::Good(_)) if of.basis.is_primary() => {
                    of.at = At::Held;
                    self.say(group, Right::Granted);
                }
                // Of a group that is not active nothing is frozen: permission may come yet.
                (At::Seeing(_), Judged::Ended) if of.basis.is_primary() && of.question.begun => {
                    of.at = At::Ended;
                    self.say(group, Right::LeaseEnded);
                }
                // That the other node is Primary may be what was true before the promotion.
                (At::Seeing(by), judged)
                    if (judged == Judged::Refused && of.basis.is_primary()) || by <= now =>
                {
                    self.refuse(group, NOT_SERVED.to_owned());
                }
                (At::Held, Judged::Ended | Judged::Refused) => {
                    of.at = At::Ended;
                    self.say(group, Right::LeaseEnded);
                }
                (At::Ended, Judged::Good(_)) => {
                    of.at = At::Held;
                    self.say(group, Right::Renewed);
                }
                _ => {}
            }
            self.promote_again(group);
        }
    }

    /// A daemon that was started again does not know that this node is to be Primary.
    fn promote_again(&mut self, group: GroupId) {
        let of = &mut self.groups[group];
        if !matches!(of.at, At::Held | At::Ended) {
            of.promoting_again = false;
            return;
        }
        let names = of.basis.secondaries();
        if names.is_empty() {
            of.promoting_again = false;
            return;
        }
        if std::mem::replace(&mut of.promoting_again, true) {
            return;
        }
        let mirrors = Arc::clone(&self.mirrors);
        let task = tokio::spawn(async move {
            for name in names {
                while let Err(why) = mirrors.promote(&name, false).await {
                    tracing::debug!("mirror {name}: not promoted again: {why}");
                    sleep(PROMOTE_AGAIN).await;
                }
            }
        });
        self.groups[group].under_way = Some(task.abort_handle());
    }
}

impl Group {
    fn is_demoting(&self) -> bool {
        matches!(self.at, At::Releasing | At::Yielding)
    }
}

/// What the guard is told of a group.
pub(super) fn watched(
    cluster: &Cluster,
    group: GroupId,
    control_group: &ControlGroupOf,
) -> Watched {
    let config = &cluster.groups[group];
    let addresses = config.resources.iter().filter_map(|r| match &r.kind {
        Kind::FloatingIp(ip) => Some(ip.address.address),
        _ => None,
    });
    let units = config.resources.iter().filter_map(|r| match &r.kind {
        Kind::Systemd(own) => Some(own.unit.clone()),
        _ => None,
    });
    Watched {
        group: config.name.clone(),
        units: units.collect(),
        mirrors: config.mirrors().map(str::to_owned).collect(),
        control_group: control_group(&config.name),
        addresses: addresses.collect(),
        margin_ms: MARGIN,
        bound_ms: cluster.stop_bound.0,
        lease_ends_ms: None,
    }
}
