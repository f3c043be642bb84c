//! What others make of the same disk: fio on the file itself, and qemu's storage daemon.
//!
//! All open their files with `O_DIRECT` and honour flushes. qemu's quorum of a local file and NBD to a
//! second process is the nearest that it has to a mirror, in clear where kagami's link is encrypted.
//! It runs twice: over TCP on loopback, as between two machines, and over a Unix socket, which has no
//! acknowledgements to delay.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::candidate::{Candidate, Room, START, Served};
use crate::error::BenchError;
use crate::job::{Job, Pattern, Sample};
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
        let pattern = match job.pattern {
            Pattern::Random => "randwrite",
            Pattern::Sequential => "write",
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
            .args(["--refill_buffers=0", "--output-format=json"]);
        parse(&process::output("fio", &mut command)?, job)
    }
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
    let at = |share: &str| -> Result<f64, BenchError> {
        let write = number(&format!("/jobs/0/write/lat_ns/percentile/{share}"))?;
        let sync = if job.flush {
            number(&format!("/jobs/0/sync/lat_ns/percentile/{share}"))?
        } else {
            0.0
        };
        Ok((write + sync) / 1e3)
    };
    let rate = number("/jobs/0/write/iops")?;
    let seconds = number("/jobs/0/write/runtime")? / 1e3;
    let busy = (number("/jobs/0/usr_cpu")? + number("/jobs/0/sys_cpu")?) / 100.0;
    Ok(Sample {
        operations: number("/jobs/0/write/total_ios")? as u64,
        seconds,
        rate,
        megabytes: rate * f64::from(job.len) / 1e6,
        p50: at("50.000000")?,
        p99: at("99.000000")?,
        p999: at("99.900000")?,
        cpu: [("client".to_owned(), busy * 1e6 / rate)].into(),
    })
}

/// The file that [`qemu_local`] serves and fio writes: never both at once.
pub fn shared_file(room: &Room) -> PathBuf {
    room.dir.join("qemu-local.img")
}

/// qemu-storage-daemon with a local file.
///
/// # Errors
/// It does not start.
pub fn qemu_local(room: &Room) -> Result<Served, BenchError> {
    let file = sparse(&shared_file(room), room.region)?;
    let socket = room.dir.join("qemu-local.sock");
    let mut command = qemu()?;
    command.args(["--blockdev", &file_node("disk", &file)]);
    export(&mut command, &unix(&socket), "disk");
    let process = start("qemu-local", &mut command, &socket, room)?;
    let watched = vec![("server".to_owned(), process.id())];
    Served::connect(
        "qemu, one local file",
        vec![process],
        watched,
        &socket,
        "disk",
        room,
    )
}

/// How the two processes of a quorum talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// TCP on loopback.
    Tcp,
    /// A Unix socket.
    Unix,
}

/// qemu's quorum driver: a local file, and NBD in clear to a second process with another.
///
/// # Errors
/// It does not start.
pub fn qemu_quorum(room: &Room, between: Between) -> Result<Served, BenchError> {
    let (name, tag) = match between {
        Between::Tcp => ("qemu quorum, TCP in clear", "quorum-tcp"),
        Between::Unix => ("qemu quorum, Unix socket", "quorum-unix"),
    };
    let place = |what: &str| room.dir.join(format!("{tag}-{what}"));
    let (socket, second_socket) = (place("1.sock"), place("2.sock"));
    let (server, child) = match between {
        Between::Unix => (
            unix(&second_socket),
            format!("server.type=unix,server.path={}", second_socket.display()),
        ),
        Between::Tcp => {
            let port = free_port()?;
            (
                format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}"),
                format!("server.type=inet,server.host=127.0.0.1,server.port={port}"),
            )
        }
    };
    let mut second = qemu()?;
    let file = sparse(&place("2.img"), room.region)?;
    second.args(["--blockdev", &file_node("disk", &file)]);
    // The Unix socket is there besides, to see when it is up.
    export(&mut second, &server, "disk");
    second.args(["--pidfile", &place("2.pid").display().to_string()]);
    let mut second = Process::start(&format!("{tag}-2"), &mut second, &room.dir, None)?;
    // The file is written when everything asked for is set up.
    second.wait_for("pid file", START, || place("2.pid").exists())?;
    let mut first = qemu()?;
    let file = sparse(&place("1.img"), room.region)?;
    first.args(["--blockdev", &file_node("here", &file)]);
    first.args([
        "--blockdev",
        &format!("driver=nbd,node-name=there,export=disk,{child}"),
    ]);
    first.args([
        "--blockdev",
        "driver=quorum,node-name=disk,vote-threshold=2,children.0=here,children.1=there",
    ]);
    export(&mut first, &unix(&socket), "disk");
    let first = start(&format!("{tag}-1"), &mut first, &socket, room)?;
    let watched = vec![
        ("primary".to_owned(), first.id()),
        ("secondary".to_owned(), second.id()),
    ];
    let processes = vec![second, first];
    Served::connect(name, processes, watched, &socket, "disk", room)
}

fn qemu() -> Result<Command, BenchError> {
    process::program("qemu-storage-daemon").map(Command::new)
}

fn file_node(name: &str, file: &Path) -> String {
    format!(
        "driver=file,node-name={name},filename={},cache.direct=on,aio=io_uring",
        file.display()
    )
}

fn unix(socket: &Path) -> String {
    format!("addr.type=unix,addr.path={}", socket.display())
}

fn export(command: &mut Command, server: &str, node: &str) {
    command.args(["--nbd-server", server]).args([
        "--export",
        &format!("type=nbd,id=export,node-name={node},name={node},writable=on"),
    ]);
}

fn start(
    name: &str,
    command: &mut Command,
    socket: &Path,
    room: &Room,
) -> Result<Process, BenchError> {
    let mut process = Process::start(name, command, &room.dir, None)?;
    process.wait_for("NBD socket", START, || socket.exists())?;
    Ok(process)
}

fn sparse(path: &Path, len: u64) -> Result<PathBuf, BenchError> {
    let fault = || BenchError::io(path.display().to_string());
    let file = std::fs::File::create(path).map_err(fault())?;
    file.set_len(len).map_err(fault())?;
    Ok(path.to_owned())
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16, BenchError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(BenchError::io("a free port"))?;
    let address = listener
        .local_addr()
        .map_err(BenchError::io("a free port"))?;
    Ok(address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JOBS;

    #[test]
    fn the_json_of_fio_is_read() {
        let text = r#"fio: a warning
        {"jobs": [{"usr_cpu": 5.0, "sys_cpu": 15.0,
          "write": {"iops": 10000.0, "runtime": 2000, "total_ios": 20000,
            "lat_ns": {"percentile": {"50.000000": 80000, "99.000000": 100000, "99.900000": 200000}}},
          "sync": {"lat_ns": {"percentile": {"50.000000": 20000, "99.000000": 30000, "99.900000": 40000}}}
        }]}"#;
        let plain = parse(text, &JOBS[0]).expect("it is whole");
        assert_eq!((plain.operations, plain.p50 as u32), (20_000, 80));
        assert!((plain.cpu["client"] - 20.0).abs() < 1e-9);
        let flushed = parse(text, &JOBS[1]).expect("it is whole");
        assert_eq!((flushed.p50 as u32, flushed.p99 as u32), (100, 130));
        let error = parse("{}", &JOBS[0]).expect_err("there is no job in it");
        assert!(error.to_string().contains("/jobs/0/write"), "{error}");
    }
}
