//! The child's side of what the daemon asks of the kernel's ublk driver: `kagami kernel-device ublk`.
//!
//! A command to the driver may wait in the kernel for requests that the daemon has to answer, and then no signal ends
//! it: so the daemon never gives one itself. An answer is a line of JSON on standard output:
//!
//! | line | meaning |
//! |---|---|
//! | `{"done":...}` | it is done, and this is what came of it |
//! | `{"waiting":...}` | `start`, `recover`: the queues can be opened now; another line comes when users are let go on |
//! | `{"fault":"busy","words":"..."}` | it is not done; [`UblkFault::name`] and why |

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::thread;

use kagami_nbd_server::ublk::abi::{DeviceInfo, State};
use kagami_nbd_server::ublk::control::{self, Control, ControlRing, Listed, New, Ready};
use kagami_nbd_server::ublk::fault::UblkFault;
use serde_json::{Value, json};

use crate::args::UblkVerb;
use crate::exit::Status;

/// Carries out one verb, and says how it went.
pub fn answer(verb: &UblkVerb) {
    let (dev, sysfs) = (Path::new("/dev"), Path::new("/sys"));
    let done = ControlRing::open(dev, sysfs)
        .and_then(|mut control| carry_out(verb, &mut control, sysfs, end_with_the_input, &mut say));
    say(&line(done));
}

/// Ends this process when nobody waits for it any more: its command is given up in the kernel.
fn end_with_the_input() -> Result<(), UblkFault> {
    let watch = thread::Builder::new().name("kagami-input".to_owned());
    let watching = watch.spawn(|| {
        let _ = io::stdin().lock().read_to_end(&mut Vec::new());
        process::exit(Status::Interrupted as i32);
    });
    let doing = "making a thread";
    watching
        .map(drop)
        .map_err(|error| UblkFault::Io { doing, error })
}

fn carry_out(
    verb: &UblkVerb,
    control: &mut impl Control,
    sysfs: &Path,
    end_with_the_input: fn() -> Result<(), UblkFault>,
    say: &mut impl FnMut(&Value),
) -> Result<Value, UblkFault> {
    match verb {
        UblkVerb::Features => {
            let release = rustix::system::uname();
            let release = release.release().to_string_lossy();
            let features = control::features(control, &release)?;
            Ok(json!({ "features": features, "release": release }))
        }
        UblkVerb::List => {
            let listed = control::list(control, sysfs)?;
            Ok(listed.iter().map(shown).collect())
        }
        UblkVerb::Add(add) => {
            let cpus = thread::available_parallelism().map_or(1, usize::from);
            let new = New::of(
                add.id,
                add.mark,
                add.size,
                add.logical_block(),
                add.rotational,
                add.max_payload,
                cpus,
            );
            let made = control::add(control, &new)?;
            Ok(json!({
                "id": made.id, "queues": made.queues, "depth": made.depth, "max_io": made.max_io,
            }))
        }
        UblkVerb::Start { id, pid } => {
            // Until it is started it waits for nobody, and must not be left half-way.
            let ready = control::start(control, *id)?;
            end_with_the_input()?;
            wait(control, *id, *pid, ready, say)
        }
        UblkVerb::Recover { id, pid, mark } => {
            end_with_the_input()?;
            let ready = control::begin_recovery(control, *id, *mark)?;
            wait(control, *id, *pid, ready, say)
        }
        UblkVerb::Partitions { id } => partitions(*id).map(|()| Value::Null),
        UblkVerb::Stop { id } => control::stop(control, *id).map(|()| Value::Null),
        UblkVerb::Delete { id } => control::delete(control, *id).map(|()| Value::Null),
    }
}

/// Lets the device's users go on as soon as its queues are fetched. The queues are opened only after this has said
/// that it waits: the command must be in the kernel first.
fn wait(
    control: &mut impl Control,
    id: u32,
    pid: u32,
    ready: Ready,
    say: &mut impl FnMut(&Value),
) -> Result<Value, UblkFault> {
    control::end_recovery(control, id, pid)?;
    let Ready { shape, params } = ready;
    say(&json!({ "waiting": {
        "queues": shape.queues, "depth": shape.depth, "max_io": shape.max_io,
        "size": params.size, "logical_block": params.logical_block,
    } }));
    control::recovered(control, id).map(|()| Value::Null)
}

/// Adds the partitions that a device has; one without any is no fault. Reads the device.
fn partitions(id: u32) -> Result<(), UblkFault> {
    let doing = "adding partitions (partx)";
    let device = format!("/dev/ublkb{id}");
    // Its status says nothing: it is the same for a device without a table and for one that can't be read.
    Command::new("partx")
        .args(["--update", &device])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map(drop)
        .map_err(|error| UblkFault::Io { doing, error })
}

fn shown(listed: &Listed) -> Value {
    let DeviceInfo {
        id,
        queues,
        depth,
        state,
        max_io,
        pid,
        mark,
        ..
    } = listed.info;
    let state = match state {
        State::Dead => "dead".to_owned(),
        State::Live => "live".to_owned(),
        State::Quiesced => "quiesced".to_owned(),
        State::Other(number) => format!("state {number}"),
    };
    json!({
        "id": id, "state": state, "mark": format!("{mark:016x}"),
        // The kernel says -1 where nobody serves it.
        "pid": pid.max(0),
        "queues": queues, "depth": depth, "max_io": max_io,
        "size": listed.size, "logical_block": listed.logical_block,
    })
}

fn line(done: Result<Value, UblkFault>) -> Value {
    match done {
        Ok(done) => json!({ "done": done }),
        Err(fault) => json!({ "fault": fault.name(), "words": fault.to_string() }),
    }
}

fn say(line: &Value) {
    let mut out = io::stdout().lock();
    // Nobody listens: then nobody needs it.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::num::NonZeroU32;
    use std::time::Duration;

    use clap::Parser as _;
    use kagami_nbd_server::ublk::Shape;
    use kagami_nbd_server::ublk::abi::{Op, Params, feature};
    use rustix::io::Errno;

    use super::*;
    use crate::args::{Cli, KernelDeviceVerb, Verb};

    /// Answers each command with what was put in for it.
    #[derive(Default)]
    struct Script {
        answers: VecDeque<(Op, Result<Vec<u8>, Errno>)>,
        given: Option<(Op, u64)>,
    }

    impl Script {
        fn then(mut self, op: Op, answer: Result<&[u8], Errno>) -> Self {
            self.answers.push_back((op, answer.map(<[u8]>::to_vec)));
            self
        }

        fn next(&mut self, op: Op) -> Result<Vec<u8>, Errno> {
            let (expected, answer) = self.answers.pop_front().expect("an answer is left");
            assert_eq!(op, expected);
            answer
        }
    }

    impl Control for Script {
        fn command(&mut self, op: Op, _: u32, _: u64, memory: &mut [u8]) -> Result<i32, Errno> {
            memory.copy_from_slice(&self.next(op)?);
            Ok(0)
        }

        fn give(&mut self, op: Op, _: u32, data: u64) -> Result<(), Errno> {
            self.given = Some((op, data));
            Ok(())
        }

        fn answer(&mut self) -> Result<i32, Errno> {
            let (op, _) = self.given.take().expect("given");
            self.next(op).map(|_| 0)
        }

        fn stand_in(&mut self, _: u32, _: Shape) -> Result<(), Errno> {
            Ok(())
        }

        fn dismiss(&mut self) {}

        fn is_held(&mut self, _: u32) -> bool {
            false
        }

        fn request_timeout(&mut self, _: u32) -> Duration {
            Duration::ZERO
        }

        fn now(&mut self) -> Duration {
            Duration::ZERO
        }

        fn pause(&mut self, _: Duration) {}
    }

    const MARK: u64 = 0x00ab_cdef_0123_4567;

    fn device(state: State) -> [u8; DeviceInfo::LEN] {
        let info = DeviceInfo {
            id: 3,
            queues: 2,
            depth: 64,
            state,
            max_io: 1 << 20,
            pid: 7,
            flags: feature::NEEDED,
            mark: MARK,
        };
        info.encode()
    }

    fn params() -> [u8; Params::LEN] {
        let params = Params {
            size: 1 << 30,
            logical_block: NonZeroU32::new(512).expect("not 0"),
            max_payload: 1 << 20,
            rotational: false,
        };
        params.encode()
    }

    /// All lines that `kagami kernel-device ublk WORDS` says before these answers.
    fn said(words: &str, mut script: Script) -> Vec<String> {
        let words = ["kagami", "kernel-device", "ublk"]
            .into_iter()
            .chain(words.split(' '));
        let cli = Cli::try_parse_from(words).expect("right usage");
        let Verb::KernelDevice(KernelDeviceVerb::Ublk(verb)) = cli.verb else {
            panic!("another verb: {:?}", cli.verb);
        };
        let mut said = Vec::new();
        let sysfs = tempfile::tempdir().expect("a folder");
        let node = sysfs.path().join("class/ublk-char/ublkc3");
        std::fs::create_dir_all(node).expect("made");
        let mut say = |line: &Value| said.push(line.to_string());
        let done = carry_out(&verb, &mut script, sysfs.path(), || Ok(()), &mut say);
        said.push(line(done).to_string());
        assert!(script.answers.is_empty(), "not asked: {:?}", script.answers);
        said
    }

    #[test]
    fn a_device_is_added() {
        let script = Script::default()
            .then(Op::AddDev, Ok(&device(State::Dead)))
            .then(Op::SetParams, Ok(&params()));
        let verb =
            "add --mark 00abcdef01234567 --size 1G --logical-block 512 --max-payload 33554432";
        assert_eq!(
            said(verb, script),
            [r#"{"done":{"depth":64,"id":3,"max_io":1048576,"queues":2}}"#]
        );
    }

    #[test]
    fn devices_are_listed() {
        let script = Script::default().then(Op::GetDevInfo, Ok(&device(State::Quiesced)));
        assert_eq!(
            said("list", script),
            [concat!(
                r#"{"done":[{"depth":64,"id":3,"logical_block":0,"mark":"00abcdef01234567","max_io":1048576,"#,
                r#""pid":7,"queues":2,"size":0,"state":"quiesced"}]}"#
            )]
        );
    }

    #[test]
    fn a_start_waits_and_is_done() {
        let script = Script::default()
            .then(Op::GetDevInfo, Ok(&device(State::Dead)))
            .then(Op::GetParams, Ok(&params()))
            .then(Op::StartDev, Ok(&[]))
            .then(Op::GetDevInfo, Ok(&device(State::Quiesced)))
            .then(Op::StartUserRecovery, Ok(&[]))
            .then(Op::GetParams, Ok(&params()))
            .then(Op::EndUserRecovery, Ok(&[]));
        assert_eq!(
            said("start 3 4711", script),
            [
                r#"{"waiting":{"depth":64,"logical_block":512,"max_io":1048576,"queues":2,"size":1073741824}}"#,
                r#"{"done":null}"#
            ]
        );
    }

    #[test]
    fn a_recovery_waits_and_fails() {
        let script = Script::default()
            .then(Op::GetDevInfo, Ok(&device(State::Quiesced)))
            .then(Op::StartUserRecovery, Ok(&[]))
            .then(Op::GetParams, Ok(&params()))
            .then(Op::EndUserRecovery, Err(Errno::INTR));
        let said = said("recover 3 4711 --mark 00abcdef01234567", script);
        assert!(said[0].starts_with(r#"{"waiting":{"#), "{said:?}");
        assert!(
            said[1].starts_with(r#"{"fault":"failed","words":"#),
            "{said:?}"
        );
        assert!(said[1].contains("END_USER_RECOVERY"), "{said:?}");
        assert_eq!(said.len(), 2);
    }

    #[test]
    fn what_is_not_there_is_gone_or_done() {
        let script = Script::default().then(Op::StopDev, Err(Errno::NODEV));
        let said_of_stop = said("stop 3", script);
        assert!(
            said_of_stop[0].starts_with(r#"{"fault":"gone","#),
            "{said_of_stop:?}"
        );
        let script = Script::default().then(Op::DelDevAsync, Err(Errno::NODEV));
        assert_eq!(said("delete 3", script), [r#"{"done":null}"#]);
    }

    #[test]
    fn wrong_marks_and_processes_are_wrong_usage() {
        let is_usage = |words: &str| {
            let verb = ["kagami", "kernel-device", "ublk", "recover"];
            Cli::try_parse_from(verb.into_iter().chain(words.split(' '))).is_ok()
        };
        assert!(is_usage("3 4711 --mark 00abcdef01234567"));
        for wrong in [
            "3 0 --mark 00abcdef01234567",
            "3 4294967295 --mark 00abcdef01234567",
            "3 4711 --mark +0abcdef01234567",
            "3 4711 --mark abcdef",
            "3 4711",
        ] {
            assert!(!is_usage(wrong), "{wrong}");
        }
    }
}
