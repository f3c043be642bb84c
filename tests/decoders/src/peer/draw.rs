//! Values of the core's vocabulary, drawn from an input.

use kagami_bitmap::superblock::{Generation, StoredDisk};
use kagami_bitmap::{Block, Run};
use kagami_replicator::core::settings::{AfterSb0, AfterSb1, BothStalePolicy, SplitBrainPolicy};
use kagami_replicator::core::state::{Protocol, Solo};
use kagami_replicator::core::{DiskState, Role, Settings};

use super::{BLOCKS, TAGS_KNOWN};
use crate::input::Input;

pub(super) fn generation(input: &mut Input<'_>) -> Generation {
    Generation {
        counter: if input.below(8) == 0 {
            u64::MAX
        } else {
            u64::from(input.u8())
        },
        tag: u64::from(input.below(TAGS_KNOWN)),
    }
}

pub(super) fn option<T>(
    input: &mut Input<'_>,
    value: impl FnOnce(&mut Input<'_>) -> T,
) -> Option<T> {
    if input.coin() {
        Some(value(input))
    } else {
        None
    }
}

pub(super) fn solo(input: &mut Input<'_>) -> Solo {
    [Solo::Never, Solo::Arbiter, Solo::Always][usize::from(input.below(3))]
}

pub(super) fn protocol(input: &mut Input<'_>) -> Protocol {
    [Protocol::A, Protocol::B, Protocol::C][usize::from(input.below(3))]
}

pub(super) fn split_brain(input: &mut Input<'_>) -> SplitBrainPolicy {
    SplitBrainPolicy {
        after_sb_0pri: [
            AfterSb0::Disconnect,
            AfterSb0::DiscardZeroChanges,
            AfterSb0::DiscardLeastChanges,
        ][usize::from(input.below(3))],
        after_sb_1pri: [
            AfterSb1::Disconnect,
            AfterSb1::DiscardSecondary,
            AfterSb1::Consensus,
        ][usize::from(input.below(3))],
        ..SplitBrainPolicy::default()
    }
}

pub(super) fn stored(input: &mut Input<'_>) -> StoredDisk {
    [
        StoredDisk::Consistent,
        StoredDisk::Consistent,
        StoredDisk::Outdated,
        StoredDisk::Inconsistent,
    ][usize::from(input.below(4))]
}

pub(super) fn disk_state(input: &mut Input<'_>) -> DiskState {
    [
        DiskState::Unknown,
        DiskState::Diskless,
        DiskState::Failed,
        DiskState::Inconsistent,
        DiskState::Outdated,
        DiskState::Consistent,
        DiskState::UpToDate,
    ][usize::from(input.below(7))]
}

pub(super) fn role(input: &mut Input<'_>) -> Role {
    if input.coin() {
        Role::Primary
    } else {
        Role::Secondary
    }
}

pub(super) fn settings(input: &mut Input<'_>) -> Settings {
    Settings {
        protocol: protocol(input),
        solo: solo(input),
        split_brain: split_brain(input),
        both_stale: [
            BothStalePolicy::Wait,
            BothStalePolicy::PreferLastPrimary,
            BothStalePolicy::PreferLocal,
        ][usize::from(input.below(3))],
        checksum_first: input.coin(),
        ..Settings::default()
    }
}

/// A run of blocks, mostly within the mirror.
pub(super) fn run(input: &mut Input<'_>) -> Run {
    let first = u64::from(input.u16()) % (BLOCKS + 2);
    Run::new(Block(first), 1 + u64::from(input.below(40)))
}

pub(super) fn runs(input: &mut Input<'_>) -> Vec<Run> {
    let mut end = 0;
    let mut runs = Vec::new();
    for _ in 0..input.below(6) {
        let gap = if input.below(8) == 0 {
            u64::from(input.u32())
        } else {
            u64::from(input.u8())
        };
        let run = Run::new(Block(end + gap), 1 + u64::from(input.u8()));
        end = run.end().0;
        runs.push(run);
    }
    runs
}
