//! The bare disk: the job straight to `shell::storage`, no client and no mirror.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kagami_replicator::core::disk::DiskOp;
use kagami_replicator::shell::buffers::{Pool, PoolConfig, Share};
use kagami_replicator::shell::fence::StoreFile;
use kagami_replicator::shell::patience::Awaits;
use kagami_replicator::shell::runtime::has_worked;
use kagami_replicator::shell::storage::{Area, DiskId, Storage, StorageCompletion};

use crate::candidate::{Candidate, Room};
use crate::error::BenchError;
use crate::job::{Action, Job, Places, SEQUENTIAL, Sample, Tally};
use crate::load::Until;
use crate::process::own_cpu_time;

/// A file, written through the shell's own ring.
#[derive(Debug)]
pub struct BareDisk {
    path: PathBuf,
    region: u64,
}

impl BareDisk {
    /// Makes the file and fills it.
    ///
    /// # Errors
    /// The disk fails.
    pub fn new(room: &Room) -> Result<Self, BenchError> {
        Self::named(room, "bare.img")
    }

    /// The same, with a file of this name.
    ///
    /// # Errors
    /// The disk fails.
    pub fn named(room: &Room, name: &str) -> Result<Self, BenchError> {
        let path = room.dir.join(name);
        let file = std::fs::File::create(&path).map_err(BenchError::io("the test file"))?;
        file.set_len(room.region)
            .map_err(BenchError::io("the test file"))?;
        let this = Self {
            path,
            region: room.region,
        };
        let count = room.region / u64::from(SEQUENTIAL.len);
        this.measure(&SEQUENTIAL, Until::Operations(count), 1)?;
        Ok(this)
    }

    /// The file.
    pub fn into_path(self) -> PathBuf {
        self.path
    }

    fn measure(&self, job: &Job, until: Until, seed: u64) -> Result<Sample, BenchError> {
        let (path, region, job): (&Path, _, _) = (&self.path, self.region, *job);
        super::run_part(async move {
            let fault = BenchError::part::<std::io::Error>;
            let pool = Pool::new(&PoolConfig::default()).map_err(fault("the pool"))?;
            let file = StoreFile::open(path, Duration::from_secs(5))
                .map_err(BenchError::part("the store"))?;
            let mut storage = Storage::new(pool).map_err(BenchError::part("the storage"))?;
            let store = storage.add_store(file);
            let disk = storage.add_disk(
                store,
                Area {
                    start: 0,
                    len: region,
                },
            );
            let mut run = Run {
                storage,
                disk,
                places: Places::new(job.pattern, job.len, region, seed),
                job,
            };
            run.run(until).await
        })
    }
}

impl Candidate for BareDisk {
    fn name(&self) -> &'static str {
        super::DISK
    }

    fn run(&mut self, job: &Job, time: Duration, seed: u64) -> Result<Sample, BenchError> {
        self.measure(job, Until::Time(time), seed)
    }
}

struct Run {
    storage: Storage,
    disk: DiskId,
    places: Places,
    job: Job,
}

impl Run {
    /// An operation's number is its slot; its flush has the slot's number and `depth` more.
    async fn run(&mut self, until: Until<'_>) -> Result<Sample, BenchError> {
        let depth = self.job.depth as u64;
        let (began, cpu) = (Instant::now(), own_cpu_time());
        let mut since = vec![began; self.job.depth];
        let mut tally = Tally::default();
        let mut completions = Vec::new();
        let mut begun = 0;
        let (mut in_flight, mut next) = (0, (0..depth).collect::<Vec<u64>>());
        loop {
            for slot in next.drain(..) {
                let goes_on = match until {
                    Until::Time(time) => began.elapsed() < time,
                    Until::Operations(count) => begun < count,
                    Until::Told(stop) => !stop.load(Ordering::Relaxed),
                };
                if goes_on {
                    begun += 1;
                    in_flight += 1;
                    since[slot as usize] = Instant::now();
                    self.begin(slot)?;
                }
            }
            if in_flight == 0 {
                break;
            }
            let ready = self.storage.ready().await;
            ready
                .and_then(|()| self.storage.drain(&mut completions))
                .map_err(BenchError::io("the ring"))?;
            has_worked(Awaits::Answers);
            for completion in completions.drain(..) {
                let StorageCompletion::Disk(done) = completion else {
                    unreachable!("there is no metadata here");
                };
                done.result
                    .map_err(|error| BenchError::part("the disk")(format!("{error:?}")))?;
                if self.job.flush && done.id < depth {
                    self.storage
                        .submit(self.disk, done.id + depth, DiskOp::Flush);
                    continue;
                }
                let slot = done.id % depth;
                tally.record(since[slot as usize].elapsed());
                in_flight -= 1;
                next.push(slot);
            }
        }
        let mut sample = tally.sample(self.job.len, began.elapsed());
        let cpu =
            own_cpu_time().saturating_sub(cpu).as_secs_f64() * 1e6 / tally.operations() as f64;
        sample.cpu.insert("all".to_owned(), cpu);
        Ok(sample)
    }

    fn begin(&mut self, slot: u64) -> Result<(), BenchError> {
        let offset = self.places.next_offset();
        let operation = match self.job.action {
            Action::Read => DiskOp::Read {
                offset,
                len: self.job.len,
            },
            Action::Write => {
                let draw = self.places.draw();
                let pool = self.storage.pool();
                let mut buffer = pool
                    .alloc(self.job.len as usize, Share::FrontEnd)
                    .ok_or_else(|| BenchError::part("the pool")("is exhausted"))?;
                buffer[..8].copy_from_slice(&draw.to_le_bytes());
                DiskOp::Write {
                    offset,
                    data: buffer.freeze(),
                    fua: false,
                }
            }
        };
        self.storage.submit(self.disk, slot, operation);
        Ok(())
    }
}
