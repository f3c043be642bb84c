//! A file system on a group's device: made once where it is asked for and nothing is there, checked,
//! mounted; unmounted, whoever still uses it.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::time::sleep;

use super::Subject;
use crate::config::resource::{Fsck, Mount};
use crate::process::{Deadline, Failure, Process, Step, all, describe, tool};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// From TERM to KILL of those who use a mount.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often those who use a mount are killed before it is given up.
const KILLS: u32 = 10;

/// Between two of these.
const BREATH: Duration = Duration::from_millis(50);

/// What is made where the configuration does not say.
const USUAL: &str = "ext4";

/// This much of a device has to be empty before a file system is made on it, in bytes.
const EMPTY: u64 = 1 << 20;

/// A line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mounted {
    device: String,
    point: PathBuf,
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

fn mounts() -> Result<Vec<Mounted>, String> {
    let text = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
    let of = |line: &str| {
        let mut fields = line.split(' ');
        Some(Mounted {
            device: fields.nth(2)?.to_owned(),
            point: plain(fields.nth(1)?),
        })
    };
    Ok(text.lines().filter_map(of).collect())
}

/// The device's number as mountinfo has it; a file's is that of no mount.
fn number(device: &Path) -> Result<Option<String>, String> {
    let about = fs::metadata(device).map_err(|error| format!("{}: {error}", device.display()))?;
    if !about.file_type().is_block_device() {
        return Ok(None);
    }
    let number = about.rdev();
    Ok(Some(format!(
        "{}:{}",
        rustix::fs::major(number),
        rustix::fs::minor(number)
    )))
}

/// The type that a device shows; `None`: it shows nothing at all.
async fn shown(subject: Subject<'_>, device: &Path, deadline: Deadline) -> Step<Option<String>> {
    let path = device.display().to_string();
    let words = ["-p", "-o", "export", &path];
    let said = tool::ask(subject.place, "blkid", &words, &[], deadline).await?;
    match said.status {
        0 => {
            let value = |name: &str| {
                let lines = said.output.lines();
                lines
                    .filter_map(|l| l.split_once('='))
                    .find_map(|(n, v)| (n == name).then_some(v))
            };
            match value("TYPE") {
                Some(kind) => Ok(Some(kind.to_owned())),
                None => Err(Failure::Failed(format!(
                    "{path} has a partition table ({}) and no file system\n  next: name a partition, or set `filesystem`",
                    value("PTTYPE").unwrap_or("unknown")
                ))),
            }
        }
        2 => Ok(None),
        status => Err(Failure::Failed(format!(
            "{path}: what is on it is not clear (blkid: status {status}: {})\n  next: look at it with `wipefs {path}`",
            said.error
        ))),
    }
}

/// Makes the first file system of a device that has nothing on it.
///
/// # Errors
/// The device shows nothing, and is not empty, or had a file system that was made here before.
pub(super) async fn make_file_system(
    subject: Subject<'_>,
    device: &Path,
    mount: &Mount,
    deadline: Deadline,
) -> Step {
    let path = device.display();
    let made = subject.place.state.join("made").join(subject.key());
    if shown(subject, device, deadline).await?.is_some() {
        return Ok(());
    }
    if made.exists() {
        return Err(Failure::Failed(format!(
            "{path}: a file system was made on it before ({}), and there is none now: it is not made again\n  \
             next: find out where it has gone; remove {} to have a new one made",
            fs::read_to_string(&made).unwrap_or_default().trim(),
            made.display()
        )));
    }
    if !is_empty(device.to_owned(), deadline).await? {
        return Err(Failure::Failed(format!(
            "{path} shows no file system, and its first MiB is not empty: none is made on it\n  \
             next: `wipefs` and `hexdump` show what it is; clear its first MiB to have one made"
        )));
    }
    let kind = mount.filesystem.as_deref().unwrap_or(USUAL);
    let program = format!("mkfs.{kind}");
    tracing::info!(device = %path, kind, "the first file system is made");
    tool::run(
        subject.place,
        &program,
        &[device.as_os_str()],
        deadline.within(mount.fsck_timeout),
    )
    .await?;
    let note = format!("{kind} {:.0}\n", jiff::Timestamp::now());
    let parent = subject.place.state.join("made");
    let noted = fs::create_dir_all(parent).and_then(|()| fs::write(&made, note));
    noted.map_err(|error| format!("{}: {error}", made.display()))?;
    Ok(())
}

async fn is_empty(device: PathBuf, deadline: Deadline) -> Step<bool> {
    let look = tokio::task::spawn_blocking(move || -> std::io::Result<bool> {
        let mut start = Vec::new();
        File::open(&device)?.take(EMPTY).read_to_end(&mut start)?;
        Ok(start.iter().all(|byte| *byte == 0))
    });
    let found = deadline
        .wait(look)
        .await?
        .map_err(|error| error.to_string())?;
    Ok(found.map_err(|error| format!("the device can't be read: {error}"))?)
}

/// Checks and mounts; what is mounted there already stays so.
pub(super) async fn up(
    subject: Subject<'_>,
    device: &Path,
    mount: &Mount,
    deadline: Deadline,
) -> Step {
    let Some(point) = &mount.mount else {
        return Ok(());
    };
    let number = number(device)?;
    let path = device.display();
    for other in mounts()? {
        if other.point == *point {
            if number.as_ref().is_none_or(|number| *number == other.device) {
                return Ok(());
            }
            return Err(Failure::Failed(format!(
                "{}: another device ({}) is mounted there\n  next: `findmnt {}`, and unmount it",
                point.display(),
                other.device,
                point.display()
            )));
        }
        if number
            .as_ref()
            .is_some_and(|number| *number == other.device)
        {
            return Err(Failure::Failed(format!(
                "{path} is mounted on {} already\n  next: unmount it there: it is the group's",
                other.point.display()
            )));
        }
    }
    let kind = match &mount.filesystem {
        Some(kind) => kind.clone(),
        None => shown(subject, device, deadline).await?.ok_or_else(|| {
            format!("{path} has no file system on it\n  next: make one, or set `initial-mkfs` for a new mirror")
        })?,
    };
    check(subject, device, &kind, mount, deadline).await?;
    fs::create_dir_all(point).map_err(|error| format!("{}: {error}", point.display()))?;
    let mut words = vec!["-t".into(), kind.clone().into()];
    if !mount.options.is_empty() {
        words.extend(["-o".into(), mount.options.join(",").into()]);
    }
    words.extend([
        "--".into(),
        device.as_os_str().to_owned(),
        point.as_os_str().to_owned(),
    ]);
    let mut last = Failure::TimedOut;
    for again in 0..=mount.mount_retries {
        if again > 0 {
            deadline.wait(sleep(PAUSE)).await?;
        }
        let patience = deadline.within(mount.mount_timeout);
        match tool::run(subject.place, "mount", &words, patience).await {
            Ok(_) => return Ok(()),
            Err(failure) => last = failure,
        }
        if deadline.passed() {
            break;
        }
    }
    Err(last)
}

async fn check(
    subject: Subject<'_>,
    device: &Path,
    kind: &str,
    mount: &Mount,
    deadline: Deadline,
) -> Step {
    let always = match mount.fsck {
        Fsck::Never => return Ok(()),
        Fsck::Auto => false,
        Fsck::Always => true,
    };
    let device = device.as_os_str();
    let (program, words): (&str, Vec<&std::ffi::OsStr>) = match kind {
        // Their journal is replayed by the mount, and their checkers do nothing at boot either.
        "xfs" | "btrfs" | "f2fs" | "zfs" => return Ok(()),
        "ext2" | "ext3" | "ext4" if always => {
            ("e2fsck", vec!["-f".as_ref(), "-p".as_ref(), device])
        }
        "ext2" | "ext3" | "ext4" => ("e2fsck", vec!["-p".as_ref(), device]),
        _ => (
            "fsck",
            vec![
                "-T".as_ref(),
                "-t".as_ref(),
                kind.as_ref(),
                "-a".as_ref(),
                device,
            ],
        ),
    };
    let patience = deadline.within(mount.fsck_timeout);
    let said = tool::ask(subject.place, program, &words, &[], patience).await?;
    // 1: repaired; 2: repaired, and a mounted root would want a reboot, which this is not.
    if said.status & !3 == 0 {
        return Ok(());
    }
    let why = if said.error.is_empty() {
        said.output.lines().last().unwrap_or_default().to_owned()
    } else {
        said.error
    };
    Err(Failure::Failed(format!(
        "{}: {program}: status {}: {why}\n  next: repair it by hand with `fsck -t {kind}`",
        device.to_string_lossy(),
        said.status
    )))
}

/// Everything that is mounted there or below, the last first.
fn below(point: &Path) -> Result<Vec<PathBuf>, String> {
    let mut all: Vec<PathBuf> = mounts()?
        .into_iter()
        .map(|m| m.point)
        .filter(|p| p.starts_with(point))
        .collect();
    all.reverse();
    Ok(all)
}

/// Unmounts, and ends whoever uses it where that is what it takes.
pub(super) async fn down(subject: Subject<'_>, mount: &Mount, deadline: Deadline) -> Step {
    let Some(point) = &mount.mount else {
        return Ok(());
    };
    let mut last = Failure::TimedOut;
    let tries = mount.unmount_retries;
    // The tries after that come after its users were asked to end, and then killed: again and again,
    // since those who are killed may have begun others.
    for again in 0..=tries + 1 + KILLS {
        if again == tries + 1 {
            end_users(point, Signal::TERM).await;
        } else if again > tries {
            end_users(point, Signal::KILL).await;
        } else if again > 0 {
            sleep(PAUSE).await;
        }
        match unmount(subject, point, deadline.within(mount.unmount_timeout)).await {
            Ok(()) => return Ok(()),
            Err(failure) => last = failure,
        }
        if deadline.passed() {
            break;
        }
        if again > tries + 1 {
            sleep(BREATH).await;
        }
    }
    let Failure::Failed(why) = last else {
        return Err(last);
    };
    let users: Vec<String> = users(point).into_iter().map(|p| describe(p.pid)).collect();
    let who = if users.is_empty() {
        "no process uses it: a loop device, a swap file, an NFS export or another mount namespace may".to_owned()
    } else {
        format!("used by {}", users.join(", "))
    };
    Err(Failure::Failed(format!(
        "{why}\n  {who}\n  next: `lsof +f -- {0}`, `findmnt -R {0}`",
        point.display()
    )))
}

async fn unmount(subject: Subject<'_>, point: &Path, deadline: Deadline) -> Step {
    for point in below(point)? {
        // Never lazily: what is only out of sight is still written to.
        tool::run(
            subject.place,
            "umount",
            &["--".as_ref(), point.as_os_str()],
            deadline,
        )
        .await?;
    }
    Ok(())
}

/// Processes that use a mount: by their folders, open files and mapped files.
fn users(point: &Path) -> Vec<Process> {
    let device = fs::metadata(point).map(|about| about.dev()).ok();
    let own = std::process::id().cast_signed();
    let uses = |pid: &i32| -> bool {
        let root = PathBuf::from(format!("/proc/{pid}"));
        let inside = |link: &Path| {
            fs::read_link(link).is_ok_and(|target| target.starts_with(point))
                // Seen from another root it may have another name.
                || (fs::read_link(link).is_ok_and(|target| target.is_absolute())
                    && device.is_some()
                    && is_local(link)
                    && fs::metadata(link).map(|about| about.dev()).ok() == device)
        };
        if ["cwd", "root", "exe"]
            .iter()
            .any(|name| inside(&root.join(name)))
        {
            return true;
        }
        let Ok(open) = fs::read_dir(root.join("fd")) else {
            return false;
        };
        if open.flatten().any(|entry| inside(&entry.path())) {
            return true;
        }
        let maps = fs::read_to_string(root.join("maps")).unwrap_or_default();
        maps.lines().any(|line| {
            let path = line.splitn(6, ' ').nth(5).unwrap_or_default().trim();
            path.starts_with('/') && Path::new(path).starts_with(point)
        })
    };
    // The first process and the manager itself are never ended.
    let candidates = all().into_iter().filter(|pid| *pid > 1 && *pid != own);
    candidates.filter(uses).filter_map(Process::of).collect()
}

/// A target that can be asked without waiting for another machine.
fn is_local(link: &Path) -> bool {
    // Of devices, sockets and pipes nothing is asked.
    fs::read_link(link)
        .is_ok_and(|target| !target.starts_with("/dev") && !target.starts_with("/net"))
}

async fn end_users(point: &Path, signal: Signal) {
    let owned = point.to_owned();
    let Ok(found) = tokio::task::spawn_blocking(move || users(&owned)).await else {
        return;
    };
    for process in &found {
        tracing::warn!(mount = %point.display(), process = describe(process.pid), ?signal, "ended: it keeps the mount from being unmounted");
        if let Some(pid) = Pid::from_raw(process.pid) {
            // One that has ended meanwhile is what is wanted.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
    let until = tokio::time::Instant::now() + PATIENCE;
    while found.iter().any(|p| p.is_alive()) && tokio::time::Instant::now() < until {
        sleep(Duration::from_millis(20)).await;
    }
}

/// It is mounted.
pub(super) fn probe(mount: &Mount) -> Step {
    let Some(point) = &mount.mount else {
        return Ok(());
    };
    if mounts()?.iter().any(|m| m.point == *point) {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "nothing is mounted on {}",
        point.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::plain;
    use std::path::Path;

    #[test]
    fn mount_points_with_blanks_are_read() {
        assert_eq!(plain("/srv/a\\040b\\134c"), Path::new("/srv/a b\\c"));
        assert_eq!(plain("/srv/pg"), Path::new("/srv/pg"));
        assert_eq!(plain("/end\\04"), Path::new("/end\\04"));
    }
}
