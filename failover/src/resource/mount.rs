//! A file system on a group's device: made once where it is asked for and nothing is there, checked,
//! mounted; unmounted, whoever still uses it, and waited for until nothing of it is written any more.

mod first;
mod known;
mod program;
mod table;
mod users;

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tokio::time::sleep;

pub(super) use first::make_file_system;
pub(super) use known::Known;

use super::{Subject, apart};
use crate::config::Ms;
use crate::config::resource::{Fsck, Mount};
use crate::process::{Deadline, Failure, Step, describe, tool};
use table::{below, mounts, number};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// From TERM to KILL of those who use a mount; as long may looking for them take.
const PATIENCE: Ms = Ms(5000);

/// How long a device may take to say whether it is free, each time that it is asked.
const LOOK: Ms = Ms(1000);

/// How often those who use a mount are killed before it is given up.
const KILLS: u32 = 10;

/// Between two of these.
const BREATH: Duration = Duration::from_millis(50);

/// The mount point as the kernel has it in its table: without links. `None`: it is not there, and so
/// nothing is mounted on it.
async fn resolved(point: &Path, deadline: Deadline) -> Step<Option<PathBuf>> {
    let shown = point.display();
    let owned = point.to_owned();
    let found = apart::call(deadline, move || fs::canonicalize(&owned)).await?;
    match found {
        Ok(point) => Ok(Some(point)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(Failure::Failed(format!("{shown}: {error}"))),
    }
}

/// Checks and mounts; what is mounted there already stays so.
pub(super) async fn up(
    subject: Subject<'_>,
    device: &Path,
    mount: &Mount,
    deadline: Deadline,
) -> Step {
    let Some(named) = &mount.mount else {
        return Ok(());
    };
    let shown = named.display();
    let owned = named.clone();
    let made = apart::call(deadline, move || fs::create_dir_all(&owned)).await?;
    made.map_err(|error| format!("{shown}: {error}"))?;
    let point = resolved(named, deadline).await?;
    let point = point.ok_or_else(|| format!("{shown} was removed while it was begun"))?;
    if is_mounted(device, &point)? {
        return Ok(());
    }
    let path = device.display();
    let kind = match &mount.filesystem {
        Some(kind) => kind.clone(),
        None => first::shown(subject, device, deadline).await?.ok_or_else(|| {
            format!("{path} has no file system on it\n  next: make one, or set `initial-mkfs` for a new mirror")
        })?,
    };
    let patience = deadline.within(mount.fsck_timeout);
    unused(subject, device, patience).await?;
    check(subject, device, &kind, mount, patience).await?;
    let mut words: Vec<OsString> = vec!["-t".into(), kind.into()];
    if !mount.options.is_empty() {
        words.extend(["-o".into(), mount.options.join(",").into()]);
    }
    words.extend(["--".into(), device.into(), point.clone().into()]);
    let mut last = Failure::TimedOut;
    for again in 0..=mount.mount_retries {
        if again > 0 {
            deadline.wait(sleep(PAUSE)).await?;
            // One that was given up may have been carried out since.
            if is_mounted(device, &point)? {
                return Ok(());
            }
        }
        let patience = deadline.within(mount.mount_timeout);
        match program::run(subject, "mount", words.clone(), patience).await {
            Ok(()) if is_mounted(device, &point)? => return Ok(()),
            Ok(()) => {
                // What can't be found would never be unmounted.
                let why = format!("{shown}: mounted, and /proc/self/mountinfo does not show it");
                let words = vec!["--".into(), point.clone().into()];
                program::run(subject, "umount", words, deadline).await?;
                return Err(Failure::Failed(why));
            }
            Err(failure) => last = failure,
        }
        if deadline.passed() {
            break;
        }
    }
    Err(last)
}

/// The device is mounted there.
///
/// # Errors
/// Another one is, or it is mounted elsewhere.
fn is_mounted(device: &Path, point: &Path) -> Step<bool> {
    let path = device.display();
    let number = number(device)?;
    let number_of = |source: &Path| table::number(source).ok().flatten();
    let is_it = |other: &table::Mounted| {
        let number = number.as_ref();
        number.map(|number| other.is_of(number, number_of))
    };
    let table = mounts()?;
    // The last one covers those before it.
    if let Some(there) = table.iter().rfind(|m| m.point == point) {
        if is_it(there).unwrap_or(true) {
            return Ok(true);
        }
        return Err(Failure::Failed(format!(
            "{0}: another device ({1}) is mounted there\n  next: `findmnt {0}`, and unmount it",
            point.display(),
            there.device,
        )));
    }
    match table.iter().find(|m| is_it(m).unwrap_or(false)) {
        None => Ok(false),
        Some(other) => Err(Failure::Failed(format!(
            "{path} is mounted on {} already\n  next: unmount it there: it is the group's",
            other.point.display()
        ))),
    }
}

async fn check(
    subject: Subject<'_>,
    device: &Path,
    kind: &str,
    mount: &Mount,
    patience: Deadline,
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

/// Unmounts, and ends whoever uses it where that is what it takes. The device may still be written
/// afterwards: [`quiet`] says when it is not.
pub(super) async fn down(subject: Subject<'_>, mount: &Mount, deadline: Deadline) -> Step {
    let Some(named) = &mount.mount else {
        return Ok(());
    };
    let Some(point) = resolved(named, deadline).await? else {
        return Ok(());
    };
    let mut last = Failure::TimedOut;
    let tries = mount.unmount_retries;
    // The tries after that come after its users were asked to end, and then killed: again and again,
    // since those who are killed may have begun others.
    for again in 0..=tries + 1 + KILLS {
        // One that took too long may have been carried out since; then nobody has to end for it.
        if below(&point)?.is_empty() {
            return Ok(());
        }
        if again == tries + 1 {
            end_users(&point, Signal::TERM, deadline).await;
        } else if again > tries {
            end_users(&point, Signal::KILL, deadline).await;
        } else if again > 0 {
            sleep(PAUSE).await;
        }
        match unmount(subject, &point, deadline.within(mount.unmount_timeout)).await {
            Ok(()) => return Ok(()),
            // What the tries before said tells more than that time is over.
            Err(Failure::TimedOut) if deadline.passed() && again > 0 => {}
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
    let found = users::of(&point, deadline.within(PATIENCE)).await;
    let names: Vec<String> = found.users.iter().map(|p| describe(p.pid)).collect();
    let who = match (names.is_empty(), found.whole) {
        (false, _) => format!("used by {}", names.join(", ")),
        (true, true) => "no process uses it: a loop device, a swap file, an NFS export or another mount namespace may".to_owned(),
        (true, false) => "who uses it was not found in time".to_owned(),
    };
    Err(Failure::Failed(format!(
        "{why}\n  {who}\n  next: `lsof +f -- {0}`, `findmnt -R {0}`",
        point.display()
    )))
}

async fn unmount(subject: Subject<'_>, point: &Path, deadline: Deadline) -> Step {
    for point in below(point)? {
        // Never lazily: what is only out of sight is still written to.
        program::run(subject, "umount", vec!["--".into(), point.into()], deadline).await?;
    }
    Ok(())
}

/// What a device says to who wants it alone.
enum Alone {
    Yes,
    /// Somebody has it; where it is mounted, as far as that is known.
    No(Vec<String>),
    /// It does not say.
    Unknown(String),
}

fn alone(named: &Path, known: Option<&Known>) -> Alone {
    let (device, number) = match (number(named), known) {
        (Ok(Some(number)), _) => (named, number),
        // Its name says nothing of it any more.
        (Err(_), Some(known)) => (known.path.as_path(), known.number.clone()),
        // A file, or a device that was not there to be taken.
        (Ok(None), _) | (Err(_), None) => return Alone::Yes,
    };
    let places = || {
        let number_of = |source: &Path| table::number(source).ok().flatten();
        users::mounted(|m| m.is_of(&number, number_of))
    };
    let flags = OFlags::EXCL.bits().cast_signed();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(device);
    let Err(error) = opened else {
        return Alone::Yes;
    };
    match Errno::from_io_error(&error) {
        // By whom it is held is for people alone.
        Some(Errno::BUSY) => Alone::No(places().unwrap_or_default()),
        // A device that has gone may be mounted still.
        Some(Errno::NOENT) => match places() {
            Ok(places) if places.is_empty() => Alone::Yes,
            Ok(places) => Alone::No(places),
            Err(error) => Alone::Unknown(error.to_string()),
        },
        // The kernel asks whether it is free before it asks the device.
        Some(Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM | Errno::IO) => Alone::Yes,
        _ => Alone::Unknown(error.to_string()),
    }
}

/// The same, for as long as a device may take to say it: whatever is left of an operation's time, that says who has it.
async fn ask(subject: Subject<'_>, device: &Path, known: Option<&Known>) -> Alone {
    let name = format!("opening {}", device.display());
    let (owned, of) = (device.to_owned(), known.cloned());
    let apart = &subject.place.apart;
    let asking = move || alone(&owned, of.as_ref());
    let asked = apart.run(&name, Deadline::after(LOOK), asking).await;
    asked.unwrap_or_else(|_| Alone::Unknown("it does not answer".to_owned()))
}

/// Waits until no program has the device for itself: a check, or the making of a file system, goes on when the manager that
/// began it was killed, and refuses the next one. What has it for as long as it likes is not waited for: a mount elsewhere,
/// a device that is made of it.
///
/// # Errors
/// A program has it when the deadline passes.
async fn unused(subject: Subject<'_>, device: &Path, deadline: Deadline) -> Step {
    let mut told = false;
    while let Alone::No(places) = ask(subject, device, None).await {
        if !places.is_empty() || is_part_of_another(device) {
            return Ok(());
        }
        let shown = device.display();
        if deadline.passed() {
            return Err(Failure::Failed(format!(
                "{shown}: a program of this node has it for itself, a check perhaps that was begun before\n  \
                 next: `fuser -v {shown}` shows which; wait for it or end it, and start it again"
            )));
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(device = %shown, "a program has it for itself, a check perhaps that was begun before: it is waited for");
        }
        sleep(PAUSE.min(deadline.left())).await;
    }
    Ok(())
}

/// Another device of the kernel is made of it (device-mapper, RAID).
fn is_part_of_another(device: &Path) -> bool {
    let Ok(Some(number)) = number(device) else {
        return false;
    };
    let holders = fs::read_dir(format!("/sys/dev/block/{number}/holders"));
    holders.is_ok_and(|mut all| all.next().is_some())
}

/// Waits until nothing on this node has the device for itself any more: no file system of it is mounted,
/// in whatever namespace, or is still being written after it was unmounted, or being mounted by a
/// program that was given up. `known`: what the device was when it was taken, should its name have gone.
///
/// # Errors
/// Something has when the deadline passes.
pub(super) async fn quiet(
    subject: Subject<'_>,
    device: Option<&Path>,
    known: Option<&Known>,
    deadline: Deadline,
) -> Step {
    let under_way = program::ended(subject, deadline).await;
    let Some(device) = device else {
        return under_way;
    };
    loop {
        let why = match ask(subject, device, known).await {
            Alone::Yes => return under_way,
            Alone::No(places) if places.is_empty() => {
                "what was unmounted is still being written, or another device or program has it"
                    .to_owned()
            }
            Alone::No(places) => format!("mounted on {}", places.join(", ")),
            Alone::Unknown(error) => error,
        };
        if deadline.passed() {
            let gone = known.filter(|_| !device.exists());
            let device = gone.map_or(device, |known| &known.path);
            return Err(Failure::Failed(format!(
                "{0} is still in use on this node: {why}\n  next: `lsblk {0}` and `grep -s \"$(lsblk -dno MAJ:MIN {0})\" /proc/*/mountinfo` \
                 show by whom; end that, or wait for its disk, and stop it again",
                device.display()
            )));
        }
        sleep(PAUSE.min(deadline.left())).await;
    }
}

async fn end_users(point: &Path, signal: Signal, deadline: Deadline) {
    let found = users::of(point, deadline.within(PATIENCE)).await.users;
    for process in &found {
        tracing::warn!(mount = %point.display(), process = describe(process.pid), ?signal, "ended: it keeps the mount from being unmounted");
        if let Some(pid) = Pid::from_raw(process.pid) {
            // One that has ended meanwhile is what is wanted.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
    let until = deadline.within(PATIENCE);
    while found.iter().any(|p| p.is_alive()) && !until.passed() {
        sleep(Duration::from_millis(20)).await;
    }
}

/// It is mounted.
pub(super) async fn probe(mount: &Mount, deadline: Deadline) -> Step {
    let Some(named) = &mount.mount else {
        return Ok(());
    };
    let point = resolved(named, deadline).await?;
    if let Some(point) = point
        && mounts()?.iter().any(|m| m.point == point)
    {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "nothing is mounted on {}",
        named.display()
    )))
}
