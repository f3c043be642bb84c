//! What is mounted, as /proc/PID/mountinfo tells it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// No other mount of the machine has it, in whatever namespace.
    pub id: u64,
    /// MAJOR:MINOR of the file system.
    pub device: String,
    /// Where, as whoever is asked for sees it.
    pub point: PathBuf,
    kind: String,
    source: PathBuf,
}

impl Mounted {
    /// It is the file system of the block device with this number.
    pub fn is_of(&self, number: &str, number_of: impl Fn(&Path) -> Option<String>) -> bool {
        // btrfs has a number of its own, since it may have several devices.
        self.device == number
            || self.kind == "btrfs"
                && self.source.starts_with("/dev")
                && number_of(&self.source).as_deref() == Some(number)
    }
}

/// What `\040` and the like stand for.
fn plain(text: &str) -> PathBuf {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = text
            .get(at + 1..at + 4)
            .and_then(|o| u8::from_str_radix(o, 8).ok());
        match octal {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(out))
}

fn parse(line: &str) -> Option<Mounted> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let mut about = file_system.split(' ');
    Some(Mounted {
        id: fields.next()?.parse().ok()?,
        device: fields.nth(1)?.to_owned(),
        point: plain(fields.nth(1)?),
        kind: about.next()?.to_owned(),
        source: plain(about.next()?),
    })
}

fn read(path: &str) -> Result<Vec<Mounted>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(text.lines().filter_map(parse).collect())
}

/// What this process sees, the first mounted first.
pub(super) fn mounts() -> Result<Vec<Mounted>, String> {
    read("/proc/self/mountinfo")
}

/// What another process sees; nothing of one that has ended.
pub(super) fn mounts_of(pid: i32) -> Vec<Mounted> {
    read(&format!("/proc/{pid}/mountinfo")).unwrap_or_default()
}

/// Everything that is mounted there or below, the last first.
pub(super) fn below(point: &Path) -> Result<Vec<PathBuf>, String> {
    let mut all: Vec<PathBuf> = mounts()?
        .into_iter()
        .map(|m| m.point)
        .filter(|p| p.starts_with(point))
        .collect();
    all.reverse();
    Ok(all)
}

/// The device's number as mountinfo has it; a file's is that of no mount.
pub(super) fn number(device: &Path) -> Result<Option<String>, String> {
    let about = fs::metadata(device).map_err(|error| format!("{}: {error}", device.display()))?;
    Ok(number_in(&about))
}

/// The same, by what is known of it.
pub(super) fn number_in(about: &fs::Metadata) -> Option<String> {
    if !about.file_type().is_block_device() {
        return None;
    }
    let number = about.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    Some(format!("{major}:{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_read() {
        assert_eq!(plain("/srv/a\\040b\\134c"), Path::new("/srv/a b\\c"));
        assert_eq!(plain("/srv/pg"), Path::new("/srv/pg"));
        assert_eq!(plain("/end\\04"), Path::new("/end\\04"));
    }

    #[test]
    fn a_mount_is_its_devices_also_where_its_number_is_its_own() {
        let line = |number: &str, kind: &str| {
            let text = format!(
                "36 35 {number} /sub /srv/a\\040b rw,noatime master:1 shared:7 - {kind} /dev/sdb rw"
            );
            parse(&text).expect("a line")
        };
        let mounted = line("0:47", "btrfs");
        assert_eq!((mounted.id, mounted.device.as_str()), (36, "0:47"));
        assert_eq!(mounted.point, Path::new("/srv/a b"));
        let of = |source: &Path| (source == Path::new("/dev/sdb")).then(|| "8:16".to_owned());
        assert!(mounted.is_of("8:16", of));
        assert!(!mounted.is_of("8:32", of));
        assert!(line("8:16", "ext4").is_of("8:16", |_| None));
        assert!(
            !line("0:47", "overlay").is_of("8:16", of),
            "its source is any text"
        );
    }
}
