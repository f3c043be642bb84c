//! What takes part in a comparison: something that runs a job and says what it took.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::client::Client;
use crate::error::BenchError;
use crate::job::{Action, Job, Sample};
use crate::load::{self, Until};
use crate::process::{self, Process};

/// How long a server may take to answer on its socket.
pub const START: Duration = Duration::from_secs(30);

/// What every candidate is given.
#[derive(Clone, Debug)]
pub struct Room {
    /// Where its files lie: one file system for all.
    pub dir: PathBuf,
    /// Bytes of each disk; every job stays within.
    pub region: u64,
    /// The daemon's program.
    pub kagami: PathBuf,
    /// Where what goes over loopback goes.
    pub network: Network,
}

/// The loopback network that everything over TCP and UDP goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A network namespace made for this run: TCP at 127.0.0.1 acknowledges at once, at 127.0.0.2 when
    /// the kernel finds it worth it, as everywhere.
    Own,
    /// The machine's.
    Machine,
}

impl Room {
    /// Fails unless `copies` whole disks fit beside what is there.
    ///
    /// # Errors
    /// They don't.
    pub fn check(&self, copies: u64) -> Result<(), BenchError> {
        let room = rustix::fs::statvfs(&self.dir)
            .map_err(|error| BenchError::io("asking for free space")(error.into()))?;
        let free = room.f_bavail * room.f_frsize;
        let wanted = copies * self.region + (1 << 30);
        if free < wanted {
            let dir = self.dir.clone();
            return Err(BenchError::NoRoom { dir, free, wanted });
        }
        Ok(())
    }
}

/// Something that runs jobs. It stays ready between two runs, and idle.
pub trait Candidate {
    /// For the table.
    fn name(&self) -> &'static str;

    /// Whether the job means anything to it.
    fn takes(&self, _job: &Job) -> bool {
        true
    }

    /// Runs the job for about `time`.
    ///
    /// # Errors
    /// It could not.
    fn run(&mut self, job: &Job, time: Duration, seed: u64) -> Result<Sample, BenchError>;
}

/// A candidate that is an NBD server on a Unix socket, in processes of its own.
#[derive(Debug)]
pub struct Served {
    name: &'static str,
    client: Client,
    /// Whose processor time counts, and what they are called.
    watched: Vec<(String, u32)>,
    region: u64,
    /// Ended last to first: the one that is asked before the ones that it asks.
    processes: Vec<Process>,
}

impl Served {
    /// Connects to a server that was started, and writes its whole disk once.
    ///
    /// # Errors
    /// It does not serve.
    pub fn connect(
        name: &'static str,
        processes: Vec<Process>,
        watched: Vec<(String, u32)>,
        socket: &Path,
        export: &str,
        room: &Room,
    ) -> Result<Self, BenchError> {
        let mut client = Client::connect(socket, export, START)?;
        load::fill(&mut client, room.region)?;
        Ok(Self {
            name,
            client,
            watched,
            region: room.region,
            processes,
        })
    }
}

impl Candidate for Served {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self, job: &Job, time: Duration, seed: u64) -> Result<Sample, BenchError> {
        for process in &mut self.processes {
            process.check()?;
        }
        let spent = || -> Vec<Option<Duration>> {
            self.watched
                .iter()
                .map(|(_, id)| process::cpu_time(*id))
                .collect()
        };
        let (before, own) = (spent(), process::own_cpu_time());
        let (tally, elapsed) =
            load::run(&mut self.client, job, self.region, Until::Time(time), seed)?;
        let (after, own) = (spent(), process::own_cpu_time().saturating_sub(own));
        // What a server holds back unwritten would fall into another's turn.
        if job.action == Action::Write {
            self.client.flush_now()?;
        }
        let mut sample = tally.sample(job.len, elapsed);
        let each = |time: Duration| time.as_secs_f64() * 1e6 / tally.operations() as f64;
        sample.cpu.insert("client".to_owned(), each(own));
        for (((name, _), before), after) in self.watched.iter().zip(before).zip(after) {
            if let (Some(before), Some(after)) = (before, after) {
                sample
                    .cpu
                    .insert(name.clone(), each(after.saturating_sub(before)));
            }
        }
        Ok(sample)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        while self.processes.pop().is_some() {}
    }
}
