//! How a pair comes to each stand of the coverage (tests/sim/coverage.rs).

use kagami_replicator::core::{Command, DiskFault, Event};

use super::pair::{Hold, Pair, write};

/// The pair, and the node that stands there.
pub fn build(stand: &str) -> (Pair, usize) {
    let (pair, node) = match stand {
        "Pi" => (primary(), 0),
        "Si" => (primary(), 1),
        "Pn" => (alone(), 0),
        "Sn" => (alone(), 1),
        "Pm" => half_met(alone(), 0),
        "Sm" => half_met(alone(), 1),
        "Ps" => (copying(), 0),
        "Bt" => (copying(), 1),
        "Pf" => reached(copying(), 0, "Pf"),
        "St" => reached(copying(), 1, "St"),
        "Ss" => (copying_idle(), 0),
        "Sf" => reached(copying_idle(), 0, "Sf"),
        "Bn" => (cut_target(), 1),
        "Bm" => half_met(cut_target(), 1),
        "Dv" => (carried(), 0),
        "Sv" => (carried(), 1),
        "Dn" => (cut(carried()), 0),
        "Dm" => half_met(cut(carried()), 0),
        "Gn" => (gone(), 0),
        "Gm" => half_met(gone(), 0),
        "Gv" => (served(), 0),
        "Pt" => (guest(), 1),
        "Pv" => (served(), 1),
        "Bv" => (bad_served(), 1),
        _ => panic!("no way to {stand}"),
    };
    assert_eq!(pair.stand(node), stand);
    (pair, node)
}

/// In sync, both Secondary, and the register names both.
pub fn in_sync() -> Pair {
    let mut pair = Pair::new();
    pair.pump();
    pair.elapse(500);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
    let copies = pair.arbiter.register().map(|r| r.copies.len());
    assert_eq!(copies, Some(2));
    pair
}

/// In sync, node 0 Primary, with some data.
pub fn primary() -> Pair {
    let mut pair = in_sync();
    pair.done(
        0,
        Command::Promote {
            force: false,
            while_resyncing: false,
        },
    );
    pair.write(0, 3);
    pair.elapse(2_500);
    assert!(pair.is_equal());
    pair
}

pub fn cut(mut pair: Pair) -> Pair {
    pair.cut();
    pair.pump();
    pair
}

/// Node 0 Primary without the peer, by the arbiter's word, with blocks that the peer lacks.
pub fn alone() -> Pair {
    let mut pair = cut(primary());
    pair.write(0, 5);
    pair.write(0, 2000);
    pair
}

/// A session that only this node knows of: it has said hello, and hears nothing.
fn half_met(mut pair: Pair, node: usize) -> (Pair, usize) {
    pair.linked = false;
    pair.meet_at(node);
    (pair, node)
}

fn reached(mut pair: Pair, node: usize, stand: &str) -> (Pair, usize) {
    pair.sides[0].hold = Hold::default();
    pair.until(node, stand);
    // What a core does next of its own accord, it has done.
    pair.handle(node, Event::Tags(vec![]));
    (pair, node)
}

fn connect(mut pair: Pair) -> Pair {
    pair.sides[0].hold.reads = true;
    pair.linked = true;
    pair.pump();
    pair
}

/// Node 0, Primary, brings node 1 up to date; its disk has not read the first block yet.
pub fn copying() -> Pair {
    connect(alone())
}

/// The same, and nobody is Primary.
pub fn copying_idle() -> Pair {
    let mut pair = alone();
    pair.done(0, Command::Demote { force: false });
    connect(pair)
}

fn cut_target() -> Pair {
    let mut pair = cut(copying());
    pair.sides[0].hold.reads = false;
    pair.pump();
    pair
}

/// The disk of node 0, which is Primary, fails.
pub fn lose_disk(pair: &mut Pair) {
    pair.sides[0].hold.writes = true;
    let _ = pair.request(0, write(9));
    pair.pump();
    pair.end_disk(0, 0, Err(DiskFault::Io(5)));
    pair.sides[0].hold.writes = false;
    pair.pump();
}

/// Node 1 is Primary while it is brought up to date; node 0, its source, answers for it.
pub fn guest() -> Pair {
    let mut pair = copying_idle();
    pair.done(
        1,
        Command::Promote {
            force: false,
            while_resyncing: true,
        },
    );
    pair
}

/// Node 0 is Primary without a disk; node 1 carries it.
pub fn carried() -> Pair {
    let mut pair = primary();
    lose_disk(&mut pair);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Dv", "Sv"]);
    pair
}

/// Node 0 is Secondary without a disk, node 1 has carried it.
fn gone() -> Pair {
    let mut pair = cut(carried());
    pair.done(0, Command::Demote { force: true });
    pair
}

/// The same, node 1 was promoted, and a session came up all the same.
fn served() -> Pair {
    let mut pair = gone();
    pair.elapse(3_000);
    pair.done(
        1,
        Command::Promote {
            force: false,
            while_resyncing: false,
        },
    );
    pair.meet();
    pair.linked = true;
    pair.pump();
    pair
}

/// Node 0 lost its disk as the source, node 1 is half overwritten.
fn bad_served() -> Pair {
    let mut pair = cut_target();
    lose_disk(&mut pair);
    pair.done(0, Command::Demote { force: true });
    pair.meet();
    pair.linked = true;
    pair.pump();
    pair
}
