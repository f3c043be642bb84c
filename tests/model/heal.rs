//! *Converges*: from every state, with faults at an end, one fair schedule leads to equal copies
//! and a register that names both.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use kagami_replicator::core::decide::Refused;

use super::bounds::{Bounds, Mode};
use super::search::{Mix, fingerprint};
use super::state::{Session, State, Used, Write};
use super::steps::{Check, Step, Steps, next};
use super::verdict::{Outcome, View, verdict};

/// Which step a fair schedule takes first; none: not without a fault or a person.
fn rank(step: Step) -> Option<u8> {
    Some(match step {
        Step::Restart(_) => 0,
        Step::GenerationDurable(_) => 1,
        Step::Local(_) | Step::Late(_) => 2,
        Step::Apply => 3,
        Step::Acknowledge => 4,
        Step::Answer(_) => 5,
        Step::Resend(_) => 6,
        Step::ApplyBlock => 7,
        Step::AcknowledgeBlock | Step::TellCleared => 8,
        Step::FlushPeer => 9,
        Step::Flushed => 10,
        Step::Swap(_) => 11,
        Step::Answered(..) => 12,
        Step::TakeAsk(_) | Step::TakeReply(_) | Step::BecomePrimary(_) | Step::Serve(_) => 13,
        Step::PutOff => 5,
        Step::Settle => 14,
        Step::Adopt => 15,
        Step::Offer => 16,
        Step::ConsentMint(_) => 17,
        Step::SendBlock(_) => 18,
        Step::FlushBlocks => 19,
        Step::Flush(_) => 20,
        Step::TakeReady(_) => 21,
        Step::TakeHello(_) => 22,
        Step::Greet(_) => 23,
        Step::GivesUp(_) => 24,
        Step::Handshake | Step::Connect => 25,
        Step::Record(_) => 26,
        Step::Rejoin(_) => 27,
        Step::WriteBack(..) => 28,
        Step::Cool(_) => 29,
        _ => return None,
    })
}

/// Finds out from which states the pair comes to rest; remembers those that it has seen.
#[derive(Default)]
pub struct Healer {
    known: HashSet<u64, BuildHasherDefault<Mix>>,
    steps: Steps,
    /// States from which a schedule was followed to its end.
    pub followed: usize,
}

impl Healer {
    /// Follows the schedule from `start`.
    ///
    /// Errors: it gets stuck, or comes to rest with different copies.
    pub fn converges(&mut self, bounds: &Bounds, start: &State) -> Check {
        let calm = Bounds {
            handshakes: 200,
            attempts: 200,
            crashes: 0,
            deaths: 0,
            drops: 0,
            force: 0,
            writes: 0,
            disk_failures: 0,
            wipes: 0,
            promotions: 0,
            replace_node: 0,
            replace_arbiter: 0,
            ..*bounds
        };
        let mut s = without_faults(bounds, start);
        let mut path = Vec::new();
        self.followed += 1;
        loop {
            let mark = fingerprint(&s);
            if self.known.contains(&mark) {
                break;
            }
            path.push(mark);
            if path.len() > 400 {
                return Err("Converges: no end of it".to_owned());
            }
            next(&calm, &s, &mut self.steps)?;
            let best = self
                .steps
                .list
                .iter()
                .filter_map(|(step, to)| rank(*step).filter(|_| to != &s).map(|rank| (rank, to)))
                .min_by_key(|(rank, _)| *rank);
            let Some((_, to)) = best else {
                at_rest(bounds, &s)?;
                break;
            };
            s = *to;
            s.used.handshakes = 0;
        }
        self.known.extend(path);
        Ok(())
    }
}

/// What the schedule begins with: no budgets, failed disks are back, half-closed sessions closed.
fn without_faults(b: &Bounds, start: &State) -> State {
    let mut s = *start;
    let sound = Bounds {
        guest: b.guest,
        ..Bounds::default()
    };
    for i in 0..2 {
        let node = &mut s.node[i];
        if node.disk_failed {
            node.fail_requests();
            node.disk_failed = false;
            node.up = false;
            node.daemon_down = false;
            node.late = Write::default();
            node.unbroken = false;
            node.attempt = 0;
            node.marks = 0;
            node.data = [0; 2];
            node.meeting = super::state::Meeting::No;
            node.promoting = super::state::Promoting::No;
            node.granted = false;
            s.link.open[i] = false;
        }
    }
    if !s.link.is_open() {
        for i in 0..2 {
            super::life::close(&sound, &mut s, i);
        }
        s.link = Session::default();
    }
    // a run's budgets decide nothing here
    let replaced = s.used.replaced;
    s.used = Used {
        replaced,
        orders: 9,
        ..Used::default()
    };
    s
}

fn at_rest(b: &Bounds, s: &State) -> Check {
    super::check::all(b, s)?;
    let (x, y) = (&s.node[0], &s.node[1]);
    if !s.joined() || s.link.source != 0 {
        let found = verdict(&View::of(x, 0), &View::of(y, 1), b.mistake);
        let honest = matches!(
            found.outcome,
            Outcome::Refuse(Refused::SplitBrain | Refused::BothStale | Refused::Unrelated)
        ) && (s.ghost.forced || b.mode == Mode::Always);
        if honest {
            return Ok(());
        }
        return Err(format!("Converges: stuck, verdict {:?}", found.row));
    }
    let equal = x.data == y.data && x.stable == y.stable && x.current == y.current;
    if !equal || x.base != 0 || y.base != 0 {
        return Err("Converges: at rest with different copies".into());
    }
    let register = &s.register;
    let named = register.copies == 3 && register.generation == x.current;
    if b.mode == Mode::Arbiter && !named {
        return Err("Converges: the register stays behind".into());
    }
    Ok(())
}
