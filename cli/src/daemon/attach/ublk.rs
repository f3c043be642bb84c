//! The control commands of the kernel's ublk driver, given by another process.
//!
//! They take locks of the kernel's that can't be interrupted, and `START_DEV` and `END_USER_RECOVERY` wait for
//! what this daemon does meanwhile. So each is a run of `kagami kernel-device ublk`, whose answer is a line
//! of JSON. A child that is not wanted any more is told so by its input's end, and is never killed: in the middle of
//! `START_DEV` that could be the kernel's end.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use kagami_nbd_server::ublk::{Shape, fault};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::helper::{HelperFault, Stuck, Talk};

/// A command that has nobody to wait for is answered within.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// A child that is not wanted any more is gone within: it may be in the middle of a command that can't be interrupted.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// What the kernel keeps with a device to say whose it is: this mirror on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u64);

impl Mark {
    /// The mark of who is known by `identifier`.
    pub fn of(identifier: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(identifier).into();
        let (first, _) = digest.split_first_chunk().expect("32 bytes hold 8");
        Self(u64::from_be_bytes(*first))
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl<'de> Deserialize<'de> for Mark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let mark = u64::from_str_radix(&digits, 16);
        mark.map(Self).map_err(D::Error::custom)
    }
}

/// How far a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not started, or stopped: it is no block device.
    Dead,
    /// It is served, or was until a moment ago.
    Live,
    /// Who served it has died: the kernel keeps its requests for the next.
    Quiesced,
    /// One that this version does not know.
    #[serde(other)]
    Other,
}

/// A device as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Known {
    /// N of /dev/ublkbN.
    pub id: u32,
    /// How far it is.
    pub state: State,
    /// Whose it is.
    pub mark: Mark,
    /// The process that serves it, or did.
    pub pid: i32,
}

/// How a device is, which can't be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Form {
    queues: u16,
    depth: u16,
    max_io: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes.
    pub logical_block: u32,
}

impl Form {
    /// Of these queues, that many bytes in blocks of that many.
    #[cfg(test)]
    pub const fn new(shape: Shape, size: u64, logical_block: u32) -> Self {
        Self {
            queues: shape.queues,
            depth: shape.depth,
            max_io: shape.max_io,
            size,
            logical_block,
        }
    }

    /// Its queues.
    pub const fn shape(&self) -> Shape {
        Shape {
            queues: self.queues,
            depth: self.depth,
            max_io: self.max_io,
        }
    }
}

/// A device to be made.
#[derive(Clone, Copy, Debug)]
pub struct New {
    /// That number; none: a free one.
    pub id: Option<u32>,
    /// Whose it is.
    pub mark: Mark,
    /// Bytes.
    pub size: u64,
    /// Bytes.
    pub logical_block: u32,
    /// The longest payload that the mirror takes, bytes.
    pub max_payload: u32,
    /// Seeks cost.
    pub rotational: bool,
}

/// Why the driver did not do it, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// It is another's.
    InUse,
    /// There is no such device.
    Gone,
    /// Who served it before has it open still.
    Busy,
    /// The module is not loaded.
    NoModule,
    /// `CAP_SYS_ADMIN` is missing.
    NotPermitted,
    /// The kernel is.
    TooOld,
    /// No process can serve it any more.
    Lost,
    /// Anything else.
    Failed,
}

impl FaultKind {
    /// As the child spells it.
    const fn name(self) -> &'static str {
        match self {
            Self::InUse => "in-use",
            Self::Gone => "gone",
            Self::Busy => "busy",
            Self::NoModule => "no-module",
            Self::NotPermitted => "not-permitted",
            Self::TooOld => "too-old",
            Self::Lost => "lost",
            Self::Failed => "failed",
        }
    }
}

/// What the driver did not do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{words}")]
pub struct UblkFault {
    /// In one word.
    pub kind: FaultKind,
    /// In words for a person.
    pub words: String,
}

impl UblkFault {
    /// Not the driver's, but of the way to it.
    fn failed(words: impl fmt::Display) -> Self {
        Self {
            kind: FaultKind::Failed,
            words: format!("the kernel's ublk driver can't be asked: {words}"),
        }
    }

    /// What a person can do about it.
    pub fn next(&self) -> &'static str {
        fault::next(self.kind.name())
    }
}

impl From<HelperFault> for UblkFault {
    fn from(fault: HelperFault) -> Self {
        Self::failed(fault)
    }
}

/// The driver.
pub trait UblkControl: fmt::Debug + Send + Sync {
    /// Whether devices can be made and taken over with this kernel.
    ///
    /// # Errors
    /// Why not.
    fn check(&self) -> Result<(), UblkFault>;

    /// All devices.
    ///
    /// # Errors
    /// They can't be told; never for the reason that there are none.
    fn devices(&self) -> Result<Vec<Known>, UblkFault>;

    /// Makes one, and says which number and queues it has. It can't be opened before it is started.
    ///
    /// # Errors
    /// The number is another's, ...
    fn add(&self, new: &New) -> Result<(u32, Shape), UblkFault>;

    /// Begins to start one. Its queues are to be fetched once the kernel [waits](Going::waiting) for that.
    ///
    /// # Errors
    /// It could not be begun.
    fn start(&self, id: u32) -> Result<Box<dyn Going>, UblkFault>;

    /// Begins to take one over whose server died. Its queues are to be fetched once the kernel
    /// [waits](Going::waiting) for that.
    ///
    /// # Errors
    /// It could not be begun.
    fn recover(&self, id: u32, mark: Mark) -> Result<Box<dyn Going>, UblkFault>;

    /// Lets the kernel know the partitions of one that is served: it does not look for them by itself. Reads the
    /// device; blocks up to `patience`.
    ///
    /// # Errors
    /// It could not be tried, or the device does not answer.
    fn partitions(&self, id: u32, patience: Duration) -> Result<(), UblkFault>;

    /// Stops one: it is no block device any more, and what waits in it fails. A daemon that serves it must answer
    /// what it has taken while this waits.
    ///
    /// # Errors
    /// [`FaultKind::Gone`], or it was not stopped.
    fn stop(&self, id: u32) -> Result<(), UblkFault>;

    /// Removes one that was stopped, or never started.
    ///
    /// # Errors
    /// [`FaultKind::Gone`], or somebody has it open still.
    fn delete(&self, id: u32) -> Result<(), UblkFault>;
}

/// A command that waits in the kernel until the queues are fetched. Given up when this is dropped.
pub trait Going: Send {
    /// Whether the kernel waits, and how the device is. Blocks up to `patience`; `None`: not yet.
    fn waiting(&mut self, patience: Duration) -> Option<Result<Form, UblkFault>>;

    /// Whether it is carried out. Blocks up to `patience`; `None`: not yet.
    fn done(&mut self, patience: Duration) -> Option<Result<(), UblkFault>>;

    /// Gives it up. False: it may be carried out yet.
    fn give_up(self: Box<Self>) -> bool;
}

/// By children of this process.
#[derive(Clone, Debug)]
pub struct ByChild {
    /// The program that has `kernel-device`.
    pub program: PathBuf,
    /// `/sys`
    pub sysfs: PathBuf,
    /// Commands that the driver does not come to an end with.
    pub stuck: Stuck,
}

impl ByChild {
    fn begin(&self, arguments: &[&str]) -> Result<Talk, UblkFault> {
        let mut command = Command::new(&self.program);
        command.args(["kernel-device", "ublk"]).args(arguments);
        let what = format!("ublk {}", arguments.join(" "));
        Ok(Talk::begin_unless_stuck(command, &self.stuck, what)?)
    }

    /// One command with one answer.
    fn ask<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T, UblkFault> {
        self.ask_within(PATIENCE, arguments)
    }

    fn ask_within<T: DeserializeOwned>(
        &self,
        patience: Duration,
        arguments: &[&str],
    ) -> Result<T, UblkFault> {
        let mut talk = self.begin(arguments)?;
        understand("done", &talk.line(patience)?)
    }

    fn go(&self, arguments: &[&str]) -> Result<Box<dyn Going>, UblkFault> {
        let talk = self.begin(arguments)?;
        Ok(Box::new(Child { talk }))
    }
}

/// What a child's line says under `key`.
fn understand<T: DeserializeOwned>(key: &str, line: &str) -> Result<T, UblkFault> {
    let strange =
        |why: &dyn fmt::Display| UblkFault::failed(format_args!("it said {line:?}: {why}"));
    let mut said: serde_json::Map<String, Value> =
        serde_json::from_str(line).map_err(|error| strange(&error))?;
    if let Some(value) = said.remove(key) {
        return serde_json::from_value(value).map_err(|error| strange(&error));
    }
    let kind = said
        .remove("fault")
        .and_then(|kind| serde_json::from_value(kind).ok());
    match (kind, said.get("words").and_then(Value::as_str)) {
        (Some(kind), Some(words)) => Err(UblkFault {
            kind,
            words: words.to_owned(),
        }),
        _ => Err(strange(&format_args!("neither {key} nor a fault"))),
    }
}

/// The answer to `add`.
#[derive(Deserialize)]
struct Added {
    id: u32,
    queues: u16,
    depth: u16,
    max_io: u32,
}

impl UblkControl for ByChild {
    fn check(&self) -> Result<(), UblkFault> {
        // What they are is the child's to judge; here only the fault counts.
        let _: Value = self.ask(&["features"])?;
        Ok(())
    }

    fn devices(&self) -> Result<Vec<Known>, UblkFault> {
        // Most machines have none: no child for that.
        let folder = self.sysfs.join("class/ublk-char");
        let first = match fs::read_dir(&folder) {
            Ok(mut devices) => devices.next().transpose(),
            // The module is not loaded.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        match first {
            Ok(None) => Ok(Vec::new()),
            Ok(Some(_)) => self.ask(&["list"]),
            Err(error) => Err(UblkFault::failed(format_args!(
                "{}: {error}",
                folder.display()
            ))),
        }
    }

    fn add(&self, new: &New) -> Result<(u32, Shape), UblkFault> {
        let (mark, size) = (new.mark.to_string(), new.size.to_string());
        let (block, payload) = (new.logical_block.to_string(), new.max_payload.to_string());
        let id = new.id.map(|id| id.to_string());
        let mut arguments = vec!["add", "--mark", &mark, "--size", &size];
        arguments.extend(["--logical-block", &block, "--max-payload", &payload]);
        if new.rotational {
            arguments.push("--rotational");
        }
        if let Some(id) = &id {
            arguments.extend(["--id", id]);
        }
        let added: Added = self.ask(&arguments)?;
        let shape = Shape {
            queues: added.queues,
            depth: added.depth,
            max_io: added.max_io,
        };
        Ok((added.id, shape))
    }

    fn start(&self, id: u32) -> Result<Box<dyn Going>, UblkFault> {
        self.go(&["start", &id.to_string(), &std::process::id().to_string()])
    }

    fn recover(&self, id: u32, mark: Mark) -> Result<Box<dyn Going>, UblkFault> {
        let (id, me) = (id.to_string(), std::process::id().to_string());
        self.go(&["recover", &id, &me, "--mark", &mark.to_string()])
    }

    fn partitions(&self, id: u32, patience: Duration) -> Result<(), UblkFault> {
        self.ask_within(patience, &["partitions", &id.to_string()])
    }

    fn stop(&self, id: u32) -> Result<(), UblkFault> {
        self.ask(&["stop", &id.to_string()])
    }

    fn delete(&self, id: u32) -> Result<(), UblkFault> {
        self.ask(&["delete", &id.to_string()])
    }
}

/// A child that gives one command and waits for its end.
struct Child {
    talk: Talk,
}

impl Child {
    fn hear<T: DeserializeOwned>(
        &mut self,
        key: &str,
        patience: Duration,
    ) -> Option<Result<T, UblkFault>> {
        match self.talk.line(patience) {
            Ok(line) => Some(understand(key, &line)),
            Err(HelperFault::NoAnswer) => None,
            Err(fault) => Some(Err(fault.into())),
        }
    }
}

impl Going for Child {
    fn waiting(&mut self, patience: Duration) -> Option<Result<Form, UblkFault>> {
        self.hear("waiting", patience)
    }

    fn done(&mut self, patience: Duration) -> Option<Result<(), UblkFault>> {
        self.hear("done", patience)
    }

    fn give_up(self: Box<Self>) -> bool {
        self.talk.end(END_PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    #[test]
    fn a_mark_is_the_first_bytes_of_a_digest() {
        // printf kagami-x | sha256sum
        let mark = Mark::of("kagami-x");
        assert_eq!(mark.to_string(), "3d99fe7f4900c5fa");
        assert_ne!(mark, Mark::of("kagami-y"));
        let spelled: Mark = serde_json::from_str("\"00000000000000ff\"").expect("understood");
        assert_eq!(spelled, Mark(0xff));
        assert!(serde_json::from_str::<Mark>("\"x\"").is_err());
    }

    #[test]
    fn a_childs_lines_are_understood() {
        let list = r#"{"done":[{"id":3,"state":"quiesced","mark":"00000000000000ff","pid":77,"queues":2,"depth":64,"max_io":1048576,"size":4096,"logical_block":512}]}"#;
        let known: Vec<Known> = understand("done", list).expect("understood");
        let expected = Known {
            id: 3,
            state: State::Quiesced,
            mark: Mark(0xff),
            pid: 77,
        };
        assert_eq!(known, [expected]);
        let waiting =
            r#"{"waiting":{"queues":2,"depth":64,"max_io":65536,"size":4096,"logical_block":512}}"#;
        let form: Form = understand("waiting", waiting).expect("understood");
        assert_eq!((form.shape().queues, form.size), (2, 4096));
        understand::<()>("done", r#"{"done":null}"#).expect("understood");
        let fault = understand::<()>("done", r#"{"fault":"in-use","words":"it is another's"}"#);
        let fault = fault.expect_err("a fault");
        assert_eq!(
            (fault.kind, fault.words.as_str()),
            (FaultKind::InUse, "it is another's")
        );
    }

    #[test]
    fn every_fault_of_the_child_is_known() {
        for name in [
            "in-use",
            "gone",
            "busy",
            "no-module",
            "not-permitted",
            "too-old",
            "lost",
            "failed",
        ] {
            let line = format!(r#"{{"fault":"{name}","words":"so"}}"#);
            let fault = understand::<()>("done", &line).expect_err("a fault");
            assert_eq!((fault.kind.name(), fault.words.as_str()), (name, "so"));
        }
    }

    #[test]
    fn a_folder_that_can_not_be_read_is_not_taken_for_an_empty_one() {
        let sysfs = tempfile::tempdir().expect("a folder");
        let driver = ByChild {
            program: "/bin/false".into(),
            sysfs: sysfs.path().to_owned(),
            stuck: Stuck::default(),
        };
        assert_eq!(driver.devices().expect("no driver"), []);
        fs::create_dir_all(sysfs.path().join("class")).expect("made");
        fs::write(sysfs.path().join("class/ublk-char"), "").expect("written");
        let fault = driver.devices().expect_err("no folder");
        assert!(fault.words.contains("ublk-char"), "{fault}");
    }

    /// Each waits behind the one before in the kernel, and none can be killed there.
    #[test]
    fn a_child_that_hangs_is_not_begun_again_and_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (program, begun) = (folder.path().join("hangs"), folder.path().join("begun"));
        // It hears of nothing; another command is answered.
        let script = format!(
            "#!/bin/sh\n[ \"$3\" = list ] || {{ echo '{{\"done\":null}}'; exit; }}\necho $$ >>{}\nexec sleep 1000\n",
            begun.display()
        );
        // Written by another process: one that this has open for writing could not be run.
        let written = Command::new("sh")
            .args(["-c", "printf %s \"$1\" >$0 && chmod 755 $0"])
            .arg(&program)
            .arg(script)
            .status();
        assert!(written.expect("a shell").success());
        let driver = ByChild {
            program,
            sysfs: folder.path().to_owned(),
            stuck: Stuck::default(),
        };
        let ask = || driver.ask_within::<Value>(Duration::from_secs(5), &["list"]);
        let begun = || {
            let begun = fs::read_to_string(&begun).expect("one was begun");
            begun.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let fault = ask().expect_err("no answer");
        assert!(fault.words.contains("does not answer"), "{fault}");
        let stuck = begun().concat();
        for _ in 0..3 {
            let fault = ask().expect_err("it hangs");
            let words = format!("list` (process {stuck}) was given up and has not ended");
            assert!(fault.words.contains(&words), "{fault}");
        }
        assert_eq!(begun().len(), 1);
        driver.stop(7).expect("another command is");
        // Once the kernel lets go of it, it is asked again.
        let process = Pid::from_raw(stuck.parse().expect("a process")).expect("a process");
        kill_process(process, Signal::KILL).expect("killed");
        let deadline = Instant::now() + Duration::from_secs(30);
        while begun().len() == 1 {
            assert!(Instant::now() < deadline, "it is not asked again");
            let _ = driver.ask_within::<Value>(Duration::from_millis(100), &["list"]);
        }
        let process = begun()[1].parse().expect("a process");
        kill_process(Pid::from_raw(process).expect("a process"), Signal::KILL).expect("killed");
    }

    #[test]
    fn a_child_that_makes_no_sense_is_quoted() {
        for line in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"fault":"in-use"}"#,
            r#"{"fault":"purple","words":"?"}"#,
            r#"{"waiting":{}}"#,
            r#"{"done":7}"#,
        ] {
            let fault = understand::<Form>("done", line).expect_err(line);
            assert_eq!(fault.kind, FaultKind::Failed, "{line}");
            assert!(fault.words.contains("it said"), "{}", fault.words);
        }
    }
}
