//! The comparison: every job with every candidate in turn, there and back, several times.
//!
//! A machine is never twice the same, least of all a shared one: so the candidates alternate within
//! one run (A B C, C B A, …), medians count, and the spread stands beside them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::candidate::Candidate;
use crate::error::BenchError;
use crate::job::{Job, Sample};

/// All samples of one candidate at one job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    /// The job's name.
    pub job: String,
    /// The job.
    pub shape: Job,
    /// The candidate's name.
    pub candidate: String,
    /// One for each round.
    pub samples: Vec<Sample>,
}

/// The medians of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Operations a second.
    pub rate: Spread,
    /// Bytes a second, in units of 1,000,000.
    pub megabytes: f64,
    /// Microseconds: median latency.
    pub p50: Spread,
    /// 99th percentile.
    pub p99: Spread,
    /// Processor microseconds for each operation, by program.
    pub cpu: BTreeMap<String, f64>,
}

/// A series beside its medians.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// All samples.
    #[serde(flatten)]
    pub series: Series,
    /// The medians; for readers, made anew from the samples when read here.
    pub summary: Summary,
}

/// A median and the range around it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of these.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Self {
            median,
            min: values.first().copied().unwrap_or(f64::NAN),
            max: values.last().copied().unwrap_or(f64::NAN),
        }
    }
}

impl From<Series> for Row {
    fn from(series: Series) -> Self {
        let summary = series.summary();
        Self { series, summary }
    }
}

impl Series {
    /// The medians.
    pub fn summary(&self) -> Summary {
        let of = |field: fn(&Sample) -> f64| Spread::of(self.samples.iter().map(field));
        let programs = self.samples.iter().flat_map(|sample| sample.cpu.keys());
        let cpu = programs
            .map(|program| {
                let values = self.samples.iter().filter_map(|s| s.cpu.get(program));
                (program.clone(), Spread::of(values.copied()).median)
            })
            .collect();
        Summary {
            rate: of(|sample| sample.rate),
            megabytes: of(|sample| sample.megabytes).median,
            p50: of(|sample| sample.p50),
            p99: of(|sample| sample.p99),
            cpu,
        }
    }
}

/// Runs a job with every candidate that can take it, `rounds` times for `time` each. `tell` hears of
/// each sample.
///
/// # Errors
/// A candidate's, after which the comparison is of no use.
pub fn alternate(
    candidates: &mut [Box<dyn Candidate>],
    job: &Job,
    rounds: u32,
    time: Duration,
    mut tell: impl FnMut(&str, &Sample),
) -> Result<Vec<Series>, BenchError> {
    let mut candidates: Vec<_> = candidates.iter_mut().filter(|c| c.takes(job)).collect();
    let mut all: Vec<Series> = candidates
        .iter()
        .map(|candidate| Series {
            job: job.name(),
            shape: *job,
            candidate: candidate.name().to_owned(),
            samples: Vec::new(),
        })
        .collect();
    for round in 0..rounds {
        for at in 0..candidates.len() {
            // There, and back.
            let at = if round % 2 == 0 {
                at
            } else {
                candidates.len() - 1 - at
            };
            let seed = 0x5eed + u64::from(round);
            let sample = candidates[at].run(job, time, seed)?;
            tell(&all[at].candidate, &sample);
            all[at].samples.push(sample);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::job::SMALL;

    struct Named(&'static str, Rc<RefCell<String>>);

    impl Candidate for Named {
        fn name(&self) -> &'static str {
            self.0
        }

        fn run(&mut self, _: &Job, _: Duration, seed: u64) -> Result<Sample, BenchError> {
            self.1.borrow_mut().push_str(self.0);
            Ok(Sample {
                rate: seed as f64,
                cpu: [("client".to_owned(), 1.0)].into(),
                ..Sample::default()
            })
        }
    }

    #[test]
    fn candidates_take_turns_there_and_back() {
        let order = Rc::new(RefCell::new(String::new()));
        let mut candidates: Vec<Box<dyn Candidate>> = vec![
            Box::new(Named("a", Rc::clone(&order))),
            Box::new(Named("b", Rc::clone(&order))),
        ];
        let all = alternate(&mut candidates, &SMALL, 3, Duration::ZERO, |_, _| {})
            .expect("they never fail");
        assert_eq!(*order.borrow(), "abbaab");
        let summary = all[0].summary();
        let base = f64::from(0x5eed);
        let Spread { median, min, max } = summary.rate;
        let from_base = [median, min, max].map(|rate| (rate - base).round() as i64);
        assert_eq!(from_base, [1, 0, 2]);
        assert_eq!(summary.cpu.len(), 1);
    }
}
