//! How much memory the daemons of a large mirror hold.

use std::time::Duration;

use serde::Serialize;

use crate::candidate::Room;
use crate::error::BenchError;
use crate::job::JOBS;
use crate::load::{self, Until};
use crate::mirror::Mirror;
use crate::process;

/// How long the load goes on.
const LOAD: Duration = Duration::from_secs(5);

/// Of one daemon.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    /// TiB of the mirror.
    pub tebibytes: u64,
    /// Which daemon.
    pub daemon: String,
    /// Bytes held when it was up and idle.
    pub idle: u64,
    /// Bytes held after random writes all over it.
    pub loaded: u64,
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
        let mirror = Mirror::start(room, "memory", tebibytes << 20, true)?;
        let idle: Vec<Option<(u64, u64)>> = mirror
            .daemons()
            .iter()
            .map(|(_, id)| process::memory(*id))
            .collect();
        let mut client = mirror.client()?;
        load::run(&mut client, &JOBS[2], tebibytes << 40, Until::Time(LOAD), 5)?;
        for ((daemon, id), idle) in mirror.daemons().iter().zip(idle) {
            let gone = || BenchError::part("a daemon")("ended by itself");
            let (loaded, most) = process::memory(*id).ok_or_else(gone)?;
            all.push(Held {
                tebibytes: *tebibytes,
                daemon: daemon.clone(),
                idle: idle.ok_or_else(gone)?.0,
                loaded,
                most,
            });
        }
    }
    Ok(all)
}

/// The table, in Markdown.
pub fn table(all: &[Held]) -> String {
    let mut text = String::from(
        "\n| mirror | daemon | MiB idle | MiB after writes all over | most |\n|---|---|---:|---:|---:|\n",
    );
    let mebibytes = |bytes: u64| bytes >> 20;
    for held in all {
        text += &format!(
            "| {} TiB | {} | {} | {} | {} |\n",
            held.tebibytes,
            held.daemon,
            mebibytes(held.idle),
            mebibytes(held.loaded),
            mebibytes(held.most)
        );
    }
    text
}
