//! The manager's side of the right: carries out what the core asks for, and tells it what came of it.
//!
//! One task for all groups. A group that is asked for is put under guard first, then its mirrors are
//! promoted, one after the other; a node that takes over waits, after its permission, for as long as
//! the other one may still be frozen with its address ([`MARGIN`]). To give it up is to demote
//! them all. A group without a mirror has a lease of its own at the arbiter ([`super::tenancy`]); without
//! an arbiter its right is what the managers tell each other.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::clock;
use crate::config::resource::Kind;
use crate::config::{ArbiterKind, Cluster, Severity};
use crate::core::{Alert, Event, GroupId, Object, Right, Time};
use crate::guard_process::client::Guards;
use crate::guard_process::message::Watched;
use crate::manager::{Handle, Rights};

use super::basis::{Basis, Judged};
use super::lease;
use super::tenancy::Tenancy;
use super::{MARGIN, Mirrors, Word};

/// A demotion that was refused is tried again after this.
const DEMOTE_AGAIN: Duration = Duration::from_millis(500);
/// A mirror that is not Primary any more, though it should be, is promoted again after this.
const PROMOTE_AGAIN: Duration = Duration::from_millis(200);
/// What the managers know, that a mirror was given up or the other node is lost, the daemon may hear a little later.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(1);
/// What a promotion has brought is seen within this.
const SEEN_WITHIN: u64 = 5000;

/// Where a group's control group is, if it has one.
pub type ControlGroupOf = Arc<dyn Fn(&str) -> Option<std::path::PathBuf> + Send + Sync>;

#[derive(Debug)]
enum Input {
    Ask(GroupId, bool),
    Release(GroupId),
    Stopped(GroupId),
    Word(Word),
    Lost(String),
    Promoted(GroupId, u64, Result<(), Refusal>),
    Demoted(GroupId, u64),
}

#[derive(Debug)]
enum Refusal {
    /// The mirror refuses.
    Mirror(String),
    /// The guard is stopping the group.
    Stopping,
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
    fn ask(&mut self, group: GroupId, fenced: bool) {
        let _ = self.inputs.send(Input::Ask(group, fenced));
    }

    fn release(&mut self, group: GroupId) {
        let _ = self.inputs.send(Input::Release(group));
    }

    fn stopped(&mut self, group: GroupId) {
        let _ = self.inputs.send(Input::Stopped(group));
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
    Releasing,
}

struct Group {
    name: String,
    mirrors: Vec<String>,
    basis: Basis,
    at: At,
    ready: Option<bool>,
    diskless: bool,
    /// Raised with each thing that is begun: what an earlier one brings is nothing.
    turn: u64,
    under_way: Option<AbortHandle>,
    promoting_again: bool,
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
                turn: 0,
                under_way: None,
                promoting_again: false,
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
            Input::Ask(group, fenced) => self.ask(group, fenced),
            Input::Release(group) => self.release(group),
            Input::Stopped(group) => {
                if let Some(tenancy) = self.leased(group) {
                    return tenancy.say(group, lease::Event::Stopped);
                }
                let guards = self.guards.clone();
                let name = self.groups[group].name.clone();
                tokio::spawn(async move { guards.disarm(&name).await });
            }
            Input::Word(Word::Gone) => {}
            Input::Word(Word::Says(says)) => {
                let now = clock::now();
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
                    self.begin(group, At::Idle, None);
                    self.say(group, Right::Lost);
                }
            }
            Input::Promoted(group, turn, result) => self.promoted(group, turn, result),
            Input::Demoted(group, turn) => {
                if self.groups[group].turn == turn {
                    self.groups[group].at = At::Idle;
                    self.say(group, Right::Released);
                }
            }
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

    fn ask(&mut self, group: GroupId, fenced: bool) {
        if self.groups[group].mirrors.is_empty() {
            return match self.leased(group) {
                // Where there is an arbiter no fence script is asked.
                Some(tenancy) => tenancy.say(group, lease::Event::Ask),
                None if self.cluster.arbiter.kind == ArbiterKind::None => {
                    self.say(group, Right::Granted);
                }
                None => {
                    let why = "it has no mirror, and nobody keeps its lease".to_owned();
                    self.say(group, Right::Refused(why));
                }
            };
        }
        match self.groups[group].at {
            At::Held => return self.say(group, Right::Granted),
            At::Ended => return self.say(group, Right::LeaseEnded),
            At::Asking | At::Seeing(_) => return,
            At::Idle | At::Releasing => {}
        }
        let of = &mut self.groups[group];
        of.turn += 1;
        let (turn, names) = (of.turn, of.mirrors.clone());
        let watched = watched(&self.cluster, group, &self.control_group);
        let (mirrors, guards) = (Arc::clone(&self.mirrors), self.guards.clone());
        let inputs = self.inputs.clone();
        let task = tokio::spawn(async move {
            let result = promote_all(mirrors, guards, watched, names, fenced).await;
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
        self.begin(group, At::Idle, None);
        let names = self.groups[group].mirrors.clone();
        let (mirrors, guards) = (Arc::clone(&self.mirrors), self.guards.clone());
        let (handle, name) = (self.handle.clone(), self.groups[group].name.clone());
        let task = tokio::spawn(async move {
            guards.disarm(&name).await;
            for name in names {
                // It may never have been Primary.
                let _ = mirrors.demote(&name, false).await;
            }
            let change = Right::Refused(why);
            handle.event(Event::Right { group, change });
        });
        self.groups[group].under_way = Some(task.abort_handle());
    }

    fn release(&mut self, group: GroupId) {
        if self.groups[group].mirrors.is_empty() {
            return match self.leased(group) {
                Some(tenancy) => tenancy.say(group, lease::Event::Release),
                None => self.say(group, Right::Released),
            };
        }
        let of = &mut self.groups[group];
        of.turn += 1;
        let (turn, names, name) = (of.turn, of.mirrors.clone(), of.name.clone());
        // What waits for a permission that does not come can't be finished.
        let force = !matches!(of.basis.judge(clock::now()), Judged::Good(_));
        let (mirrors, guards) = (Arc::clone(&self.mirrors), self.guards.clone());
        let (inputs, handle) = (self.inputs.clone(), self.handle.clone());
        let task = tokio::spawn(async move {
            guards.disarm(&name).await;
            let mut told = false;
            for mirror in names {
                while let Err(why) = mirrors.demote(&mirror, force).await {
                    if !std::mem::replace(&mut told, true) {
                        handle.alert(Alert {
                            severity: Severity::Warning,
                            object: Object::Group(name.clone()),
                            what: format!("mirror {mirror} is Primary here still"),
                            cause: why,
                        });
                    }
                    sleep(DEMOTE_AGAIN).await;
                }
            }
            let _ = inputs.send(Input::Demoted(group, turn));
        });
        self.begin(group, At::Releasing, Some(task.abort_handle()));
    }

    fn next_deadline(&self) -> Time {
        let now = clock::now();
        let of = |group: &Group| match (group.at, group.basis.judge(now)) {
            (At::Held, Judged::Good(until)) => until,
            (At::Seeing(by), _) => Some(by),
            _ => None,
        };
        let all = self.groups.iter().filter_map(of);
        all.min().unwrap_or(Time(u64::MAX))
    }

    /// Tells the core what has changed.
    fn look(&mut self) {
        let now = clock::now();
        for group in 0..self.groups.len() {
            let of = &mut self.groups[group];
            if of.mirrors.is_empty() {
                continue;
            }
            let ready = of.basis.is_ready();
            if of.ready.replace(ready) != Some(ready) {
                self.handle.event(Event::Ready { group, ready });
            }
            let of = &mut self.groups[group];
            let diskless = of.basis.is_diskless();
            if std::mem::replace(&mut of.diskless, diskless) != diskless {
                self.handle.event(Event::Diskless { group, diskless });
            }
            let of = &mut self.groups[group];
            let judged = of.basis.judge(now);
            match (of.at, judged) {
                (At::Seeing(_), Judged::Good(_)) if of.basis.is_primary() => {
                    of.at = At::Held;
                    self.say(group, Right::Granted);
                }
                (At::Seeing(_), Judged::Ended) if of.basis.is_primary() => {
                    of.at = At::Ended;
                    self.say(group, Right::LeaseEnded);
                }
                // That the other node is Primary may be what was true before the promotion.
                (At::Seeing(by), judged)
                    if (judged == Judged::Refused && of.basis.is_primary()) || by <= now =>
                {
                    let why = "the mirror's daemon has promoted it, and does not serve it";
                    self.refuse(group, why.to_owned());
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

/// Promotes a mirror. Where it is refused while the peer is Primary and connected, as far as the daemon has heard, it
/// is asked for again when that is so no more: the peer has given it up, or is lost to the daemon, too.
async fn promote_when_given_up<M: Mirrors>(mirrors: &M, name: &str) -> Result<(), String> {
    let Err(refused) = mirrors.promote(name, false).await else {
        return Ok(());
    };
    let mut words = mirrors.watch(vec![name.to_owned()], false);
    let given_up = async {
        loop {
            match words.recv().await {
                Some(Word::Says(says)) if says.mirror != name => {}
                Some(Word::Says(says)) if says.connected && says.peer_is_primary => {}
                Some(Word::Says(_)) => return true,
                Some(Word::Gone) | None => return false,
            }
        }
    };
    match tokio::time::timeout(GIVEN_UP_WITHIN, given_up).await {
        Ok(true) => mirrors.promote(name, false).await,
        Ok(false) | Err(_) => Err(refused),
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
    Watched {
        group: config.name.clone(),
        mirrors: config.mirrors().map(str::to_owned).collect(),
        control_group: control_group(&config.name),
        addresses: addresses.collect(),
        margin_ms: MARGIN,
        bound_ms: cluster.stop_bound.0,
        lease_ends_ms: None,
    }
}

async fn promote_all<M: Mirrors>(
    mirrors: Arc<M>,
    guards: Guards,
    watched: Watched,
    names: Vec<String>,
    fenced: bool,
) -> Result<(), Refusal> {
    if guards.arm(&watched).await.is_stopping() {
        return Err(Refusal::Stopping);
    }
    for name in &names {
        let mut promoted = promote_when_given_up(&*mirrors, name).await;
        if promoted.is_err() && fenced {
            // The fence script is the permission (docs/protocol.md §3).
            promoted = mirrors.promote(name, true).await;
        }
        promoted.map_err(|why| Refusal::Mirror(format!("mirror {name}: {why}")))?;
    }
    if fenced {
        return Ok(());
    }
    // The other node may be frozen with its address until its margin is over.
    let mut basis = Basis::new(&names);
    let mut words = mirrors.watch(names, false);
    while !basis.is_primary() {
        match words.recv().await {
            Some(Word::Says(says)) => {
                basis.take(clock::now(), &says);
            }
            Some(Word::Gone) => {}
            None => break,
        }
    }
    if let Some(ends) = basis.others_lease_ends() {
        let wait = ends.after(MARGIN).since(clock::now());
        sleep(Duration::from_millis(wait)).await;
    }
    Ok(())
}
