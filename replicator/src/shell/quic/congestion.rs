//! Congestion control: cubic (RFC 9438) that does not take every lost packet for a full queue.
//!
//! A link between two nodes that loses one packet in a hundred, whatever its reason, would leave plain cubic with
//! a few packets in flight, however fast the path is: it backs off by three tenths at each loss, and has a loss
//! in nearly every round trip. So this one knows what the path carries: the most bytes delivered in one of the
//! last rounds × the least round trip of the last seconds (*the product*; TCP Westwood's idea).
//!
//! - It never backs off below the product: what is in flight beyond it waits in a queue.
//! - While few packets get lost (2 %, BBR's bound), a little more than the product is no reason to back off, and
//!   in slow start twice of it is none: the estimate is one round old. A single packet lost in the first rounds
//!   (one that came before its keys, say) does not end slow start.
//! - While few get lost and no queue is seen, the window grows by an eighth in a round trip: cubic would take
//!   half a minute to find that a long path carries more.
//! - Many losses, and few with a long queue, are what they are to cubic, and so is a persistent congestion.
//!
//! Keeps: window, cubic's epoch, the rounds' deliveries. Pure: time is an argument.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

/// Cubic's back-off and growth (RFC 9438, section 5).
const BETA: f64 = 0.7;
const GROWTH: f64 = 0.4;
/// The least window, in datagrams.
const LEAST: u64 = 2;
/// Rounds whose deliveries count for what the path carries.
const ROUNDS: usize = 10;
/// A round lasts at least this long: on a fast path a shorter one says more of the processors than of the path.
const SHORTEST_ROUND: Duration = Duration::from_millis(1);
/// Lost packets are few up to this share of those that were sent.
const FEW: f64 = 0.02;
/// Packets over which lost ones are counted: of fewer, one in a hundred is two in a hundred every now and then.
const COUNTED: f64 = 2_000.0;
/// So many lost ones are few in any case: the first of a path.
const FEW_AT_START: f64 = 5.0;
/// While losses are few: in flight up to this many products is no queue worth backing off for.
const MARGIN: f64 = 1.25;
/// The same in slow start, whose window doubles between what is delivered and what is known of it.
const MARGIN_AT_START: f64 = 2.5;
/// Round trips longer by this (or an eighth) than the least are no queue's doing, but the processors'.
const JITTER: Duration = Duration::from_millis(1);
/// Slow start ends when round trips are longer by this (or an eighth) than the least one, and the window is
/// [`MARGIN_AT_START`] products: it fills a queue, and delivers no more for it.
const QUEUED: Duration = Duration::from_millis(4);
/// The least round trip is of the last one to two of these: what was measured before may have been another path.
const REMEMBERED: Duration = Duration::from_secs(5);

/// Makes controllers; the window (bytes) they start with.
#[derive(Debug)]
pub(super) struct PathCubicConfig {
    pub(super) initial_window: u64,
}

impl ControllerFactory for PathCubicConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(PathCubic::new(self.initial_window, current_mtu, now))
    }
}

/// The controller of one path.
#[derive(Clone, Debug)]
struct PathCubic {
    mtu: u64,
    initial_window: u64,
    /// Bytes that may be in flight.
    window: u64,
    /// Below it the window grows by what is acknowledged.
    slow_start_below: u64,
    epoch: Epoch,
    carried: Carried,
    losses: Losses,
}

/// Cubic's curve since the window was last cut.
#[derive(Clone, Copy, Debug, Default)]
struct Epoch {
    /// When the window was cut; None before the first congestion. What was sent before tells nothing of the
    /// window since.
    cut: Option<Instant>,
    /// When the curve began; None: it begins with the next packet, from the window as it is.
    began: Option<Instant>,
    /// The window before the cut, bytes.
    most: f64,
    /// Seconds from the cut until it is reached again.
    until: f64,
    /// Growth that is not a whole datagram yet, bytes.
    grown: f64,
}

/// What the path delivered in the last rounds.
#[derive(Clone, Debug)]
struct Carried {
    /// When the present round began, and the bytes acknowledged in it.
    began: Instant,
    bytes: u64,
    /// Bytes a second of each of the last rounds.
    rates: [Option<f64>; ROUNDS],
    next: usize,
    /// The least time between a packet and its acknowledgement, in the last [`REMEMBERED`] and since.
    least: [Option<Duration>; 2],
    least_since: Instant,
    /// The same in the round before, and in the present one. A queue that stands delays every packet; a processor that is
    /// busy, or an acknowledgement that waits for more, delays some, and would pass for a queue in the mean.
    least_of_round: [Option<Duration>; 2],
}

/// How many of the packets got lost lately.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    arrived: f64,
    lost: f64,
}

impl Losses {
    fn add(&mut self, arrived: f64, lost: f64) {
        self.arrived += arrived;
        self.lost += lost;
        if self.arrived + self.lost > COUNTED {
            self.arrived /= 2.0;
            self.lost /= 2.0;
        }
    }

    fn are_few(&self) -> bool {
        self.lost <= (FEW * (self.arrived + self.lost)).max(FEW_AT_START)
    }
}

impl Carried {
    fn new(now: Instant) -> Self {
        Self {
            began: now,
            bytes: 0,
            rates: [None; ROUNDS],
            next: 0,
            least: [None; 2],
            least_since: now,
            least_of_round: [None; 2],
        }
    }

    /// `took`: from the packet's sending to its acknowledgement. `limited`: the sender had nothing more to send;
    /// such a round says nothing against the path.
    fn add(&mut self, now: Instant, bytes: u64, took: Duration, round: Duration, limited: bool) {
        if now.saturating_duration_since(self.least_since) > REMEMBERED {
            self.least = [self.least[1], None];
            self.least_since = now;
        }
        for least in [&mut self.least[1], &mut self.least_of_round[1]] {
            *least = Some(least.map_or(took, |least| least.min(took)));
        }
        self.bytes += bytes;
        let lasted = now.saturating_duration_since(self.began);
        if lasted < round.max(SHORTEST_ROUND) {
            return;
        }
        let rate = self.bytes as f64 / lasted.as_secs_f64();
        if !limited || self.known().all(|known| rate > known) {
            self.rates[self.next] = Some(rate);
            self.next = (self.next + 1) % ROUNDS;
        }
        (self.began, self.bytes) = (now, 0);
        self.least_of_round = [self.least_of_round[1], None];
    }

    fn known(&self) -> impl Iterator<Item = f64> {
        self.rates.iter().flatten().copied()
    }

    fn least(&self) -> Option<Duration> {
        self.least.iter().flatten().min().copied()
    }

    /// Bytes in flight with which the path is full, and what waits in it waits so long; None in the first rounds.
    fn product(&self, waits: Duration) -> Option<f64> {
        if self.known().count() < 3 {
            return None;
        }
        let rate = self.known().fold(0.0, f64::max);
        Some(rate * (self.least()? + waits).as_secs_f64())
    }

    /// Whether all round trips are longer than the path's own by more than this, or an eighth.
    fn is_queueing(&self, more: Duration) -> bool {
        self.least()
            .zip(self.least_of_round[0])
            .is_some_and(|(least, round)| round > least + more.max(least / 8))
    }
}

impl PathCubic {
    fn new(initial_window: u64, mtu: u16, now: Instant) -> Self {
        Self {
            mtu: mtu.into(),
            initial_window,
            window: initial_window,
            slow_start_below: u64::MAX,
            epoch: Epoch::default(),
            carried: Carried::new(now),
            losses: Losses::default(),
        }
    }

    fn least_window(&self) -> u64 {
        LEAST * self.mtu
    }

    fn acked(&mut self, now: Instant, sent: Instant, bytes: u64, limited: bool, round: Duration) {
        let took = now.saturating_duration_since(sent);
        self.carried.add(now, bytes, took, round, limited);
        self.losses.add(1.0, 0.0);
        if limited || self.epoch.cut.is_some_and(|cut| sent <= cut) {
            return;
        }
        if self.window >= self.slow_start_below {
            if self.losses.are_few() && !self.carried.is_queueing(JITTER) {
                self.window += bytes / 8;
                self.epoch.began = None;
            } else {
                self.grow(now, round);
            }
            return;
        }
        self.window += bytes;
        let product = self.carried.product(JITTER).unwrap_or(f64::MAX);
        if self.carried.is_queueing(QUEUED) && self.window as f64 > MARGIN_AT_START * product {
            self.slow_start_below = self.window;
        }
    }

    /// Cubic's growth for one acknowledged packet, or Reno's where that is faster (RFC 9438, section 4.3).
    fn grow(&mut self, now: Instant, round: Duration) {
        let (window, mtu) = (self.window as f64, self.mtu as f64);
        let epoch = &mut self.epoch;
        if epoch.began.is_none() {
            (epoch.began, epoch.most, epoch.until) = (Some(now), window, 0.0);
            epoch.grown = 0.0;
        }
        let began = epoch.began.unwrap_or(now);
        let since = now.saturating_duration_since(began).as_secs_f64();
        let round = round.as_secs_f64().max(1e-6);
        let cubic = GROWTH * (since + round - epoch.until).powi(3) * mtu + epoch.most;
        let reno = epoch.most * BETA + 3.0 * (1.0 - BETA) / (1.0 + BETA) * since / round * mtu;
        if cubic < reno {
            epoch.grown = epoch.grown.max(reno - window);
        } else if cubic > window {
            // At most half as much again in a round trip.
            epoch.grown += (cubic.min(1.5 * window) - window) / window * mtu;
        }
        // Never more than a datagram for each that arrived.
        if epoch.grown >= mtu {
            self.window += self.mtu;
            epoch.grown = 0.0;
        }
    }

    /// Packets were lost, the last of which was sent at `sent`; no `lost` bytes: they were marked instead.
    fn congested(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        let mtu = self.mtu.max(1) as f64;
        self.losses.add(0.0, lost as f64 / mtu);
        if self.epoch.cut.is_some_and(|cut| sent <= cut) && !persistent {
            return;
        }
        let (window, in_slow_start) = (self.window as f64, self.window < self.slow_start_below);
        let few = lost > 0 && self.losses.are_few();
        // What many losses leave is what the path holds without a queue.
        let waits = if few { JITTER } else { Duration::ZERO };
        let product = self.carried.product(waits);
        if few && !persistent {
            let margin = if in_slow_start {
                MARGIN_AT_START
            } else {
                MARGIN
            };
            // Of a path not known yet little is lost in vain.
            let full = product.map_or(if in_slow_start { window } else { 0.0 }, |it| it * margin);
            if full >= window {
                return;
            }
        }
        let full = product.unwrap_or(0.0) * if few { MARGIN } else { 1.0 };
        let cut = if in_slow_start && product.is_some() {
            // It may have gone far beyond.
            full.clamp(window / 4.0, window * BETA)
        } else {
            full.clamp(window * BETA, window)
        };
        let most = if window < self.epoch.most {
            // Fast convergence (section 4.7): leave room for whoever came later.
            window * f64::midpoint(1.0, BETA)
        } else {
            window
        };
        self.window = (cut as u64).max(self.least_window());
        self.slow_start_below = self.window;
        let most = if in_slow_start { cut.max(full) } else { most };
        let missing = (most - self.window as f64).max(0.0) / mtu;
        self.epoch = Epoch {
            cut: Some(now),
            began: Some(now),
            most,
            until: (missing / GROWTH).cbrt(),
            grown: 0.0,
        };
        if persistent {
            // Nothing arrived for long: what was known of the path is old.
            self.window = self.least_window();
            self.epoch.cut = None;
            self.carried = Carried::new(now);
        }
    }
}

impl Controller for PathCubic {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.acked(now, sent, bytes, app_limited, rtt.get());
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.congested(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.window = self.window.max(self.least_window());
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window;
        metrics.ssthresh = Some(self.slow_start_below);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.initial_window
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const MTU: u64 = 1452;

    /// A path with a queue, in time that is a number; a sender that always has something to send.
    struct Path {
        /// Bytes a second.
        rate: f64,
        round_trip: f64,
        /// Bytes that wait at most.
        queue: f64,
        /// Of 1,000,000 packets so many are lost.
        lost: u64,
        /// Acknowledgements come so many seconds apart, whatever was sent: a processor has other things to do.
        clumps: f64,
    }

    /// What became of it.
    #[derive(Debug)]
    struct Outcome {
        /// Of the path's rate.
        share: f64,
        /// Of the packets sent.
        lost: f64,
    }

    impl Path {
        /// Sends for so many seconds, and counts from the second half on.
        fn carry(&self, controller: &mut dyn FnMut(Call) -> u64, seconds: f64) -> Outcome {
            let start = Instant::now();
            let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
            let (mut now, mut free_at, mut in_flight) = (0.0f64, 0.0f64, 0u64);
            let (mut sent, mut lost, mut arrived) = (0u64, 0u64, 0u64);
            let mut dice = 0x9e37_79b9_7f4a_7c15u64;
            // In the order of sending: when sent, when acknowledged (None: lost).
            let mut packets: VecDeque<(f64, Option<f64>)> = VecDeque::new();
            let mut smoothed = self.round_trip;
            let mut window = controller(Call::Window);
            while now < seconds {
                let next = packets.iter().find_map(|(_, acked)| *acked);
                if in_flight + MTU <= window && next.is_none_or(|next| next > now) {
                    dice ^= dice << 13;
                    dice ^= dice >> 7;
                    dice ^= dice << 17;
                    let queued = (free_at - now).max(0.0) * self.rate;
                    let acked =
                        (queued <= self.queue && dice % 1_000_000 >= self.lost).then(|| {
                            free_at = free_at.max(now) + MTU as f64 / self.rate;
                            let arrives = free_at + self.round_trip;
                            if self.clumps > 0.0 {
                                (arrives / self.clumps).ceil() * self.clumps
                            } else {
                                arrives
                            }
                        });
                    packets.push_back((now, acked));
                    in_flight += MTU;
                    sent += u64::from(now > seconds / 2.0);
                    continue;
                }
                now = match next {
                    Some(next) => now.max(next),
                    // All of them lost: the probe's time-out.
                    None => now + 3.0 * smoothed,
                };
                // Whatever was sent before the one that arrived is lost.
                let mut gone = None;
                while let Some((when, acked)) = packets.front().copied() {
                    if acked.is_some_and(|acked| acked > now) {
                        break;
                    }
                    packets.pop_front();
                    in_flight -= MTU;
                    if acked.is_some() {
                        smoothed = smoothed * 0.875 + (now - when) * 0.125;
                        let round = Duration::from_secs_f64(smoothed);
                        window = controller(Call::Acked(at(now), at(when), round));
                        arrived += u64::from(now > seconds / 2.0);
                    } else {
                        lost += u64::from(now > seconds / 2.0);
                        gone = Some((when, gone.map_or(1, |(_, count)| count + 1)));
                    }
                }
                if let Some((when, count)) = gone {
                    window = controller(Call::Lost(at(now), at(when), count * MTU));
                }
            }
            Outcome {
                share: (arrived * MTU) as f64 / (self.rate * seconds / 2.0),
                lost: lost as f64 / sent.max(1) as f64,
            }
        }

        fn with_path_cubic(&self, seconds: f64) -> Outcome {
            let mut this = PathCubic::new(256 << 10, MTU as u16, Instant::now());
            let mut controller = |call| {
                match call {
                    Call::Window => {}
                    Call::Acked(now, sent, round) => this.acked(now, sent, MTU, false, round),
                    Call::Lost(now, sent, bytes) => this.congested(now, sent, false, bytes),
                }
                this.window
            };
            self.carry(&mut controller, seconds)
        }
    }

    enum Call {
        Window,
        Acked(Instant, Instant, Duration),
        Lost(Instant, Instant, u64),
    }

    /// 25 MB/s, a queue of one product.
    fn path(round_trip_ms: f64, lost_percent: f64) -> Path {
        let (rate, round_trip) = (25e6, round_trip_ms / 1e3);
        Path {
            rate,
            round_trip,
            queue: (rate * round_trip).max(64e3),
            lost: (lost_percent * 1e4) as u64,
            clumps: 0.0,
        }
    }

    #[test]
    fn a_path_that_loses_packets_by_chance_is_filled() {
        for (round_trip, lost) in [
            (2.0, 0.1),
            (2.0, 1.0),
            (10.0, 0.1),
            (10.0, 1.0),
            (50.0, 1.0),
        ] {
            let outcome = path(round_trip, lost).with_path_cubic(6.0);
            assert!(
                outcome.share > 0.8,
                "{round_trip} ms, {lost} %: {outcome:?}"
            );
        }
    }

    #[test]
    fn a_busy_processor_does_not_pass_for_a_queue() {
        for (round_trip, clumps) in [(2.0, 3e-3), (10.0, 4e-3), (10.0, 7e-3)] {
            let clumped = Path {
                clumps,
                ..path(round_trip, 1.0)
            };
            let outcome = clumped.with_path_cubic(6.0);
            assert!(
                outcome.share > 0.6,
                "{round_trip} ms, {clumps} s: {outcome:?}"
            );
        }
    }

    #[test]
    fn without_losses_by_chance_the_path_is_full_and_little_is_lost() {
        for round_trip in [2.0, 10.0, 50.0] {
            let outcome = path(round_trip, 0.0).with_path_cubic(6.0);
            assert!(outcome.share > 0.9, "{round_trip} ms: {outcome:?}");
            assert!(outcome.lost < 0.01, "{round_trip} ms: {outcome:?}");
        }
    }

    #[test]
    fn many_losses_are_a_congestion() {
        let now = Instant::now();
        let mut this = PathCubic::new(1 << 20, MTU as u16, now);
        for _ in 0..20 {
            this.congested(now + Duration::from_millis(1), now, false, 10 * MTU);
        }
        assert_eq!(
            this.window,
            (f64::from(1 << 20) * BETA) as u64,
            "once for each flight"
        );
    }

    #[test]
    fn the_first_packet_lost_does_not_end_slow_start() {
        let now = Instant::now();
        let mut this = PathCubic::new(256 << 10, MTU as u16, now);
        this.congested(now + Duration::from_millis(30), now, false, 1200);
        assert_eq!(this.window, 256 << 10);
        assert_eq!(this.slow_start_below, u64::MAX);
        // A mark of the network's own, however, is meant.
        this.congested(now + Duration::from_millis(31), now, false, 0);
        assert!(this.window < 256 << 10);
    }
}
