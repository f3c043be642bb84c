//! The mirrors of one group decide together (docs/arbiter.md, "Several mirrors in one group").
//!
//! Each mirror has its own register and the protocol of docs/protocol.md §4, and of that nothing is changed here: this
//! only holds back a question that would let a copy go alone. A mirror that *follows* another one asks when its leader
//! has decided for this node; a leader asks after a look at all that follow it. What is held back was not sent, so it
//! counts as unreachable, or as refused where asking again would change nothing.
//!
//! [`judge`] and [`looked`] decide and do nothing else; [`Gate`] is a mirror's place before its arbiter. Leader and
//! followers may be on different threads: what they judge each other by is on a [`Board`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{Arbiter, Pending};
use crate::core::register::{ArbiterAnswer, Ask};
use crate::core::state::{Attempt, DiskState, NodeId, Time};
use crate::core::status::Footing;

/// One mirror of this node follows another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    /// The mirror.
    pub mirror: String,
    /// The id of its register.
    pub id: u128,
    /// The mirror whose decision it follows.
    pub leader: String,
    /// The id of that one's register.
    pub leader_id: u128,
}

/// What each mirror that follows or is followed stands on, by name; one that is not started is not there.
pub type Board = BTreeMap<String, Footing>;

/// A mirror's place among those that decide together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub mirror: String,
    /// Whose decision it follows.
    pub leader: Option<String>,
    /// Those that follow it.
    pub followers: Vec<String>,
    /// The registers of those that it looks at: its leader's, or its followers' in their order.
    pub looks: Vec<u128>,
}

impl Place {
    /// The place of `mirror`; `None`: it decides for itself alone.
    pub fn of(mirror: &str, follows: &[Follow]) -> Option<Self> {
        let leader = follows.iter().find(|follow| follow.mirror == mirror);
        let followers = follows.iter().filter(|follow| follow.leader == mirror);
        let place = Self {
            mirror: mirror.to_owned(),
            leader: leader.map(|follow| follow.leader.clone()),
            followers: followers.clone().map(|one| one.mirror.clone()).collect(),
            looks: match leader {
                Some(follow) => vec![follow.leader_id],
                None => followers.map(|follow| follow.id).collect(),
            },
        };
        (place.leader.is_some() || !place.followers.is_empty()).then_some(place)
    }
}

/// Whether a question is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Send,
    /// It is if the registers of [`Place::looks`] are as they must be ([`looked`]).
    Look,
    /// Not before something has changed; until then nothing is known.
    Wait(String),
    /// It is not, and to wait would not help: a refusal.
    Refuse(String),
}

/// Whether a mirror's question to go alone may be sent, by what is known here.
pub fn judge(place: &Place, board: &Board) -> Verdict {
    if let Some(leader) = &place.leader {
        let since = board.get(&place.mirror).map(|mine| mine.since);
        return following(leader, board.get(leader), since.unwrap_or_default());
    }
    let verdicts = place
        .followers
        .iter()
        .map(|follower| followed(follower, board.get(follower)));
    match first_but_send(verdicts) {
        Verdict::Send => Verdict::Look,
        verdict => verdict,
    }
}

/// A mirror that is without its peer since then, and whose leader stands on this.
fn following(leader: &str, footing: Option<&Footing>, since: Time) -> Verdict {
    let why = match footing {
        // By its own register, or with the peer's consent: the other node has not been given it.
        Some(footing) if footing.alone => return Verdict::Send,
        // It is Primary here, and its own copy could go on: the other node is not asking.
        // Of a link that is lost the sessions end one after the other: what was heard before says nothing.
        Some(footing) if footing.heard.is_some_and(|heard| heard > since) => return Verdict::Look,
        Some(footing) if footing.heard.is_some() => "whose peer has not been heard since",
        Some(footing) if footing.refused => "which was refused here",
        Some(_) => "which does not go on alone here and is not Primary beside its peer",
        None => "which is not started here: `kagami status` and the log say why",
    };
    Verdict::Wait(format!("not asked: it follows mirror {leader}, {why}"))
}

/// A leader whose follower stands on this.
fn followed(follower: &str, footing: Option<&Footing>) -> Verdict {
    let Some(footing) = footing else {
        return Verdict::Wait(format!(
            "not asked: mirror {follower}, which follows it, is not started here: see the log; put it right and start kagami again, or take `follows` out of [mirror.{follower}]"
        ));
    };
    match footing.disk {
        DiskState::UpToDate | DiskState::Consistent if footing.peer_is_primary => Verdict::Wait(
            format!("not asked: mirror {follower}, which follows it, is Primary on the other node"),
        ),
        DiskState::UpToDate | DiskState::Consistent => Verdict::Send,
        bad => Verdict::Refuse(format!(
            "mirror {follower}, which follows it, could not go on here: its copy is {bad}"
        )),
    }
}

/// What may be done at `place` by what the register of mirror `of`, which stands on `footing`, was found to hold: it must
/// name `node`.
pub fn looked(
    place: &Place,
    of: &str,
    footing: &Footing,
    node: NodeId,
    answer: &ArbiterAnswer,
) -> Verdict {
    let why = match answer {
        ArbiterAnswer::Unreachable(why) => {
            return Verdict::Wait(format!("not asked: the register of mirror {of}: {why}"));
        }
        ArbiterAnswer::NotOurs(why) => why.as_str(),
        ArbiterAnswer::Register(None) => "its register is empty, and grants nothing",
        ArbiterAnswer::Register(Some(register)) if !register.copies.contains(&node) => {
            "its register names the other copy"
        }
        ArbiterAnswer::Register(Some(register)) if footing.arbiter != Some(register.instance) => {
            "its register is not the one that it recorded"
        }
        ArbiterAnswer::Register(Some(_)) => return Verdict::Send,
        ArbiterAnswer::Swapped => "its arbiter answered another question",
    };
    if place.leader.is_some() {
        // In its session the leader's register is put right.
        return Verdict::Wait(format!("not asked: it follows mirror {of}, and {why}"));
    }
    Verdict::Refuse(format!(
        "mirror {of}, which follows it, could not go on here: {why}"
    ))
}

/// The refusal among these, else the first that waits.
pub fn first_but_send(verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    let mut found = Verdict::Send;
    for verdict in verdicts {
        match (&found, &verdict) {
            (_, Verdict::Refuse(_)) => return verdict,
            (Verdict::Send, Verdict::Wait(_)) => found = verdict,
            _ => {}
        }
    }
    found
}

/// What stands before the arbiter of a mirror that follows or is followed.
pub struct Gate {
    place: Place,
    node: NodeId,
    board: watch::Receiver<Board>,
    /// Those of [`Place::looks`].
    registers: Vec<Rc<dyn Arbiter>>,
    /// Why the last question was held back.
    held: RefCell<Option<String>>,
}

impl Gate {
    /// The gate of the mirror at `place` on node `node`; `registers` are those of [`Place::looks`].
    pub fn new(
        place: Place,
        node: NodeId,
        board: watch::Receiver<Board>,
        registers: Vec<Rc<dyn Arbiter>>,
    ) -> Rc<Self> {
        assert_eq!(place.looks.len(), registers.len());
        Rc::new(Self {
            place,
            node,
            board,
            registers,
            held: RefCell::default(),
        })
    }

    /// The mirror's place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Why the last question to go alone was held back, if it was.
    pub fn held(&self) -> Option<String> {
        self.held.borrow().clone()
    }

    /// Puts the question `ask` of `attempt` to `arbiter`, as soon as it may be sent. One that may not be within
    /// `patience`, or whose attempt has ended, is never sent.
    pub fn pass(
        self: Rc<Self>,
        attempt: Attempt,
        ask: Ask,
        arbiter: Rc<dyn Arbiter>,
        patience: Duration,
    ) -> Pending {
        Box::pin(async move {
            match self.may_send(attempt, Instant::now() + patience).await {
                // *Close, then ask*: it met the peer, or asks anew, and listens to no answer to this.
                None => ArbiterAnswer::Unreachable("the question was given up".to_owned()),
                Some(Verdict::Send | Verdict::Look) => {
                    self.held.take();
                    arbiter.ask(ask).await
                }
                Some(Verdict::Wait(why)) => {
                    self.held.replace(Some(why.clone()));
                    ArbiterAnswer::Unreachable(why)
                }
                Some(Verdict::Refuse(why)) => {
                    let before = self.held.replace(Some(why.clone()));
                    if before.as_ref() != Some(&why) {
                        tracing::warn!(mirror = self.place.mirror, "may not go on alone: {why}");
                    }
                    ArbiterAnswer::NotOurs(why)
                }
            }
        })
    }

    /// Waits until something else than to wait can be said of it, or until `end`. `None`: the attempt has ended.
    async fn may_send(&self, attempt: Attempt, end: Instant) -> Option<Verdict> {
        let mut board = self.board.clone();
        loop {
            let (verdict, footings) = self.judge(&board.borrow_and_update(), attempt)?;
            match verdict {
                Verdict::Wait(why) => {
                    self.held.replace(Some(why.clone()));
                    match timeout_at(end, board.changed()).await {
                        Ok(changed) => changed.ok()?,
                        Err(_) => return Some(Verdict::Wait(why)),
                    }
                }
                Verdict::Look => match timeout_at(end, self.look(footings)).await {
                    Err(_) => {
                        let why = "not asked: no word of its group's registers";
                        return Some(Verdict::Wait(why.to_owned()));
                    }
                    // What they stand on is judged once more, by what is known now.
                    Ok(Verdict::Send) => match self.judge(&board.borrow_and_update(), attempt)?.0 {
                        Verdict::Wait(_) => {}
                        verdict => return Some(verdict),
                    },
                    Ok(verdict) => return Some(verdict),
                },
                verdict => return Some(verdict),
            }
        }
    }

    /// What is known here says this, and what those that it looks at stand on. `None`: `attempt` is not open any more.
    fn judge(&self, board: &Board, attempt: Attempt) -> Option<(Verdict, Vec<Footing>)> {
        let mine = board.get(&self.place.mirror)?;
        let of = |other: &String| board.get(other).copied().unwrap_or_default();
        let footings = self.others().map(of).collect();
        (mine.asking == Some(attempt)).then(|| (judge(&self.place, board), footings))
    }

    /// Those that it looks at.
    fn others(&self) -> impl Iterator<Item = &String> {
        self.place.leader.iter().chain(&self.place.followers)
    }

    /// Reads their registers, all at once.
    async fn look(&self, footings: Vec<Footing>) -> Verdict {
        let mut reads = JoinSet::new();
        for (index, register) in self.registers.iter().enumerate() {
            let read = Rc::clone(register).ask(Ask::Read);
            reads.spawn_local(async move { (index, read.await) });
        }
        let others: Vec<&String> = self.others().collect();
        let mut verdicts = Vec::new();
        while let Some(read) = reads.join_next().await {
            let verdict = match read {
                Ok((index, answer)) => {
                    let (of, footing) = (others[index], &footings[index]);
                    looked(&self.place, of, footing, self.node, &answer)
                }
                Err(error) => Verdict::Wait(format!("not asked: the look failed: {error}")),
            };
            verdicts.push(verdict);
        }
        first_but_send(verdicts.into_iter())
    }
}

#[cfg(test)]
mod search;
#[cfg(test)]
mod tests;
