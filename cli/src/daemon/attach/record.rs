//! What is attached, on disk: a file for each mirror, whole or not there.
//!
//! A daemon that starts again takes its devices back by it. The file is replaced by a new one that is
//! flushed first, and the folder after it, so that a crash leaves the old or the new.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::driver::{DeviceId, Driver};

/// The version of the file.
const VERSION: u32 = 1;

/// One attached mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// 1
    pub version: u32,
    /// The mirror's uuid, 32 hexadecimal digits: a mirror of the same name may be another one.
    pub mirror: String,
    /// By which driver. nbd's is not written: older builds know no other, and understand its records.
    #[serde(default, skip_serializing_if = "Driver::is_nbd")]
    pub driver: Driver,
    /// N of /dev/nbdN or /dev/ublkbN.
    pub device: u32,
    /// When it was attached, milliseconds since 1970.
    pub since_ms: u64,
    /// The tag of the generation at a clean stop of the daemon; none while it is in use.
    pub stopped_at: Option<u64>,
    /// Why what the kernel holds for the device is no longer what the mirror holds.
    pub stale: Option<String>,
}

impl Record {
    /// A mirror that was attached now.
    pub fn new(mirror: &str, id: DeviceId, since_ms: u64) -> Self {
        Self {
            version: VERSION,
            mirror: mirror.to_owned(),
            driver: id.driver,
            device: id.index,
            since_ms,
            stopped_at: None,
            stale: None,
        }
    }

    /// The device.
    pub fn id(&self) -> DeviceId {
        DeviceId {
            driver: self.driver,
            index: self.device,
        }
    }

    /// It is that device now.
    pub fn set_id(&mut self, id: DeviceId) {
        self.driver = id.driver;
        self.device = id.index;
    }
}

/// A record that can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {doing}: {error}", path.display())]
pub struct RecordFault {
    /// The file or folder.
    pub path: PathBuf,
    /// What was being done.
    pub doing: &'static str,
    /// The system's word.
    pub error: io::Error,
}

/// The folder of the records.
#[derive(Clone, Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// Those of a node whose state is in `state`.
    pub fn of(state: &Path) -> Self {
        Self {
            folder: state.join("attached"),
        }
    }

    fn path(&self, mirror: &str) -> PathBuf {
        // Names of mirrors are letters, digits and a few signs: no path is hidden in them.
        self.folder.join(format!("{mirror}.json"))
    }

    /// The record of a mirror, if it is attached.
    ///
    /// # Errors
    /// It can't be read, or makes no sense.
    pub fn read(&self, mirror: &str) -> Result<Option<Record>, RecordFault> {
        let path = self.path(mirror);
        let fault = |doing| {
            let path = path.clone();
            move |error| RecordFault { path, doing, error }
        };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault("reading it")(error)),
        };
        let record: Record = serde_json::from_slice(&text)
            .map_err(|error| fault("understanding it")(error.into()))?;
        if record.version != VERSION {
            let newer = format!("its version is {}, known is {VERSION}", record.version);
            return Err(fault("understanding it")(io::Error::other(newer)));
        }
        Ok(Some(record))
    }

    /// Writes a record; durable when this returns.
    ///
    /// # Errors
    /// The system's word.
    pub fn write(&self, mirror: &str, record: &Record) -> Result<(), RecordFault> {
        let path = self.path(mirror);
        let fault = |path: &Path, doing| {
            let path = path.to_owned();
            move |error| RecordFault { path, doing, error }
        };
        fs::create_dir_all(&self.folder).map_err(fault(&self.folder, "making the folder"))?;
        let new = path.with_extension("new");
        let text = serde_json::to_vec(record)
            .map_err(|error| fault(&path, "spelling it")(error.into()))?;
        let mut file = fs::File::create(&new).map_err(fault(&new, "making it"))?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(fault(&new, "writing it"))?;
        fs::rename(&new, &path).map_err(fault(&path, "replacing it"))?;
        self.sync()
    }

    /// Removes a record; durable when this returns. None there is no fault.
    ///
    /// # Errors
    /// The system's word.
    pub fn remove(&self, mirror: &str) -> Result<(), RecordFault> {
        let path = self.path(mirror);
        match fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(RecordFault {
                path,
                doing: "removing it",
                error,
            }),
        }
    }

    fn sync(&self) -> Result<(), RecordFault> {
        let folder = fs::File::open(&self.folder);
        folder
            .and_then(|folder| folder.sync_all())
            .map_err(|error| RecordFault {
                path: self.folder.clone(),
                doing: "flushing the folder",
                error,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_until_it_is_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Records::of(dir.path());
        assert_eq!(records.read("pg").expect("read"), None);
        let mut record = Record::new("00ff", DeviceId::nbd(3), 17);
        records.write("pg", &record).expect("written");
        record.stopped_at = Some(u64::MAX);
        records.write("pg", &record).expect("written");
        assert_eq!(records.read("pg").expect("read"), Some(record));
        assert_eq!(records.read("other").expect("read"), None);
        records.remove("pg").expect("removed");
        records.remove("pg").expect("nothing to remove");
        assert_eq!(records.read("pg").expect("read"), None);
    }

    /// A build from before ublk reads and writes the first; it refuses the second, and leaves the device alone.
    #[test]
    fn of_nbd_it_is_what_it_was_before_there_was_another_driver() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Records::of(dir.path());
        let path = dir.path().join("attached/pg.json");
        let before =
            r#"{"version":1,"mirror":"00ff","device":3,"since_ms":17,"stopped_at":9,"stale":null}"#;
        let mut record = Record::new("00ff", DeviceId::nbd(3), 17);
        record.stopped_at = Some(9);
        records.write("pg", &record).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("there"), before);
        assert_eq!(records.read("pg").expect("read"), Some(record.clone()));
        record.set_id(DeviceId::ublk(4));
        records.write("pg", &record).expect("written");
        let text = fs::read_to_string(&path).expect("there");
        assert!(text.contains(r#""driver":"ublk","device":4"#), "{text}");
        assert_eq!(records.read("pg").expect("read"), Some(record));
    }

    #[test]
    fn damage_is_named_and_stays_untouched() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Records::of(dir.path());
        records
            .write("pg", &Record::new("00ff", DeviceId::nbd(3), 17))
            .expect("written");
        let path = dir.path().join("attached/pg.json");
        for text in ["", "{", "{\"version\":2}", "[]"] {
            fs::write(&path, text).expect("written");
            let said = records.read("pg").expect_err("refused").to_string();
            assert!(said.contains("pg.json: understanding it"), "{said}");
            assert_eq!(fs::read_to_string(&path).expect("there"), text);
        }
    }
}
