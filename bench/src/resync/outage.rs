//! Resynchronisation: the peer is away while blocks are written, and comes back.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::error::BenchError;
use crate::job::{Job, SEQUENTIAL, SMALL_DEEP};
use crate::load::{self, Until};
use crate::mirror::{Mirror, State};

/// How long a resynchronisation may take.
pub const PATIENCE: Duration = Duration::from_mins(10);

/// What the targets speak of: few blocks, far apart.
pub const HUNDREDTH: f64 = 0.01;

/// What one outage came to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Outage {
    /// Bytes written meanwhile, repeated blocks counted each time.
    pub written: u64,
    /// Bytes of blocks marked when the peer came back.
    pub marked: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes that were found equal, and not sent.
    pub equal: u64,
    /// Sent by marked.
    pub sent_by_marked: f64,
    /// From the word to connect until the resynchronisation was seen to run: meeting again.
    pub meeting_seconds: f64,
    /// From then until in sync.
    pub seconds: f64,
    /// Of marked blocks, units of 1,000,000 bytes a second, over `seconds`.
    pub megabytes: f64,
}

/// Some outages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outages {
    /// What was written in them.
    pub job: String,
    /// How much of the region was written in each.
    #[serde(default)]
    pub share: f64,
    /// One after the other.
    pub outages: Vec<Outage>,
}

/// Makes `rounds` outages of each kind: a hundredth of the region in random 4 KiB writes, a `share` of it so,
/// and as much in large ones.
///
/// # Errors
/// The mirror fails.
pub fn measure(
    mirror: &Mirror,
    client: &mut Client,
    region: u64,
    rounds: u32,
    share: f64,
) -> Result<Vec<Outages>, BenchError> {
    let mut all = Vec::new();
    for (job, share) in [
        (SMALL_DEEP, HUNDREDTH),
        (SMALL_DEEP, share),
        (SEQUENTIAL, share),
    ] {
        let count = ((region as f64 * share) as u64 / u64::from(job.len)).max(1);
        let mut outages = Vec::new();
        for round in 0..rounds {
            outages.push(outage(mirror, client, &job, count, region, round)?);
        }
        all.push(Outages {
            job: job.name(),
            share,
            outages,
        });
    }
    Ok(all)
}

/// Both copies are equal, and nothing is left to do.
pub fn in_sync(state: &State) -> bool {
    state.condition == "in-sync" && state.marked_bytes == 0 && state.progress.is_none()
}

fn outage(
    mirror: &Mirror,
    client: &mut Client,
    job: &Job,
    count: u64,
    region: u64,
    round: u32,
) -> Result<Outage, BenchError> {
    let before = mirror.wait("both copies to be equal", PATIENCE, in_sync)?;
    mirror.leave()?;
    let (tally, _) = load::run(
        client,
        job,
        region,
        Until::Operations(count),
        u64::from(round) + 99,
    )?;
    client.flush_now()?;
    let marked = mirror.state()?;
    let began = jiff::Timestamp::now().as_millisecond() as u64;
    mirror.order_secondary("connect")?;
    let mut met = None;
    let after = mirror.wait("the resynchronisation", PATIENCE, |state| {
        if met.is_none() && state.condition != "alone" {
            met = Some(state.time_ms);
        }
        in_sync(state)
    })?;
    let met = met.unwrap_or(after.time_ms);
    let sent = after.counters.resync_bytes - before.counters.resync_bytes;
    let equal = after.counters.resync_equal_bytes - before.counters.resync_equal_bytes;
    let seconds = after.time_ms.saturating_sub(met).max(1) as f64 / 1e3;
    Ok(Outage {
        written: tally.operations() * u64::from(job.len),
        marked: marked.marked_bytes,
        sent,
        equal,
        meeting_seconds: met.saturating_sub(began) as f64 / 1e3,
        sent_by_marked: sent as f64 / marked.marked_bytes as f64,
        seconds,
        megabytes: marked.marked_bytes as f64 / 1e6 / seconds,
    })
}

/// The table, in Markdown.
pub fn table(all: &[Outages]) -> String {
    let mut text = String::from(
        "\n| written while the peer was away | MiB marked | MiB sent | sent ÷ marked | s to meet | s | MB/s |\n|---|---:|---:|---:|---:|---:|---:|\n",
    );
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for Outages {
        job,
        share,
        outages,
    } in all
    {
        for outage in outages {
            let _ = writeln!(
                text,
                "| {job}, {:.0} % | {:.1} | {:.1} | {:.3} | {:.2} | {:.2} | {:.0} |",
                share * 100.0,
                mebibytes(outage.marked),
                mebibytes(outage.sent),
                outage.sent_by_marked,
                outage.meeting_seconds,
                outage.seconds,
                outage.megabytes
            );
        }
    }
    text
}
