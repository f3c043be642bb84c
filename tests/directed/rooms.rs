//! A read that the peer is to answer waits for memory, and what it found when it asked for that may be another thing then:
//! it is done as things are.

use bytes::Bytes;
use kagami_replicator::core::event::Request;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::RequestId;
use kagami_replicator::core::{DiskOp, DiskState, IoError, Notice, Role};

use super::pair::{Pair, write};
use super::stands::{carried, guest, primary};
use super::ways::say;

const BLOCK: u64 = 9;

fn read(pair: &mut Pair, node: usize) -> RequestId {
    let (offset, len) = (BLOCK * 4096, 4096);
    pair.request(node, Request::Read { offset, len }).0
}

/// A read of a node that waits for memory.
fn waiting(mut pair: Pair, node: usize) -> (Pair, RequestId) {
    pair.sides[node].hold.rooms = true;
    let id = read(&mut pair, node);
    pair.pump();
    assert_eq!(pair.sides[node].rooms, [id]);
    (pair, id)
}

/// Node 0 is Primary in sync, and can't read the block.
fn bad() -> Pair {
    let mut pair = primary();
    pair.write(0, BLOCK);
    pair.sides[0].bad.insert(BLOCK);
    pair
}

fn there_is_room(pair: &mut Pair, node: usize) {
    pair.sides[node].hold.rooms = false;
    pair.pump();
}

fn asks_the_peer(pair: &Pair, node: usize) -> bool {
    let mut messages = pair.sides[1 - node].messages.iter();
    messages.any(|(_, message)| matches!(message, Message::Read { .. }))
}

#[test]
fn without_a_disk_and_a_peer_it_fails() {
    let (mut pair, id) = waiting(carried(), 0);
    pair.cut();
    there_is_room(&mut pair, 0);
    assert_eq!(pair.reply(0, id), Some(&Err(IoError::Io)));
}

#[test]
fn a_guests_waits_for_the_next_session() {
    let (mut pair, id) = waiting(guest(), 1);
    pair.cut();
    there_is_room(&mut pair, 1);
    assert_eq!(pair.reply(1, id), None);
    pair.sides[0].hold.reads = false;
    pair.linked = true;
    pair.elapse(3_000);
    assert!(pair.reply(1, id).is_some_and(Result::is_ok));
}

/// The copy here is good by now.
#[test]
fn a_guests_is_done_here_once_it_is_in_sync() {
    let (mut pair, id) = waiting(guest(), 1);
    pair.sides[0].hold.reads = false;
    pair.elapse(1_000);
    assert_eq!(pair.stand(1), "Pi");
    pair.sides[1].hold.reads = true;
    there_is_room(&mut pair, 1);
    assert!(matches!(
        pair.sides[1].disk.front(),
        Some((_, DiskOp::Read { .. }))
    ));
    pair.sides[1].hold.reads = false;
    pair.pump();
    assert!(pair.reply(1, id).is_some_and(Result::is_ok));
}

/// It is answered when the write is over, from then on.
#[test]
fn it_waits_for_a_write_that_is_under_way_there() {
    let mut pair = guest();
    pair.sides[0].hold.messages = true;
    pair.request(1, write(BLOCK));
    let id = read(&mut pair, 1);
    pair.pump();
    assert!(!asks_the_peer(&pair, 1));
    pair.sides[0].hold.messages = false;
    pair.sides[0].hold.reads = false;
    pair.pump();
    let expected = Ok(Bytes::from(vec![BLOCK as u8 + 1; 4096]));
    assert_eq!(pair.reply(1, id), Some(&expected));
}

/// The block is written while memory is waited for: the peer's is older, and not written back over it.
#[test]
fn what_is_written_meanwhile_is_read() {
    let (mut pair, id) = waiting(bad(), 0);
    pair.sides[0].hold.writes = true;
    let newer = Bytes::from(vec![0xaa; 4096]);
    let offset = BLOCK * 4096;
    let (data, fua) = (newer.clone(), false);
    pair.request(0, Request::Write { offset, data, fua });
    pair.pump();
    pair.sides[0].hold.reads = true;
    there_is_room(&mut pair, 0);
    assert_eq!(pair.reply(0, id), None);
    pair.sides[0].hold.writes = false;
    pair.pump();
    pair.sides[0].hold.reads = false;
    pair.pump();
    assert_eq!(pair.reply(0, id), Some(&Ok(newer)));
    assert!(pair.is_equal());
}

/// Alone there is no peer whose block is used, and nobody is told so.
#[test]
fn a_block_that_can_t_be_read_here_is_lost_with_the_peer() {
    let (mut pair, id) = waiting(bad(), 0);
    pair.cut();
    pair.elapse(1_000);
    assert_eq!(pair.stand(0), "Pn");
    there_is_room(&mut pair, 0);
    assert_eq!(pair.reply(0, id), Some(&Err(IoError::Io)));
    let mut notices = pair.sides[0].notices.iter();
    assert!(!notices.any(|notice| matches!(notice, Notice::DiskFailed { .. })));
}

/// A peer that is leaving says that its copy is Outdated.
#[test]
fn a_copy_that_is_not_the_newest_is_not_read_from() {
    let mut pair = bad();
    let (role, disk) = (Role::Secondary, DiskState::Outdated);
    say(&mut pair, 0, Message::State { role, disk });
    pair.sides[1].hold.messages = true;
    let id = read(&mut pair, 0);
    pair.pump();
    assert_eq!(pair.reply(0, id), Some(&Err(IoError::Io)));
    assert!(!asks_the_peer(&pair, 0));
}
