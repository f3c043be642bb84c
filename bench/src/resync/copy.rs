//! What the disks do without kagami: blocks read from one file and written to another.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kagami_replicator::core::disk::DiskOp;
use kagami_replicator::shell::buffers::{Pool, PoolConfig};
use kagami_replicator::shell::fence::StoreFile;
use kagami_replicator::shell::storage::{Area, Storage, StorageCompletion};

use crate::candidate::Room;
use crate::error::BenchError;
use crate::job::{BLOCK, Places, SMALL_DEEP};
use crate::limit::disk::BareDisk;

/// Copies under way at a time: as much data as a resynchronisation may have.
const WINDOW: usize = 8 << 20;
/// Small ones, at most.
const DEPTH: usize = 128;

/// A file that is written whole.
///
/// # Errors
/// The disk fails.
pub fn file(room: &Room, name: &str) -> Result<PathBuf, BenchError> {
    BareDisk::named(room, name).map(BareDisk::into_path)
}

/// MB/s of single blocks, a `share` of all, in order.
///
/// # Errors
/// The disk fails.
pub fn scattered(from: &Path, to: &Path, region: u64, share: f64) -> Result<f64, BenchError> {
    let count = (region as f64 * share) as u64 / BLOCK;
    let mut places = Places::new(SMALL_DEEP.pattern, SMALL_DEEP.len, region, 4711);
    let mut offsets: Vec<u64> = (0..count).map(|_| places.next_offset()).collect();
    offsets.sort_unstable();
    offsets.dedup();
    copy(from, to, region, &offsets, BLOCK as u32)
}

/// MB/s of everything.
///
/// # Errors
/// The disk fails.
pub fn whole(from: &Path, to: &Path, region: u64) -> Result<f64, BenchError> {
    let len = 1 << 20;
    let offsets: Vec<u64> = (0..region / u64::from(len))
        .map(|n| n * u64::from(len))
        .collect();
    copy(from, to, region, &offsets, len)
}

fn copy(from: &Path, to: &Path, region: u64, offsets: &[u64], len: u32) -> Result<f64, BenchError> {
    kagami_replicator::shell::runtime::start(async move {
        let pool = Pool::new(&PoolConfig::default()).map_err(BenchError::part("the pool"))?;
        let mut storage = Storage::new(pool).map_err(BenchError::part("the storage"))?;
        let area = Area {
            start: 0,
            len: region,
        };
        let mut open = |path: &Path| {
            let file = StoreFile::open(path, Duration::from_secs(5));
            let store = storage.add_store(file.map_err(BenchError::part("the store"))?);
            Ok::<_, BenchError>(storage.add_disk(store, area))
        };
        let (source, target) = (open(from)?, open(to)?);
        let depth = (WINDOW / len as usize).min(DEPTH);
        let writes = offsets.len() as u64;
        let began = Instant::now();
        let (mut next, mut done) = (0, 0);
        let mut completions = Vec::new();
        // A copy's number is its place among the offsets; its write has that of all copies added.
        while done < offsets.len() {
            while next < offsets.len() && next - done < depth {
                let offset = offsets[next];
                storage.submit(source, next as u64, DiskOp::Read { offset, len });
                next += 1;
            }
            let ready = storage.ready().await;
            ready
                .and_then(|()| storage.drain(&mut completions))
                .map_err(BenchError::io("the ring"))?;
            for completion in completions.drain(..) {
                let StorageCompletion::Disk(completion) = completion else {
                    unreachable!("there is no metadata here");
                };
                let data = completion
                    .result
                    .map_err(|error| BenchError::part("the disk")(format!("{error:?}")))?;
                if completion.id >= writes {
                    done += 1;
                    continue;
                }
                let write = DiskOp::Write {
                    offset: offsets[completion.id as usize],
                    data,
                    fua: false,
                };
                storage.submit(target, completion.id + writes, write);
            }
        }
        let bytes = offsets.len() as f64 * f64::from(len);
        Ok(bytes / 1e6 / began.elapsed().as_secs_f64())
    })
}
