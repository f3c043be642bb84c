//! What the peer sent and asked in a session, and is not answered: which writes are applied, and how
//! much it may have under way at once.
//!
//! A peer that keeps to the protocol never comes near the bounds: it has no more under way than its
//! clients ask of it. One that lies must not make this node grow (docs/threat-model.md): what comes
//! with a payload is bounded by the memory that payloads are received into, the rest here.

use std::collections::{BTreeMap, BTreeSet};

use super::state::Seq;

/// Writes and zeroes received and not applied, reads not answered, and gaps in the numbers received:
/// each at most. (1,000 clients with 256 requests each.)
pub(super) const MOST: usize = 1 << 18;
/// Comparisons not answered.
const MOST_COMPARISONS: usize = 4_096;
/// Block hashes in these: 4 GiB of blocks.
const MOST_HASHES: usize = 1 << 20;
/// Flushes not answered. (A peer has one under way, and those of cycles that came to nothing.)
const MOST_FLUSHES: usize = 16;

/// Which of the peer's writes are applied: all up to one, and some beyond, since streams overtake.
#[derive(Debug, Default)]
pub(super) struct Applied {
    upto: Seq,
    /// Runs of numbers beyond: the first of each, and its last.
    beyond: BTreeMap<u64, u64>,
    /// Received and not applied.
    under_way: BTreeSet<Seq>,
}

impl Applied {
    /// A write arrived.
    ///
    /// Errors: it was here before, or there are too many.
    pub fn receive(&mut self, seq: Seq) -> Result<(), String> {
        let is_applied = seq <= self.upto
            || self
                .run_before(seq.0)
                .is_some_and(|(_, last)| last >= seq.0);
        if is_applied || self.under_way.contains(&seq) {
            return Err(format!("it sends write {seq} twice"));
        }
        if self.under_way.len() >= MOST {
            return Err(format!("it has {MOST} writes under way at once"));
        }
        if self.beyond.len() >= MOST {
            return Err(format!(
                "it leaves {MOST} gaps in the numbers of its writes"
            ));
        }
        self.under_way.insert(seq);
        Ok(())
    }

    pub fn apply(&mut self, seq: Seq) {
        assert!(self.under_way.remove(&seq), "write {seq} was not received");
        let (mut first, mut last) = (seq.0, seq.0);
        if let Some((before, end)) = self.run_before(first)
            && end + 1 == first
        {
            first = before;
        }
        if let Some(after) = last.checked_add(1)
            && let Some(end) = self.beyond.remove(&after)
        {
            last = end;
        }
        if first == self.upto.0 + 1 {
            self.beyond.remove(&first);
            self.upto.0 = last;
        } else {
            self.beyond.insert(first, last);
        }
    }

    /// The last run that begins before this number or with it.
    fn run_before(&self, seq: u64) -> Option<(u64, u64)> {
        let run = self.beyond.range(..=seq).next_back();
        run.map(|(first, last)| (*first, *last))
    }

    /// True if everything up to `after` is applied.
    pub fn covers(&self, after: Seq) -> bool {
        self.upto >= after
    }

    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }
}

/// What the peer asked of this node's disk beside writes.
#[derive(Debug, Default)]
pub(super) struct Asked {
    reads: usize,
    comparisons: usize,
    hashes: usize,
    flushes: usize,
}

impl Asked {
    /// A read begins.
    ///
    /// Errors: there are too many.
    pub fn read(&mut self) -> Result<(), String> {
        if self.reads >= MOST {
            return Err(format!("it has {MOST} reads under way at once"));
        }
        self.reads += 1;
        Ok(())
    }

    pub fn end_read(&mut self) {
        self.reads -= 1;
    }

    /// A comparison of so many blocks begins.
    ///
    /// Errors: there are too many.
    pub fn compare(&mut self, hashes: usize) -> Result<(), String> {
        let (count, all) = (self.comparisons + 1, self.hashes + hashes);
        if count > MOST_COMPARISONS || all > MOST_HASHES {
            return Err(format!(
                "it has {count} comparisons of {all} blocks under way at once"
            ));
        }
        (self.comparisons, self.hashes) = (count, all);
        Ok(())
    }

    pub fn end_compare(&mut self, hashes: usize) {
        self.comparisons -= 1;
        self.hashes -= hashes;
    }

    /// A flush is asked for.
    ///
    /// Errors: there are too many.
    pub fn flush(&mut self) -> Result<(), String> {
        if self.flushes >= MOST_FLUSHES {
            return Err("it sends flushes without waiting for their answers".into());
        }
        self.flushes += 1;
        Ok(())
    }

    pub fn end_flush(&mut self) {
        self.flushes -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_any_order_and_once() {
        let mut applied = Applied::default();
        for seq in [3, 1, 5, 4, 2, 7] {
            applied.receive(Seq(seq)).unwrap();
            assert!(applied.receive(Seq(seq)).is_err(), "{seq} is under way");
        }
        for (seq, upto) in [(5, 0), (3, 0), (1, 1), (4, 1), (2, 5), (7, 5)] {
            applied.apply(Seq(seq));
            assert!(
                applied.covers(Seq(upto)) && !applied.covers(Seq(upto + 1)),
                "{seq}"
            );
            assert!(applied.receive(Seq(seq)).is_err(), "{seq} is applied");
        }
        assert!(applied.is_idle());
        applied.receive(Seq(u64::MAX)).unwrap();
        applied.apply(Seq(u64::MAX));
        assert!(applied.receive(Seq(u64::MAX)).is_err());
    }

    #[test]
    fn a_long_overtaken_write_costs_nothing() {
        let mut applied = Applied::default();
        for seq in 2..=1_000_000 {
            applied.receive(Seq(seq)).unwrap();
            applied.apply(Seq(seq));
        }
        assert_eq!(applied.beyond.len(), 1);
        applied.receive(Seq(1)).unwrap();
        applied.apply(Seq(1));
        assert!(applied.covers(Seq(1_000_000)) && applied.beyond.is_empty());
    }

    #[test]
    fn a_liar_is_stopped_before_memory_is() {
        let mut under_way = Applied::default();
        let received = (1..).take_while(|seq| under_way.receive(Seq(*seq)).is_ok());
        assert_eq!(received.count(), MOST);
        let mut gaps = Applied::default();
        let received = (1..).take_while(|nth| {
            let seq = Seq(2 * nth);
            let fits = gaps.receive(seq).is_ok();
            if fits {
                gaps.apply(seq);
            }
            fits
        });
        assert_eq!(received.count(), MOST);
        let mut asked = Asked::default();
        assert_eq!(
            (0..=MOST).take_while(|_| asked.flush().is_ok()).count(),
            MOST_FLUSHES
        );
        assert_eq!(
            (0..=MOST).take_while(|_| asked.read().is_ok()).count(),
            MOST
        );
        assert_eq!(
            (0..=MOST)
                .take_while(|_| asked.compare(8_192).is_ok())
                .count(),
            128
        );
        assert!(asked.compare(1).is_err());
    }

    #[test]
    fn what_has_ended_makes_room() {
        let mut asked = Asked::default();
        while asked.read().is_ok() {}
        asked.end_read();
        assert!(asked.read().is_ok() && asked.read().is_err());
        while asked.compare(MOST_HASHES / MOST_COMPARISONS).is_ok() {}
        assert_eq!(asked.comparisons, MOST_COMPARISONS, "no more at once");
        asked.end_compare(MOST_HASHES / MOST_COMPARISONS);
        assert!(asked.compare(MOST_HASHES / MOST_COMPARISONS + 1).is_err());
        assert!(asked.compare(MOST_HASHES / MOST_COMPARISONS).is_ok());
        assert!(asked.compare(0).is_err());
        let mut applied = Applied::default();
        assert!(applied.is_idle());
        applied.receive(Seq(1)).unwrap();
        assert!(!applied.is_idle());
    }
}
