//! Real files on a mirror: an archive of this machine's files, each with its name and SHA-256.
//!
//! From byte `base` of the device: a head (magic, length and SHA-256 of the index), the index as JSON,
//! and from [`DATA`] on the files, each at a multiple of 4096. Whoever reads it back needs nothing but
//! the device.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::commands::bench::client::{Client, ClientError};

const MAGIC: &[u8; 8] = b"kgmdemo1";
/// Where the files begin, bytes after `base`.
const DATA: u64 = 4 << 20;
const BLOCK: u64 = 4096;
const HEAD: usize = 48;
/// So many names fit into the index.
const MOST_FILES: usize = 5_000;
const CHUNK: usize = 1 << 20;
/// Writes in flight while files are stored.
const DEPTH: usize = 8;
/// Where files are taken from, in this order; what is missing is skipped.
const PLACES: &[&str] = &["/usr/share/doc", "/usr/lib", "/usr/bin", "/etc"];

/// Why an archive could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The device.
    #[error(transparent)]
    Device(#[from] ClientError),
    /// What is on the device is no archive, or a damaged one.
    #[error("the archive on the device is damaged: {0}")]
    Damaged(String),
    /// This machine has no files to store.
    #[error("no readable files in {}", PLACES.join(", "))]
    NoFiles,
}

/// A file in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it was found.
    pub name: PathBuf,
    /// Bytes after `base`.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Of its content, hexadecimal.
    pub sha256: String,
}

/// What was stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// In the order of their offsets.
    pub files: Vec<Entry>,
}

impl Index {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }
}

/// What reading it back found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Files whose content is what it was.
    pub good: usize,
    /// Names of the others.
    pub bad: Vec<PathBuf>,
    /// Bytes read.
    pub bytes: u64,
}

/// Files of this machine, about `want` bytes of them, skipping the first `skip` that would fit.
pub fn find(want: u64, skip: usize) -> Result<Vec<PathBuf>, ArchiveError> {
    let mut found = Vec::new();
    let mut have = 0;
    let mut skipped = 0;
    let mut folders: Vec<PathBuf> = PLACES.iter().rev().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        let Ok(listing) = fs::read_dir(&folder) else {
            continue;
        };
        let mut paths: Vec<PathBuf> = listing.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths.into_iter().rev() {
            // A link could lead in circles.
            let Ok(facts) = fs::symlink_metadata(&path) else {
                continue;
            };
            if facts.is_dir() {
                folders.push(path);
            } else if facts.is_file()
                && (1..=want / 4).contains(&facts.len())
                && File::open(&path).is_ok()
            {
                if skipped < skip {
                    skipped += 1;
                    continue;
                }
                have += facts.len();
                found.push(path);
                if have >= want || found.len() >= MOST_FILES {
                    return Ok(found);
                }
            }
        }
    }
    if found.is_empty() {
        Err(ArchiveError::NoFiles)
    } else {
        Ok(found)
    }
}

/// Writes the files and their index from byte `base` on and flushes. A file that can't be read any
/// more, or would go past `end`, is left out.
///
/// # Errors
/// The device fails.
pub fn store(
    client: &mut Client,
    files: &[PathBuf],
    base: u64,
    end: u64,
) -> Result<Index, ArchiveError> {
    let mut index = Index::default();
    let mut offset = DATA;
    for path in files {
        let Some((len, sha256)) = store_file(client, path, base + offset, end)? else {
            continue;
        };
        index.files.push(Entry {
            name: path.clone(),
            offset,
            len,
            sha256,
        });
        offset += len.next_multiple_of(BLOCK);
    }
    let json = serde_json::to_vec(&index).expect("an index is plain data");
    let mut head = MAGIC.to_vec();
    head.extend((json.len() as u64).to_le_bytes());
    head.extend(Sha256::digest(&json));
    head.extend(&json);
    head.resize(head.len().next_multiple_of(BLOCK as usize), 0);
    assert!(
        head.len() as u64 <= DATA,
        "an index of {} bytes",
        head.len()
    );
    client.settle()?;
    for (number, chunk) in head.chunks(CHUNK).enumerate() {
        client.write(base + (number * CHUNK) as u64, chunk)?;
    }
    client.flush()?;
    Ok(index)
}

/// Length and SHA-256 of what was written; `None` when the file can't be read or does not fit.
fn store_file(
    client: &mut Client,
    path: &Path,
    offset: u64,
    end: u64,
) -> Result<Option<(u64, String)>, ArchiveError> {
    let mut content = Vec::new();
    let Ok(mut file) = File::open(path) else {
        return Ok(None);
    };
    if file.read_to_end(&mut content).is_err() {
        return Ok(None);
    }
    let len = content.len();
    let digest = hex(&Sha256::digest(&content));
    content.resize(len.next_multiple_of(BLOCK as usize), 0);
    if offset + content.len() as u64 > end {
        return Ok(None);
    }
    for (number, chunk) in content.chunks(CHUNK).enumerate() {
        while client.in_flight() >= DEPTH {
            client.next_answer()?;
        }
        client.submit_write(offset + (number * CHUNK) as u64, chunk, false)?;
    }
    Ok(Some((len as u64, digest)))
}

/// Reads index and files back from the device alone, and compares every SHA-256.
///
/// # Errors
/// The device fails, or holds no archive.
pub fn check(client: &mut Client, base: u64) -> Result<(Index, Checked), ArchiveError> {
    let mut head = vec![0; BLOCK as usize];
    client.read(base, &mut head)?;
    if &head[..8] != MAGIC {
        return Err(ArchiveError::Damaged("its head is not there".to_owned()));
    }
    let len = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
    if len > DATA {
        return Err(ArchiveError::Damaged(format!("an index of {len} bytes")));
    }
    let json = read(client, base + HEAD as u64, len)?;
    if Sha256::digest(&json)[..] != head[16..HEAD] {
        return Err(ArchiveError::Damaged(
            "the index has another SHA-256".to_owned(),
        ));
    }
    let index: Index = serde_json::from_slice(&json)
        .map_err(|error| ArchiveError::Damaged(format!("the index: {error}")))?;
    let mut checked = Checked::default();
    for file in &index.files {
        let content = read(client, base + file.offset, file.len)?;
        checked.bytes += file.len;
        if hex(&Sha256::digest(&content)) == file.sha256 {
            checked.good += 1;
        } else {
            checked.bad.push(file.name.clone());
        }
    }
    Ok((index, checked))
}

/// `len` bytes from byte `offset`, asked for in whole blocks.
fn read(client: &mut Client, offset: u64, len: u64) -> Result<Vec<u8>, ClientError> {
    let from = offset / BLOCK * BLOCK;
    let to = (offset + len).next_multiple_of(BLOCK);
    let mut content = vec![0; (to - from) as usize];
    for (number, chunk) in content.chunks_mut(CHUNK).enumerate() {
        client.read(from + (number * CHUNK) as u64, chunk)?;
    }
    content.drain(..(offset - from) as usize);
    content.truncate(len as usize);
    Ok(content)
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
