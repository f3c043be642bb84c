//! Every order of events, within bounds, of two nodes that lose each other with two mirrors in one group: what [`judge`]
//! and [`looked`] let be asked never leaves the two registers with different nodes.
//!
//! Of each mirror's protocol (docs/protocol.md §4, which has a model of its own) there is here what a register sees:
//! sessions that end on each side by themselves, reads and compare-and-swaps that take any time, are lost, or land after
//! their asker has given them up, a resynchronisation, the rejoin after it, a role that moves. Nobody asks in any order:
//! each node wants each mirror whenever it may.

use std::collections::HashSet;

use super::*;
use crate::core::register::Register;

const NAMES: [&str; 2] = ["first", "second"];
const BOTH: u8 = 0b11;
const RUNS: usize = 2;

/// A copy as its register's protocol has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Copy {
    session: bool,
    primary: bool,
    /// It is to be Primary without the peer.
    wanted: bool,
    alone: bool,
    refused: bool,
    good: bool,
    /// It was read that the register, at this seq, names it: the swap is at the gate.
    held: Option<u8>,
    /// Its swap is on its way.
    sent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Swap {
    node: usize,
    mirror: usize,
    expect: u8,
    /// Its asker waits for the answer.
    open: bool,
    /// Its leader's word let it go.
    led: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// The copies that each register names, and its seq.
    registers: [(u8, u8); RUNS],
    /// By node, then by mirror.
    copies: [[Copy; RUNS]; 2],
    swaps: Vec<Swap>,
    meetings: u8,
    moves: u8,
    questions: u8,
}

/// Takes what may come next, as a change.
type Then<'a> = &'a mut dyn FnMut(&dyn Fn(&mut State));

/// What is searched.
#[derive(Clone, Copy)]
struct Rules {
    /// The second mirror follows the first.
    follows: bool,
    /// A swap lands, or is lost, before copies meet again; and one that its leader's word let go before that is over: before
    /// the leader's register names both again, its role moves, or the other node's wait is over.
    in_time: bool,
    meetings: u8,
    moves: u8,
    /// Swaps that are sent in all.
    questions: u8,
}

impl State {
    fn first() -> Self {
        let copy = |node| Copy {
            session: true,
            primary: node == 0,
            wanted: false,
            alone: false,
            refused: false,
            good: true,
            held: None,
            sent: false,
        };
        Self {
            registers: [(BOTH, 1); RUNS],
            copies: [[copy(0); RUNS], [copy(1); RUNS]],
            swaps: Vec::new(),
            meetings: 0,
            moves: 0,
            questions: 0,
        }
    }

    /// Each register names one node alone, and not the same.
    fn is_split(&self) -> bool {
        let [(one, _), (other, _)] = self.registers;
        one != BOTH && other != BOTH && one != other
    }

    fn board(&self, node: usize) -> Board {
        let footing = |mirror: usize| {
            let copy = self.copies[node][mirror];
            let could_go_on = copy.session && copy.primary && copy.good;
            let footing = Footing {
                alone: copy.alone,
                heard: could_go_on.then_some(Time(1)),
                since: Time(0),
                refused: copy.refused,
                peer_is_primary: copy.session && self.copies[1 - node][mirror].primary,
                disk: if copy.good {
                    DiskState::Consistent
                } else {
                    DiskState::Inconsistent
                },
                arbiter: Some(1),
                asking: None,
            };
            (NAMES[mirror].to_owned(), footing)
        };
        (0..RUNS).map(footing).collect()
    }

    /// What the gate says of the swap of a copy.
    fn gate(&self, node: usize, mirror: usize, rules: Rules) -> Verdict {
        let follow = Follow {
            mirror: NAMES[1].to_owned(),
            id: 1,
            leader: NAMES[0].to_owned(),
            leader_id: 0,
        };
        let follows: &[Follow] = if rules.follows { &[follow] } else { &[] };
        let Some(place) = Place::of(NAMES[mirror], follows) else {
            return Verdict::Send;
        };
        let board = self.board(node);
        let verdict = judge(&place, &board);
        if verdict != Verdict::Look {
            return verdict;
        }
        let other = 1 - mirror;
        let (copies, seq) = self.registers[other];
        let named = (0..2).filter(|node| copies >> node & 1 == 1);
        let register = Register {
            instance: 1,
            seq: seq.into(),
            copies: named.map(NodeId).collect(),
            generation: 1,
            parent: 1,
            nonce: Attempt(1),
            forced: false,
        };
        let (name, answer) = (NAMES[other], ArbiterAnswer::Register(Some(register)));
        looked(&place, name, &board[name], NodeId(node as u64), &answer)
    }

    /// Nobody listens to the answer any more; what is on its way stays there.
    fn give_up(&mut self, node: usize, mirror: usize) {
        let copy = &mut self.copies[node][mirror];
        (copy.held, copy.sent) = (None, false);
        for swap in &mut self.swaps {
            swap.open &= (swap.node, swap.mirror) != (node, mirror);
        }
    }

    fn next(&self, rules: Rules) -> Vec<Self> {
        let mut found = Vec::new();
        let mut then = |change: &dyn Fn(&mut Self)| {
            let mut state = self.clone();
            change(&mut state);
            state.swaps.sort_unstable();
            found.push(state);
        };
        for mirror in 0..RUNS {
            for node in 0..2 {
                self.of_copy(node, mirror, rules, &mut then);
            }
            self.of_both(mirror, rules, &mut then);
        }
        for (index, swap) in self.swaps.iter().enumerate() {
            let Swap {
                node,
                mirror,
                expect,
                open,
                ..
            } = *swap;
            // Lost.
            then(&|state| {
                state.swaps.remove(index);
                state.copies[node][mirror].sent &= !open;
            });
            // Landed, and told.
            then(&|state| {
                state.swaps.remove(index);
                let fits = state.registers[mirror].1 == expect;
                if fits {
                    state.registers[mirror] = (1 << node, expect + 1);
                }
                let copy = &mut state.copies[node][mirror];
                if open {
                    copy.sent = false;
                    if fits {
                        (copy.alone, copy.primary, copy.wanted) = (true, true, false);
                    }
                }
            });
        }
        found
    }

    fn of_copy(&self, node: usize, mirror: usize, rules: Rules, then: Then<'_>) {
        let copy = self.copies[node][mirror];
        let other = self.copies[1 - node][mirror];
        if copy.session {
            then(&|state| {
                state.copies[node][mirror].session = false;
                state.copies[node][mirror].refused = false;
            });
            return;
        }
        // A Secondary's wait is over when the other one's lease has surely ended.
        let in_flight = |swap: &Swap| swap.led && swap.node != node;
        let waits = other.session || rules.in_time && self.swaps.iter().any(in_flight);
        if !copy.primary && !copy.wanted && copy.good && !waits {
            then(&|state| state.copies[node][mirror].wanted = true);
        }
        let asks = copy.good && !copy.alone && (copy.primary || copy.wanted);
        if asks && copy.held.is_none() && !copy.sent {
            let (named, seq) = self.registers[mirror];
            then(&|state| {
                let copy = &mut state.copies[node][mirror];
                if named >> node & 1 == 1 {
                    copy.held = Some(seq);
                } else {
                    (copy.refused, copy.wanted) = (true, false);
                }
            });
        }
        if let Some(expect) = copy.held {
            let verdict = self.gate(node, mirror, rules);
            let led = rules.follows && mirror == 1;
            let swap = Swap {
                node,
                mirror,
                expect,
                open: true,
                led,
            };
            match verdict {
                Verdict::Send if self.questions == rules.questions => {}
                Verdict::Send => then(&|state| {
                    state.questions += 1;
                    state.swaps.push(swap);
                    let copy = &mut state.copies[node][mirror];
                    (copy.held, copy.sent) = (None, true);
                }),
                Verdict::Wait(_) | Verdict::Look => {}
                Verdict::Refuse(_) => then(&|state| {
                    let copy = &mut state.copies[node][mirror];
                    (copy.held, copy.refused, copy.wanted) = (None, true, false);
                }),
            }
        }
        if copy.held.is_some() || copy.sent {
            then(&|state| state.give_up(node, mirror));
        }
    }

    /// The copies of a mirror together.
    fn of_both(&self, mirror: usize, rules: Rules, then: Then<'_>) {
        let copies = [0, 1].map(|node| self.copies[node][mirror]);
        let late = rules.in_time && !self.swaps.is_empty();
        let meets = copies.iter().all(|copy| !copy.session) && !late;
        if meets && self.meetings < rules.meetings {
            then(&|state| {
                state.meetings += 1;
                for node in 0..2 {
                    state.give_up(node, mirror);
                    // The other one went on alone: this one is behind, and no Primary any more.
                    let behind = copies[1 - node].alone;
                    let copy = &mut state.copies[node][mirror];
                    (copy.session, copy.refused, copy.wanted) = (true, false, false);
                    copy.good &= !behind;
                    copy.primary &= !behind;
                }
            });
        }
        let in_session = copies.iter().all(|copy| copy.session);
        if in_session && copies.iter().any(|copy| !copy.good || copy.alone) {
            then(&|state| {
                for node in 0..2 {
                    let copy = &mut state.copies[node][mirror];
                    (copy.good, copy.alone) = (true, false);
                }
            });
        } else if in_session {
            let (named, seq) = self.registers[mirror];
            let late = rules.in_time && self.swaps.iter().any(|swap| swap.led);
            if named != BOTH && !late {
                then(&|state| state.registers[mirror] = (BOTH, seq + 1));
            }
            if self.moves < rules.moves && !late {
                then(&|state| {
                    state.moves += 1;
                    let of = |node: usize| copies[node].primary;
                    for node in 0..2 {
                        state.copies[node][mirror].primary = of(1 - node);
                    }
                });
            }
        }
    }
}

/// Goes through all of it: the states there are, or the way to the first in which the registers name different nodes.
fn search(rules: Rules) -> Result<usize, Vec<State>> {
    let mut seen = HashSet::from([State::first()]);
    // Each with the one that it came from.
    let mut all = vec![(State::first(), 0)];
    let mut at = 0;
    while at < all.len() {
        if all[at].0.is_split() {
            let mut way = vec![all[at].0.clone()];
            while at > 0 {
                at = all[at].1;
                way.push(all[at].0.clone());
            }
            way.reverse();
            return Err(way);
        }
        for next in all[at].0.next(rules) {
            if seen.insert(next.clone()) {
                all.push((next, at));
            }
        }
        at += 1;
    }
    Ok(all.len())
}

/// A line for each state.
fn told(way: &[State]) -> String {
    let line = |state: &State| {
        let copy = |copy: &Copy| {
            let marks = [
                (copy.session, 's'),
                (copy.primary, 'P'),
                (copy.wanted, 'w'),
                (copy.alone, 'A'),
                (copy.refused, 'r'),
                (!copy.good, 'b'),
                (copy.held.is_some(), 'h'),
                (copy.sent, '>'),
            ];
            let set = marks.into_iter().filter(|(is_set, _)| *is_set);
            format!("{:6}", set.map(|(_, mark)| mark).collect::<String>())
        };
        let copies: Vec<String> = state.copies.as_flattened().iter().map(copy).collect();
        format!(
            "{:?} | {} | {:?}\n",
            state.registers,
            copies.join(" "),
            state.swaps
        )
    };
    way.iter().map(line).collect()
}

const RULES: Rules = Rules {
    follows: true,
    in_time: true,
    meetings: 1,
    moves: 0,
    questions: 3,
};

#[test]
fn who_decide_together_are_given_together() {
    let states = search(RULES).unwrap_or_else(|way| panic!("split:\n{}", told(&way)));
    assert!(states > 10_000, "{states} states are not all there are");
}

#[test]
fn a_role_that_moves_changes_nothing_of_that() {
    let rules = Rules {
        meetings: 0,
        moves: 1,
        ..RULES
    };
    let states = search(rules).unwrap_or_else(|way| panic!("split:\n{}", told(&way)));
    assert!(states > 1000, "{states} states are not all there are");
}

/// The search would find it.
#[test]
fn who_decide_each_for_itself_can_be_split() {
    assert!(
        search(Rules {
            follows: false,
            ..RULES
        })
        .is_err()
    );
}

/// What is left: a follower's question is on its way for longer than what let it go lasts.
#[test]
fn a_question_that_outlives_the_leaders_session_is_what_is_left() {
    let way = search(Rules {
        in_time: false,
        ..RULES
    })
    .expect_err("no split");
    let let_go = |state: &State| state.swaps.iter().any(|swap| swap.led);
    assert!(way.iter().any(let_go), "another way:\n{}", told(&way));
}
