//! Checksums and encryption by themselves, on one core, as the link uses them.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::job::BLOCK;

/// How long each is measured.
const TIME: Duration = Duration::from_millis(300);

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Throughput {
    /// What.
    pub what: String,
    /// Bytes at a time.
    pub len: usize,
    /// Bytes a second, in units of 1,000,000.
    pub megabytes: f64,
}

/// crc32c of a block, and AES-128-GCM of packets of two lengths, each way.
///
/// # Errors
/// The cipher refuses.
pub fn measure() -> Result<Vec<Throughput>, BenchError> {
    let fault = || BenchError::part::<ring::error::Unspecified>("AES-128-GCM");
    let mut all = Vec::new();
    let block = vec![0x5a; BLOCK as usize];
    all.push(rate("crc32c", block.len(), || {
        black_box(crc32c::crc32c(black_box(&block)));
        Ok(())
    })?);
    let key = UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(fault())?;
    let key = LessSafeKey::new(key);
    let nonce = || Nonce::assume_unique_for_key([9; 12]);
    for len in [1_400, 6_400] {
        // Sealed again and again: what is in it does not matter to the time.
        let mut packet = vec![0x5a; len];
        all.push(rate("AES-128-GCM, sealing", len, || {
            let tag = key.seal_in_place_separate_tag(nonce(), Aad::empty(), black_box(&mut packet));
            tag.map(drop).map_err(fault())
        })?);
        let mut sealed = vec![0x5a; len];
        key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed)
            .map_err(fault())?;
        let mut scratch = sealed.clone();
        all.push(rate("AES-128-GCM, copying and opening", len, || {
            scratch.copy_from_slice(&sealed);
            let opened = key.open_in_place(nonce(), Aad::empty(), black_box(&mut scratch));
            opened.map(drop).map_err(fault())
        })?);
    }
    Ok(all)
}

fn rate(
    what: &str,
    len: usize,
    mut once: impl FnMut() -> Result<(), BenchError>,
) -> Result<Throughput, BenchError> {
    const BATCH: u32 = 64;
    let (began, mut count) = (Instant::now(), 0_u64);
    while began.elapsed() < TIME {
        for _ in 0..BATCH {
            once()?;
        }
        count += u64::from(BATCH);
    }
    Ok(Throughput {
        what: what.to_owned(),
        len,
        megabytes: count as f64 * len as f64 / 1e6 / began.elapsed().as_secs_f64(),
    })
}

/// A line for each.
pub fn table(all: &[Throughput]) -> String {
    let mut text = String::from("\n| by itself, on one core | bytes | MB/s |\n|---|---:|---:|\n");
    for Throughput {
        what,
        len,
        megabytes,
    } in all
    {
        let _ = writeln!(text, "| {what} | {len} | {megabytes:.0} |");
    }
    text
}
