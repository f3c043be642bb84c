//! What is begun, what is held, and as which pieces a request is carried out.

use kagami_replicator::core::event::Request;
use kagami_replicator::core::state::{NodeId, Solo};
use kagami_replicator::core::{Command, DiskOp, Settings};

use super::pair::{MS, PROMOTE, Pair, SIZE, start, write};
use super::stands::{copying, cut, in_sync, primary};

const MIB: u64 = 1 << 20;
const READ: Request = Request::Read {
    offset: 0,
    len: 4096,
};

/// The zero runs of a node's disk in MiB from the start, and their lengths.
fn zeroes(pair: &Pair, node: usize) -> Vec<(u64, u64)> {
    let ops = pair.sides[node].disk.iter();
    ops.filter_map(|(_, op)| match op {
        DiskOp::Zero { offset, len, .. } => Some((offset / MIB, len / MIB)),
        _ => None,
    })
    .collect()
}

fn has_write(pair: &Pair, node: usize) -> bool {
    let mut ops = pair.sides[node].disk.iter();
    ops.any(|(_, op)| matches!(op, DiskOp::Write { .. }))
}

#[test]
fn long_zeroes_are_cut_at_multiples_of_64_mib() {
    let settings = Settings::default();
    let mut starts = [0, 1].map(|node| start(node, &settings, 256 * MIB));
    starts[0].peer = NodeId::NOBODY;
    starts[0].recovered.superblock.record.peer = None;
    let mut pair = Pair::of(starts);
    pair.linked = false;
    pair.pump();
    pair.done(0, PROMOTE);
    pair.write(0, 1);
    pair.sides[0].hold.writes = true;
    let (id, _) = pair.request(
        0,
        Request::WriteZeroes {
            offset: 4 * MIB,
            len: 150 * MIB,
            unmap: false,
            fua: false,
        },
    );
    pair.pump();
    let mut runs = zeroes(&pair, 0);
    runs.sort_unstable();
    assert_eq!(runs, [(4, 60), (64, 64), (128, 26)]);
    pair.end_disk(0, 0, Ok(()));
    assert_eq!(pair.reply(0, id), None, "two of three");
    pair.sides[0].hold.writes = false;
    pair.pump();
    assert!(matches!(pair.reply(0, id), Some(Ok(_))));
}

/// A discard has an effect where it has the same one on both disks.
#[test]
fn a_discard_is_done_on_both_disks_or_on_none() {
    for unmap in [[true, true], [false, true], [true, false]] {
        let settings = Settings {
            solo: Solo::Arbiter,
            ..Settings::default()
        };
        let starts = [0, 1].map(|node| {
            let mut start = start(node, &settings, SIZE);
            start.unmap_zeroes = unmap[node];
            start
        });
        let mut pair = Pair::of(starts);
        pair.elapse(500);
        pair.done(0, PROMOTE);
        pair.write(0, 3);
        let both = unmap == [true, true];
        assert_eq!(pair.sides[0].mirror.discards(), both);
        let (id, _) = pair.request(
            0,
            Request::Discard {
                offset: 0,
                len: MIB,
                fua: false,
            },
        );
        pair.pump();
        assert!(matches!(pair.reply(0, id), Some(Ok(_))));
        for node in [0, 1] {
            let byte = if both { 0 } else { 4 };
            assert_eq!(pair.content(node, 3 * 4096, 4096), [byte; 4096][..]);
        }
    }
}

/// Reads need the lease, and writes do not: those behind a read that is held are begun.
#[test]
fn a_write_does_not_wait_for_a_read_that_is_held() {
    let mut pair = primary();
    pair.sides[0].hold.writes = true;
    pair.now += 2_000 * MS;
    let (read, _) = pair.request(0, READ);
    assert!(pair.sides[0].disk.is_empty(), "its lease is over");
    pair.request(0, write(9));
    assert!(has_write(&pair, 0));
    assert_eq!(pair.reply(0, read), None);
}

/// While its end is being recorded.
#[test]
fn a_write_waits_for_the_end_of_a_resynchronisation() {
    let mut pair = copying();
    pair.sides[0].hold.reads = false;
    while pair.sides[0].mirror.dirty().count() > 0 {
        assert!(pair.step());
    }
    pair.sides[0].hold.metadata = true;
    pair.pump();
    assert_eq!(pair.stand(0), "Pf");
    pair.sides[0].hold.writes = true;
    let (wrote, _) = pair.request(0, write(9));
    assert!(!has_write(&pair, 0));
    assert!(pair.sides[1].messages.is_empty(), "nor is it sent");
    for hold in [0, 1] {
        pair.sides[hold].hold = super::pair::Hold::default();
    }
    pair.elapse(1_000);
    assert!(matches!(pair.reply(0, wrote), Some(Ok(_))));
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
}

/// Other settings are no reason for a question where none decides, or where nothing rests on its answer.
#[test]
fn settings_ask_an_arbiter_only_where_one_matters() {
    let set = |pair: &mut Pair, node: usize, solo: Solo| {
        let asked = pair.sides[node].asked;
        let settings = Settings {
            solo,
            ..Settings::default()
        };
        pair.done(node, Command::Set(settings));
        pair.elapse(100);
        pair.sides[node].asked > asked
    };
    assert!(set(&mut in_sync(), 0, Solo::Arbiter));
    assert!(!set(&mut in_sync(), 0, Solo::Always));
    assert!(!set(&mut cut(in_sync()), 1, Solo::Arbiter));
}
