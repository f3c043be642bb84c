//! What the kernel tells of processes. That it can't be read (too many open files, no /proc) is an error, and never
//! "there is nobody": whoever stops a service lets go of its disk by it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::io::Errno;

const PROC: &str = "/proc";

/// What is told of a process, of which little is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    state: char,
    pub group: i32,
    pub start: u64,
}

impl Stat {
    /// One that has ended and was not waited for does not run.
    pub fn runs(self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// A process of this number; `None`: there is none.
///
/// # Errors
/// That can't be seen.
pub(super) fn stat(pid: i32) -> io::Result<Option<Stat>> {
    stat_in(Path::new(PROC), pid)
}

fn stat_in(proc: &Path, pid: i32) -> io::Result<Option<Stat>> {
    let path = proc.join(pid.to_string()).join("stat");
    let Some(text) = unless_gone(fs::read_to_string(&path))? else {
        // Where nothing is mounted nobody is, either.
        return fs::symlink_metadata(proc.join("self")).map(|_| None);
    };
    let stat = parse(&text);
    let garbage = || {
        io::Error::new(
            ErrorKind::InvalidData,
            format!("{}: {text}", path.display()),
        )
    };
    stat.map(Some).ok_or_else(garbage)
}

fn parse(text: &str) -> Option<Stat> {
    // Its name may have anything in it, `)` too.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        group: fields.get(2)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

/// What was read; `None`: what it is of has gone.
pub(crate) fn unless_gone<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        // A process that ends meanwhile, a control group that is removed.
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::SRCH | Errno::NODEV) => Ok(None),
            _ => Err(error),
        },
    }
}

/// All numbers of processes.
///
/// # Errors
/// They can't be seen.
pub(crate) fn all() -> io::Result<Vec<i32>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(PROC)? {
        let name = entry?.file_name();
        all.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(all)
}

/// Adds the processes of a control group and of those below it.
///
/// # Errors
/// They can't be seen.
pub(super) fn in_control_group(group: &Path, into: &mut BTreeSet<i32>) -> io::Result<()> {
    let Some(text) = unless_gone(fs::read_to_string(group.join("cgroup.procs")))? else {
        return Ok(());
    };
    into.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    let Some(below) = unless_gone(fs::read_dir(group))? else {
        return Ok(());
    };
    for entry in below {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            in_control_group(&entry.path(), into)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_not_be_seen_is_not_taken_for_gone() {
        let proc = tempfile::tempdir().expect("a folder");
        let proc = proc.path();
        // Nothing is mounted.
        assert!(stat_in(proc, 7).is_err());
        fs::create_dir(proc.join("self")).expect("made");
        assert!(matches!(stat_in(proc, 7), Ok(None)));
        let of = proc.join("7");
        fs::create_dir(&of).expect("made");
        assert!(matches!(stat_in(proc, 7), Ok(None)), "it has just ended");
        fs::create_dir(of.join("stat")).expect("made");
        assert!(stat_in(proc, 7).is_err(), "it can't be read");
        fs::remove_dir(of.join("stat")).expect("removed");
        fs::write(of.join("stat"), "7 (a").expect("written");
        assert!(stat_in(proc, 7).is_err(), "it makes no sense");
        let fields = "1 5 5 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 99 1 1";
        fs::write(of.join("stat"), format!("7 (a) b) S {fields}")).expect("written");
        let found = stat_in(proc, 7).expect("read").expect("there");
        assert!(found.runs());
        assert_eq!((found.group, found.start), (5, 99));
    }

    #[test]
    fn a_control_group_that_can_not_be_read_is_not_taken_for_empty() {
        let group = tempfile::tempdir().expect("a folder");
        let members = |at: &Path| {
            let mut all = BTreeSet::new();
            in_control_group(at, &mut all).map(|()| all)
        };
        let gone = members(&group.path().join("gone")).expect("read");
        assert!(gone.is_empty());
        let below = group.path().join("below");
        fs::create_dir(&below).expect("made");
        fs::write(group.path().join("cgroup.procs"), "3\n4\n").expect("written");
        fs::write(below.join("cgroup.procs"), "5\n").expect("written");
        assert_eq!(members(group.path()).expect("read"), [3, 4, 5].into());
        fs::remove_file(below.join("cgroup.procs")).expect("removed");
        fs::create_dir(below.join("cgroup.procs")).expect("made");
        assert!(members(group.path()).is_err());
    }
}
