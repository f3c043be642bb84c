//! The leases of this node's groups without a mirror: carries out what [`Lease`] asks for, at the
//! arbiter, over the channel to the other manager, on the disk and at the guard.
//!
//! One task for all of them. The keeper hands on what the core wants; what becomes of it goes to the core
//! directly. It decides nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::channel::{Channel, LeaseAsk, PeerAnswer, PeerAsk};
use crate::clock;
use crate::config::{Cluster, Severity};
use crate::core::{self, Alert, GroupId, Node, Object, Time};
use crate::guard_process::client::{Armed, Guards};
use crate::guard_process::message::Watched;
use crate::manager::Handle;

use super::keeper::{ControlGroupOf, watched};
use super::lease::{Action, Event, Lease, Said, Terms, Word};
use super::mark::Marks;
use super::register::{self, Content, Registers, Swap};

/// A mark that could not be written is written again after this.
const WRITE_AGAIN: Duration = Duration::from_secs(1);
/// Where no group has a register, the arbiter is asked this often whether it answers.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The name of the register that is looked at then; no group has it.
const NO_GROUP: &str = "";

/// What a node has for its leases.
#[derive(Clone)]
pub struct Outside {
    /// The registers at the arbiter.
    pub registers: Arc<dyn Registers>,
    /// The way to the other manager.
    pub channel: Channel,
    /// The manager's state folder.
    pub state: PathBuf,
    /// This boot of the machine.
    pub boot: u128,
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outside({})", self.state.display())
    }
}

enum Input {
    /// To the lease at this place.
    Event(usize, Event),
    Question(LeaseAsk, oneshot::Sender<Word>),
}

/// Whether the arbiter answers, for the status; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<AtomicU8>);

impl Answers {
    fn set(&self, answers: bool) {
        self.0.store(1 + u8::from(answers), Ordering::Relaxed);
    }

    /// Whether it does; `None`: not known yet, or there is none.
    pub fn get(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            known => Some(known == 2),
        }
    }
}

/// The leases of this node. Dropped, they are renewed no longer.
#[derive(Debug)]
pub struct Tenancy {
    inputs: mpsc::UnboundedSender<Input>,
    /// The place of each group's lease; `None`: it has mirrors.
    places: Vec<Option<usize>>,
    answers: Answers,
    terms: Terms,
    task: AbortHandle,
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers the other manager's questions.
#[derive(Clone, Debug)]
pub struct Promises {
    inputs: mpsc::UnboundedSender<Input>,
    /// Who asks gives the question up after this.
    within: Duration,
}

impl Promises {
    /// Answers a question, once this node's disk says what it must, or without a promise when it
    /// does not.
    pub async fn answer(&self, ask: LeaseAsk) -> PeerAnswer {
        let nonce = ask.nonce;
        let (answer, answered) = oneshot::channel();
        let _ = self.inputs.send(Input::Question(ask, answer));
        let word = match timeout(self.within, answered).await {
            Ok(Ok(word)) => word,
            // A newer question has taken its place, or the manager ends.
            Ok(Err(_)) => Word::Silent("its manager does not answer this any more".to_owned()),
            Err(_) => Word::Silent("its disk does not take the mark".to_owned()),
        };
        PeerAnswer::Lease(nonce, word)
    }
}

struct Place {
    group: GroupId,
    register: u128,
    marks: Marks,
    lease: Lease,
    /// Questions of the other manager, by their numbers.
    asked: BTreeMap<u64, oneshot::Sender<Word>>,
}

struct Task {
    cluster: Arc<Cluster>,
    me: Node,
    terms: Terms,
    outside: Outside,
    guards: Guards,
    control_group: ControlGroupOf,
    handle: Handle,
    inputs: mpsc::UnboundedSender<Input>,
    places: Vec<Place>,
    answers: Answers,
    questions: u64,
}

impl Tenancy {
    /// Starts the leases of a cluster's groups. `None`: it has no arbiter, and no leases.
    pub fn start(
        cluster: &Arc<Cluster>,
        me: Node,
        outside: Outside,
        guards: Guards,
        control_group: ControlGroupOf,
        handle: Handle,
    ) -> Option<Self> {
        if !cluster.has_arbiter() {
            return None;
        }
        let terms = Terms::of(cluster);
        let nodes = [cluster.nodes[0].clone(), cluster.nodes[1].clone()];
        let mut found = Vec::new();
        let mut places = Vec::new();
        for (group, config) in cluster.groups.iter().enumerate() {
            if config.is_mirrored() {
                places.push(None);
                continue;
            }
            let register = register::id(cluster, &config.name);
            let (marks, left) = Marks::take_over(&outside.state, register, outside.boot);
            let lease = Lease::new(terms, nodes.clone(), me, left, seed(), clock::now());
            places.push(Some(found.len()));
            found.push(Place {
                group,
                register,
                marks,
                lease,
                asked: BTreeMap::new(),
            });
        }
        let (inputs, queue) = mpsc::unbounded_channel();
        let answers = Answers::default();
        let task = Task {
            cluster: Arc::clone(cluster),
            me,
            terms,
            outside,
            guards,
            control_group,
            handle,
            inputs: inputs.clone(),
            places: found,
            answers: answers.clone(),
            questions: 0,
        };
        Some(Self {
            inputs,
            places,
            answers,
            terms,
            task: tokio::spawn(task.run(queue)).abort_handle(),
        })
    }

    /// The group has no mirror: its right is a lease.
    pub fn has(&self, group: GroupId) -> bool {
        self.places[group].is_some()
    }

    /// Hands on what the core or the guard says of a group that [`Self::has`] a lease.
    pub fn say(&self, group: GroupId, event: Event) {
        if let Some(place) = self.places[group] {
            let _ = self.inputs.send(Input::Event(place, event));
        }
    }

    /// What answers the other manager.
    pub fn promises(&self) -> Promises {
        Promises {
            inputs: self.inputs.clone(),
            within: Duration::from_millis(self.terms.length / 2),
        }
    }

    /// Whether the arbiter answers.
    pub fn answers(&self) -> Answers {
        self.answers.clone()
    }
}

/// Drawn anew for each life of a manager; half of the numbers are left to count in.
fn seed() -> u64 {
    getrandom::u64().expect("the system gives random numbers once it has booted") >> 1
}

impl Task {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Input>) {
        if self.places.is_empty() {
            return self.look_only().await;
        }
        for place in 0..self.places.len() {
            self.handle(place, Event::Timer);
        }
        loop {
            let now = clock::now();
            let deadlines = self.places.iter().map(|place| place.lease.deadline(now));
            let next = deadlines.min().unwrap_or(Time(u64::MAX));
            let wait = Duration::from_millis(next.since(now).clamp(1, 60_000));
            let input = tokio::select! {
                input = queue.recv() => input,
                () = sleep(wait) => None,
            };
            match input {
                Some(Input::Event(place, event)) => self.handle(place, event),
                Some(Input::Question(ask, answer)) => self.question(&ask, answer),
                None => {
                    for place in 0..self.places.len() {
                        self.handle(place, Event::Timer);
                    }
                }
            }
        }
    }

    /// No group has a register; people want to know all the same whether the arbiter answers.
    async fn look_only(self) {
        let register = register::id(&self.cluster, NO_GROUP);
        loop {
            let read = timeout(LOOK_EVERY, self.outside.registers.read(register)).await;
            self.answers.set(matches!(read, Ok(Ok(_))));
            sleep(LOOK_EVERY).await;
        }
    }

    fn question(&mut self, ask: &LeaseAsk, answer: oneshot::Sender<Word>) {
        let cluster = &self.cluster;
        let of = |place: &Place| cluster.groups[place.group].name == ask.group;
        let Some(place) = self.places.iter().position(of) else {
            let why = format!("group {} has no lease in its configuration", ask.group);
            let _ = answer.send(Word::Silent(why));
            return;
        };
        self.questions += 1;
        let token = self.questions;
        let question = ask.question;
        // Who gave the question up is not answered.
        self.places[place]
            .asked
            .retain(|_, asker| !asker.is_closed());
        self.places[place].asked.insert(token, answer);
        self.handle(place, Event::Question { token, question });
    }

    fn handle(&mut self, place: usize, event: Event) {
        let mut out = Vec::new();
        let of = &mut self.places[place];
        // Read anew for each event: this process may have been stopped for long.
        of.lease.handle(clock::now(), event, &mut out);
        if let Some(answers) = of.lease.arbiter_answers() {
            self.answers.set(answers);
        }
        for action in out {
            self.carry_out(place, action);
        }
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each action")]
    fn carry_out(&mut self, place: usize, action: Action) {
        let within = Duration::from_millis(self.terms.length / 2);
        let inputs = self.inputs.clone();
        let of = &mut self.places[place];
        let (group, register) = (of.group, of.register);
        let name = &self.cluster.groups[group].name;
        let registers = Arc::clone(&self.outside.registers);
        let say = move |event| {
            let _ = inputs.send(Input::Event(place, event));
        };
        match action {
            Action::Read { attempt } => {
                tokio::spawn(async move {
                    let read = timeout(within, registers.read(register)).await;
                    let said = match read {
                        Ok(Ok(content)) => found(content),
                        Ok(Err(why)) => Said::Silent(why),
                        Err(_) => Said::Silent("no answer in time".to_owned()),
                    };
                    say(Event::Arbiter { attempt, said });
                });
            }
            Action::Swap {
                attempt,
                expect,
                new: (id, record),
            } => {
                tokio::spawn(async move {
                    let new = (id, register::encode(&record));
                    let swapped = registers.swap(register, expect, attempt, new);
                    let said = match timeout(within, swapped).await {
                        Ok(Ok(Swap::Done)) => Said::Swapped,
                        Ok(Ok(Swap::Other(content))) => found(content),
                        Ok(Err(why)) => Said::Silent(why),
                        Err(_) => Said::Silent("no answer in time".to_owned()),
                    };
                    say(Event::Arbiter { attempt, said });
                });
            }
            Action::Question { nonce, question } => {
                let channel = self.outside.channel.clone();
                let group = name.clone();
                let ask = PeerAsk::Lease(LeaseAsk {
                    group,
                    nonce,
                    question,
                });
                tokio::spawn(async move {
                    let word = match channel.ask_everywhere(&ask, within).await {
                        Ok(PeerAnswer::Lease(of, word)) if of == nonce => word,
                        Ok(_) => Word::Silent("it answered something else".to_owned()),
                        Err(why) => Word::Silent(why),
                    };
                    say(Event::Peer { nonce, word });
                });
            }
            Action::Answer { token, word } => {
                if let Some(asker) = of.asked.remove(&token) {
                    // It may have given the question up.
                    let _ = asker.send(word);
                }
            }
            Action::Mark(kept) => {
                let marks = of.marks.clone();
                let alert = self.mark_fails(group);
                tokio::spawn(async move {
                    let mut told = false;
                    loop {
                        let marks = marks.clone();
                        let written = tokio::task::spawn_blocking(move || marks.write(kept));
                        match written
                            .await
                            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
                        {
                            Ok(true) => break,
                            // A manager begins: this one's leases are no more.
                            Ok(false) => return,
                            Err(error) if !std::mem::replace(&mut told, true) => alert(&error),
                            Err(_) => {}
                        }
                        sleep(WRITE_AGAIN).await;
                    }
                    say(Event::Marked);
                });
            }
            Action::Arm { attempt, ends } => {
                let watched = Watched {
                    lease_ends_ms: Some(ends.0),
                    ..watched(&self.cluster, group, &self.control_group)
                };
                let armed = self.guards.begin_arm(&watched, false);
                tokio::spawn(async move {
                    say(match armed.await {
                        Armed::Not(why) => Event::Unguarded { attempt, why },
                        armed => Event::Guarded {
                            attempt,
                            stopping: armed == Armed::Stopping,
                        },
                    });
                });
            }
            Action::Extend(ends) => self.guards.extend(name, ends),
            Action::Disarm => self.guards.begin_disarm(name),
            Action::SayApart => self.handle.alert(Alert {
                severity: Severity::Error,
                object: Object::Group(name.clone()),
                what: "the two nodes ask different registers: neither can take it over by the arbiter's word".to_owned(),
                cause: format!(
                    "compare [arbiter.{}] of both kagami.toml",
                    self.cluster.arbiter.name.as_deref().unwrap_or("NAME")
                ),
            }),
            Action::Tell(change) => {
                let node = &self.cluster.nodes[self.me];
                tracing::debug!("group {name}: the right of node {node}: {change:?}");
                self.handle.event(core::Event::Right { group, change });
            }
        }
    }

    fn mark_fails(&self, group: GroupId) -> impl Fn(&std::io::Error) + Send + 'static {
        let handle = self.handle.clone();
        let name = self.cluster.groups[group].name.clone();
        move |error| {
            handle.alert(Alert {
                severity: Severity::Error,
                object: Object::Group(name.clone()),
                what: "its right to run can't be recorded: it is tried again every second"
                    .to_owned(),
                cause: error.to_string(),
            });
        }
    }
}

/// What a register holds, read.
fn found(content: Option<Content>) -> Said {
    let Some((id, bytes)) = content else {
        return Said::Found(None);
    };
    if id.seq == u64::MAX {
        return Said::Silent(
            "the register can't be changed: no seq comes after its seq".to_owned(),
        );
    }
    match register::decode(&bytes) {
        Ok(record) => Said::Found(Some((id, record))),
        Err(fault) => Said::Silent(fault.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::right::lease::Question;
    use crate::right::register::{Id, Record};

    fn ask() -> LeaseAsk {
        let question = Question {
            held: false,
            length: 3000,
            instance: None,
            echo: None,
        };
        LeaseAsk {
            group: "web".to_owned(),
            nonce: 7,
            question,
        }
    }

    fn silent(answer: PeerAnswer) -> String {
        match answer {
            PeerAnswer::Lease(7, Word::Silent(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_register_that_no_change_can_follow_is_not_used() {
        let record = Record {
            holder: None,
            run: 1,
            length: 3000,
        };
        let (instance, bytes) = (7, register::encode(&record));
        let of = |seq| found(Some((Id { instance, seq }, bytes.clone())));
        assert!(matches!(of(u64::MAX - 1), Said::Found(Some(_))));
        assert!(matches!(of(u64::MAX), Said::Silent(_)));
    }

    #[tokio::test]
    async fn a_question_that_waits_for_a_disk_is_answered_in_time() {
        let (inputs, mut queue) = mpsc::unbounded_channel();
        let within = Duration::from_millis(1);
        let promises = Promises { inputs, within };
        assert_eq!(
            silent(promises.answer(ask()).await),
            "its disk does not take the mark"
        );
        let Some(Input::Question(asked, answer)) = queue.recv().await else {
            panic!("it was not asked");
        };
        assert!(asked.nonce == 7 && answer.is_closed(), "nobody waits");
    }
}
