//! Writes that cover blocks in part: which blocks are read for them, where, and what is then on both disks.

use bytes::Bytes;
use kagami_replicator::core::event::{Reply, Request};
use kagami_replicator::core::message::Message;
use kagami_replicator::core::{Command, DiskFault, DiskOp, IoError};

use super::pair::{Pair, write};
use super::stands::{alone, carried, guest, primary};
use super::ways::say;

/// How a pair comes to where it is.
type Stand = fn() -> Pair;

const SECTOR: u64 = 512;
/// The first block that is written, and how many sectors are looked at.
const BLOCK: u64 = 100;
const SECTORS: u64 = 5 * 8;

fn partly(first: u64, sectors: u64, with: u8) -> Request {
    Request::Write {
        offset: BLOCK * 4096 + first * SECTOR,
        data: Bytes::from(vec![with; (sectors * SECTOR) as usize]),
        fua: false,
    }
}

fn reads(pair: &Pair, node: usize) -> Vec<u64> {
    let ops = pair.sides[node].disk.iter();
    ops.filter_map(|(_, op)| match op {
        DiskOp::Read { offset, .. } => Some(offset / 4096 - BLOCK),
        _ => None,
    })
    .collect()
}

/// The blocks that these sectors cover in part, from [`BLOCK`] on.
fn covered_in_part(first: u64, sectors: u64) -> Vec<u64> {
    let touched = first / 8..(first + sectors).div_ceil(8);
    let whole = |block: &u64| first <= block * 8 && block * 8 + 8 <= first + sectors;
    touched.filter(|block| !whole(block)).collect()
}

#[test]
fn each_block_that_is_covered_in_part_is_read_once_and_keeps_its_rest() {
    // Who reads: the node itself, or the peer that carries it.
    let stands: [(Stand, usize, &[usize]); 3] =
        [(primary, 0, &[0, 1]), (alone, 0, &[0]), (carried, 1, &[1])];
    for (stand, reader, copies) in stands {
        let mut pair = stand();
        let mut model = vec![0; SECTORS as usize];
        let mut nth = 0;
        for first in 0..8 {
            for sectors in 1..=24 {
                nth = nth % 250 + 1;
                model[first as usize..(first + sectors) as usize].fill(nth);
                pair.sides[reader].hold.reads = true;
                let (id, _) = pair.request(0, partly(first, sectors, nth));
                pair.pump();
                assert_eq!(
                    reads(&pair, reader),
                    covered_in_part(first, sectors),
                    "{sectors} sectors from {first}"
                );
                pair.sides[reader].hold.reads = false;
                pair.pump();
                assert!(pair.reply(0, id).is_some_and(Result::is_ok));
                for node in copies {
                    let content = pair.content(*node, BLOCK * 4096, (SECTORS * SECTOR) as u32);
                    let sectors: Vec<u8> = content.chunks(512).map(|sector| sector[0]).collect();
                    assert_eq!(sectors, model, "{sectors:?} from {first}");
                    assert!(
                        content
                            .chunks(512)
                            .all(|sector| sector.iter().all(|b| *b == sector[0]))
                    );
                }
            }
        }
    }
}

fn fails(pair: &mut Pair, node: usize, block: u64) {
    let at = pair.read_of(node, BLOCK + block);
    pair.end_disk(node, at, Err(DiskFault::Io(5)));
}

#[test]
fn an_edge_that_can_t_be_read_here_is_the_peers() {
    for bad in [0, 2] {
        let mut pair = primary();
        for block in 0..3 {
            pair.write(0, BLOCK + block);
        }
        pair.sides[0].hold.reads = true;
        let (id, _) = pair.request(0, partly(4, 16, 9));
        pair.pump();
        assert_eq!(reads(&pair, 0), [0, 2]);
        fails(&mut pair, 0, bad);
        pair.sides[1].hold.reads = true;
        pair.pump();
        assert_eq!(reads(&pair, 1), [bad]);
        for side in &mut pair.sides {
            side.hold.reads = false;
        }
        pair.pump();
        assert!(pair.reply(0, id).is_some_and(Result::is_ok));
        for node in [0, 1] {
            let content = pair.content(node, BLOCK * 4096, 3 * 4096);
            let sectors: Vec<u8> = content.chunks(512).map(|sector| sector[0]).collect();
            let expected = [[101; 4].as_slice(), &[9; 16], &[103; 4]].concat();
            assert_eq!(sectors, expected, "node {node}");
        }
    }
}

#[test]
fn a_write_whose_edge_nobody_can_read_fails_once_and_holds_up_no_other() {
    // Alone there is nobody else to ask.
    let stands: [(Stand, bool); 2] = [(primary, true), (alone, false)];
    for (stand, there) in stands {
        for others in [false, true] {
            let mut pair = stand();
            for side in &mut pair.sides {
                side.hold.reads = true;
            }
            let (id, _) = pair.request(0, partly(4, 8, 9));
            pair.pump();
            let blocks: &[u64] = if others { &[0, 1] } else { &[1] };
            for (nth, block) in blocks.iter().enumerate() {
                fails(&mut pair, 0, *block);
                pair.pump();
                if there && nth == 0 {
                    assert_eq!(pair.reply(0, id), None, "the peer is asked");
                    fails(&mut pair, 1, *block);
                    pair.pump();
                }
                assert_eq!(pair.reply(0, id), Some(&Err(IoError::Io)));
            }
            let (waits, _) = pair.request(0, write(BLOCK + 1));
            pair.pump();
            // The other edge is still being read for it.
            assert_eq!(pair.reply(0, waits).is_some(), others);
            for side in &mut pair.sides {
                side.hold.reads = false;
            }
            pair.pump();
            assert!(pair.reply(0, waits).is_some_and(Result::is_ok));
            assert_eq!(pair.reply(0, id), Some(&Err(IoError::Io)));
            let (after, _) = pair.request(0, partly(4, 8, 9));
            pair.pump();
            assert!(pair.reply(0, after).is_some_and(Result::is_ok));
        }
    }
}

/// Node 1 is Primary while node 0 brings it up to date, or node 0 has no disk: what it lacks it reads at the other one.
#[test]
fn what_is_read_at_the_peer_is_read_again_when_the_session_ends() {
    let stands: [(Stand, usize, &[usize]); 2] = [(guest, 1, &[0, 1]), (carried, 0, &[1])];
    for (stand, node, copies) in stands {
        for sectors in [[4, 4], [0, 4], [4, 8]] {
            let mut pair = stand();
            let reader = 1 - node;
            pair.sides[reader].hold.reads = true;
            let (id, _) = pair.request(node, partly(sectors[0], sectors[1], 9));
            pair.pump();
            let before = pair.content(reader, BLOCK * 4096, 8192);
            pair.cut();
            pair.pump();
            assert_eq!(pair.reply(node, id), None, "it waits for the next session");
            pair.sides[reader].hold.reads = false;
            pair.linked = true;
            pair.elapse(20_000);
            assert!(pair.reply(node, id).is_some_and(Result::is_ok));
            let mut expected = before.to_vec();
            let [first, count] = sectors.map(|sectors| sectors as usize * 512);
            expected[first..first + count].fill(9);
            for copy in copies {
                assert_eq!(pair.content(*copy, BLOCK * 4096, 8192), expected[..]);
            }
        }
    }
}

/// What is read and put together is a block at either end, and no more.
#[test]
fn whole_blocks_are_written_as_they_are_and_the_ends_by_themselves() {
    let rows = [
        (0, 8, 1),
        (0, 24, 1),
        (4, 4, 1),
        (4, 8, 1),
        (4, 12, 2),
        (0, 12, 2),
        (4, 16, 3),
    ];
    for (first, sectors, writes) in rows {
        let mut pair = alone();
        pair.sides[0].hold.writes = true;
        pair.request(0, partly(first, sectors, 9));
        pair.pump();
        let ops = pair.sides[0].disk.iter();
        let written = ops.filter(|(_, op)| matches!(op, DiskOp::Write { .. }));
        assert_eq!(written.count(), writes, "{sectors} from {first}");
    }
}

#[test]
fn an_edge_that_only_the_peer_can_read_is_lost_with_it() {
    let mut pair = primary();
    pair.sides[0].hold.reads = true;
    pair.sides[0].hold.asks = true;
    pair.sides[1].hold.messages = true;
    let (id, _) = pair.request(0, partly(4, 4, 9));
    pair.pump();
    fails(&mut pair, 0, 0);
    pair.pump();
    assert_eq!(pair.reply(0, id), None, "the peer is asked");
    pair.cut();
    assert_eq!(pair.reply(0, id), Some(&Err(IoError::Io)));
}

/// One edge could not be read, and the other one never comes: nothing of the write is left.
#[test]
fn a_guests_write_that_failed_ends_with_its_session() {
    let mut pair = guest();
    pair.sides[0].hold.messages = true;
    let (write, _) = pair.request(1, partly(4, 8, 9));
    pair.pump();
    let asked: Vec<u64> = pair.sides[0]
        .messages
        .iter()
        .filter_map(|(_, message)| match message {
            Message::Read { id, .. } => Some(*id),
            _ => None,
        })
        .collect();
    assert_eq!(asked.len(), 2);
    let (id, result) = (asked[0], Err(DiskFault::Io(5)));
    say(&mut pair, 1, Message::ReadReply { id, result });
    assert_eq!(pair.reply(1, write), Some(&Err(IoError::Io)));
    pair.cut();
    let (stop, _) = pair.order(1, Command::Stop);
    pair.pump();
    assert_eq!(pair.answer(1, stop), Some(&Ok(Reply::Done)));
}
