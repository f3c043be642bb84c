//! The guard's process alone, and what must not keep it from its work.

use std::fs;
use std::io::{self, BufRead as _, BufReader, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kagami_failover::clock;
use kagami_failover::guard_process::message::{Request, Say, Want, Watched};
use rustix::fs::OFlags;

const PATIENCE: Duration = Duration::from_secs(30);

/// Ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pipe that takes nothing more until somebody reads, and how much is in it.
fn full_pipe() -> (PipeReader, PipeWriter, usize) {
    let (reader, mut writer) = io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    let mut length = 0;
    while let Ok(written) = writer.write(&[b'x'; 4096]) {
        length += written;
    }
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    (reader, writer, length)
}

#[test]
fn a_log_that_takes_nothing_keeps_the_guard_from_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("kagami.toml"), "[node]\nname = \"alpha\"\nid = 1\n").unwrap();
    let (mut log, stderr, full) = full_pipe();
    let guard = Command::new(env!("CARGO_BIN_EXE_kagami"))
        .arg("--config")
        .arg(at("kagami.toml"))
        .args(["guard", "--socket"])
        .arg(at("guard.sock"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn();
    let _guard = Ended(guard.unwrap());
    let begun = Instant::now();
    let mut stream = loop {
        if let Ok(stream) = UnixStream::connect(at("guard.sock")) {
            break stream;
        }
        assert!(begun.elapsed() < PATIENCE, "it listens");
        std::thread::sleep(Duration::from_millis(10));
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let group = at("group");
    fs::create_dir(&group).unwrap();
    let watched = Watched {
        group: "g".to_owned(),
        mirrors: Vec::new(),
        control_group: Some(group.clone()),
        units: Vec::new(),
        addresses: Vec::new(),
        margin_ms: 10_000,
        bound_ms: 600_000,
        lease_ends_ms: Some(clock::now().after(300).0),
    };
    let held = true;
    let request = Request {
        id: 1,
        want: Want::Arm { watched, held },
    };
    let mut line = serde_json::to_vec(&request).unwrap();
    line.push(b'\n');
    stream.write_all(&line).unwrap();
    let mut says = BufReader::new(stream).lines();
    let mut next = || serde_json::from_str::<Say>(&says.next().unwrap().unwrap()).unwrap();
    let stopping = false;
    assert_eq!(next(), Say::Done { id: 1, stopping });
    // The lease ends, and no permission comes.
    let frozen = || fs::read_to_string(group.join("cgroup.freeze")).unwrap_or_default();
    while frozen() != "1" {
        assert!(begun.elapsed() < PATIENCE, "it is frozen");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(next(), Say::Lost("g".to_owned()));
    assert_eq!(frozen(), "0");
    // What was said is written when there is room.
    log.read_exact(&mut vec![0; full]).unwrap();
    let mut lines = BufReader::new(log).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("group g: SayLost")));
}
