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

use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::Subject;
use crate::config::Group;
use crate::config::Resource;
use crate::config::resource::{File, Files};
use crate::place::{FileChannel, NotSent, Place};
use crate::process::{Deadline, Step};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Without a change they are sent again after this long: the other node's may have been changed there.
const ALL_AGAIN: Duration = Duration::from_secs(300);

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
    let about = fs::metadata(path).ok()?;
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
    let opened = match fs::File::open(&file.path) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(image),
        Err(error) => return Err(format!("{path}: {error}")),
    };
    let about = opened
        .metadata()
        .map_err(|error| format!("{path}: {error}"))?;
    if !about.is_file() {
        return Err(format!("{path} is not a file: only files are synchronised"));
    }
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
    let Ok(about) = fs::symlink_metadata(path) else {
        return false;
    };
    about.is_file()
        && (about.uid(), about.gid()) == (owner, group)
        && about.permissions().mode() & 0o7777 == image.mode
        && fs::read(path)
            .is_ok_and(|content| blake3::hash(&content).to_hex().as_str() == image.hash)
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
struct Sender {
    arrived: BTreeMap<PathBuf, Option<Seen>>,
    failed: BTreeMap<PathBuf, String>,
}

impl Sender {
    /// Sends what is not there yet, each file by itself: one that the other node refuses keeps no other from
    /// it.
    async fn round(
        &mut self,
        channel: &Arc<dyn FileChannel>,
        group: &str,
        resource: &str,
        files: &[File],
    ) -> Result<(), NotSent> {
        let mut due = Vec::new();
        for file in files {
            let seen = seen(&file.path);
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
            let image = match image(file) {
                Ok(image) => image,
                Err(why) => {
                    if self.failed.insert(file.path.clone(), why.clone()).as_ref() != Some(&why) {
                        tracing::warn!(why, "a file is not synchronised");
                    }
                    continue;
                }
            };
            self.failed.remove(&file.path);
            match channel.send(group, resource, image).await {
                Ok(()) => {
                    self.arrived.insert(file.path.clone(), seen);
                }
                Err(why @ NotSent::Refused(_)) => {
                    refused.get_or_insert(why);
                }
                Err(away @ NotSent::Away(_)) => return Err(away),
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

pub(super) async fn start(subject: Subject<'_>, own: &Files, deadline: Deadline) -> Step {
    let mut sender = Sender::default();
    let (group, resource) = (&subject.group.name, &subject.resource.name);
    let first = sender.round(&subject.place.files, group, resource, &own.files);
    match deadline.wait(first).await {
        Ok(Ok(())) => {}
        // The other node may be what has failed: the service starts all the same.
        Ok(Err(why)) => tracing::info!(%why, "files are not sent yet"),
        Err(_) => tracing::info!("files are not sent yet: the other node does not answer"),
    }
    go_on(subject.place, subject.group, subject.resource, own, sender);
    Ok(())
}

/// Sends what changes from now on.
pub(super) fn keep_sending(place: &Arc<Place>, group: &Group, resource: &Resource, own: &Files) {
    go_on(place, group, resource, own, Sender::default());
}

fn go_on(place: &Place, group: &Group, resource: &Resource, own: &Files, mut sender: Sender) {
    let key = Place::key(group, &resource.name);
    let (group, resource) = (group.name.clone(), resource.name.clone());
    let (files, channel) = (own.files.clone(), place.files.clone());
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
                .round(&channel, &group, &resource, &files)
                .await
                .err();
            if sent != told {
                if let Some(why) = &sent {
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
        let sent = sender.round(&channel, "g", "f", &files).await;
        assert!(matches!(sent, Err(NotSent::Refused(_))), "{sent:?}");
        for (at, file) in files.iter().enumerate() {
            let has = other.has.lock().unwrap();
            let there = has.get(&file.path).cloned().flatten();
            let here = (at != 1).then(|| fs::read(&file.path).unwrap());
            assert!(there == here, "{}", file.path.display());
        }
        // What has arrived is not sent again because of another one.
        let again = sender.round(&channel, "g", "f", &files).await;
        assert!(again.is_err());
        assert_eq!(*other.requests.lock().unwrap(), files.len() + 1);
    }
}
