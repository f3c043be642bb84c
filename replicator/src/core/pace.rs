//! How much of a resynchronisation may be in flight, and how fast it may go: as much as the
//! application's latency allows (docs/design.md §8).
//!
//! While an application writes, the resynchronisation holds its breath now and then and listens: how long the
//! slowest hundredth of those writes takes is the latency without it. Every tick's slowest hundredth is
//! compared with that. Above the operator's multiple of it (or his own time) the rate is cut, in proportion;
//! below it grows. It is never cut below a quarter of what the resynchronisation does by itself: it ends,
//! however busy the application is. Without application writes the rate comes back within some ticks,
//! and the window is the operator's bound.
//!
//! What latency was an hour ago says nothing: the application did something else then. And a small
//! window alone would not do: on a fast disk the smallest one is empty again within the time of one
//! write of the application, and is filled again. It is small all the same while an application writes, and so
//! are its chunks: what a thread has at hand, a request waits for that lies in its socket, and no measure taken
//! here sees that wait.

use std::mem;

use super::latencies::Latencies;
use super::settings::{LatencyTarget, Settings};
use super::state::Time;

/// Length of a tick, milliseconds.
const TICK_MS: u64 = 100;
/// Length of the first one: an application that is at work already is noticed soon.
const FIRST_MS: u64 = 20;
/// How often it is looked whether everything has arrived, milliseconds.
const DRAIN_MS: u64 = 5;
/// Writes that began beside the resynchronisation are not listened to: they have so long to end.
const SETTLE_MS: u64 = 10;
/// How long is listened at least, milliseconds.
const LISTEN_MS: u64 = 30;
/// How often that is repeated at most, for an application that writes little.
const LISTENS: u32 = 4;
/// What is called latency: what one write in so many exceeds.
const ONE_IN: u64 = 100;
/// Ticks with application writes until it is listened again.
const LISTEN_AGAIN: u32 = 20;
/// The window never shrinks below this: a resynchronisation always makes progress.
const SMALLEST: u64 = 64 << 10;
/// A bounded rate is kept over this many milliseconds: what was not sent meanwhile may be made up for.
const BURST_MS: u64 = 1;
/// Beside an application no chunk is longer than the share of the rate in this many nanoseconds, and no more is
/// in flight: what a thread has at hand at once, a request waits for in its socket.
const AT_HAND_NS: u64 = 250_000;
/// But so much always is.
const AT_HAND_LEAST: u64 = 16 << 10;
/// A chunk that takes so long to be answered for is on its way for most of that, and not at hand: as much as
/// fills the way is in flight. Shorter trips are mostly of what the nodes' threads have at hand, and would grow
/// with it.
const LONG_WAY_NS: u64 = 1_000_000;
/// Growth of a bounded rate in a tick is its eighth and this, bytes per second.
const STEP: u64 = 1 << 20;
/// Of its rate without an application a resynchronisation keeps at least one part in so many.
const LEAST_SHARE: u64 = 4;

/// What the resynchronisation does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Breath {
    /// It sends; so many ticks with application writes ago it has listened.
    Sending(u32),
    /// It has not listened to this application.
    #[default]
    New,
    /// It waits until nothing is in flight.
    Draining,
    /// It waits until no write has met it.
    Settling,
    /// It learns what latency is without it, so many times now.
    Listening(u32),
}

/// The controller's state.
#[derive(Debug, Default)]
pub(super) struct Pace {
    window: u64,
    breath: Breath,
    /// Bytes per second that the application leaves; `None`: all.
    left: Option<u64>,
    /// Highest rate that was seen, bytes per second.
    best: u64,
    /// The application's writes in this tick.
    writes: Latencies,
    /// Those that were listened to.
    alone: Latencies,
    /// The bound on the rate, bytes per second: the lower of `left` and the operator's.
    bound: Option<u64>,
    /// The shortest time that a chunk took to be answered for since it was listened last, nanoseconds.
    trip: Option<u64>,
    /// The same of the time before.
    trip_before: u64,
    /// Bytes that the bound allows now. Not above zero: what a chunk took beyond is still being paid for.
    allowance: i64,
    allowed: Time,
    sent_before: u64,
    done_before: u64,
    ticked: Time,
    due: Time,
    /// Bytes per second sent of late.
    rate: u64,
    /// The same of what was sent or found equal: for people, nothing is decided by it.
    pub done_rate: u64,
}

/// How far a resynchronisation is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow {
    /// Bytes sent, since whenever it was begun to count.
    pub sent: u64,
    /// Bytes of blocks that need not be looked at again: sent, or found equal.
    pub done: u64,
    /// Bytes that have not arrived.
    pub in_flight: u64,
}

/// Whether another chunk may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Now.
    Now,
    /// When something in flight has arrived.
    WhenLess,
    /// At this time.
    At(Time),
}

impl Pace {
    /// A write of the application was answered after so long, while a resynchronisation runs.
    pub fn wrote(&mut self, ns: u64) {
        self.writes.add(ns);
    }

    /// The peer has answered for a chunk, so many nanoseconds after it was sent.
    pub fn arrived(&mut self, ns: u64) {
        self.trip = Some(self.trip.map_or(ns, |trip| trip.min(ns)));
    }

    /// A resynchronisation begins.
    pub fn begin(&mut self, now: Time, flow: Flow, settings: &Settings) {
        self.writes = Latencies::default();
        self.alone = Latencies::default();
        self.breath = Breath::New;
        self.left = None;
        self.best = 0;
        (self.trip, self.trip_before) = (None, 0);
        self.ticked = now;
        self.due = now.after_ms(FIRST_MS);
        (self.sent_before, self.done_before) = (flow.sent, flow.done);
        (self.rate, self.done_rate) = (0, 0);
        self.allowed = now;
        self.allowance = 0;
        self.set_bound(settings);
        self.window = self.window.min(settings.resync_window / 2).max(SMALLEST);
    }

    /// When the next tick is due.
    pub fn next_tick(&self) -> Time {
        self.due
    }

    /// A tick of a running resynchronisation, at [`Self::next_tick`] or later.
    pub fn tick(&mut self, now: Time, flow: Flow, settings: &Settings) {
        let next_ms = match self.breath {
            Breath::Sending(_) | Breath::New => self.look(now, flow, settings),
            Breath::Draining if flow.in_flight > 0 => DRAIN_MS,
            Breath::Draining => {
                self.breath = Breath::Settling;
                SETTLE_MS
            }
            Breath::Settling => {
                self.writes = Latencies::default();
                self.breath = Breath::Listening(1);
                LISTEN_MS
            }
            Breath::Listening(times) if times < LISTENS && self.writes.count < ONE_IN => {
                self.breath = Breath::Listening(times + 1);
                LISTEN_MS
            }
            Breath::Listening(_) => {
                let heard = mem::take(&mut self.writes);
                let trip = self.trip.take();
                // Without an application so much is in flight that a trip says nothing of the way.
                if self.left.is_some() {
                    self.trip_before = trip.unwrap_or(self.trip_before);
                }
                if heard.count > 0 {
                    self.alone = heard;
                    // Carefully at first.
                    self.left.get_or_insert((self.best / LEAST_SHARE).max(STEP));
                }
                self.breath = Breath::Sending(0);
                (self.ticked, self.sent_before) = (now, flow.sent);
                self.done_before = flow.done;
                TICK_MS
            }
        };
        self.set_bound(settings);
        self.due = now.after_ms(next_ms);
    }

    /// Sees what a tick of sending has brought. Returns how long the next one is, in milliseconds.
    fn look(&mut self, now: Time, flow: Flow, settings: &Settings) -> u64 {
        let elapsed = now.since(self.ticked).max(1);
        let per_second = |bytes: u64| {
            let rate = u128::from(bytes) * 1_000_000_000 / u128::from(elapsed);
            u64::try_from(rate).unwrap_or(u64::MAX)
        };
        let rate = per_second(flow.sent.saturating_sub(self.sent_before));
        self.rate = of_late(self.rate, rate);
        let done = per_second(flow.done.saturating_sub(self.done_before));
        self.done_rate = of_late(self.done_rate, done);
        self.best = self.best.max(self.rate);
        (self.ticked, self.sent_before) = (now, flow.sent);
        self.done_before = flow.done;
        let writes = mem::take(&mut self.writes);
        if writes.count == 0 {
            let grown = self.left.map(|left| left.saturating_mul(2));
            // As fast as it can go: no bound.
            self.left = grown.filter(|left| *left < self.best.saturating_mul(2));
            if self.left.is_none() {
                self.breath = Breath::New;
            }
            return TICK_MS;
        }
        match self.breath {
            Breath::Sending(ticks) if ticks < LISTEN_AGAIN && self.alone.count > 0 => {
                let one_in = ONE_IN.min(writes.count).min(self.alone.count);
                let bearable = match settings.resync_latency {
                    LatencyTarget::Nanoseconds(ns) => ns,
                    LatencyTarget::Percent(percent) => {
                        let alone = self.alone.slow(one_in);
                        alone.saturating_mul(u64::from(percent)) / 100
                    }
                };
                self.left = self.beside(writes.slow(one_in), bearable, rate);
                self.breath = Breath::Sending(ticks + 1);
                TICK_MS
            }
            _ => {
                self.breath = Breath::Draining;
                DRAIN_MS
            }
        }
    }

    /// What the application leaves, whose latency was so many nanoseconds of the `bearable` ones while so
    /// many bytes per second were sent.
    fn beside(&self, latency: u64, bearable: u64, rate: u64) -> Option<u64> {
        if latency > bearable {
            let now = self.left.unwrap_or(u64::MAX).min(rate);
            let share = (u128::from(now) * u128::from(bearable) / u128::from(latency)) as u64;
            let least = (self.best / LEAST_SHARE).max(STEP);
            Some(share.clamp(now / 2, now - now / 8).max(least))
        } else if latency > bearable - bearable / 8 {
            self.left
        } else {
            // Beyond what it can do there is nothing to grow to.
            let most = self.best.saturating_mul(2).max(STEP);
            self.left.map(|left| (left + left / 8 + STEP).min(most))
        }
    }

    fn set_bound(&mut self, settings: &Settings) {
        self.bound = match (self.left, settings.resync_max_rate) {
            (Some(left), Some(most)) => Some(left.min(most)),
            (left, most) => left.or(most),
        };
        let most = settings.resync_window.max(SMALLEST);
        let way = match self.trip_before {
            LONG_WAY_NS.. => self.trip_before,
            _ => AT_HAND_NS,
        };
        self.window = self.left.map_or(most, |left| at_hand(left, way).min(most));
    }

    /// The longest chunk that may be sent, in bytes; not below a block.
    pub fn longest_chunk(&self) -> u64 {
        self.left.map_or(u64::MAX, |left| at_hand(left, AT_HAND_NS))
    }

    /// Whether another chunk of `bytes` may be sent while `in_flight` bytes are. If so, it is counted.
    pub fn admits(&mut self, now: Time, bytes: u64, in_flight: u64) -> Admission {
        if !matches!(self.breath, Breath::Sending(_) | Breath::New) {
            return Admission::At(self.due);
        }
        if in_flight > 0 && in_flight + bytes > self.window {
            return Admission::WhenLess;
        }
        if let Some(bound) = self.bound {
            let most = share(bound, BURST_MS * 1_000_000).max(1);
            let more = share(bound, now.since(self.allowed));
            if more > 0 {
                self.allowance = self.allowance.saturating_add(more).min(most);
                self.allowed = now;
            }
            if self.allowance <= 0 {
                let owed = u128::from(self.allowance.unsigned_abs()) + 1;
                let wait = owed * 1_000_000_000 / u128::from(bound.max(1));
                let wait_ms = u64::try_from(wait / 1_000_000).unwrap_or(u64::MAX);
                return Admission::At(now.after_ms(wait_ms.clamp(1, TICK_MS)));
            }
            self.allowance = self.allowance.saturating_sub_unsigned(bytes);
        }
        Admission::Now
    }
}

/// A rate, smoothed: of those before and the newest.
fn of_late(before: u64, newest: u64) -> u64 {
    match before {
        0 => newest,
        _ => (before.saturating_mul(3).saturating_add(newest)) / 4,
    }
}

/// What a bound of `rate` bytes per second allows in so many nanoseconds.
fn share(rate: u64, ns: u64) -> i64 {
    let bytes = u128::from(rate) * u128::from(ns) / 1_000_000_000;
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The same, and what a thread has at hand in any case.
fn at_hand(rate: u64, ns: u64) -> u64 {
    let bytes = share(rate, ns);
    bytes.unsigned_abs().max(AT_HAND_LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Sends chunks as fast as they are admitted and arrive, for so many milliseconds; the application's writes
    /// take `latency_ns` of the rate of that millisecond.
    struct Run {
        pace: Pace,
        settings: Settings,
        now: Time,
        sent: u64,
    }

    impl Run {
        fn new(settings: Settings) -> Self {
            let mut pace = Pace::default();
            pace.begin(Time(0), Flow::default(), &settings);
            Self {
                pace,
                settings,
                now: Time(0),
                sent: 0,
            }
        }

        /// `disk`: bytes per second that the disks can do.
        fn go(
            &mut self,
            ms: u64,
            chunk: u64,
            disk: u64,
            latency_ns: impl Fn(u64) -> Option<u64>,
        ) -> u64 {
            let before = self.sent;
            for _ in 0..ms {
                self.now = self.now.after_ms(1);
                let was = self.sent;
                let end = was + disk / 1000;
                while self.sent < end && self.pace.admits(self.now, chunk, 0) == Admission::Now {
                    self.sent += chunk;
                }
                let sent = (self.sent - was) * 1000;
                if let Some(latency) = latency_ns(sent) {
                    (0..10).for_each(|_| self.pace.wrote(latency));
                }
                if self.pace.next_tick() <= self.now {
                    self.pace.tick(self.now, flow(self.sent), &self.settings);
                }
            }
            (self.sent - before) * 1000 / ms
        }
    }

    #[test]
    fn a_rate_below_a_chunk_for_each_tick_is_kept() {
        let mut run = Run::new(Settings {
            resync_max_rate: Some(256 << 10),
            ..Settings::default()
        });
        let rate = run.go(60_000, 1 << 20, 1 << 40, |_| None);
        // And the chunk that was begun last.
        let most = (256 << 10) + (1 << 20) / 60;
        assert!((250 << 10..=most).contains(&rate), "{rate}");
    }

    #[test]
    fn a_high_rate_is_kept_without_bursts() {
        let mut run = Run::new(Settings {
            resync_max_rate: Some(100_000_000),
            ..Settings::default()
        });
        run.go(10, 8 << 10, 1 << 40, |_| None);
        for _ in 0..100 {
            let rate = run.go(1, 8 << 10, 1 << 40, |_| None);
            assert!(rate < 120_000_000, "{rate}");
        }
        let rate = run.go(1000, 8 << 10, 1 << 40, |_| None);
        assert!((99_000_000..101_000_000).contains(&rate), "{rate}");
    }

    #[test]
    fn the_application_is_left_its_latency_and_the_resynchronisation_a_quarter() {
        let mut run = Run::new(Settings::default());
        let disk = 400_000_000;
        let idle = run.go(1000, 8 << 10, disk, |_| None);
        assert!(idle > 390_000_000, "{idle}");
        // 4 us more for each MB/s: twice the latency at 100 MB/s.
        let queueing = |rate: u64| Some(400_000 + rate / 250);
        run.go(1000, 8 << 10, disk, queueing);
        let beside = run.go(3000, 8 << 10, disk, queueing);
        assert!((75_000_000..=115_000_000).contains(&beside), "{beside}");
        // An application that suffers whatever is done does not stop it.
        let suffering = |rate: u64| Some(if rate > 0 { 9_000_000 } else { 400_000 });
        run.go(1000, 8 << 10, disk, suffering);
        let least = run.go(2000, 8 << 10, disk, suffering);
        assert!((90_000_000..=105_000_000).contains(&least), "{least}");
        // One that is slow by itself does not slow it down.
        run.go(4000, 8 << 10, disk, |_| Some(9_000_000));
        let unhindered = run.go(1000, 8 << 10, disk, |_| Some(9_000_000));
        assert!(unhindered > 350_000_000, "{unhindered}");
        // Held to a time.
        run.settings.resync_latency = LatencyTarget::Nanoseconds(1_400_000);
        run.go(3000, 8 << 10, disk, queueing);
        let held = run.go(2000, 8 << 10, disk, queueing);
        assert!((180_000_000..=260_000_000).contains(&held), "{held}");
        // One that does not mind, for ten minutes.
        run.go(600_000, 8 << 10, disk, |_| Some(400_000));
        assert!(run.go(1000, 8 << 10, disk, |_| Some(400_000)) > 350_000_000);
        // And when it has gone all is the resynchronisation's again.
        run.go(500, 8 << 10, disk, |_| None);
        assert!(run.go(1000, 8 << 10, disk, |_| None) > 390_000_000);
    }

    #[test]
    fn beside_an_application_little_is_at_hand_but_a_long_way_is_filled() {
        let disk = 400_000_000;
        let writes = |_| Some(400_000);
        let mut run = Run::new(Settings::default());
        // Everything that may be in flight was in the way of these.
        run.pace.arrived(40 * MS);
        run.go(1000, 8 << 10, disk, |_| None);
        assert!(run.pace.longest_chunk() > 1 << 30, "nobody waits for one");
        let listened = |run: &mut Run, trip: u64| {
            run.pace.arrived(trip);
            run.pace.arrived(trip + 2 * MS);
            run.go(2500, 8 << 10, disk, writes);
            run.pace.left.expect("an application writes")
        };
        run.go(1000, 8 << 10, disk, writes);
        let left = run.pace.left.expect("an application writes");
        assert_eq!(run.pace.window, left / 4000);
        assert_eq!(run.pace.longest_chunk(), left / 4000);
        let left = listened(&mut run, MS - 1);
        assert_eq!(run.pace.window, left / 4000, "mostly at hand");
        let left = listened(&mut run, 10 * MS);
        assert_eq!(run.pace.window, left / 100, "fills the way");
        assert_eq!(run.pace.longest_chunk(), left / 4000);
        // Nothing has arrived since: what was known stands.
        run.go(2500, 8 << 10, disk, writes);
        assert_eq!(run.pace.window, run.pace.left.expect("writes") / 100);
        listened(&mut run, MS - 1);
        listened(&mut run, 1000 * MS);
        assert_eq!(run.pace.window, run.settings.resync_window, "the bound");
        // It writes little, and slowly does not make it less than the least.
        run.pace.left = Some(1);
        assert_eq!(run.pace.longest_chunk(), AT_HAND_LEAST);
    }

    #[test]
    fn a_chunk_always_goes_and_the_window_bounds_the_rest() {
        let settings = Settings::default();
        let mut pace = Pace::default();
        pace.begin(Time(0), Flow::default(), &settings);
        pace.tick(Time(100 * MS), Flow::default(), &settings);
        assert_eq!(pace.admits(Time(1), 1 << 20, 1 << 20), Admission::Now);
        assert_eq!(
            pace.admits(Time(1), 1 << 20, settings.resync_window),
            Admission::WhenLess
        );
        assert_eq!(pace.admits(Time(1), 64 << 20, 0), Admission::Now);
    }

    fn flow(sent: u64) -> Flow {
        Flow {
            sent,
            done: 2 * sent,
            in_flight: 0,
        }
    }

    /// In MiB/s.
    #[test]
    fn what_is_left_follows_from_the_latency_beside_it() {
        let beside = |left: Option<u64>, best: u64, latency: u64, rate: u64| {
            let pace = Pace {
                left: left.map(|mib| mib << 20),
                best: best << 20,
                ..Pace::default()
            };
            pace.beside(latency, 800, rate << 20)
        };
        let mib = |mib: u64| Some(mib << 20);
        // Too slow: in proportion, by an eighth to a half.
        assert_eq!(beside(Some(8), 8, 1_600, 16), mib(4));
        assert_eq!(beside(Some(8), 8, 1_280, 16), mib(5));
        assert_eq!(beside(Some(8), 8, 801, 16), mib(7));
        assert_eq!(beside(Some(16), 8, 80_000, 16), mib(8));
        assert_eq!(beside(None, 8, 1_600, 16), mib(8), "of what was sent");
        assert_eq!(beside(Some(16), 8, 1_600, 8), mib(4), "of what was sent");
        // Never below a quarter of the best, nor below a step.
        assert_eq!(beside(Some(8), 64, 80_000, 8), mib(16));
        assert_eq!(beside(Some(1), 1, 80_000, 1), mib(1));
        // Near it: as it is.
        assert_eq!(beside(Some(8), 64, 800, 8), mib(8));
        assert_eq!(beside(Some(8), 64, 701, 8), mib(8));
        // Below: an eighth and a step more, up to twice the best.
        assert_eq!(beside(Some(8), 64, 700, 8), mib(10));
        assert_eq!(beside(Some(8), 4, 700, 8), mib(8));
        assert_eq!(beside(Some(1), 0, 700, 8), mib(1));
        assert_eq!(beside(None, 64, 700, 8), None);
    }

    #[test]
    fn it_listens_before_it_shares_and_again_after_twenty_ticks_with_writes() {
        let settings = Settings {
            resync_latency: LatencyTarget::Percent(200),
            resync_window: 4 << 20,
            ..Settings::default()
        };
        // So many writes while it listens, each time; how often it listens.
        for (writes, times) in [(0, 4), (24, 4), (33, 4), (34, 3), (99, 2), (100, 1)] {
            let mut pace = Pace::default();
            let mut now = Time(0);
            pace.begin(now, flow(1_000), &settings);
            let tick = |pace: &mut Pace, now: &mut Time, flow: Flow| {
                *now = pace.next_tick();
                pace.tick(*now, flow, &settings);
                pace.next_tick().since(*now) / MS
            };
            // 20 ms of 8 MB/s, then 100 ms of 16.
            assert_eq!(tick(&mut pace, &mut now, flow(161_000)), 100);
            assert_eq!((pace.rate, pace.done_rate), (8_000_000, 16_000_000));
            pace.wrote(MS);
            assert_eq!(tick(&mut pace, &mut now, flow(1_761_000)), 5);
            assert_eq!((pace.rate, pace.best), (10_000_000, 10_000_000));
            let later = Admission::At(pace.next_tick());
            assert_eq!(pace.admits(now, 1, 0), later);
            let draining = Flow {
                in_flight: 1,
                ..flow(1_761_000)
            };
            assert_eq!(tick(&mut pace, &mut now, draining), 5);
            let sent = flow(1_761_000);
            assert_eq!(tick(&mut pace, &mut now, sent), 10);
            pace.wrote(MS);
            assert_eq!(tick(&mut pace, &mut now, sent), 30);
            for nth in 1..=times {
                (0..writes).for_each(|_| pace.wrote(MS));
                let last = nth == times;
                let expected = if last { 100 } else { 30 };
                assert_eq!(tick(&mut pace, &mut now, sent), expected, "{writes}, {nth}");
            }
            let heard = (writes > 0).then_some(2_500_000);
            assert_eq!((pace.left, pace.bound), (heard, heard));
            let mut at = 1_761_000;
            let ticks = if writes > 0 { 20 } else { 0 };
            for _ in 0..ticks {
                pace.wrote(MS);
                at += 250_000;
                assert_eq!(tick(&mut pace, &mut now, flow(at)), 100);
            }
            if writes > 0 {
                assert!(pace.left > Some(2_500_000), "it grows: 1 ms is bearable");
            }
            pace.wrote(MS);
            assert_eq!(tick(&mut pace, &mut now, flow(at)), 5);
        }
    }

    #[test]
    fn what_is_left_beside_writes_is_what_the_operator_bears() {
        for (target, slow) in [
            (LatencyTarget::Percent(200), false),
            (LatencyTarget::Percent(110), true),
            (LatencyTarget::Nanoseconds(4 * MS), false),
            (LatencyTarget::Nanoseconds(MS), true),
        ] {
            let settings = Settings {
                resync_latency: target,
                ..Settings::default()
            };
            let mut pace = Pace {
                breath: Breath::Sending(3),
                left: Some(8 << 20),
                best: 16 << 20,
                ..Pace::default()
            };
            for nth in 0..100 {
                // One in fifty is slower; what is compared is what one in a hundred exceeds.
                let ns = if nth % 50 == 7 { 2 * MS } else { MS };
                pace.alone.add(ns);
                pace.wrote(ns + ns / 2);
            }
            pace.tick(Time(100 * MS), flow(800_000), &settings);
            assert_eq!(pace.left < Some(8 << 20), slow, "{target:?}");
            assert_eq!(pace.breath, Breath::Sending(4));
        }
    }

    #[test]
    fn without_writes_what_is_left_doubles_until_it_is_no_bound() {
        let settings = Settings::default();
        let mut pace = Pace {
            breath: Breath::Sending(3),
            left: Some(2 << 20),
            best: 4 << 20,
            ..Pace::default()
        };
        pace.tick(Time(100 * MS), flow(0), &settings);
        assert_eq!(
            (pace.left, pace.breath),
            (Some(4 << 20), Breath::Sending(3))
        );
        pace.tick(Time(200 * MS), flow(0), &settings);
        assert_eq!((pace.left, pace.breath), (None, Breath::New));
    }

    #[test]
    fn the_window_and_the_bound_admit_to_the_byte() {
        let mut settings = Settings {
            resync_window: 4 << 20,
            ..Settings::default()
        };
        let mut pace = Pace::default();
        pace.begin(Time(0), flow(0), &settings);
        // Half the operator's window at first, and a chunk in any case.
        let half = 2 << 20;
        assert_eq!(pace.admits(Time(0), half - 1, 1), Admission::Now);
        assert_eq!(pace.admits(Time(0), half, 1), Admission::WhenLess);
        assert_eq!(pace.admits(Time(0), 9 * half, 0), Admission::Now);
        // A quarter of a millisecond of what is left is in flight at most.
        pace.left = Some(1_000_000_000);
        pace.set_bound(&settings);
        let now = Time(1_000 * MS);
        assert_eq!(pace.admits(now, 250_000, 1), Admission::WhenLess);
        assert_eq!(pace.admits(now, 249_999, 1), Admission::Now);
        // And a millisecond of it goes at once.
        assert_eq!(pace.admits(now, 750_000, 0), Admission::Now);
        assert_eq!(pace.admits(now, 1, 0), Admission::Now);
        assert_eq!(pace.admits(now, 1, 0), Admission::At(now.after_ms(1)));
        // A millisecond of the bound goes at once; what is owed is waited for.
        settings.resync_max_rate = Some(1_000_000);
        pace.begin(now, flow(0), &settings);
        let after = |ms: u64| Admission::At(now.after_ms(ms));
        assert_eq!(pace.admits(now, 65_536, 0), after(1));
        let part = |ns: u64| Time(now.0 + ns);
        assert_eq!(
            pace.admits(part(500), 65_536, 0),
            Admission::At(part(500).after_ms(1))
        );
        assert_eq!(pace.admits(part(1_000), 66_000, 0), Admission::Now);
        // 65,999 bytes and one more, at a byte for each microsecond.
        let paid = part(1_000).after_ms(66);
        assert_eq!(pace.admits(part(1_000), 1, 0), Admission::At(paid));
        let later = paid;
        assert_eq!(pace.admits(later, 1_000_000, 0), Admission::Now);
        assert_eq!(pace.admits(later, 1, 0), Admission::At(later.after_ms(100)));
    }

    #[test]
    fn what_one_in_so_many_exceeds_is_counted_from_the_slowest() {
        let mut latencies = Latencies::default();
        (10..20).for_each(|octave| latencies.add(1 << octave));
        // Five of ten are slower than 2^15 to 2^15 and a quarter.
        assert_eq!(latencies.slow(2), 5 << 13);
        assert_eq!(latencies.slow(10), 5 << 17);
    }
}
