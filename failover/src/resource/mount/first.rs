//! What is on a device, and the first file system on one that has nothing.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::unused;
use crate::config::resource::Mount;
use crate::process::{Deadline, Failure, Step, tool};
use crate::resource::note::Note;
use crate::resource::{Subject, apart};

/// What is made where the configuration does not say.
const USUAL: &str = "ext4";

/// This much of a device has to be empty before a file system is made on it, in bytes.
const EMPTY: u64 = 1 << 20;

/// The type that a device shows; `None`: it shows nothing at all.
pub(super) async fn shown(
    subject: Subject<'_>,
    device: &Path,
    deadline: Deadline,
) -> Step<Option<String>> {
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
pub(in crate::resource) async fn make_file_system(
    subject: Subject<'_>,
    device: &Path,
    mount: &Mount,
    deadline: Deadline,
) -> Step {
    let path = device.display();
    let made = Note::of(&subject.place.state, "made", &subject.key());
    if shown(subject, device, deadline).await?.is_some() {
        return Ok(());
    }
    // One may be about to be made.
    let patience = deadline.within(mount.fsck_timeout);
    unused(subject, device, patience).await?;
    if shown(subject, device, deadline).await?.is_some() {
        return Ok(());
    }
    if made.is_there() {
        return Err(Failure::Failed(format!(
            "{path}: a file system was made on it before ({}), and there is none now: it is not made again\n  \
             next: find out where it has gone; remove {} to have a new one made",
            made.words(),
            made.path().display()
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
    tool::run(subject.place, &program, &[device.as_os_str()], patience).await?;
    made.write(&format!("{kind} {:.0}", jiff::Timestamp::now()))?;
    Ok(())
}

async fn is_empty(device: PathBuf, deadline: Deadline) -> Step<bool> {
    let look = move || -> std::io::Result<bool> {
        let mut start = Vec::new();
        File::open(&device)?.take(EMPTY).read_to_end(&mut start)?;
        Ok(start.iter().all(|byte| *byte == 0))
    };
    let found = apart::call(deadline, look).await?;
    Ok(found.map_err(|error| format!("the device can't be read: {error}"))?)
}
