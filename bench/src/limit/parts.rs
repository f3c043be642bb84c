//! What the parts come to: the limit of a replicated write, and of a stream of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::rounds::Summary;

/// What tables call the bare disk.
pub const DISK: &str = "bare disk, kagami's ring";
/// The bare link.
pub const LINK: &str = "bare link, kagami's QUIC";
/// The front end.
pub const FRONT_END: &str = "front end, null device";

/// The parts at one job, all measured in one run. Both copies lie on one disk, and everything shares the
/// machine's cores.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The front end over a null device, with the client.
    pub front_end: &'a Summary,
    /// The bare disk.
    pub disk: &'a Summary,
    /// The bare link, both ends.
    pub link: &'a Summary,
}

impl<'a> Parts<'a> {
    /// The parts among these candidates, if all are there.
    pub fn of(rows: &BTreeMap<&str, &'a Summary>) -> Option<Self> {
        Some(Self {
            front_end: rows.get(FRONT_END)?,
            disk: rows.get(DISK)?,
            link: rows.get(LINK)?,
        })
    }

    /// Microseconds, median: front end + max(local write, round trip + remote write).
    pub fn latency(&self) -> f64 {
        let disk = self.disk.p50.median;
        let remote = self.link.p50.median + disk;
        self.front_end.p50.median + disk.max(remote)
    }

    /// Operations a second of the slowest part; the disk takes each twice.
    pub fn slowest(&self) -> f64 {
        self.front_end
            .rate
            .median
            .min(self.link.rate.median)
            .min(self.half_disk())
    }

    /// Operations a second of a disk that takes each twice.
    pub fn half_disk(&self) -> f64 {
        self.disk.rate.median / 2.0
    }

    /// Processor microseconds for each operation: client, front end, both ends of the link, two disks.
    pub fn processor(&self) -> f64 {
        processor(self.front_end) + processor(self.link) + 2.0 * processor(self.disk)
    }

    /// Operations a second when the processors are the limit.
    pub fn busy(&self, cores: usize) -> f64 {
        cores as f64 * 1e6 / self.processor()
    }

    /// A line below a table.
    pub fn text(&self, pair: Option<&Summary>, alone: Option<&Summary>) -> String {
        let latency = self.latency();
        let local = self.front_end.p50.median + self.disk.p50.median;
        let mut text = format!(
            "- limit: front end + max(local write, round trip + remote write) {latency:.0} µs, \
             without a peer {local:.0} µs; slowest part {:.0} op/s; CPU of the parts {:.1} µs/op",
            self.slowest(),
            self.processor()
        );
        if let Some(alone) = alone {
            let _ = write!(
                text,
                "; without a peer ÷ its limit {:.2}",
                alone.p50.median / local
            );
        }
        if let Some(pair) = pair {
            let _ = write!(
                text,
                "; pair ÷ limit: p50 {:.2}, op/s ÷ slowest {:.2}, CPU {:.2}",
                pair.p50.median / latency,
                pair.rate.median / self.slowest(),
                processor(pair) / self.processor()
            );
        }
        text + "\n"
    }
}

/// Processor microseconds of all programs for each operation.
pub fn processor(row: &Summary) -> f64 {
    row.cpu.values().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::Spread;

    fn summary(rate: f64, p50: f64, cpu: f64) -> Summary {
        let spread = |value| Spread::of([value].into_iter());
        Summary {
            rate: spread(rate),
            megabytes: 0.0,
            p50: spread(p50),
            p99: spread(p50),
            cpu: [("all".to_owned(), cpu)].into(),
        }
    }

    #[test]
    fn the_limit_is_made_of_the_parts() {
        let (front, disk, link) = (
            summary(30_000.0, 40.0, 30.0),
            summary(20_000.0, 50.0, 10.0),
            summary(15_000.0, 60.0, 50.0),
        );
        let rows = [(FRONT_END, &front), (DISK, &disk), (LINK, &link)];
        let parts = Parts::of(&rows.into()).expect("all are there");
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        near(parts.latency(), 150.0);
        near(parts.slowest(), 10_000.0);
        near(parts.processor(), 100.0);
        near(parts.busy(2), 20_000.0);
        assert!(Parts::of(&[(DISK, &disk)].into()).is_none());
    }
}
