//! A disk that dies fails all that is under way on it, in any order. Where the other copy is there, and is about to
//! answer for this node, nothing of that is the client's to see (docs/design.md §5, docs/protocol.md §5).

use bytes::Bytes;
use kagami_bitmap::superblock::StoredDisk;
use kagami_replicator::core::event::Request;
use kagami_replicator::core::state::RequestId;
use kagami_replicator::core::{DiskFault, DiskOp, IoError};

use super::pair::{MS, Pair, write};
use super::stands::{alone, guest, primary};

const BROKEN: Result<(), DiskFault> = Err(DiskFault::Io(5));
const READ: Request = Request::Read {
    offset: 3 * 4096,
    len: 4096,
};
/// Half of block 100 and half of block 101.
const AT: u64 = 100 * 4096 + 2048;

/// Node 0 has a write of block 9, a read of block 3 and the blocks of a write in parts under way on its disk.
fn under_way(mut pair: Pair) -> (Pair, [RequestId; 3]) {
    pair.sides[0].hold.reads = true;
    pair.sides[0].hold.writes = true;
    pair.sides[1].hold.asks = true;
    let partly = Request::Write {
        offset: AT,
        data: Bytes::from(vec![9; 4096]),
        fua: false,
    };
    let ids = [write(9), READ, partly].map(|request| pair.request(0, request).0);
    pair.pump();
    (pair, ids)
}

fn end(pair: &mut Pair, is: impl Fn(&DiskOp) -> bool, result: Result<(), DiskFault>) {
    let at = pair.sides[0].disk.iter().position(|(_, op)| is(op));
    pair.end_disk(0, at.expect("an operation under way"), result);
}

fn is_write(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Write { .. })
}

fn is_read(op: &DiskOp, block: u64) -> bool {
    matches!(op, DiskOp::Read { offset, .. } if *offset == block * 4096)
}

#[test]
fn what_is_under_way_when_a_disk_dies_is_answered_by_the_carrier() {
    // What becomes of the first edge and of the last one.
    for edges in [[BROKEN, BROKEN], [Ok(()), BROKEN], [BROKEN, Ok(())]] {
        let mut pair = primary();
        pair.write(0, 100);
        pair.write(0, 101);
        let (mut pair, ids) = under_way(pair);
        end(&mut pair, is_write, BROKEN);
        end(&mut pair, |op| is_read(op, 3), BROKEN);
        for (block, result) in (100..).zip(edges) {
            end(&mut pair, |op| is_read(op, block), result);
        }
        pair.pump();
        assert!(pair.sides[0].disk.is_empty());
        assert_eq!(ids.map(|id| pair.reply(0, id)), [None; 3], "they wait");
        pair.sides[1].hold.asks = false;
        pair.pump();
        assert_eq!([pair.stand(0), pair.stand(1)], ["Dv", "Sv"]);
        let [wrote, read, partly] = ids.map(|id| pair.reply(0, id).cloned());
        assert_eq!(wrote, Some(Ok(Bytes::new())));
        assert_eq!(read, Some(Ok(Bytes::from(vec![4; 4096]))));
        assert_eq!(partly, Some(Ok(Bytes::new())));
        let content = pair.content(1, 100 * 4096, 8192);
        let expected = [[101; 2048].as_slice(), &[9; 4096], &[102; 2048]].concat();
        assert_eq!(content, expected, "{edges:?}");
    }
}

#[test]
fn a_role_that_is_given_up_ends_it() {
    let (mut pair, ids) = under_way(primary());
    end(&mut pair, is_write, BROKEN);
    end(&mut pair, |op| is_read(op, 100), BROKEN);
    let force = true;
    let command = kagami_replicator::core::Command::Demote { force };
    let (demoted, _) = pair.order(0, command);
    end(&mut pair, |op| is_read(op, 3), BROKEN);
    end(&mut pair, |op| is_read(op, 101), BROKEN);
    pair.pump();
    assert!(matches!(pair.answer(0, demoted), Some(Ok(_))));
    for id in ids {
        assert_eq!(pair.reply(0, id), Some(&Err(IoError::NotPrimary)));
    }
}

/// There is nobody else to ask, now or later.
#[test]
fn of_the_only_copy_it_fails() {
    let (mut pair, ids) = under_way(alone());
    end(&mut pair, is_write, BROKEN);
    for block in [3, 100, 101] {
        end(&mut pair, |op| is_read(op, block), BROKEN);
    }
    for id in ids {
        assert_eq!(pair.reply(0, id), Some(&Err(IoError::Io)));
    }
}

/// Whether the peer's copy is as good is not known at the moment: as a read that succeeds then, one that fails is
/// done again.
#[test]
fn a_read_that_fails_when_the_lease_is_over_is_done_again() {
    let (mut pair, [_, read, partly]) = under_way(primary());
    pair.now += 2_000 * MS;
    for block in [3, 100, 101] {
        end(&mut pair, |op| is_read(op, block), BROKEN);
    }
    assert_eq!([read, partly].map(|id| pair.reply(0, id)), [None; 2]);
    pair.sides[0].hold.reads = false;
    pair.sides[0].hold.writes = false;
    pair.sides[1].hold.asks = false;
    pair.elapse(10_000);
    for id in [read, partly] {
        assert!(matches!(pair.reply(0, id), Some(Ok(_))));
    }
}

/// In the session its source would take it for a copy that is in sync, and its requests wait for ever.
#[test]
fn a_guest_whose_disk_dies_when_it_has_adopted_is_carried() {
    let mut pair = guest();
    // A page is on its way to its store, slowly.
    pair.sides[1].hold.metadata = true;
    pair.elapse(5_000);
    assert_eq!(pair.sides[1].metadata.len(), 1);
    pair.sides[0].hold.reads = false;
    pair.until(0, "Sf");
    pair.elapse(100);
    // Its record is durable, and its source has not settled.
    assert_eq!(pair.sides[1].metadata.len(), 2);
    pair.sides[0].hold.metadata = true;
    pair.end_metadata(1, 1, Ok(()));
    assert_eq!(pair.sides[1].mirror.record().disk, StoredDisk::Consistent);
    let (held, _) = pair.request(1, write(8));
    pair.pump();
    pair.end_metadata(1, 0, BROKEN);
    pair.pump();
    for side in &mut pair.sides {
        side.hold.metadata = false;
    }
    pair.elapse(10_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Sv", "Dv"]);
    assert_eq!(pair.reply(1, held), Some(&Ok(Bytes::new())));
    pair.write(1, 7);
}
