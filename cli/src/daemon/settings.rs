//! A mirror's configuration as the core's settings.

use std::time::Duration;

use kagami_replicator::core::settings::{
    AfterSb0, AfterSb1, AfterSb2, BothStalePolicy, LatencyTarget, Settings, SplitBrainPolicy,
};
use kagami_replicator::core::state;
use kagami_replicator::shell::arbiter::together::Follow;

use crate::config::{Config, Latency, Mirror, Protocol, Solo};

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The core's settings for a mirror of this configuration.
pub fn of(config: &Config, mirror: &Mirror) -> Settings {
    let defaults = Settings::default();
    let peer = mirror.peer.as_deref().and_then(|name| config.peer(name));
    let arbiter = mirror
        .arbiter
        .as_deref()
        .and_then(|name| config.arbiter(name));
    Settings {
        protocol: match mirror.protocol {
            Protocol::A => state::Protocol::A,
            Protocol::B => state::Protocol::B,
            Protocol::C => state::Protocol::C,
        },
        solo: match mirror.solo {
            Solo::Never => state::Solo::Never,
            Solo::Arbiter => state::Solo::Arbiter,
            Solo::Always => state::Solo::Always,
        },
        timeout_ms: peer.map_or(defaults.timeout_ms, |peer| ms(peer.timeout)),
        ack_timeout_ms: peer.map_or(defaults.ack_timeout_ms, |peer| ms(peer.ack_timeout)),
        arbiter_timeout_ms: arbiter
            .map_or(defaults.arbiter_timeout_ms, |arbiter| ms(arbiter.timeout)),
        flush_after_ms: ms(mirror.flush_after),
        resync_window: mirror.resync.window,
        resync_max_rate: mirror.resync.max_rate,
        resync_latency: match mirror.resync.latency_target {
            Latency::Percent(percent) => LatencyTarget::Percent(percent),
            Latency::Time(time) => {
                LatencyTarget::Nanoseconds(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
            }
        },
        checksum_first: mirror.resync.checksum_first,
        split_brain: SplitBrainPolicy {
            after_sb_0pri: match mirror.after_sb_0pri.as_str() {
                "discard-zero-changes" => AfterSb0::DiscardZeroChanges,
                "discard-least-changes" => AfterSb0::DiscardLeastChanges,
                _ => AfterSb0::Disconnect,
            },
            after_sb_1pri: match mirror.after_sb_1pri.as_str() {
                "discard-secondary" => AfterSb1::DiscardSecondary,
                "consensus" => AfterSb1::Consensus,
                _ => AfterSb1::Disconnect,
            },
            after_sb_2pri: AfterSb2::Disconnect,
        },
        both_stale: match mirror.both_stale.as_str() {
            "prefer-last-primary" => BothStalePolicy::PreferLastPrimary,
            "prefer-local" => BothStalePolicy::PreferLocal,
            _ => BothStalePolicy::Wait,
        },
    }
}

/// The mirrors that follow others.
pub fn follows(config: &Config) -> Vec<Follow> {
    let of = |mirror: &Mirror| {
        let leader = config.mirror(mirror.follows.as_ref()?)?;
        Some(Follow {
            mirror: mirror.name.clone(),
            id: u128::from_be_bytes(mirror.uuid),
            leader: leader.name.clone(),
            leader_id: u128::from_be_bytes(leader.uuid),
        })
    };
    config.mirrors.iter().filter_map(of).collect()
}
