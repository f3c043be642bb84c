//! How many writes to the metadata store a write costs: within the hot set, and all over a large disk.

use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

use crate::candidate::Room;
use crate::error::BenchError;
use crate::job::{Job, SMALL, SMALL_DEEP};
use crate::load::{self, Until};
use crate::mirror::{Counters, Mirror, Peer};

/// Mebibytes of a large disk: 1 TiB, in a sparse file.
const LARGE: u64 = 1 << 20;

/// What some writes cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// Where they went.
    pub what: String,
    /// Writes in flight.
    pub depth: usize,
    /// How many there were.
    pub writes: u64,
    /// Activity-log records for each 1,000.
    pub log_records: f64,
    /// Bitmap pages for each 1,000.
    pub bitmap_pages: f64,
    /// Superblock updates for each 1,000.
    pub superblocks: f64,
    /// All three.
    pub all: f64,
}

/// Counts over `writes` random 4 KiB writes at depth 1 and 32: with a peer and without, within the
/// region after it was written once, and over 1 TiB.
///
/// # Errors
/// The mirror fails.
pub fn measure(room: &Room, writes: u64) -> Result<Vec<Cost>, BenchError> {
    room.check(2)?;
    let mut all = Vec::new();
    for (with_peer, peer, tag) in [
        (Peer::There, "with a peer", "pair"),
        (Peer::Away, "peer away", "away"),
        (Peer::None, "without", "no-peer"),
    ] {
        let name = format!("hot-{tag}");
        let mirror = Mirror::start(room, &name, room.region >> 20, with_peer)?;
        let mut client = mirror.client()?;
        load::fill(&mut client, room.region)?;
        let region = room.region;
        let what = format!("{} MiB, hot, {peer}", region >> 20);
        for job in [SMALL, SMALL_DEEP] {
            // What the fill left behind is no part of it.
            load::run(&mut client, &job, region, Until::Operations(writes / 10), 3)?;
            all.push(count(&mirror, &mut client, &job, region, writes, &what)?);
        }
        drop((client, mirror));
        let mirror = Mirror::start(room, &format!("large-{tag}"), LARGE, with_peer)?;
        let mut client = mirror.client()?;
        let what = format!("1 TiB, random, {peer}");
        for job in [SMALL, SMALL_DEEP] {
            all.push(count(
                &mirror,
                &mut client,
                &job,
                LARGE << 20,
                writes,
                &what,
            )?);
        }
    }
    Ok(all)
}

fn count(
    mirror: &Mirror,
    client: &mut crate::client::Client,
    job: &Job,
    region: u64,
    writes: u64,
    what: &str,
) -> Result<Cost, BenchError> {
    let before = mirror.state()?.counters;
    load::run(client, job, region, Until::Operations(writes), 11)?;
    let after = mirror.state()?.counters;
    let each =
        |field: fn(&Counters) -> u64| (field(&after) - field(&before)) as f64 * 1e3 / writes as f64;
    Ok(Cost {
        what: what.to_owned(),
        depth: job.depth,
        writes,
        log_records: each(|c| c.log_records),
        bitmap_pages: each(|c| c.bitmap_pages),
        superblocks: each(|c| c.superblocks),
        all: each(Counters::metadata),
    })
}

/// The table, in Markdown.
pub fn table(all: &[Cost]) -> String {
    let mut text = String::from(
        "\n| for each 1,000 writes of 4 KiB | depth | log records | bitmap pages | superblocks | together |\n|---|---:|---:|---:|---:|---:|\n",
    );
    for cost in all {
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {:.2} | {:.2} |",
            cost.what, cost.depth, cost.log_records, cost.bitmap_pages, cost.superblocks, cost.all
        );
    }
    text
}
