//! How much memory the daemons of a large mirror hold.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::candidate::Room;
use crate::error::BenchError;
use crate::job::SMALL_DEEP;
use crate::load::{self, Until};
use crate::mirror::{Mirror, Peer};
use crate::process;

/// How long the load goes on.
const LOAD: Duration = Duration::from_secs(5);

/// Of one daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Held {
    /// TiB of the mirror.
    pub tebibytes: u64,
    /// Which daemon.
    pub daemon: String,
    /// Bytes held when it was up and idle.
    pub idle: u64,
    /// Bytes held after random writes all over it.
    pub loaded: u64,
    /// Bytes held after as much again while the peer was away, so that marks lie everywhere.
    pub marked: u64,
    /// The most it ever held.
    pub most: u64,
}

/// Makes a sparse mirror of each size, writes all over it for a while, and looks.
///
/// # Errors
/// The mirror fails.
pub fn measure(room: &Room, tebibytes: &[u64]) -> Result<Vec<Held>, BenchError> {
    let mut all = Vec::new();
    for tebibytes in tebibytes {
        let mirror = Mirror::start(
            room,
            &format!("memory-{tebibytes}"),
            tebibytes << 20,
            Peer::There,
        )?;
        let idle = look(&mirror)?;
        let mut client = mirror.client()?;
        let everywhere = tebibytes << 40;
        load::run(&mut client, &SMALL_DEEP, everywhere, Until::Time(LOAD), 5)?;
        let loaded = look(&mirror)?;
        mirror.order_secondary("disconnect")?;
        load::run(&mut client, &SMALL_DEEP, everywhere, Until::Time(LOAD), 6)?;
        let marked = look(&mirror)?;
        for (at, (daemon, _)) in mirror.daemons().iter().enumerate() {
            all.push(Held {
                tebibytes: *tebibytes,
                daemon: daemon.clone(),
                idle: idle[at].0,
                loaded: loaded[at].0,
                marked: marked[at].0,
                most: marked[at].1,
            });
        }
    }
    Ok(all)
}

/// What each daemon holds, and the most it ever held.
fn look(mirror: &Mirror) -> Result<Vec<(u64, u64)>, BenchError> {
    let gone = || BenchError::part("a daemon")("ended by itself");
    let daemons = mirror.daemons();
    daemons
        .iter()
        .map(|(_, id)| process::memory(*id).ok_or_else(gone))
        .collect()
}

/// The table, in Markdown.
pub fn table(all: &[Held]) -> String {
    let mut text = String::from(
        "\n| mirror | daemon | MiB idle | MiB after writes all over | MiB after as much without the peer | most |\n|---|---|---:|---:|---:|---:|\n",
    );
    let mebibytes = |bytes: u64| bytes >> 20;
    for held in all {
        let _ = writeln!(
            text,
            "| {} TiB | {} | {} | {} | {} | {} |",
            held.tebibytes,
            held.daemon,
            mebibytes(held.idle),
            mebibytes(held.loaded),
            mebibytes(held.marked),
            mebibytes(held.most)
        );
    }
    text
}
