//! Synchronised files: small files outside the mirror that must be the same on both nodes.
//!
//! The active node sends what has changed, and all of it when the other node was away; the other node
//! installs each as a whole, or not at all. How it gets there is the channel's business
//! ([`crate::place::FileChannel`]).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::Subject;
use super::apart::Apart;
use crate::config::Resource;
use crate::config::resource::{File, Files};
use crate::config::{Group, Ms};
use crate::lock;
use crate::place::{FileChannel, NotSent, Place};
use crate::process::{Deadline, Failure, Step};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Without a change they are sent again after this long: the other node's may have been changed there.
const ALL_AGAIN: Duration = Duration::from_secs(300);

/// They are read within.
const READ_WITHIN: Ms = Ms::seconds(10);

/// A larger file is no small one, in bytes.
pub const LARGEST: u64 = 8 << 20;

/// A file as it is to be on the other node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Where it is, on both nodes.
    pub path: PathBuf,
    /// What is in it; `None`: it is not there, and is to be removed.
    #[serde(with = "as_base64")]
    pub content: Option<Vec<u8>>,
    /// BLAKE3 of the content, in hexadecimal; empty without one.
    pub hash: String,
    /// Its owner's name.
    pub owner: String,
    /// Its group's name.
    pub group: String,
    /// Its mode's lower twelve bits.
    pub mode: u32,
}

/// A list of numbers would be three times as long.
mod as_base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[allow(clippy::ref_option)] // as serde hands a field over
    pub(super) fn serialize<S: Serializer>(
        content: &Option<Vec<u8>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let text = content.as_ref().map(|content| STANDARD.encode(content));
        text.serialize(to)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(
        from: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        let content = text.map(|text| STANDARD.decode(text)).transpose();
        content.map_err(serde::de::Error::custom)
    }
}

/// What tells that a file was not changed, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

fn seen(path: &Path) -> Option<Seen> {
    let about = fs::symlink_metadata(path).ok()?;
    Some(Seen {
        inode: about.ino(),
        size: about.size(),
        // Every change of content, owner or mode sets it.
        changed: (about.ctime(), about.ctime_nsec()),
    })
}

/// A number's name in `/etc/passwd` or `/etc/group`; the number itself where it has none.
fn name_of(file: &str, number: u32) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(number)).then_some(name)
    });
    found.map_or_else(|| number.to_string(), str::to_owned)
}

fn number_of(file: &str, name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    });
    found.ok_or_else(|| format!("there is no {name} in {file} of this node"))
}

/// The file itself, and what it is: not what a link of this name leads to, and no pipe or device, which would be waited
/// for. Its folder may be another user's. `None`: there is none.
fn open(path: &Path) -> Result<Option<(fs::File, fs::Metadata)>, String> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(flags.bits().cast_signed());
    let shown = path.display();
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Err(format!(
                "{shown} is a symbolic link: only files are synchronised\n  next: name the file that it leads to"
            ));
        }
        Err(error) => return Err(format!("{shown}: {error}")),
    };
    let about = file
        .metadata()
        .map_err(|error| format!("{shown}: {error}"))?;
    if !about.is_file() {
        return Err(format!(
            "{shown} is not a file: only files are synchronised"
        ));
    }
    Ok(Some((file, about)))
}

/// A file as it is here, with the owner and mode that the configuration wants there.
///
/// # Errors
/// It can't be read, is no file, or is too large.
pub fn image(file: &File) -> Result<Image, String> {
    let path = file.path.display();
    let mode = match &file.mode {
        Some(mode) => Some(
            u32::from_str_radix(mode, 8)
                .map_err(|_| format!("{path}: mode {mode} is not octal"))?,
        ),
        None => None,
    };
    let mut image = Image {
        path: file.path.clone(),
        content: None,
        hash: String::new(),
        owner: file.owner.clone().unwrap_or_default(),
        group: file.group.clone().unwrap_or_default(),
        mode: mode.unwrap_or(0o600),
    };
    let Some((opened, about)) = open(&file.path)? else {
        return Ok(image);
    };
    let mut content = Vec::new();
    let read = opened.take(LARGEST + 1).read_to_end(&mut content);
    read.map_err(|error| format!("{path}: {error}"))?;
    if content.len() as u64 > LARGEST {
        return Err(format!(
            "{path} is larger than {} MiB: only small files are synchronised\n  next: put it on the mirror",
            LARGEST >> 20
        ));
    }
    image.hash = blake3::hash(&content).to_hex().to_string();
    image.content = Some(content);
    if file.owner.is_none() {
        image.owner = name_of("/etc/passwd", about.uid());
    }
    if file.group.is_none() {
        image.group = name_of("/etc/group", about.gid());
    }
    if mode.is_none() {
        image.mode = about.permissions().mode() & 0o7777;
    }
    Ok(image)
}

/// Installs a file that the active node has sent: as a whole and durable, or not at all.
///
/// # Errors
/// It belongs to no `files` resource of the configuration, its content was damaged, there is no
/// such owner here, or it can't be written.
pub fn install(place: &Place, group: &str, resource: &str, image: &Image) -> Result<(), String> {
    let path = image.path.display();
    let listed = place.cluster.group(group).is_some_and(|group| {
        group.resources.iter().any(|r| {
            r.name == resource
                && matches!(&r.kind, crate::config::resource::Kind::Files(files)
                    if files.files.iter().any(|file| file.path == image.path))
        })
    });
    if !listed {
        return Err(format!(
            "{path}: not installed: it is no file of {group}/{resource} in this node's configuration"
        ));
    }
    let Some(content) = &image.content else {
        return match fs::remove_file(&image.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("{path}: {error}"))
            }
            _ => Ok(()),
        };
    };
    if blake3::hash(content).to_hex().as_str() != image.hash {
        return Err(format!(
            "{path}: not installed: its content was damaged on its way"
        ));
    }
    let owner = number_of("/etc/passwd", &image.owner)?;
    let owners = number_of("/etc/group", &image.group)?;
    if is_same(&image.path, image, owner, owners) {
        return Ok(());
    }
    replace(&image.path, content, (owner, owners), image.mode)
        .map_err(|error| format!("{path}: not installed: {error}"))
}

fn is_same(path: &Path, image: &Image, owner: u32, group: u32) -> bool {
    let Ok(Some((file, about))) = open(path) else {
        return false;
    };
    let mut content = Vec::new();
    (about.uid(), about.gid()) == (owner, group)
        && about.permissions().mode() & 0o7777 == image.mode
        && file.take(LARGEST + 1).read_to_end(&mut content).is_ok()
        && blake3::hash(&content).to_hex().as_str() == image.hash
}

fn replace(path: &Path, content: &[u8], (owner, group): (u32, u32), mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".kagami-new");
    let new = folder.join(name);
    // What an earlier one left may be anybody's.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        // Nobody else reads it before it has its owner and mode.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(content)?;
        std::os::unix::fs::fchown(&file, Some(owner), Some(group))?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // It is the first error that counts.
        let _ = fs::remove_file(&new);
    }
    written
}

/// What was sent, and arrived.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    arrived: BTreeMap<PathBuf, Option<Seen>>,
    failed: BTreeMap<PathBuf, String>,
}

impl Sender {
    /// Sends what is not there yet, each file by itself: one that the other node refuses keeps no other from
    /// it.
    async fn round(
        &mut self,
        apart: &Apart,
        channel: &Arc<dyn FileChannel>,
        group: &str,
        resource: &str,
        files: &[File],
    ) -> Result<(), NotSent> {
        let mut due = Vec::new();
        let paths: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
        let all = move || paths.iter().map(|path| seen(path)).collect::<Vec<_>>();
        let all = read_apart(apart, group, resource, all).await?;
        for (file, seen) in files.iter().zip(all) {
            if self.arrived.get(&file.path) == Some(&seen) {
                continue;
            }
            // One that was never there is not removed there: it may yet come from there.
            if seen.is_none() && !self.arrived.contains_key(&file.path) {
                continue;
            }
            due.push((file, seen));
        }
        // One for which the way is too slow keeps no smaller one back.
        due.sort_by_key(|(_, seen)| seen.map_or(0, |seen| seen.size));
        let mut refused = None;
        for (file, seen) in due {
            let of = file.clone();
            let image = match read_apart(apart, group, resource, move || image(&of)).await? {
                Ok(image) => image,
                Err(why) => {
                    if self.failed.insert(file.path.clone(), why.clone()).as_ref() != Some(&why) {
                        channel.not_read(group, resource, &why);
                    }
                    continue;
                }
            };
            self.failed.remove(&file.path);
            match channel.send(group, resource, image).await {
                Ok(()) => {
                    self.arrived.insert(file.path.clone(), seen);
                }
                Err(why @ (NotSent::Refused(_) | NotSent::NotRead(_))) => {
                    refused.get_or_insert(why);
                }
                Err(away @ NotSent::Away(_)) => return Err(away),
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

/// What reads files, in a thread of its own: they are where the operator says, a disk that hangs for one.
async fn read_apart<T: Send + 'static>(
    apart: &Apart,
    group: &str,
    resource: &str,
    what: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotSent> {
    let name = format!("the files of {group}/{resource}");
    let read = apart.run(&name, Deadline::after(READ_WITHIN), what).await;
    read.map_err(|failure| match failure {
        Failure::Failed(why) | Failure::Warned(why) => NotSent::NotRead(why),
        Failure::TimedOut => NotSent::NotRead(format!("{name} can't be read within {READ_WITHIN}")),
    })
}

pub(super) async fn start(subject: Subject<'_>, own: &Files, deadline: Deadline) -> Step {
    let mut sender = Sender::default();
    let (group, resource) = (&subject.group.name, &subject.resource.name);
    let Place { apart, files, .. } = subject.place;
    let first = sender.round(apart, files, group, resource, &own.files);
    match deadline.wait(first).await {
        Ok(Ok(())) => {}
        // The other node may be what has failed: the service starts all the same.
        Ok(Err(why)) => tracing::info!(%why, "files are not sent yet"),
        Err(_) => tracing::info!("files are not sent yet: the other node does not answer"),
    }
    // Another manager may be there by now: who knows it to be active sends on, by its own configuration and channel.
    lock(&subject.place.sent).insert(subject.key(), sender);
    Ok(())
}

/// Sends what changes from now on.
pub(super) fn keep_sending(place: &Place, group: &Group, resource: &Resource, own: &Files) {
    let key = Place::key(group, &resource.name);
    let mut sender = lock(&place.sent).remove(&key).unwrap_or_default();
    let (group, resource) = (group.name.clone(), resource.name.clone());
    let (files, channel) = (own.files.clone(), place.files.clone());
    let apart = place.apart.clone();
    place.tasks.begin(key, async move {
        let mut told = None;
        let mut all = tokio::time::Instant::now();
        loop {
            sleep(LOOK).await;
            if all.elapsed() >= ALL_AGAIN {
                all = tokio::time::Instant::now();
                // What is the same there is not written again.
                sender.arrived.retain(|_, seen| seen.is_none());
            }
            let sent = sender
                .round(&apart, &channel, &group, &resource, &files)
                .await
                .err();
            if sent != told {
                if let Some(NotSent::NotRead(why)) = &sent {
                    channel.not_read(&group, &resource, why);
                } else if let Some(why) = &sent {
                    tracing::warn!(group, resource, %why, "files are not sent");
                    if matches!(why, NotSent::Away(_)) {
                        // A node that was away may have lost what it had.
                        sender.arrived.clear();
                    }
                } else {
                    tracing::info!(group, resource, "files are the same on both nodes");
                }
                told = sent;
            }
        }
    });
}

pub(super) async fn stop(subject: Subject<'_>) {
    subject.place.tasks.end(&subject.key()).await;
    // Its start may have failed at what came after.
    lock(&subject.place.sent).remove(&subject.key());
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::channel::{LINE_MAX, PeerAsk};
    use crate::place::Pending;

    /// A channel as the real one, without the network; it refuses this path.
    #[derive(Default)]
    struct Other {
        has: Mutex<BTreeMap<PathBuf, Option<Vec<u8>>>>,
        requests: Mutex<usize>,
        not_read: Mutex<Vec<String>>,
        refuses: Option<PathBuf>,
    }

    impl FileChannel for Other {
        fn send<'a>(
            &'a self,
            group: &'a str,
            resource: &'a str,
            image: Image,
        ) -> Pending<'a, Result<(), NotSent>> {
            let ask = PeerAsk::File {
                group: group.to_owned(),
                resource: resource.to_owned(),
                image,
            };
            let line = serde_json::to_vec(&ask).unwrap();
            assert!(line.len() < LINE_MAX, "{} bytes", line.len());
            let Ok(PeerAsk::File { image, .. }) = serde_json::from_slice(&line) else {
                panic!("it does not come back as it was sent");
            };
            *self.requests.lock().unwrap() += 1;
            let sent = if self.refuses.as_ref() == Some(&image.path) {
                Err(NotSent::Refused("there is no such owner".to_owned()))
            } else {
                self.has.lock().unwrap().insert(image.path, image.content);
                Ok(())
            };
            Box::pin(std::future::ready(sent))
        }

        fn not_read(&self, group: &str, resource: &str, why: &str) {
            let what = format!("{group}/{resource}: {why}");
            self.not_read.lock().unwrap().push(what);
        }
    }

    #[tokio::test]
    async fn what_is_no_file_is_not_read_and_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| File {
            path: folder.path().join(name),
            owner: None,
            group: None,
            mode: None,
        };
        let files: Vec<File> = ["link", "pipe", "good"].map(file).into();
        let secret = folder.path().join("secret");
        fs::write(&secret, "of root alone").unwrap();
        std::os::unix::fs::symlink(&secret, &files[0].path).unwrap();
        // Nobody will ever write to it.
        let made = std::process::Command::new("mkfifo")
            .arg(&files[1].path)
            .status();
        assert!(made.unwrap().success());
        fs::write(&files[2].path, "good").unwrap();
        let other = Arc::new(Other::default());
        let channel: Arc<dyn FileChannel> = other.clone();
        let (mut sender, apart) = (Sender::default(), Apart::default());
        for _ in 0..2 {
            let sent = sender.round(&apart, &channel, "g", "f", &files).await;
            assert_eq!(sent, Ok(()));
        }
        let has: Vec<_> = other.has.lock().unwrap().keys().cloned().collect();
        assert_eq!(has, [files[2].path.clone()]);
        let told = other.not_read.lock().unwrap().join("\n");
        assert_eq!(told.matches("g/f: ").count(), 2, "{told}");
        assert!(
            told.contains("/link is a symbolic link") && told.contains("/pipe is not a file"),
            "{told}"
        );
        // Nor is it taken for what was installed before.
        let mut image = image(&file("secret")).unwrap();
        image.path = files[0].path.clone();
        let about = fs::metadata(&secret).unwrap();
        assert!(!is_same(&image.path, &image, about.uid(), about.gid()));
    }

    #[tokio::test]
    async fn files_that_are_large_together_arrive_one_by_one_and_none_keeps_another_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| File {
            path: folder.path().join(name),
            owner: None,
            group: None,
            mode: None,
        };
        let files: Vec<File> = ["a", "b", "c", "small"].map(file).into();
        for (at, file) in files.iter().enumerate() {
            let length = if at < 3 { LARGEST as usize } else { 10 };
            // The longest as text.
            fs::write(&file.path, vec![0xff; length]).unwrap();
        }
        let other = Arc::new(Other {
            refuses: Some(files[1].path.clone()),
            ..Other::default()
        });
        let channel: Arc<dyn FileChannel> = other.clone();
        let mut sender = Sender::default();
        let sent = sender
            .round(&Apart::default(), &channel, "g", "f", &files)
            .await;
        assert!(matches!(sent, Err(NotSent::Refused(_))), "{sent:?}");
        for (at, file) in files.iter().enumerate() {
            let has = other.has.lock().unwrap();
            let there = has.get(&file.path).cloned().flatten();
            let here = (at != 1).then(|| fs::read(&file.path).unwrap());
            assert!(there == here, "{}", file.path.display());
        }
        // What has arrived is not sent again because of another one.
        let again = sender
            .round(&Apart::default(), &channel, "g", "f", &files)
            .await;
        assert!(again.is_err());
        assert_eq!(*other.requests.lock().unwrap(), files.len() + 1);
    }
}
