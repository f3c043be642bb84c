//! What the kernel shows and lets be set about a device of ours: files below /sys/block/nbdN or ublkbN.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Milliseconds after which the kernel looks at a request again. With one connection and
/// `TIMEOUT` 0 that fails nothing; a request whose connection died is sent again.
pub const IO_TIMEOUT_MS: u32 = 1000;
/// KiB in one request: what every kernel's driver was seen to send in one piece.
pub const MAX_SECTORS_KB: u32 = 1024;

/// The driver that a device belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// nbd: `/dev/nbdN`
    Nbd,
    /// `ublk_drv`: `/dev/ublkbN`
    Ublk,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Nbd, Self::Ublk];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::Ublk => "ublkb",
        }
    }

    /// The name of its device of that number.
    pub fn name(self, index: u32) -> String {
        format!("{}{index}", self.prefix())
    }

    /// The number in `nbd12`, of a device and not of a partition.
    fn index_of(self, name: &str) -> Option<u32> {
        let digits = name.strip_prefix(self.prefix())?;
        (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| digits.parse().ok())?
    }
}

/// One driver's devices in the tree; that is `/sys`, but for tests.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
    kind: Kind,
}

/// Who has a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody: it can be set up.
    Nobody,
    /// It is set up.
    Connected {
        /// The process that did it, which may be gone.
        pid: Option<u32>,
        /// Its identifier; older tools give none.
        backend: Option<String>,
    },
}

/// A setting that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub struct SettingFault {
    /// The file.
    pub path: PathBuf,
    /// The system's answer.
    pub error: io::Error,
}

impl Sysfs {
    /// The devices of `kind` in the tree at `root`.
    pub fn new(root: impl Into<PathBuf>, kind: Kind) -> Self {
        let root = root.into();
        Self { root, kind }
    }

    /// The name of a device, as `nbd12`.
    pub fn name(&self, index: u32) -> String {
        self.kind.name(index)
    }

    /// The folder of a device.
    pub fn device(&self, index: u32) -> PathBuf {
        self.root.join("block").join(self.name(index))
    }

    /// The numbers of all devices, in order.
    ///
    /// # Errors
    /// The folder can't be read: that is no word about what is in it.
    pub fn devices(&self) -> io::Result<Vec<u32>> {
        let folder = self.root.join("block");
        let mut found = Vec::new();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(of(&folder, &error)),
        };
        for entry in entries {
            let name = entry.map_err(|error| of(&folder, &error))?.file_name();
            found.extend(name.to_str().and_then(|name| self.kind.index_of(name)));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Whether there is a device of that number.
    pub fn exists(&self, index: u32) -> bool {
        self.device(index).is_dir()
    }

    /// Who has a device of nbd: `pid` and `backend` exist while it is set up, its connection dead or not.
    ///
    /// # Errors
    /// It can't be told: one of them can't be read.
    pub fn owner(&self, index: u32) -> io::Result<Owner> {
        let pid = self.text(index, "pid")?;
        let backend = self.text(index, "backend")?;
        if pid.is_none() && backend.is_none() {
            return Ok(Owner::Nobody);
        }
        Ok(Owner::Connected {
            pid: pid.and_then(|pid| pid.parse().ok()),
            backend: backend.filter(|backend| !backend.is_empty()),
        })
    }

    /// Bytes of a device; 0 while it is not set up.
    ///
    /// # Errors
    /// It can't be read.
    pub fn size(&self, index: u32) -> io::Result<u64> {
        let sectors = self.text(index, "size")?;
        let sectors = sectors.and_then(|text| text.parse().ok());
        Ok(sectors.unwrap_or(0u64).saturating_mul(512))
    }

    /// The device of nbd that is set up under an identifier.
    ///
    /// # Errors
    /// It can't be told whose one of them is.
    pub fn find(&self, identifier: &str) -> io::Result<Option<u32>> {
        self.find_beside(identifier, &BTreeSet::new())
    }

    /// As [`find`](Self::find), beside those that are known: who was disconnected keeps its identifier for as long as
    /// somebody has it open.
    ///
    /// # Errors
    /// It can't be told whose one of them is.
    pub fn find_beside(&self, identifier: &str, known: &BTreeSet<u32>) -> io::Result<Option<u32>> {
        for index in self
            .devices()?
            .into_iter()
            .filter(|index| !known.contains(index))
        {
            if let Owner::Connected { backend, .. } = self.owner(index)?
                && backend.as_deref() == Some(identifier)
            {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Whether the settings of [`tune`](Self::tune) are there.
    pub fn is_tuned(&self, index: u32) -> bool {
        let set = self.text(index, "queue/io_timeout").ok().flatten();
        set == Some(IO_TIMEOUT_MS.to_string())
    }

    /// Sets a device up for a mirror: requests of a dead connection are sent again within a second,
    /// nothing orders or delays them, and they are long enough. `max_kb` is the longest that
    /// the server takes.
    ///
    /// **May wait for requests in flight** (newer kernels stop the queue while they change it): never
    /// from a process that has to answer them.
    ///
    /// # Errors
    /// The first setting that could not be made; the rest was tried.
    pub fn tune(&self, index: u32, max_kb: u32) -> Result<(), SettingFault> {
        let wanted = MAX_SECTORS_KB.min(max_kb);
        let now = self.text(index, "queue/max_sectors_kb").ok().flatten();
        let now: Option<u32> = now.and_then(|text| text.parse().ok());
        let mut first = None;
        let mut set = |name: &str, value: &str| {
            if let Err(fault) = self.set(index, name, value) {
                first.get_or_insert(fault);
            }
        };
        set("queue/io_timeout", &IO_TIMEOUT_MS.to_string());
        set("queue/scheduler", "none");
        if now.is_some_and(|now| now < wanted || now > max_kb) {
            set("queue/max_sectors_kb", &wanted.to_string());
        }
        first.map_or(Ok(()), Err)
    }

    /// Makes the kernel say that a device has changed, so that udev looks at it again.
    ///
    /// # Errors
    /// The file can't be written (that is root's).
    pub fn announce(&self, index: u32) -> Result<(), SettingFault> {
        self.set(index, "uevent", "change")
    }

    fn set(&self, index: u32, name: &str, value: &str) -> Result<(), SettingFault> {
        let path = self.device(index).join(name);
        let file = fs::OpenOptions::new().write(true).open(&path);
        file.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
            .map_err(|error| SettingFault { path, error })
    }

    /// A file's text without its line's end; `None` where there is none. Any other error (no descriptor is left, no
    /// memory) says nothing of the device.
    fn text(&self, index: u32, name: &str) -> io::Result<Option<String>> {
        let path = self.device(index).join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_going(&error) => Ok(None),
            Err(error) => Err(of(&path, &error)),
        }
    }

    /// What is built on a device or one of its partitions, as `dm-0` or `md127`.
    pub fn holders(&self, index: u32) -> Vec<String> {
        let device = self.device(index);
        let mut folders = vec![device.join("holders")];
        folders.extend(
            self.partitions(index)
                .iter()
                .map(|name| device.join(name).join("holders")),
        );
        let mut found: Vec<String> = folders
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        found.sort_unstable();
        found
    }

    /// A device's partitions, as `nbd0p1`.
    pub fn partitions(&self, index: u32) -> Vec<String> {
        let device = self.device(index);
        let Ok(entries) = fs::read_dir(&device) else {
            return Vec::new();
        };
        let mut found: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| device.join(name).join("partition").exists())
            .collect();
        found.sort_unstable();
        found
    }
}

/// True if the device was removed while the file was open.
fn is_going(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn of(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Driver and number of `/dev/nbd12` or `nbd12`.
pub fn parse_device(text: &str) -> Option<(Kind, u32)> {
    let path = Path::new(text);
    let folder = path.parent().filter(|folder| folder != &Path::new(""));
    if folder.is_some_and(|folder| folder != Path::new("/dev")) {
        return None;
    }
    let name = path.file_name()?.to_str()?;
    Kind::ALL
        .into_iter()
        .find_map(|kind| Some((kind, kind.index_of(name)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of two devices, the second set up.
    fn tree() -> (tempfile::TempDir, Sysfs) {
        let dir = tempfile::tempdir().expect("a folder");
        let sysfs = Sysfs::new(dir.path(), Kind::Nbd);
        for index in [0, 1] {
            let device = sysfs.device(index);
            fs::create_dir_all(device.join("queue")).expect("made");
            fs::create_dir_all(device.join("holders")).expect("made");
            let size = if index == 1 { "2048\n" } else { "0\n" };
            for (name, text) in [
                ("size", size),
                ("queue/io_timeout", "30000\n"),
                ("queue/scheduler", "[mq-deadline] none\n"),
                ("queue/max_sectors_kb", "128\n"),
            ] {
                fs::write(device.join(name), text).expect("written");
            }
        }
        fs::create_dir_all(dir.path().join("block/nbd1/nbd1p1/holders/dm-3")).expect("made");
        fs::write(dir.path().join("block/nbd1/nbd1p1/partition"), "1\n").expect("written");
        fs::create_dir_all(dir.path().join("block/sda")).expect("made");
        fs::write(sysfs.device(1).join("pid"), "4711\n").expect("written");
        fs::write(sysfs.device(1).join("backend"), "kagami-x\n").expect("written");
        (dir, sysfs)
    }

    #[test]
    fn devices_and_their_owners() {
        let (_dir, sysfs) = tree();
        assert_eq!(sysfs.devices().expect("read"), [0, 1]);
        assert!(sysfs.exists(1) && !sysfs.exists(2));
        assert_eq!(sysfs.owner(0).expect("read"), Owner::Nobody);
        let owner = Owner::Connected {
            pid: Some(4711),
            backend: Some("kagami-x".to_owned()),
        };
        assert_eq!(sysfs.owner(1).expect("read"), owner);
        assert_eq!(sysfs.find("kagami-x").expect("read"), Some(1));
        assert_eq!(sysfs.find("kagami-y").expect("read"), None);
        let size = |index| sysfs.size(index).expect("read");
        assert_eq!((size(0), size(1)), (0, 1 << 20));
        assert_eq!(sysfs.holders(1), ["dm-3"]);
        assert_eq!(sysfs.partitions(1), ["nbd1p1"]);
        assert_eq!(sysfs.owner(9).expect("not there"), Owner::Nobody);
    }

    #[test]
    fn what_can_not_be_read_is_nobodys_by_no_means() {
        let (dir, sysfs) = tree();
        fs::remove_file(sysfs.device(1).join("backend")).expect("removed");
        fs::create_dir(sysfs.device(1).join("backend")).expect("made");
        let fault = sysfs.owner(1).expect_err("unknown").to_string();
        assert!(fault.contains("nbd1/backend"), "{fault}");
        assert!(sysfs.find("kagami-y").is_err());
        fs::remove_dir_all(dir.path().join("block")).expect("removed");
        assert_eq!(sysfs.devices().expect("none"), []);
        fs::write(dir.path().join("block"), "").expect("written");
        assert!(sysfs.devices().is_err());
    }

    #[test]
    fn settings_are_made_and_failures_named() {
        let (_dir, sysfs) = tree();
        assert!(!sysfs.is_tuned(0));
        sysfs.tune(0, 32 << 10).expect("set");
        let read = |name: &str| fs::read_to_string(sysfs.device(0).join(name)).expect("there");
        // What was there is longer than what is written: sysfs takes each write by itself.
        assert!(read("queue/io_timeout").starts_with("1000"));
        assert!(read("queue/scheduler").starts_with("none"));
        assert!(read("queue/max_sectors_kb").starts_with("1024"));
        // A server that takes less is not sent more.
        fs::write(sysfs.device(0).join("queue/max_sectors_kb"), "128").expect("written");
        sysfs.tune(0, 64).expect("set");
        assert!(read("queue/max_sectors_kb").starts_with("64"));
        fs::remove_file(sysfs.device(1).join("queue/scheduler")).expect("removed");
        let fault = sysfs.tune(1, 1024).expect_err("refused");
        assert!(
            fault.to_string().contains("nbd1/queue/scheduler"),
            "{fault}"
        );
    }

    #[test]
    fn devices_by_name() {
        assert_eq!(parse_device("/dev/nbd0"), Some((Kind::Nbd, 0)));
        assert_eq!(parse_device("nbd12"), Some((Kind::Nbd, 12)));
        assert_eq!(parse_device("/dev/ublkb3"), Some((Kind::Ublk, 3)));
        for wrong in [
            "/dev/nbd0p1",
            "/dev/ublkb0p1",
            "/dev/ublkc0",
            "/dev/sda",
            "nbd",
            "ublkb",
            "/tmp/nbd0",
            "",
            "nbd-1",
        ] {
            assert_eq!(parse_device(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn each_driver_has_its_own_devices() {
        let (dir, nbd) = tree();
        for name in ["ublkb4/ublkb4p1", "ublkb0/holders/dm-1"] {
            fs::create_dir_all(dir.path().join("block").join(name)).expect("made");
        }
        fs::write(dir.path().join("block/ublkb4/ublkb4p1/partition"), "1").expect("written");
        let ublk = Sysfs::new(dir.path(), Kind::Ublk);
        let devices = |of: &Sysfs| of.devices().expect("read");
        assert_eq!((devices(&nbd), devices(&ublk)), (vec![0, 1], vec![0, 4]));
        assert_eq!(ublk.partitions(4), ["ublkb4p1"]);
        assert_eq!(ublk.holders(0), ["dm-1"]);
    }
}
