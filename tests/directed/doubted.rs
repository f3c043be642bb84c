//! A copy whose disk may have failed when nobody listened: what it reads is not known to be on the disk, since a cache may
//! answer for it. *Cleared-only-when-equal*: it is written anew, whatever it reads.

use kagami_replicator::core::{Command, Notice};

use super::pair::{MS, Pair, SIZE};
use super::stands::in_sync;

/// Bytes that node 0 sends to bring up node 1, whose copy reads the same and was invalidated, and whose daemon is another one.
fn sent_to(respawn: impl FnOnce(&mut Pair)) -> u64 {
    let mut pair = in_sync();
    pair.cut();
    respawn(&mut pair);
    pair.done(1, Command::Invalidate);
    pair.linked = true;
    pair.elapse(60_000);
    assert!(pair.sides[1].token, "in sync at {} ms", pair.now / MS);
    let notices = pair.sides[0].notices.iter();
    let mut sent = notices.filter_map(|notice| match notice {
        Notice::ResyncDone { marked, sent, .. } => Some((*marked, *sent)),
        _ => None,
    });
    let (marked, sent) = sent.next_back().expect("a resynchronisation");
    assert_eq!(marked, SIZE);
    sent
}

#[test]
fn a_copy_that_may_have_lost_writes_is_not_compared() {
    assert_eq!(sent_to(|pair| pair.respawn(1, true)), 0, "it has its token");
    assert_eq!(sent_to(|pair| pair.respawn(1, false)), SIZE);
}

/// A cache is gone with its machine: what is read then is on the disk.
#[test]
fn after_a_reboot_a_copy_is_compared() {
    assert_eq!(sent_to(|pair| pair.restart(1)), 0);
}

/// Its disk failed, which could be recorded: whatever became of the machine since.
#[test]
fn a_copy_whose_disk_failed_is_not_compared() {
    let failed =
        |pair: &mut Pair| pair.begin(1, |start| start.recovered.superblock.record.boot = None);
    assert_eq!(sent_to(failed), SIZE);
}

const FORCE: Command = Command::Promote {
    force: true,
    while_resyncing: false,
};

/// Another boot of node 1's machine, and what it does with its copy; then another daemon of that boot, without a token.
fn respawned_after(used: impl FnOnce(&mut Pair)) -> impl FnOnce(&mut Pair) {
    |pair: &mut Pair| {
        let before = pair.sides[1].mirror.record().boot;
        pair.restart(1);
        used(pair);
        let boot = pair.sides[1].mirror.record().boot;
        assert_ne!(boot, before, "named with the first write");
        pair.begin(1, |start| {
            start.boot = boot.expect("a boot");
            start.token = false;
        });
    }
}

/// The record names this boot from the first write on that may be lost, and not when both are in sync again.
#[test]
fn a_copy_that_goes_on_alone_after_the_reboot_names_it() {
    let mut pair = in_sync();
    pair.cut();
    respawned_after(|pair| pair.done(1, FORCE))(&mut pair);
}

/// So does one that has begun to be a target, and another daemon of that boot knows of it.
#[test]
fn a_copy_that_was_a_target_after_the_reboot_is_not_compared() {
    let target = |pair: &mut Pair| {
        pair.done(0, FORCE);
        pair.linked = true;
        pair.until(1, "Bt");
        pair.cut();
    };
    assert_eq!(sent_to(respawned_after(target)), SIZE);
}
