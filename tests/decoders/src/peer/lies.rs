//! What the liar says: hellos that nearly fit, and any message with numbers that were used.

use bytes::Bytes;
use kagami_bitmap::EXTENT;
use kagami_replicator::core::message::{Doing, Hello};
use kagami_replicator::core::state::Seq;
use kagami_replicator::core::{DiskFault, Message, NodeId, Role};

use super::draw::{
    disk_state, generation, option, protocol, role, runs, solo, split_brain, stored,
};
use super::{BLOCKS, SIZE, World};
use crate::input::Input;

impl World {
    /// A hello that follows from the core's own, with something changed; or any.
    pub(super) fn greeting(&self, input: &mut Input<'_>) -> Option<Hello> {
        let mut hello = self.hello.clone()?;
        hello.node = NodeId(3 - hello.node.0);
        hello.role = Role::Secondary;
        let changes = input.u16();
        let change = |bit: u16| changes >> bit & 1 == 1;
        if change(0) {
            hello.current = option(input, generation);
        }
        if change(1) {
            hello.disk = stored(input);
        }
        if change(2) {
            hello.role = role(input);
        }
        if change(3) {
            hello.marks = input.near(BLOCKS);
        }
        if change(4) {
            hello.history = (0..input.below(5)).map(|_| generation(input)).collect();
            hello
                .history
                .extend(self.hello.as_ref().and_then(|hello| hello.current));
        }
        if change(5) {
            hello.base = option(input, generation);
        }
        if change(6) {
            let flags = input.u8();
            hello.alone = flags & 1 != 0;
            hello.was_primary = flags & 2 != 0;
            hello.diskless = flags & 4 != 0;
            hello.forced_bad = flags & 8 != 0;
            hello.zeroed = flags & 16 != 0;
            hello.unbroken = flags & 32 != 0;
            hello.unmap_zeroes = flags & 64 != 0;
            hello.full = flags & 128 != 0;
        }
        if change(7) {
            hello.solo = solo(input);
            hello.protocol = protocol(input);
            hello.split_brain = split_brain(input);
        }
        if change(8) {
            hello.keep = option(input, |input| NodeId(u64::from(input.below(4))));
        }
        if change(9) && change(10) {
            hello.node = NodeId(u64::from(input.below(4)));
        }
        if change(11) {
            hello.timeout_ms = input.near(2_000);
        }
        if change(12) && change(13) {
            hello.size = input.near(SIZE);
            hello.mirror = u128::from(input.below(8));
        }
        if change(14) {
            hello.arbiter = option(input, |input| u64::from(input.below(4)));
        }
        Some(hello)
    }

    /// Any message, its numbers often those that the core used.
    #[expect(clippy::too_many_lines, reason = "an arm for each message")]
    pub(super) fn lie(&self, input: &mut Input<'_>) -> Option<Message> {
        let known = self.known(input);
        let offset = |input: &mut Input<'_>| match input.below(8) {
            0 => input.near(SIZE) / 4096 * 4096,
            _ => u64::from(input.u16()) % BLOCKS * 4096,
        };
        let result = |input: &mut Input<'_>| match input.below(4) {
            0 => Err(DiskFault::NoSpace),
            1 => Err(DiskFault::Io(i32::from(input.u8()))),
            _ => Ok(()),
        };
        let data = |input: &mut Input<'_>| {
            let blocks = match input.below(16) {
                0 => 257,
                n => usize::from(n % 4) + 1,
            };
            Bytes::from(vec![input.u8(); blocks * 4096])
        };
        let seq = Seq(known.max(1));
        Some(match input.below(28) {
            0 => Message::Hello(Box::new(self.greeting(input)?)),
            1 => Message::Marks {
                runs: runs(input),
                last: input.coin(),
            },
            2 => Message::Ping { sent: input.u64() },
            3 => Message::Pong {
                sent: input.near(self.now),
            },
            4 => Message::State {
                role: role(input),
                disk: disk_state(input),
            },
            5 | 6 => Message::Write {
                seq,
                offset: offset(input).min(u64::MAX - (2 << 20)) / 4096 * 4096,
                data: data(input),
                fua: input.coin(),
                early: input.coin(),
            },
            7 => {
                let offset = offset(input);
                Message::Zero {
                    seq,
                    offset,
                    len: (input.near(EXTENT) / 4096 * 4096)
                        .clamp(4096, (u64::MAX - offset).max(4096) / 4096 * 4096),
                    unmap: input.coin(),
                    fua: input.coin(),
                }
            }
            8 => Message::ResyncBlocks {
                seq,
                offset: offset(input).min(u64::MAX - (2 << 20)) / 4096 * 4096,
                data: data(input),
            },
            9 => Message::Received { seq },
            10 | 11 => Message::Done {
                seq,
                result: result(input),
            },
            12 => Message::Flush {
                id: known,
                after: Seq(u64::from(input.u8())),
            },
            13 => Message::Flushed {
                id: known,
                result: result(input),
            },
            14 => Message::Cleared { runs: runs(input) },
            15 => Message::Offer {
                current: generation(input),
                history: (0..input.below(100)).map(|_| generation(input)).collect(),
            },
            16 => [Message::Adopted, Message::Settled, Message::Carrying]
                [usize::from(input.below(3))]
            .clone(),
            17 => Message::PromoteAsk,
            18 => Message::PromoteGrant,
            19 => Message::PromoteRefuse {
                why: "no".to_owned(),
            },
            20 => Message::Read {
                id: known,
                offset: offset(input).min(u64::MAX - (2 << 20)) / 4096 * 4096,
                len: (u32::from(input.below(255)) + 1) * 4096,
            },
            21 => Message::ReadReply {
                id: known,
                result: if input.coin() {
                    Ok(data(input))
                } else {
                    Err(DiskFault::Io(5))
                },
            },
            22 => Message::Compare {
                id: known,
                offset: offset(input) / 2 / 4096 * 4096,
                hashes: vec![[input.u8(); 16]; 1 + usize::from(input.u16() % 600)],
            },
            23 => Message::Compared {
                id: known,
                result: if input.below(4) == 0 {
                    Err(DiskFault::Io(5))
                } else {
                    let step = u32::from(input.u8()) + 1;
                    Ok((0..u32::from(input.below(30))).map(|n| n * step).collect())
                },
            },
            24 => Message::Progress {
                doing: [Doing::Nothing, Doing::Sync, Doing::Paused, Doing::Verify]
                    [usize::from(input.below(4))],
            },
            25 => {
                let instance = option(input, |input| u64::from(input.below(4)));
                if input.coin() {
                    Message::ArbiterInstance { instance }
                } else {
                    Message::ArbiterRecorded { instance }
                }
            }
            26 => [Message::Leave, Message::Bye][usize::from(input.below(2))].clone(),
            _ => Message::Resolve {
                keep: NodeId(u64::from(input.below(4))),
                full: input.coin(),
            },
        })
    }

    /// A number that the core used in one of its last messages, or nearly, or any.
    fn known(&self, input: &mut Input<'_>) -> u64 {
        let how = input.u8();
        if how & 7 == 7 {
            return input.u64();
        }
        if how & 7 == 6 || self.sent.is_empty() {
            return u64::from(how >> 3);
        }
        let nth = usize::from(how >> 3) % self.sent.len();
        match &self.sent[nth] {
            Message::Write { seq, .. }
            | Message::Zero { seq, .. }
            | Message::ResyncBlocks { seq, .. } => seq.0,
            Message::Flush { id, .. } | Message::Compare { id, .. } | Message::Read { id, .. } => {
                *id
            }
            _ => u64::from(how >> 3),
        }
    }
}
