//! Prints the rate of 4 KiB random writes through the shell's disk, to hold against fio's.
//!
//!     cargo run --release -p kagami-replicator --example disk_rate -- FILE [SECONDS]
//!
//! FILE is written over (it is made with 1 GiB, fully written, if it is missing). The same with fio:
//!
//!     fio --name=w --filename=FILE --rw=randwrite --bs=4k --direct=1 --ioengine=io_uring \
//!         --iodepth=1 --size=1g --time_based --runtime=5          # also: --iodepth=32, --fdatasync=1

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kagami_replicator::core::disk::DiskOp;
use kagami_replicator::shell::buffers::{Pool, PoolConfig, Share};
use kagami_replicator::shell::fence::StoreFile;
use kagami_replicator::shell::storage::{Area, DiskId, Storage, StorageCompletion};

const SIZE: u64 = 1 << 30;
const BLOCK: u64 = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("usage: disk_rate FILE [SECONDS]")?);
    let seconds = match arguments.next() {
        Some(text) => text.to_str().ok_or("SECONDS is not a number")?.parse()?,
        None => 5,
    };
    let runtime = Duration::from_secs(seconds);
    measure_pool()?;
    let is_new = !path.exists();
    if is_new {
        std::fs::File::create_new(&path)?.set_len(SIZE)?;
    }
    kagami_replicator::shell::runtime::start(async move {
        let pool = Pool::new(&PoolConfig::default())?;
        let file = StoreFile::open(&path, Duration::from_secs(5))?;
        let capabilities = file.capabilities();
        println!("{}: {capabilities:?}", path.display());
        let area = Area {
            start: 0,
            len: capabilities.usable_from(0).min(SIZE),
        };
        let mut storage = Storage::new(pool)?;
        let store = storage.add_store(file);
        let disk = storage.add_disk(store, area);
        if is_new {
            fill(&mut storage, disk, area.len).await?;
        }
        let mut load = Load {
            storage,
            disk,
            blocks: area.len / BLOCK,
            state: 0x9e37_79b9_7f4a_7c15,
        };
        for (name, depth, fua, flush) in [
            ("write", 1, false, false),
            ("write", 32, false, false),
            ("write with FUA", 1, true, false),
            ("write with FUA", 32, true, false),
            ("write, then flush", 1, false, true),
        ] {
            load.run(name, depth, fua, flush, runtime).await?;
        }
        println!("copies: {}", load.storage.counters(disk).copies);
        Ok(())
    })
}

struct Load {
    storage: Storage,
    disk: DiskId,
    blocks: u64,
    state: u64,
}

impl Load {
    async fn run(
        &mut self,
        name: &str,
        depth: usize,
        fua: bool,
        flush: bool,
        runtime: Duration,
    ) -> Result<(), Box<dyn Error>> {
        let began = Instant::now();
        let cpu_before = cpu_time()?;
        let mut latencies: Vec<u32> = Vec::new();
        let mut starts = vec![began; depth];
        let mut completions = Vec::new();
        for slot in 0..depth {
            self.write(slot as u64, fua)?;
        }
        let mut in_flight = depth;
        while in_flight > 0 {
            self.storage.ready().await?;
            self.storage.drain(&mut completions)?;
            for completion in completions.drain(..) {
                let StorageCompletion::Disk(done) = completion else {
                    unreachable!("no metadata here");
                };
                done.result?;
                let slot = done.id as usize % depth;
                if flush && done.id < depth as u64 {
                    let id = done.id + depth as u64;
                    self.storage.submit(self.disk, id, DiskOp::Flush);
                    continue;
                }
                let now = Instant::now();
                latencies.push((now - starts[slot]).as_nanos() as u32);
                starts[slot] = now;
                if began.elapsed() < runtime {
                    self.write(slot as u64, fua)?;
                } else {
                    in_flight -= 1;
                }
            }
            self.storage.submit_queued()?;
        }
        let cpu = cpu_time()?.saturating_sub(cpu_before);
        latencies.sort_unstable();
        let at = |share: f64| f64::from(latencies[(latencies.len() as f64 * share) as usize]) / 1e3;
        println!(
            "{name:18} depth {depth:2}: {:8.0} IOPS   p50 {:7.1} us   p99 {:7.1} us   CPU {:4.1} us each",
            latencies.len() as f64 / began.elapsed().as_secs_f64(),
            at(0.5),
            at(0.99),
            cpu.as_secs_f64() * 1e6 / latencies.len() as f64
        );
        Ok(())
    }

    fn write(&mut self, id: u64, fua: bool) -> Result<(), Box<dyn Error>> {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let mut buffer = self
            .storage
            .pool()
            .alloc(BLOCK as usize, Share::FrontEnd)
            .ok_or("the pool is exhausted")?;
        buffer[..8].copy_from_slice(&self.state.to_le_bytes());
        let operation = DiskOp::Write {
            offset: self.state % self.blocks * BLOCK,
            data: buffer.freeze(),
            fua,
        };
        self.storage.submit(self.disk, id, operation);
        Ok(())
    }
}

/// Time that this thread has spent on a processor.
fn cpu_time() -> Result<Duration, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().ok_or("no schedstat")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

/// Writes the whole disk once, so that every later write goes to a written extent.
async fn fill(storage: &mut Storage, disk: DiskId, len: u64) -> Result<(), Box<dyn Error>> {
    const STEP: u64 = 1 << 20;
    let mut completions = Vec::new();
    for offset in (0..len).step_by(STEP as usize) {
        let count = STEP.min(len - offset) as usize;
        let mut buffer = storage
            .pool()
            .alloc(count, Share::FrontEnd)
            .ok_or("the pool is exhausted")?;
        buffer.fill(0xa5);
        let data = buffer.freeze();
        let fua = offset + STEP >= len;
        storage.submit(disk, offset, DiskOp::Write { offset, data, fua });
        storage.ready().await?;
        storage.drain(&mut completions)?;
        while storage.counters(disk).in_flight > 16 {
            storage.ready().await?;
            storage.drain(&mut completions)?;
        }
    }
    while storage.counters(disk).in_flight > 0 {
        storage.ready().await?;
        storage.drain(&mut completions)?;
    }
    for completion in completions {
        if let StorageCompletion::Disk(done) = completion {
            done.result?;
        }
    }
    Ok(())
}

/// What a buffer's life costs: taken and given back, and also frozen into `Bytes`.
fn measure_pool() -> Result<(), Box<dyn Error>> {
    const ROUNDS: u32 = 5_000_000;
    let pool = Pool::new(&PoolConfig::default())?;
    let began = Instant::now();
    for _ in 0..ROUNDS {
        std::hint::black_box(pool.alloc(4096, Share::FrontEnd));
    }
    let plain = began.elapsed() / ROUNDS;
    let began = Instant::now();
    for _ in 0..ROUNDS {
        let buffer = pool.alloc(4096, Share::FrontEnd).ok_or("exhausted")?;
        std::hint::black_box(buffer.freeze());
    }
    let frozen = began.elapsed() / ROUNDS;
    println!("buffer taken and given back: {plain:?}; frozen into Bytes besides: {frozen:?}");
    Ok(())
}
