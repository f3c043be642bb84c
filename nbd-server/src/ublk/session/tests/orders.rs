//! Whatever the order of requests, answers and orders: a tag is answered at most once for each request, exactly
//! once where the device has answered it, and with what the device did.
//!
//! That a tag is used only by whoever has it, the made-up kernel asserts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{Go, SessionEnd};
use super::made::{Machine, SHAPE, SIZE, ask, durable, flush};
use crate::device::{Errno, Request};
use crate::ublk::Tag;
use crate::ublk::abi::op;

const BLOCK: u64 = 4096;

#[derive(Clone, Debug)]
enum Step {
    /// A request in this place, if it is free.
    Ask { place: usize, op: u8, fua: bool },
    /// One of those in flight is done.
    Does(prop::sample::Index),
    /// One of those in flight fails.
    Fails(prop::sample::Index),
    /// The device is not served, as one of those in flight is told.
    Refuses(prop::sample::Index),
    /// Whether the device says that it is served.
    Serves(bool),
    /// What is parked is begun again.
    On,
    /// There is memory for so many writes.
    Room(usize),
    /// The session has its turn.
    Runs,
}

fn step() -> impl Strategy<Value = Step> {
    let ops = prop::sample::select(vec![op::READ, op::WRITE, op::DISCARD, op::WRITE_ZEROES]);
    prop_oneof![
        6 => (0..8usize, ops, any::<bool>()).prop_map(|(place, op, fua)| Step::Ask { place, op, fua }),
        6 => any::<prop::sample::Index>().prop_map(Step::Does),
        1 => any::<prop::sample::Index>().prop_map(Step::Fails),
        2 => any::<prop::sample::Index>().prop_map(Step::Refuses),
        1 => any::<bool>().prop_map(Step::Serves),
        2 => Just(Step::On),
        2 => (0..4usize).prop_map(Step::Room),
        8 => Just(Step::Runs),
    ]
}

/// What the kernel was last asked in a place.
#[derive(Clone, Debug)]
struct Ask {
    op: u8,
    /// Of a block that no other request touches.
    offset: u64,
    /// What the device said, if it has answered for good.
    answer: Option<i32>,
}

struct Walk {
    machine: Machine,
    asked: BTreeMap<Tag, Ask>,
    /// Blocks of the writes that were carried out.
    written: Vec<u64>,
    next: u64,
}

impl Walk {
    fn new() -> Self {
        let machine = Machine::new();
        machine.disk.holds();
        machine.disk.has_room(0);
        Self {
            machine,
            asked: BTreeMap::new(),
            written: Vec::new(),
            next: 0,
        }
    }

    fn ask(&mut self, place: usize, op: u8, fua: bool) {
        let depth = usize::from(SHAPE.depth);
        let tag = Tag {
            queue: (place / depth) as u16,
            tag: (place % depth) as u16,
        };
        if !self.machine.kernel.has(tag) {
            return;
        }
        // What was answered in this tag has to be looked at before it is another request's.
        self.look();
        let offset = self.next * BLOCK;
        self.next += 1;
        let descriptor = ask(op, offset, BLOCK);
        let descriptor = if fua { durable(descriptor) } else { descriptor };
        let bytes = [carried(offset / BLOCK); BLOCK as usize];
        self.machine.kernel.asks(tag, descriptor, &bytes);
        let asked = Ask {
            op,
            offset,
            answer: None,
        };
        let before = self.asked.insert(tag, asked);
        assert!(before.is_none(), "{tag:?} was given back unanswered");
    }

    /// Notes what the device says to the request that is held at `index`.
    fn note(&mut self, index: usize, failed: Option<i32>) {
        let request = self.machine.disk.at(index);
        let offset = match request {
            Request::Read { offset, .. }
            | Request::Write { offset, .. }
            | Request::Trim { offset, .. }
            | Request::WriteZeroes { offset, .. } => offset,
            other => panic!("{other:?} was not asked for"),
        };
        let ask = self.asked.values_mut().find(|ask| ask.offset == offset);
        // Refused by order meanwhile: its answer is nobody's.
        let Some(ask) = ask else {
            return;
        };
        assert_eq!(ask.answer, None, "it was begun twice: {ask:?}");
        if ask.op == op::WRITE && failed.is_none() {
            self.written.push(offset / BLOCK);
        }
        ask.answer = Some(failed.unwrap_or(match ask.op {
            op::READ | op::WRITE => BLOCK as i32,
            _ => 0,
        }));
    }

    fn does(&mut self, step: &Step) {
        let held = self.machine.disk.held();
        match step {
            Step::Ask { place, op, fua } => self.ask(*place, *op, *fua),
            Step::Does(index) if held > 0 => {
                let index = index.index(held);
                self.note(index, None);
                self.machine.disk.does(index);
            }
            Step::Fails(index) if held > 0 => {
                let index = index.index(held);
                self.note(index, Some(-libc::EIO));
                self.machine.disk.refuses(index, Errno::Io);
            }
            Step::Refuses(index) if held > 0 => {
                self.machine.disk.refuses(index.index(held), Errno::Perm);
            }
            Step::Does(_) | Step::Fails(_) | Step::Refuses(_) => {}
            Step::Serves(is_served) => self.machine.disk.is_served(*is_served),
            Step::On => self.machine.orders(Go::On),
            Step::Room(writes) => self.machine.disk.has_room(writes * BLOCK as usize),
            Step::Runs => {
                self.machine.runs();
                self.look();
            }
        }
    }

    /// Every answer since the last look is the device's, and the last that this request gets.
    fn look(&mut self) {
        for (tag, result) in self.machine.kernel.results() {
            let ask = self.asked.remove(&tag);
            let ask = ask.unwrap_or_else(|| panic!("{tag:?} is answered twice"));
            assert_eq!(Some(result), ask.answer, "{ask:?}");
        }
    }

    /// Those that the device has answered, and the kernel does not know of.
    fn owed(&self) -> usize {
        let owed = |ask: &&Ask| ask.answer.is_some();
        self.asked.values().filter(owed).count()
    }

    fn finish_all(&mut self) {
        while self.machine.disk.held() > 0 {
            self.note(0, None);
            self.machine.disk.does(0);
        }
    }
}

/// Blocks of the made-up disk.
const BLOCKS: usize = (SIZE / BLOCK) as usize;

/// The byte that a write of this block is full of.
fn carried(block: u64) -> u8 {
    (block % 255) as u8 + 1
}

proptest! {
    #[test]
    fn all_is_answered_once(steps in prop::collection::vec(step(), 0..BLOCKS)) {
        let mut walk = Walk::new();
        for step in &steps {
            walk.does(step);
        }
        // From now on it is served.
        walk.machine.disk.is_served(true);
        walk.machine.disk.has_room(usize::MAX);
        walk.machine.runs();
        walk.machine.goes(Go::On);
        walk.finish_all();
        walk.machine.runs();
        walk.look();
        prop_assert_eq!(walk.machine.disk.held(), 0);
        prop_assert!(walk.asked.is_empty(), "{:?}", walk.asked);
        prop_assert!(!walk.machine.told().1);
        for block in &walk.written {
            let found = walk.machine.disk.memory.peek(block * BLOCK, 1)[0];
            prop_assert_eq!(found, carried(*block));
        }
    }

    #[test]
    fn a_session_that_leaves_owes_nothing_that_was_answered(
        steps in prop::collection::vec(step(), 0..128),
        late in prop::collection::vec(step(), 0..32),
    ) {
        let mut walk = Walk::new();
        for step in &steps {
            walk.does(step);
        }
        walk.machine.goes(Go::Leave);
        let begun = walk.machine.disk.log().len();
        for step in &late {
            walk.does(step);
        }
        walk.finish_all();
        walk.machine.runs();
        walk.look();
        prop_assert_eq!(walk.machine.disk.log().len(), 0, "{} were begun before", begun);
        prop_assert_eq!(walk.owed(), 0);
        prop_assert!(matches!(walk.machine.end, Some(SessionEnd::Ordered)));
    }

    #[test]
    fn a_session_that_is_cut_says_nothing_more(
        steps in prop::collection::vec(step(), 0..128),
        late in prop::collection::vec(step(), 0..32),
    ) {
        let mut walk = Walk::new();
        for step in &steps {
            walk.does(step);
        }
        walk.machine.runs();
        walk.look();
        walk.machine.goes(Go::Cut);
        for step in &late {
            walk.does(step);
        }
        walk.finish_all();
        prop_assert_eq!(walk.machine.disk.held(), 0);
        walk.machine.runs();
        prop_assert_eq!(walk.machine.kernel.results(), []);
        prop_assert!(matches!(walk.machine.end, Some(SessionEnd::Ordered)));
    }

    #[test]
    fn a_session_that_refuses_answers_each_once(steps in prop::collection::vec(step(), 0..128)) {
        let mut walk = Walk::new();
        for step in &steps {
            walk.does(step);
        }
        walk.machine.runs();
        walk.look();
        walk.machine.goes(Go::Refuse);
        let failed = walk.machine.kernel.results();
        prop_assert_eq!(failed.len(), walk.asked.len());
        for (tag, result) in failed {
            prop_assert!(walk.asked.remove(&tag).is_some(), "{:?} twice", tag);
            prop_assert_eq!(result, -libc::EIO);
        }
        // The places are used again while the device still answers to the requests before.
        for queue in 0..SHAPE.queues {
            for tag in 0..SHAPE.depth {
                walk.machine.kernel.asks(Tag { queue, tag }, flush(), &[]);
            }
        }
        walk.finish_all();
        walk.machine.runs();
        let refused = walk.machine.kernel.results();
        prop_assert_eq!(refused.len(), 8);
        prop_assert!(refused.iter().all(|(_, result)| *result == -libc::EIO));
        walk.machine.kernel.stops();
        walk.machine.goes(Go::Close);
        prop_assert!(matches!(walk.machine.end, Some(SessionEnd::Ordered)));
    }
}
