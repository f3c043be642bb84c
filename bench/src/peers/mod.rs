//! What others make of the same disk: fio on the file itself, qemu's storage daemon, nbdkit.
//!
//! fio and qemu open their files with `O_DIRECT`, and all honour flushes. nbdkit's file plugin has no
//! `O_DIRECT`: it writes into the page cache and is told to keep nothing there (`cache=none`), so what it
//! does without a flush is memory's speed. What is served is in [`qemu`], its credentials in [`tls`].
//!
//! No two of them run at once: all that serve one copy serve the same file, and all quorums the same two.

mod qemu;
mod tls;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::candidate::{Candidate, Network, Room, START, Served};
use crate::error::BenchError;
use crate::job::{Action, Job, PERCENTAGES, Pattern, Sample};
use crate::process::{self, Process};

/// fio through `io_uring` on a file, without any server.
#[derive(Debug)]
pub struct Fio {
    program: PathBuf,
    file: PathBuf,
    region: u64,
}

impl Fio {
    /// fio on a file that exists and is written.
    ///
    /// # Errors
    /// There is no fio.
    pub fn new(room: &Room, file: PathBuf) -> Result<Self, BenchError> {
        Ok(Self {
            program: process::program("fio")?,
            file,
            region: room.region,
        })
    }
}

impl Candidate for Fio {
    fn name(&self) -> &'static str {
        "fio on the file"
    }

    fn run(&mut self, job: &Job, time: Duration, seed: u64) -> Result<Sample, BenchError> {
        let pattern = match (job.action, job.pattern) {
            (Action::Write, Pattern::Random) => "randwrite",
            (Action::Write, Pattern::Sequential) => "write",
            (Action::Read, Pattern::Random) => "randread",
            (Action::Read, Pattern::Sequential) => "read",
        };
        let mut command = Command::new(&self.program);
        command
            .arg("--name=bench")
            .arg(format!("--filename={}", self.file.display()))
            .arg(format!("--rw={pattern}"))
            .arg(format!("--bs={}", job.len))
            .arg(format!("--iodepth={}", job.depth))
            .arg(format!("--size={}", self.region))
            .arg(format!("--runtime={}ms", time.as_millis()))
            .arg(format!("--randseed={seed}"))
            .arg(format!("--fdatasync={}", u8::from(job.flush)))
            .args(["--ioengine=io_uring", "--direct=1", "--time_based"])
            .args(["--norandommap", "--randrepeat=0", "--lat_percentiles=1"])
            .args(["--refill_buffers=0", "--output-format=json"])
            .arg(format!("--percentile_list={}", percentile_list()));
        parse(&process::output("fio", &mut command)?, job)
    }
}

fn percentile_list() -> String {
    PERCENTAGES.map(|p| p.to_string()).join(":")
}

/// Reads fio's JSON. With a flush after each write the operation is both: their medians are added,
/// and so are their percentiles, which makes the high ones an upper bound.
fn parse(text: &str, job: &Job) -> Result<Sample, BenchError> {
    // A warning may stand before it.
    let start = text.find('{').unwrap_or(0);
    let report: Value = serde_json::from_str(&text[start..]).map_err(|error| BenchError::Json {
        program: "fio",
        what: format!("sense ({error})"),
    })?;
    let number = |path: &str| {
        report
            .pointer(path)
            .and_then(Value::as_f64)
            .ok_or_else(|| BenchError::Json {
                program: "fio",
                what: path.to_owned(),
            })
    };
    let action = match job.action {
        Action::Write => "write",
        Action::Read => "read",
    };
    let at = |share: f64| -> Result<f64, BenchError> {
        let share = format!("{share:.6}");
        let write = number(&format!("/jobs/0/{action}/lat_ns/percentile/{share}"))?;
        let sync = if job.flush {
            number(&format!("/jobs/0/sync/lat_ns/percentile/{share}"))?
        } else {
            0.0
        };
        Ok((write + sync) / 1e3)
    };
    let rate = number(&format!("/jobs/0/{action}/iops"))?;
    let seconds = number(&format!("/jobs/0/{action}/runtime"))? / 1e3;
    let busy = (number("/jobs/0/usr_cpu")? + number("/jobs/0/sys_cpu")?) / 100.0;
    Ok(Sample {
        operations: number(&format!("/jobs/0/{action}/total_ios"))? as u64,
        seconds,
        rate,
        megabytes: rate * f64::from(job.len) / 1e6,
        p50: at(50.0)?,
        p99: at(99.0)?,
        p999: at(99.9)?,
        percentiles: PERCENTAGES
            .into_iter()
            .map(|p| Ok((p, at(p)?)))
            .collect::<Result<_, BenchError>>()?,
        cpu: [("client".to_owned(), busy * 1e6 / rate)].into(),
    })
}

/// The file that qemu and nbdkit serve, and fio writes: never two of them at once.
fn shared_file(room: &Room) -> PathBuf {
    room.dir.join("local.img")
}

/// nbdkit's file plugin on the shared file.
fn nbdkit(room: &Room) -> Result<Served, BenchError> {
    let program = process::program("nbdkit")?;
    let file = shared_file(room);
    let socket = room.dir.join("nbdkit.sock");
    let mut command = Command::new(program);
    command
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(&socket)
        .arg("file")
        .arg(format!("file={}", file.display()))
        .arg("cache=none");
    let process = start("nbdkit", &mut command, &socket, room)?;
    let watched = vec![("server".to_owned(), process.id())];
    Served::connect(
        "nbdkit, file plugin",
        vec![process],
        watched,
        &socket,
        "",
        room,
    )
}

/// All of them. The quorums over TCP need both of the addresses that [`Room::network`] tells of.
///
/// # Errors
/// A program is missing or does not start.
pub fn candidates(room: &Room) -> Result<Vec<Box<dyn Candidate>>, BenchError> {
    let mut quorums = Between::ALL.to_vec();
    quorums.retain(|between| *between != Between::TcpDelayed || room.network == Network::Own);
    some(room, &quorums)
}

/// Those that a plot of many points has room for.
///
/// # Errors
/// As [`candidates`].
pub fn few(room: &Room) -> Result<Vec<Box<dyn Candidate>>, BenchError> {
    some(room, &[Between::Tcp, Between::X509])
}

fn some(room: &Room, quorums: &[Between]) -> Result<Vec<Box<dyn Candidate>>, BenchError> {
    // Missing programs are told before anything is written.
    for name in ["fio", "qemu-storage-daemon", "nbdkit"] {
        process::program(name)?;
    }
    room.check(3)?;
    sparse(&shared_file(room), room.region)?;
    let mut all: Vec<Box<dyn Candidate>> = vec![
        Box::new(qemu::local(room)?),
        Box::new(Fio::new(room, shared_file(room))?),
        Box::new(nbdkit(room)?),
    ];
    for between in quorums {
        all.push(Box::new(qemu::quorum(room, *between)?));
    }
    Ok(all)
}

pub use qemu::{Between, Ends, LOCAL, QUORUM_X509, quorum_at};

fn start(
    name: &str,
    command: &mut Command,
    socket: &Path,
    room: &Room,
) -> Result<Process, BenchError> {
    let mut process = Process::start(name, command, &room.dir)?;
    process.wait_for("NBD socket", START, || socket.exists())?;
    Ok(process)
}

pub(super) fn sparse(path: &Path, len: u64) -> Result<PathBuf, BenchError> {
    let fault = || BenchError::io(path.display().to_string());
    let file = std::fs::File::create(path).map_err(fault())?;
    file.set_len(len).map_err(fault())?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{SMALL, SMALL_FLUSHED};

    #[test]
    fn the_json_of_fio_is_read() {
        let list = |low: u64, high: u64| {
            let list = PERCENTAGES.map(|p| {
                let time = if p < 90.0 { low } else { high };
                format!("\"{p:.6}\": {time}")
            });
            format!("{{\"percentile\": {{{}}}}}", list.join(", "))
        };
        let text = format!(
            r#"fio: a warning
            {{"jobs": [{{"usr_cpu": 5.0, "sys_cpu": 15.0,
              "write": {{"iops": 10000.0, "runtime": 2000, "total_ios": 20000, "lat_ns": {}}},
              "sync": {{"lat_ns": {}}}}}]}}"#,
            list(80_000, 100_000),
            list(20_000, 30_000)
        );
        let text = text.as_str();
        let plain = parse(text, &SMALL).expect("it is whole");
        assert_eq!((plain.operations, plain.p50 as u32), (20_000, 80));
        assert!((plain.cpu["client"] - 20.0).abs() < 1e-9);
        let flushed = parse(text, &SMALL_FLUSHED).expect("it is whole");
        assert_eq!((flushed.p50 as u32, flushed.p99 as u32), (100, 130));
        let error = parse("{}", &SMALL).expect_err("there is no job in it");
        assert!(error.to_string().contains("/jobs/0/write"), "{error}");
    }
}
