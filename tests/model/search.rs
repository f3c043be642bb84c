//! Breadth first over all states: the first violation found has the shortest trace.
//!
//! A state is remembered by 64 bits; two states that share them (about once in 10^4 searches of
//! 60 million) would hide one. What a level needs is kept whole, and for each state the step that
//! led to it, so that a trace can be told.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

use super::bounds::Bounds;
use super::check;
use super::heal::Healer;
use super::state::{Node, Reply, Request, Sent, State};
use super::steps::{Step, Steps, next};

/// A hasher that is quick and mixes well enough for fingerprints.
#[derive(Default, Clone, Copy)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0u8; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = (mixed ^ (mixed >> 29))
            .wrapping_mul(0xBF58_476D_1CE4_E5B9)
            .rotate_left(23);
    }
    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte) + 1);
    }
    fn write_u16(&mut self, word: u16) {
        self.write_u64(u64::from(word) + 1);
    }
    fn finish(&self) -> u64 {
        let folded = self.0 ^ (self.0 >> 32);
        folded.wrapping_mul(0x94D0_49BB_1331_11EB) ^ (folded >> 31)
    }
}

/// The 64 bits by which a state is remembered.
pub fn fingerprint(s: &State) -> u64 {
    let mut mix = Mix(0x1234_5678);
    s.hash(&mut mix);
    mix.finish()
}

/// What was found.
pub struct Found {
    /// Different states.
    pub states: usize,
    /// Steps taken from them.
    pub steps: usize,
    /// Steps of the longest shortest way to a state.
    pub depth: usize,
    /// Every state was reached; else the search was cut at its bound.
    pub complete: bool,
    /// The violation and the way to it.
    pub violation: Option<Violation>,
    /// How long it took.
    pub took: Duration,
}

/// A broken promise and the shortest way to it.
pub struct Violation {
    /// The invariant and what happened.
    pub what: String,
    /// The steps.
    pub trace: Vec<Step>,
    /// The state before the step that broke it.
    pub state: Box<State>,
}

impl Found {
    /// The word for the table.
    pub fn word(&self) -> &'static str {
        match (&self.violation, self.complete) {
            (Some(_), _) => "VIOLATION",
            (None, true) => "complete",
            (None, false) => "cut",
        }
    }
}

/// Where a search begins.
pub fn beginning(b: &Bounds) -> State {
    use super::bounds::First;
    let mut s = State {
        next_generation: 2,
        next_nonce: 1,
        ..State::default()
    };
    for node in &mut s.node {
        node.up = true;
        node.instance = 1;
    }
    s.register.instance = 1;
    match b.first {
        First::InSync => {
            for node in &mut s.node {
                node.current = 1;
                node.unbroken = true;
                node.lease = b.messages;
            }
            s.node[0].primary = true;
            s.node[0].was_primary = true;
            s.node[0].lease = true;
            s.link.open = [true, true];
            s.register.seq = 1;
            s.register.copies = 3;
            s.register.generation = 1;
        }
        First::Zeroed => {
            for node in &mut s.node {
                node.zeroed = true;
                node.instance = 0;
            }
        }
        First::Keep => {
            s.node[0].current = 1;
            for block in b.each_block() {
                s.node[0].data[usize::from(block)] = 0;
            }
            for node in &mut s.node {
                node.instance = 0;
            }
        }
    }
    s
}

/// Searches until all is seen, a promise is broken, or `most` states are known.
pub fn run(b: &Bounds, most: usize) -> Found {
    let began = Instant::now();
    let first = beginning(b);
    let mut seen: HashSet<u64, BuildHasherDefault<Mix>> = HashSet::default();
    seen.insert(fingerprint(&first));
    let mut parents: Vec<(u32, u8)> = vec![(0, 0)];
    let mut level = vec![(first, 0u32)];
    let (mut depth, mut taken) = (0, 0);
    let mut out = Steps::default();
    let mut healer = Healer::default();
    let mut broken = None;
    let mut complete = true;
    'search: while !level.is_empty() {
        let mut next_level = Vec::new();
        for (s, index) in &level {
            let checked = check::all(b, s)
                .and_then(|()| next(b, s, &mut out))
                .and_then(|()| healer.converges(b, s));
            if let Err(what) = checked {
                broken = Some((*index, what));
                break 'search;
            }
            for (k, (_, to)) in out.list.iter().enumerate() {
                taken += 1;
                if seen.insert(fingerprint(to)) {
                    if parents.len() >= most {
                        complete = false;
                        break 'search;
                    }
                    parents.push((*index, k as u8));
                    next_level.push((*to, parents.len() as u32 - 1));
                }
            }
        }
        level = next_level;
        depth += 1;
    }
    let violation = broken.map(|(index, what)| retrace(b, &first, &parents, index, what));
    Found {
        states: parents.len(),
        steps: taken,
        depth,
        complete,
        violation,
        took: began.elapsed(),
    }
}

/// The way to state `index`.
fn retrace(
    b: &Bounds,
    first: &State,
    parents: &[(u32, u8)],
    index: u32,
    what: String,
) -> Violation {
    let mut choices = Vec::new();
    let mut at = index as usize;
    while at != 0 {
        let (parent, choice) = parents[at];
        choices.push(usize::from(choice));
        at = parent as usize;
    }
    let mut s = *first;
    let mut trace = Vec::new();
    let mut out = Steps::default();
    for choice in choices.into_iter().rev() {
        // These steps were taken before: an error of one that was not chosen was met later.
        let known = next(b, &s, &mut out);
        assert!(
            known.is_ok() && choice < out.list.len(),
            "a step that was taken can be taken again"
        );
        let (step, to) = out.list[choice];
        trace.push(step);
        s = to;
    }
    Violation {
        what,
        trace,
        state: Box::new(s),
    }
}

const _: () = {
    // A search keeps two whole levels: a state stays small.
    assert!(size_of::<State>() <= 320);
    assert!(size_of::<Node>() <= 80);
    assert!(size_of::<Request>() <= 12 && size_of::<Sent>() == 1 && size_of::<Reply>() == 1);
};
