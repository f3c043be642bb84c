//! The transition relation: every step that the world can take from a state.
//!
//! The chapters beside this one each add the steps of one matter; their preconditions are the rules
//! of docs/protocol.md, and what a mistake lifts is the one condition that its name says.

use std::fmt;

use super::bounds::Bounds;
use super::mistake::Mistake;
use super::state::{Request, State, mark};
use super::{
    disk_failure, guest, handshake, life, meeting, permission, register, replace, resync, roles,
    writes,
};

/// A step; the number is the node that takes it, 0 for A and 1 for B.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[rustfmt::skip]
pub enum Step {
    // Faults and operators.
    Crash(usize), Die(usize), Late(usize), Close(usize), Force(usize, bool), Leave(usize), DiskFails(usize),
    Wipe, Keep(usize), ReplaceNode(usize, bool), ReplaceArbiter,
    // Life.
    Restart(usize), LeaseEnds(usize), GivesUp(usize), Cool(usize), WriteBack(usize, u8),
    // Roles.
    Promote(usize), Demote(usize), PromoteAlone(usize), PromoteCarrier(usize), Serve(usize),
    AskPeer(usize), TakeAsk(usize), TakeReply(usize), BecomePrimary(usize),
    // Writes and flushes.
    Write(usize, u8), Local(usize), Resend(usize), Apply, Acknowledge, Answer(usize),
    Flush(usize), FlushPeer, Flushed, FlushAlone(usize), Read(usize), PutOff,
    // A Primary without a disk.
    CarryAsk(usize), CarryMint(usize), DisklessWrite(usize, u8), DisklessFlush,
    // Permission, and the register.
    Ask(usize), Abandon(usize), GoAlone(usize), ConsentMint(usize), Rejoin(usize),
    Record(usize), Swap(u8), Answered(u8, bool), GenerationDurable(usize),
    // Resynchronisation.
    SendBlock(u8), ApplyBlock, AcknowledgeBlock, FlushBlocks, TellCleared, Offer, Adopt, Settle,
    // Meeting.
    Handshake, Connect, Greet(usize), TakeHello(usize), TakeReady(usize),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{self:?}");
        let (name, rest) = text.split_once('(').unwrap_or((&text, ""));
        let words = name.chars().fold(String::new(), |mut words, letter| {
            if letter.is_uppercase() && !words.is_empty() {
                words.push('-');
            }
            words.push(letter.to_ascii_lowercase());
            words
        });
        let mut parts = rest.trim_end_matches(')').split(", ");
        let node = match parts.next() {
            Some("0") if !name.starts_with("Send") => "A:",
            Some("1") if !name.starts_with("Send") => "B:",
            _ => "",
        };
        let detail = match (name, parts.next()) {
            ("Write" | "DisklessWrite" | "WriteBack", Some(block)) => format!(" block {block}"),
            ("Force", Some("true")) => " with the register".to_owned(),
            ("Answered", Some(yes)) => {
                let word = if yes == "true" { "yes" } else { "no" };
                return write!(f, "arbiter-answers:{word}");
            }
            ("Swap", _) => return write!(f, "arbiter-swaps"),
            _ => String::new(),
        };
        write!(f, "{node}{words}{detail}")
    }
}

/// What is wrong, as an invariant's name and what happened.
pub type Check = Result<(), String>;

/// The steps of a state with the states that they lead to.
#[derive(Default)]
pub struct Steps {
    /// In a fixed order.
    pub list: Vec<(Step, State)>,
}

impl Steps {
    /// A step and where it leads.
    pub fn add(&mut self, step: Step, to: State) {
        self.list.push((step, to));
    }
}

/// All that may happen in `s`.
///
/// Errors: an invariant is broken by one of the steps.
pub fn next(b: &Bounds, s: &State, out: &mut Steps) -> Check {
    out.list.clear();
    for i in 0..2 {
        life::landing(s, i, out);
        if !s.node[i].up {
            life::while_down(b, s, i, out);
            continue;
        }
        life::faults(b, s, i, out);
        life::upkeep(b, s, i, out);
        if b.messages {
            meeting::promotion(b, s, i, out)?;
            meeting::greeting(b, s, i, out)?;
        } else {
            roles::promote_connected(b, s, i, out)?;
        }
        roles::steps(b, s, i, out)?;
        writes::steps(b, s, i, out)?;
        guest::steps(b, s, i, out)?;
        permission::steps(b, s, i, out)?;
        register::rejoining(b, s, i, out);
        disk_failure::steps(b, s, i, out)?;
        replace::steps(b, s, i, out);
    }
    register::lost(b, s, out);
    writes::between(b, s, out);
    resync::steps(b, s, out)?;
    register::answers(b, s, out)?;
    if b.messages {
        meeting::connect(b, s, out);
    } else {
        handshake::steps(b, s, out)?;
    }
    for (_, to) in &mut out.list {
        fold(b, to);
    }
    Ok(())
}

/// Makes one of states that differ in nothing that can matter any more.
fn fold(b: &Bounds, to: &mut State) {
    if b.mistake != Mistake::LateAnswerAccepted {
        // An answer that nobody waits for is discarded; a request under way stays for ever.
        let mut discarded = false;
        for request in &mut to.asked {
            let waits = to.node[usize::from(request.node)].attempt == request.nonce;
            if request.answer.is_some() && !waits {
                *request = Request::default();
                discarded = true;
            }
        }
        if discarded {
            to.asked.sort_by(|x, y| y.cmp(x));
        }
    }
    if !b.fine {
        for node in &mut to.node {
            if node.up {
                // cooling at once leaves the fewest marks
                node.durable_marks &= node.marks;
                if node.write.id != 0 && !node.write.local && !node.disk_failed {
                    node.write.local = true;
                    node.data[usize::from(node.write.block)] = node.write.id;
                }
            }
        }
    }
}

/// True if block `block` is in `marks`.
pub fn has(marks: u8, block: u8) -> bool {
    marks & mark(block) != 0
}
