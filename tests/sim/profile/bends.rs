//! How each profile bends what a seed drew: which delays are close to which, what breaks, what is ordered, what follows what.

use kagami_replicator::core::settings::SplitBrainPolicy;
use kagami_replicator::core::state::{Protocol, Solo};

use super::{Cause, Sequel};
use crate::sim::faults::Fault;
use crate::sim::options::Options;
use crate::sim::orders::Order;
use crate::sim::rng::Rng;
use crate::sim::world::MS;

const US: u64 = 1_000;

/// Everything on a small scale: a small mirror, quick parts, no fork.
fn small(o: &mut Options, rng: &mut Rng) {
    let blocks = rng.between(16, 400);
    o.size = blocks * 4096;
    o.hot_spots = (0..rng.pick(&[4, 12])).map(|_| rng.below(blocks)).collect();
    o.forced = false;
    o.settings.split_brain = SplitBrainPolicy::default();
    o.faults.clear();
    o.orders = vec![(Order::Promote, 12)];
    o.disk_ns = 100 * US;
    o.meta_ns = 100 * US;
    o.net_ns = 100 * US;
    o.arbiter_ns = 200 * US;
}

fn timeouts(o: &mut Options, timeout_ms: u64) {
    o.settings.timeout_ms = timeout_ms;
    o.settings.ack_timeout_ms = 5 * timeout_ms;
    o.settings.arbiter_timeout_ms = timeout_ms;
}

fn sequel(after: Cause, then: Cause, within_ns: u64, percent: u64) -> Sequel {
    Sequel {
        after,
        then,
        within_ns,
        percent,
    }
}

pub(super) fn lease_race(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, rng.pick(&[30, 60, 120]));
    o.settings.solo = Solo::Arbiter;
    o.requests = 1200;
    o.depth = rng.pick(&[2, 8]);
    o.think_ns = rng.pick(&[300 * US, MS]);
    o.disk_ns = rng.pick(&[50 * US, 3 * MS]);
    o.hot_spots.truncate(4);
    o.fault_every_ns = Some(250 * MS);
    o.faults = vec![
        (Fault::LinkCut, 4),
        (Fault::LinkCutOneWay, 2),
        (Fault::SessionEnds, 1),
        (Fault::DaemonPauses, 2),
        (Fault::DiskSlow, 2),
    ];
    o.faults_last_ns = Some(4 * o.settings.timeout_ms * MS);
    o.sequels = vec![sequel(
        Cause::Fault(Fault::DiskSlow),
        Cause::Fault(Fault::LinkCut),
        100 * MS,
        60,
    )];
    // Looked at all the time: it does something only where the link has gone.
    o.order_every_ns = 5 * MS;
    o.orders.push((Order::TakeOver, 60));
}

pub(super) fn late_answers(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, rng.pick(&[60, 200]));
    o.settings.solo = Solo::Arbiter;
    o.requests = 1000;
    o.depth = 8;
    o.think_ns = 2 * MS;
    o.arbiter_ns = o.settings.timeout_ms * MS / rng.pick(&[2, 4, 20]);
    o.fault_every_ns = Some(2 * o.settings.timeout_ms * MS);
    o.faults = vec![
        (Fault::LinkCut, 3),
        (Fault::SessionEnds, 3),
        (Fault::DaemonDies, 1),
        (Fault::MachineCrashes, 1),
        (Fault::BothCrash, 1),
    ];
    o.faults_last_ns = Some(2 * o.settings.timeout_ms * MS);
    o.order_every_ns = 20 * MS;
    o.orders.push((Order::TakeOver, 12));
}

pub(super) fn early_answers(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, 400);
    o.settings.protocol = rng.pick(&[Protocol::A, Protocol::A, Protocol::B]);
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Never, Solo::Never]);
    o.settings.flush_after_ms = 1000;
    o.requests = 1500;
    o.depth = 16;
    o.think_ns = 500 * US;
    o.disk_ns = rng.pick(&[100 * US, MS, 3 * MS]);
    o.net_ns = rng.pick(&[5 * MS, 20 * MS]);
    o.fault_every_ns = Some(400 * MS);
    o.faults = vec![(Fault::DiskFails, 1), (Fault::SessionEnds, 1)];
    o.faults_last_ns = Some(500 * MS);
    o.order_every_ns = 60 * MS;
    let (disk, link) = (
        Cause::Fault(Fault::DiskFails),
        Cause::Fault(Fault::SessionEnds),
    );
    let together = rng.pick(&[2 * MS, 30 * MS]);
    o.sequels = vec![
        sequel(disk, link, together, 60),
        sequel(link, disk, together, 40),
    ];
}

pub(super) fn hand_over(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, 300);
    o.settings.protocol = rng.pick(&[Protocol::A, Protocol::A, Protocol::B, Protocol::C]);
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Never]);
    o.settings.flush_after_ms = 1000;
    o.requests = 1500;
    o.depth = 8;
    o.think_ns = MS;
    o.meta_ns = rng.pick(&[100 * US, 3 * MS]);
    o.net_ns = rng.pick(&[MS, 10 * MS]);
    o.fault_every_ns = Some(300 * MS);
    o.faults = vec![
        (Fault::DaemonDies, 2),
        (Fault::BothDie, 2),
        (Fault::SessionEnds, 1),
    ];
    o.faults_last_ns = Some(20 * MS);
    o.order_every_ns = 40 * MS;
    o.orders = vec![
        (Order::Promote, 20),
        (Order::Demote, 2),
        (Order::DemoteForce, 1),
    ];
    o.sequels = vec![sequel(
        Cause::Order(Order::Promote),
        Cause::Fault(Fault::SessionEnds),
        4 * (o.net_ns + o.meta_ns),
        30,
    )];
}

pub(super) fn cooling(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, 300);
    let extents = rng.between(72, 200);
    o.size = extents * (4 << 20);
    // One after the other, so that what is to cool was written a moment ago.
    o.hot_spots = (0..extents)
        .map(|extent| extent * 1024 + rng.below(1000))
        .collect();
    o.in_turn = true;
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Always]);
    o.settings.flush_after_ms = 1000;
    o.requests = 1500;
    o.depth = 48;
    o.think_ns = 50 * US;
    o.disk_ns = 50 * US;
    o.net_ns = rng.pick(&[200 * US, 5 * MS, 20 * MS]);
    o.meta_ns = rng.pick(&[50 * US, 2 * MS]);
    o.fault_every_ns = Some(200 * MS);
    o.faults = vec![
        (Fault::LinkCut, 3),
        (Fault::MachineCrashes, 1),
        (Fault::DaemonDies, 1),
    ];
    o.faults_last_ns = Some(600 * MS);
    o.order_every_ns = 20 * MS;
    o.orders.push((Order::TakeOver, 1));
}

pub(super) fn clean_leave(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, 300);
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Arbiter, Solo::Never]);
    o.requests = 600;
    o.depth = 4;
    o.think_ns = 2 * MS;
    o.meta_ns = rng.pick(&[MS, 5 * MS]);
    o.fault_every_ns = Some(800 * MS);
    o.faults = vec![(Fault::MachineCrashes, 1), (Fault::LinkCut, 1)];
    o.faults_last_ns = Some(300 * MS);
    o.order_every_ns = 80 * MS;
    o.orders = vec![
        (Order::Promote, 12),
        (Order::Disconnect, 3),
        (Order::Stop, 3),
        (Order::TakeOver, 6),
    ];
    let power = Cause::Fault(Fault::MachineCrashes);
    o.sequels = [Order::Disconnect, Order::Stop]
        .map(|order| sequel(Cause::Order(order), power, 15 * MS, 40))
        .into();
}

pub(super) fn invalidated(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, 200);
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Never, Solo::Always]);
    o.settings.resync_window = rng.pick(&[4096, 64 << 10]);
    o.requests = 800;
    o.depth = 4;
    o.think_ns = 2 * MS;
    o.meta_ns = rng.pick(&[5 * MS, 25 * MS]);
    o.fault_every_ns = Some(500 * MS);
    o.faults = vec![(Fault::MachineCrashes, 1), (Fault::BothCrash, 1)];
    o.faults_last_ns = Some(50 * MS);
    o.order_every_ns = 50 * MS;
    o.orders = vec![(Order::Promote, 12), (Order::Invalidate, 6)];
    o.sequels = vec![sequel(
        Cause::Order(Order::Invalidate),
        Cause::Fault(Fault::MachineCrashes),
        8 * o.meta_ns,
        30,
    )];
}

pub(super) fn old_copies(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, 200);
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Always, Solo::Always]);
    o.forced = rng.coin();
    o.requests = 1000;
    o.depth = 4;
    o.think_ns = 2 * MS;
    o.fault_every_ns = Some(150 * MS);
    o.faults = vec![
        (Fault::OldCopy, 6),
        (Fault::LinkCut, 2),
        (Fault::MachineCrashes, 1),
        (Fault::SessionEnds, 1),
    ];
    o.faults_last_ns = Some(300 * MS);
    o.order_every_ns = 60 * MS;
    o.orders = vec![
        (Order::Promote, 12),
        (Order::TakeOver, 6),
        (Order::Disconnect, 2),
        (Order::Demote, 1),
        (Order::Invalidate, u64::from(o.may_fork())),
        (Order::Force, u64::from(o.forced)),
    ];
}

pub(super) fn busy_end(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, 500);
    let blocks = 4000;
    o.size = blocks * 4096;
    o.hot_spots = (0..200).map(|_| rng.below(blocks)).collect();
    o.settings.solo = rng.pick(&[Solo::Never, Solo::Always]);
    o.settings.resync_window = 8 << 20;
    o.requests = 5000;
    o.depth = 64;
    o.think_ns = 100 * US;
    o.disk_ns = MS;
    o.net_ns = 50 * US;
    o.fault_every_ns = Some(400 * MS);
    o.faults = vec![(Fault::SessionEnds, 1)];
    o.order_every_ns = 30 * MS;
}

pub(super) fn forced(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, rng.pick(&[100, 300]));
    o.settings.solo = Solo::Arbiter;
    o.forced = true;
    o.requests = 1200;
    o.depth = 4;
    o.think_ns = 3 * MS;
    o.fault_every_ns = Some(400 * MS);
    o.faults = vec![(Fault::LinkCut, 3), (Fault::MachineCrashes, 1)];
    o.faults_last_ns = Some(1500 * MS);
    o.order_every_ns = 60 * MS;
    o.orders = vec![
        (Order::Promote, 12),
        (Order::TakeOver, 4),
        (Order::Force, 4),
    ];
}

pub(super) fn words(o: &mut Options, rng: &mut Rng) {
    forced(o, rng);
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Always]);
    o.faults_last_ns = Some(rng.pick(&[400, 1500]) * MS);
    o.order_every_ns = rng.pick(&[60, 200]) * MS;
    o.orders.extend([
        (Order::Resync, 8),
        (Order::Demote, 4),
        (Order::Disconnect, 1),
    ]);
    // Whose copy has to stay is asked where the nodes can't meet, and not everybody waits for the answer.
    let cut = Cause::Fault(Fault::LinkCut);
    let word = Cause::Order(Order::Resync);
    o.sequels = vec![
        sequel(cut, word, 300 * MS, 60),
        sequel(word, Cause::Order(Order::Force), 200 * MS, 30),
        sequel(word, Cause::Order(Order::Promote), 200 * MS, 20),
    ];
}

pub(super) fn fenced(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, rng.pick(&[60, 200]));
    o.settings.solo = Solo::Never;
    o.settings.protocol = rng.pick(&[Protocol::C, Protocol::C, Protocol::A, Protocol::B]);
    o.settings.flush_after_ms = rng.pick(&[20, 1000]);
    o.requests = 1000;
    o.depth = 4;
    o.think_ns = 2 * MS;
    o.meta_ns = rng.pick(&[100 * US, 5 * MS]);
    o.net_ns = rng.pick(&[100 * US, 2 * MS]);
    o.fault_every_ns = Some(300 * MS);
    o.faults = vec![
        (Fault::LinkCut, 4),
        (Fault::LinkFlaps, 1),
        (Fault::SessionEnds, 2),
        (Fault::MachineCrashes, 2),
        (Fault::BothCrash, 1),
        (Fault::DaemonDies, 1),
    ];
    o.faults_last_ns = Some(rng.pick(&[1, 4]) * o.settings.timeout_ms * MS);
    o.order_every_ns = 40 * MS;
    o.orders.extend([
        (Order::Fence, 8),
        (Order::Demote, 1),
        (Order::Invalidate, 1),
    ]);
    // A machine that boots at once is met while the promotion is under way.
    let cut = Cause::Fault(Fault::LinkCut);
    o.sequels = vec![sequel(cut, Cause::Order(Order::Fence), 100 * MS, 40)];
}

pub(super) fn carried(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, rng.pick(&[30, 60]));
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Arbiter, Solo::Always]);
    o.settings.protocol = rng.pick(&[Protocol::C, Protocol::C, Protocol::C, Protocol::B]);
    o.settings.flush_after_ms = rng.pick(&[20, 1000]);
    o.requests = 1500;
    o.depth = rng.pick(&[1, 4]);
    o.think_ns = 2 * MS;
    o.fault_every_ns = Some(200 * MS);
    // (A disk whose flush failed stays away for longer.)
    o.faults = vec![
        (Fault::FlushFails, 4),
        (Fault::DiskFails, 2),
        (Fault::LinkCut, 1),
        (Fault::MachineCrashes, 3),
    ];
    let timeout_ns = o.settings.timeout_ms * MS;
    o.faults_last_ns = Some(8 * timeout_ns);
    o.order_every_ns = 20 * MS;
    o.orders.push((Order::TakeOver, 6));
    let cut = Cause::Fault(Fault::LinkCut);
    let taken = Cause::Order(Order::TakeOver);
    let disks = [Fault::FlushFails, Fault::DiskFails].map(Cause::Fault);
    o.sequels = disks
        .map(|disk| sequel(disk, cut, 4 * timeout_ns, 80))
        .into();
    // The service is moved to the copy that carries it, in the session or when that is lost.
    let away = Cause::Order(Order::MoveAway);
    // (In half of the runs: in the others the carrier is Primary only when the link is lost.)
    if o.depth == 1 {
        o.orders.push((Order::MoveAway, 3));
        o.sequels
            .extend(disks.map(|disk| sequel(disk, away, 4 * timeout_ns, 60)));
    }
    o.sequels.extend([
        sequel(cut, taken, 6 * timeout_ns, 60),
        sequel(taken, Cause::Order(Order::Demote), 3 * timeout_ns, 70),
    ]);
}

pub(super) fn guests(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, rng.pick(&[60, 200]));
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Arbiter, Solo::Never, Solo::Always]);
    o.settings.protocol = rng.pick(&[Protocol::C, Protocol::C, Protocol::A, Protocol::B]);
    o.settings.resync_window = rng.pick(&[4096, 64 << 10]);
    o.settings.flush_after_ms = rng.pick(&[20, 1000]);
    o.requests = 1500;
    o.depth = rng.pick(&[2, 8]);
    o.think_ns = rng.pick(&[300 * US, MS]);
    o.disk_ns = rng.pick(&[100 * US, MS]);
    o.meta_ns = rng.pick(&[100 * US, 5 * MS]);
    o.net_ns = rng.pick(&[100 * US, 2 * MS]);
    o.fault_every_ns = Some(rng.pick(&[150, 400]) * MS);
    o.faults = vec![
        (Fault::SessionEnds, 4),
        (Fault::LinkCut, 3),
        (Fault::LinkCutOneWay, 1),
        (Fault::DaemonDies, 3),
        (Fault::MachineCrashes, 3),
        (Fault::BothDie, 1),
        (Fault::DaemonPauses, 1),
        (Fault::DiskSlow, 1),
        (Fault::StoreFull, rng.below(2)),
        (Fault::FlushFails, rng.below(2)),
        (Fault::DiskFails, rng.below(2)),
    ];
    let cut_ns = rng.pick(&[2, 6, 12]) * o.settings.timeout_ms * MS;
    o.faults_last_ns = Some(cut_ns);
    o.order_every_ns = 15 * MS;
    o.orders = vec![
        (Order::Promote, 6),
        (Order::PromoteTarget, 12),
        (Order::TakeOver, rng.pick(&[1, 6])),
        (Order::Invalidate, 2),
        (Order::Pause, 1),
        (Order::Demote, 1),
        (Order::Disconnect, 1),
    ];
    let wanted = Cause::Order(Order::PromoteTarget);
    let soon = rng.pick(&[4, 40]) * (o.net_ns + o.meta_ns);
    // A source that serves by itself while its guest is away, and lets go before it is back.
    let cut = Cause::Fault(Fault::LinkCut);
    let taken = Cause::Order(Order::TakeOver);
    o.sequels = vec![
        sequel(wanted, Cause::Fault(Fault::MachineCrashes), soon, 8),
        sequel(wanted, Cause::Fault(Fault::SessionEnds), soon, 8),
        sequel(Cause::Fault(Fault::SessionEnds), taken, 20 * MS, 30),
        sequel(wanted, cut, soon, 20),
        sequel(cut, taken, cut_ns / 2, 60),
        sequel(taken, Cause::Order(Order::Demote), cut_ns / 2, 60),
    ];
}

pub(super) fn full_stores(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, rng.pick(&[60, 200]));
    // Blocks that have no room yet: many, and some that lose it again.
    o.hot_spots = (0..rng.pick(&[16, 100]))
        .map(|_| rng.below(o.size / 4096))
        .collect();
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Arbiter, Solo::Never, Solo::Always]);
    o.settings.protocol = rng.pick(&[Protocol::C, Protocol::C, Protocol::A, Protocol::B]);
    o.settings.flush_after_ms = rng.pick(&[20, 1000]);
    o.requests = 1000;
    o.depth = rng.pick(&[1, 4, 16]);
    o.think_ns = rng.pick(&[300 * US, 2 * MS]);
    o.disk_ns = rng.pick(&[100 * US, 3 * MS]);
    o.net_ns = rng.pick(&[100 * US, 2 * MS]);
    o.arbiter_ns = rng.pick(&[200 * US, 20 * MS]);
    o.fault_every_ns = Some(rng.pick(&[60, 200]) * MS);
    o.faults = vec![
        (Fault::StoreFull, 8),
        (Fault::LinkCut, 3),
        (Fault::SessionEnds, 2),
        (Fault::DaemonDies, 1),
        (Fault::MachineCrashes, 1),
        (Fault::DiskFails, rng.below(2)),
    ];
    o.faults_last_ns = Some(rng.pick(&[2, 6]) * o.settings.timeout_ms * MS);
    o.order_every_ns = 30 * MS;
    o.orders.push((Order::TakeOver, 2));
    let (full, cut) = (Cause::Fault(Fault::StoreFull), Cause::Fault(Fault::LinkCut));
    o.sequels = vec![
        sequel(full, cut, 20 * MS, 30),
        sequel(cut, full, 20 * MS, 60),
    ];
}

pub(super) fn bad_blocks(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, rng.pick(&[100, 300]));
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Never]);
    o.settings.protocol = rng.pick(&[Protocol::C, Protocol::C, Protocol::A, Protocol::B]);
    o.hot_spots.truncate(rng.pick(&[2, 4]));
    o.requests = 1200;
    o.depth = rng.pick(&[1, 4]);
    o.think_ns = rng.pick(&[100 * US, MS]);
    o.fault_every_ns = Some(30 * MS);
    o.faults = vec![
        (Fault::ReadFails, 12),
        (Fault::DiskSlow, 3),
        (Fault::SessionEnds, 1),
        (Fault::DaemonDies, rng.below(2)),
    ];
    o.faults_last_ns = Some(50 * MS);
    o.order_every_ns = 20 * MS;
    o.orders = vec![
        (Order::Promote, 20),
        (Order::Demote, 4),
        (Order::TakeOver, 2),
        (Order::Verify, 2),
    ];
    let bad = Cause::Fault(Fault::ReadFails);
    o.sequels = vec![
        sequel(bad, Cause::Order(Order::Demote), 10 * MS, 50),
        // It finds the block, and the peer, which is slow to read it, becomes Primary.
        sequel(bad, Cause::Order(Order::Verify), 10 * MS, 30),
    ];
}

pub(super) fn unheard(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, rng.pick(&[60, 200]));
    o.settings.ack_timeout_ms = o.settings.timeout_ms * rng.pick(&[1, 2]);
    // Mostly, whoever has lost nothing is waited for.
    o.settings.solo = rng.pick(&[Solo::Never, Solo::Never, Solo::Arbiter]);
    o.settings.protocol = rng.pick(&[Protocol::C, Protocol::C, Protocol::C, Protocol::B]);
    o.settings.checksum_first = true;
    o.settings.flush_after_ms = 20;
    o.requests = 800;
    o.depth = rng.pick(&[1, 2, 8]);
    o.think_ns = rng.pick(&[MS, 3 * MS]);
    o.net_ns = rng.pick(&[100 * US, 2 * MS]);
    o.fault_every_ns = Some(400 * MS);
    o.faults = vec![
        (Fault::FlushFailsUnheard, 8),
        (Fault::DiskStalls, 2),
        (Fault::FlushFails, 1),
        (Fault::SessionEnds, 2),
        (Fault::MachineCrashes, 2),
        (Fault::LinkCut, 1),
    ];
    // (A stall that lasts tells who waits for it for ever.)
    o.faults_last_ns = Some(rng.pick(&[2, 20]) * o.settings.timeout_ms * MS);
    o.order_every_ns = 40 * MS;
    o.orders.push((Order::Verify, 1));
}

pub(super) fn hanging(o: &mut Options, rng: &mut Rng) {
    small(o, rng);
    timeouts(o, rng.pick(&[60, 200]));
    let timeout = o.settings.timeout_ms;
    o.settings.ack_timeout_ms = timeout * rng.pick(&[1, 2, 5]);
    o.settings.solo = rng.pick(&[Solo::Arbiter, Solo::Arbiter, Solo::Always]);
    o.requests = 600;
    o.depth = rng.pick(&[1, 4, 16]);
    o.think_ns = rng.pick(&[MS, 10 * MS]);
    // Often long enough that nothing else breaks until whoever waits for that disk has to have gone on.
    o.fault_every_ns = Some(20 * timeout * MS);
    o.faults = vec![
        (Fault::DiskStalls, 8),
        (Fault::MetadataStalls, 2),
        (Fault::SessionEnds, 1),
        (Fault::LinkCut, 1),
        (Fault::DaemonDies, 1),
    ];
    o.faults_last_ns = Some(20 * timeout * MS);
    o.order_every_ns = 4 * timeout * MS;
    o.orders = vec![(Order::Promote, 20), (Order::Verify, 2), (Order::Demote, 1)];
}
