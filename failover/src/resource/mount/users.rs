//! Who uses a mount: by folder, open file, program or mapped file, in whatever namespace.
//!
//! Only /proc is asked. A question to the file system that a process uses may never be answered: one
//! process on a dead file server would hold whoever looks for the users of another mount.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::table::{Mounted, mounts, mounts_of};
use crate::lock;
use crate::process::{Deadline, Process, all, describe};
use crate::resource::apart;

/// A process with a lock that its dead disk holds keeps who reads of it. It is left out by those who
/// come later, so that each has one thread at most.
static LOOKED_AT: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

struct Turn(i32);

impl Turn {
    fn of(pid: i32) -> Option<Self> {
        lock(&LOOKED_AT).insert(pid).then_some(Self(pid))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&LOOKED_AT).remove(&self.0);
    }
}

/// Those that were found.
pub(super) struct Found {
    pub users: Vec<Process>,
    /// All were looked at in time.
    pub whole: bool,
}

/// Looks for those who use what is mounted there or below; where nothing is, nobody does.
pub(super) async fn of(point: &Path, deadline: Deadline) -> Found {
    let found = Arc::new(Mutex::new(Vec::new()));
    let (point, into) = (point.to_owned(), found.clone());
    let looked = apart::call(deadline, move || look(&point, &into)).await;
    Found {
        users: lock(&found).clone(),
        whole: matches!(looked, Ok(Ok(()))),
    }
}

/// What tells a user.
struct Mark {
    point: PathBuf,
    /// The mounts' numbers.
    mounts: BTreeSet<u64>,
    /// The file system's number, where whoever has it has it by this mount.
    device: Option<(u32, u32)>,
    namespace: Option<PathBuf>,
}

fn namespace(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

/// The number of the file system at the point, unless it is mounted elsewhere, too: whoever uses it
/// there does not use this mount, and may be anybody.
fn only_here<'t>(table: &'t [Mounted], point: &Path) -> Option<&'t str> {
    let own = table.iter().rfind(|m| m.point == point)?;
    let elsewhere = |m: &&Mounted| m.device == own.device && !m.point.starts_with(point);
    (!table.iter().any(|m| elsewhere(&m))).then_some(own.device.as_str())
}

impl Mark {
    fn of(point: &Path, candidates: &[Process]) -> Option<Self> {
        let table = mounts().ok()?;
        let here = table.iter().filter(|m| m.point.starts_with(point));
        let mut marked: BTreeSet<u64> = here.map(|m| m.id).collect();
        if marked.is_empty() {
            return None;
        }
        let device = only_here(&table, point);
        if let Some(device) = device {
            // A service with a namespace of its own has the mount there, and keeps this one as busy.
            let mut seen = BTreeSet::new();
            for Process { pid, .. } in candidates {
                let root = fs::read_link(format!("/proc/{pid}/root")).ok();
                if seen.insert((namespace(*pid), root)) {
                    let theirs = mounts_of(*pid).into_iter();
                    marked.extend(theirs.filter(|m| m.device == *device).map(|m| m.id));
                }
            }
        }
        let pair = |text: &str| {
            let (major, minor) = text.split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        Some(Self {
            point: point.to_owned(),
            mounts: marked,
            device: device.and_then(pair),
            namespace: namespace(std::process::id().cast_signed()),
        })
    }

    /// A name means the same in another namespace only by chance.
    fn names(&self, pid: i32, path: &Path) -> bool {
        path.starts_with(&self.point)
            && self.namespace.is_some()
            && self.namespace == namespace(pid)
    }

    fn has_open(&self, pid: i32) -> bool {
        let in_use = |name: &&str| {
            let link = format!("/proc/{pid}/{name}");
            // An old kernel does not tell the mount's number.
            fs::read_link(&link).is_ok_and(|path| self.names(pid, &path))
                || statx(CWD, &link, AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID).is_ok_and(
                    |about| {
                        let told = about.stx_mask & StatxFlags::MNT_ID.bits() != 0;
                        told && self.mounts.contains(&about.stx_mnt_id)
                    },
                )
        };
        if ["cwd", "root", "exe"].iter().any(in_use) {
            return true;
        }
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
            return false;
        };
        open.flatten().any(|entry| {
            let about = fs::read_to_string(entry.path()).unwrap_or_default();
            let mount = about.lines().find_map(|l| l.strip_prefix("mnt_id:"));
            mount.is_some_and(|id| id.trim().parse().is_ok_and(|id| self.mounts.contains(&id)))
        })
    }

    fn has_mapped(&self, pid: i32) -> bool {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.lines().any(|line| self.is_in(pid, line))
    }

    /// A line of maps: range, rights, offset, device, inode, path.
    fn is_in(&self, pid: i32, line: &str) -> bool {
        let mut fields = line.splitn(6, ' ').skip(3);
        let hex = |text: &str| u32::from_str_radix(text, 16).ok();
        let number = fields.next().and_then(|device| {
            let (major, minor) = device.split_once(':')?;
            Some((hex(major)?, hex(minor)?))
        });
        let path = fields.nth(1).unwrap_or_default().trim();
        (self.device.is_some() && number == self.device)
            || path.starts_with('/') && self.names(pid, Path::new(path))
    }
}

fn look(point: &Path, into: &Mutex<Vec<Process>>) -> io::Result<()> {
    let own = std::process::id().cast_signed();
    // The first process and the manager itself are never ended.
    let candidates = all()?.into_iter().filter(|pid| *pid > 1 && *pid != own);
    let candidates: Vec<Process> = candidates.filter_map(Process::of).collect();
    let Some(mark) = Mark::of(point, &candidates) else {
        return Ok(());
    };
    // What a process has mapped comes last: that is what may be locked for as long as a disk hangs.
    for uses in [Mark::has_open, Mark::has_mapped] {
        for process in &candidates {
            if lock(into).contains(process) {
                continue;
            }
            let Some(_turn) = Turn::of(process.pid) else {
                continue;
            };
            if uses(&mark, process.pid) {
                lock(into).push(*process);
            }
        }
    }
    Ok(())
}

/// Where a file system is still mounted, in whatever namespace; in words, a few of them.
///
/// # Errors
/// Other namespaces can't be seen.
pub(super) fn mounted(is_it: impl Fn(&Mounted) -> bool) -> io::Result<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    // This process first: its namespace is everybody's.
    let own = std::process::id().cast_signed();
    for pid in std::iter::once(own).chain(all()?) {
        if found.len() >= 3 || !seen.insert(namespace(pid)) {
            continue;
        }
        let whose = if pid == own {
            String::new()
        } else {
            format!(" in the mount namespace of {}", describe(pid))
        };
        let theirs = mounts_of(pid).into_iter();
        found.extend(
            theirs
                .filter(|m| is_it(m))
                .map(|m| format!("{}{whose}", m.point.display())),
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ms;
    use std::process::{Command, Stdio};

    #[tokio::test]
    async fn nobody_uses_a_folder_that_is_no_mount_point() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut inside = Command::new("sleep")
            .arg("600")
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .spawn()
            .expect("begun");
        let found = of(folder.path(), Deadline::after(Ms(0))).await;
        inside.kill().expect("it runs");
        inside.wait().expect("it ends");
        assert!(found.whole);
        assert_eq!(found.users, []);
    }

    #[test]
    fn a_mapped_file_is_known_by_its_device_and_in_this_namespace_by_its_name() {
        let own = std::process::id().cast_signed();
        let mark = |device| Mark {
            point: "/srv/pg".into(),
            mounts: BTreeSet::new(),
            device,
            namespace: namespace(own),
        };
        let line = |device: &str, path: &str| {
            format!("7f00-7f10 r-xp 00000000 {device} 1234                 {path}")
        };
        let numbered = mark(Some((253, 16)));
        assert!(numbered.is_in(own, &line("fd:10", "/other/name")));
        assert!(!numbered.is_in(own, &line("fd:11", "/other/name")));
        assert!(numbered.is_in(own, &line("00:20", "/srv/pg/below/x")));
        assert!(!mark(None).is_in(own, &line("00:00", "")));
        assert!(!mark(None).is_in(own, &line("fd:10", "/srv/pg2")));
        assert!(mark(None).is_in(own, &line("fd:10", "/srv/pg/a b")));
    }
}
