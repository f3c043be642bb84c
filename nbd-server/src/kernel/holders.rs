//! Who uses a device: mounts, swap, what is built on it, processes that have it open.
//!
//! What it finds is for people, and none of it is proof that nobody uses the device: that is an
//! exclusive open, which the kernel grants to one.

use std::fs;
use std::path::{Path, PathBuf};

use super::sysfs::Sysfs;

/// Where to look; `/proc`, but for tests.
#[derive(Clone, Debug)]
pub struct Procfs {
    root: PathBuf,
}

/// Processes that are named at most.
const PROCESSES_MAX: usize = 8;

impl Default for Procfs {
    fn default() -> Self {
        Self::new("/proc")
    }
}

impl Procfs {
    /// The tree at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where a device or a partition of it is mounted, as `ext4 on /srv`.
    pub fn mounted(&self, sysfs: &Sysfs, index: u32) -> Vec<String> {
        let mounts = self.mounts(&names(sysfs, index));
        let words = mounts.into_iter();
        words
            .map(|(_, place, kind)| format!("{kind} on {place}"))
            .collect()
    }

    /// Who uses a device or a partition of it, in words, a line each.
    pub fn users(&self, sysfs: &Sysfs, index: u32) -> Vec<String> {
        let names = names(sysfs, index);
        let mut found: Vec<String> = self
            .mounts(&names)
            .into_iter()
            .map(|(device, place, kind)| format!("{device} is mounted on {place} ({kind})"))
            .collect();
        found.extend(self.swaps(&names));
        found.extend(
            sysfs
                .holders(index)
                .iter()
                .map(|holder| format!("{holder} is built on it (/dev/{holder})")),
        );
        found.extend(self.processes(&names));
        found
    }

    /// Device, place and file system of each mount.
    fn mounts(&self, names: &[String]) -> Vec<(String, String, String)> {
        let text = fs::read_to_string(self.root.join("mounts")).unwrap_or_default();
        let fields = text.lines().filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?, words.next()?))
        });
        fields
            .filter(|(device, ..)| is_one_of(device, names))
            .map(|(device, place, kind)| (unescape(device), unescape(place), kind.to_owned()))
            .collect()
    }

    fn swaps(&self, names: &[String]) -> Vec<String> {
        let text = fs::read_to_string(self.root.join("swaps")).unwrap_or_default();
        text.lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next())
            .filter(|device| is_one_of(device, names))
            .map(|device| format!("{device} is swap space"))
            .collect()
    }

    /// Those whose open files this process may see.
    fn processes(&self, names: &[String]) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for entry in entries.filter_map(Result::ok) {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            let files = fs::read_dir(entry.path().join("fd")).into_iter().flatten();
            let open = files
                .filter_map(Result::ok)
                .filter_map(|file| fs::read_link(file.path()).ok())
                .find(|path| names.iter().any(|name| Path::new(name) == path));
            if let Some(path) = open {
                let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found.push(format!(
                    "process {pid} ({}) has {} open",
                    name.trim(),
                    path.display()
                ));
                if found.len() == PROCESSES_MAX {
                    break;
                }
            }
        }
        found
    }
}

/// The paths of a device and of its partitions.
fn names(sysfs: &Sysfs, index: u32) -> Vec<String> {
    let mut names = vec![format!("/dev/{}", sysfs.name(index))];
    let partitions = sysfs.partitions(index);
    names.extend(partitions.iter().map(|name| format!("/dev/{name}")));
    names
}

/// Whether a device of /proc/mounts is one of these; a link (`/dev/kagami/pg`) is followed.
fn is_one_of(device: &str, names: &[String]) -> bool {
    let device = unescape(device);
    if names.contains(&device) {
        return true;
    }
    device.starts_with("/dev/")
        && fs::canonicalize(&device)
            .is_ok_and(|real| names.iter().any(|name| Path::new(name) == real))
}

/// Spaces and their like are octal in /proc/mounts: `\040`.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(value) = octal {
            out.push(value);
            at += 4;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::Kind;
    use super::*;

    #[test]
    fn users_are_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let sysfs = Sysfs::new(dir.path().join("sys"), Kind::Nbd);
        fs::create_dir_all(sysfs.device(0).join("holders/dm-1")).expect("made");
        fs::create_dir_all(sysfs.device(0).join("nbd0p2")).expect("made");
        fs::write(sysfs.device(0).join("nbd0p2/partition"), "2").expect("written");
        let proc = dir.path().join("proc");
        fs::create_dir_all(proc.join("77/fd")).expect("made");
        fs::write(proc.join("77/comm"), "dd\n").expect("written");
        std::os::unix::fs::symlink("/dev/nbd0", proc.join("77/fd/3")).expect("linked");
        let mounts = "/dev/nbd0p2 /srv/my\\040files ext4 rw 0 0\n/dev/nbd01 /other ext4 rw 0 0\nproc /proc proc rw 0 0\n";
        fs::write(proc.join("mounts"), mounts).expect("written");
        let swaps = "Filename Type Size Used Priority\n/dev/nbd0 partition 1 0 -2\n";
        fs::write(proc.join("swaps"), swaps).expect("written");
        let procfs = Procfs::new(&proc);
        assert_eq!(
            procfs.users(&sysfs, 0),
            [
                "/dev/nbd0p2 is mounted on /srv/my files (ext4)",
                "/dev/nbd0 is swap space",
                "dm-1 is built on it (/dev/dm-1)",
                "process 77 (dd) has /dev/nbd0 open",
            ]
        );
        assert_eq!(procfs.users(&sysfs, 1), [""; 0]);
        assert_eq!(procfs.mounted(&sysfs, 0), ["ext4 on /srv/my files"]);
    }

    #[test]
    fn damaged_escapes_stay_as_they_are() {
        assert_eq!(unescape("a\\04"), "a\\04");
        assert_eq!(unescape("\\999"), "\\999");
        assert_eq!(unescape("a\\134b"), "a\\b");
    }
}
