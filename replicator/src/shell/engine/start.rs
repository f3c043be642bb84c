//! From a mirror's stores to what its core starts from: open, fence, read, repair, check.
//!
//! All of it blocks, and is done before the mirror's thread hears of the mirror. Nothing is changed
//! in a store that is refused. A metadata store that can't be used refuses the mirror; a backing store
//! that is gone or fails makes the copy diskless, so that its peer's copy can be served from here;
//! but one that somebody else holds refuses the mirror, for its writes could still be landing.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use kagami_bitmap::layout::{LayoutError, SLOTS_BYTES};
use kagami_bitmap::sector::UNREADABLE;
use kagami_bitmap::{
    BLOCK, FoundStore, Placement, Recovered, Recovery, SuperblockFault, read_slots,
};

use super::config::MirrorConfig;
use super::holes::Holes;
use crate::core::state::NodeId;
use crate::shell::buffers::{PAGE, Pool, PoolConfig};
use crate::shell::fence::{FenceError, StoreFile};
use crate::shell::probe::StoreKind;
use crate::shell::storage::Area;
use crate::shell::store_name;

/// Bytes read at once.
const STEP: u64 = 1 << 20;

/// Why a mirror can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A store can't be opened or is in use.
    #[error("mirror {mirror}: {error}")]
    Fence {
        /// The mirror.
        mirror: String,
        /// Why, with the path.
        error: FenceError,
    },
    /// The metadata store is not this mirror's, or can't be read.
    #[error("mirror {mirror}: {}: {error}", path.display())]
    Superblock {
        /// The mirror.
        mirror: String,
        /// The store.
        path: PathBuf,
        /// Why.
        error: SuperblockFault,
    },
    /// The metadata store doesn't hold all that it must.
    #[error("mirror {mirror}: {}: {error}", path.display())]
    Layout {
        /// The mirror.
        mirror: String,
        /// The store.
        path: PathBuf,
        /// Why.
        error: LayoutError,
    },
    /// The copy belongs to another node.
    #[error("mirror {mirror}: {} holds the copy of node {found}, and this is node {expected}: it was copied or moved from there; `kagami init` makes a copy for this node", path.display())]
    OtherNode {
        /// The mirror.
        mirror: String,
        /// The store.
        path: PathBuf,
        /// The node in the record.
        found: NodeId,
        /// This node.
        expected: NodeId,
    },
    /// The copy was paired with another node.
    #[error(
        "mirror {mirror}: its copy is paired with node {found}, and the configuration names {}: write the right `peer`, or pair with that node anew: `kagami pair {mirror} --again`",
        if *expected == NodeId::NOBODY { "no peer".to_owned() } else { format!("node {expected} as its peer") }
    )]
    OtherPeer {
        /// The mirror.
        mirror: String,
        /// The node in the record.
        found: NodeId,
        /// The configured peer.
        expected: NodeId,
    },
    /// The configuration says another size.
    #[error(
        "mirror {mirror}: its metadata say {found} bytes, the configuration {expected}: correct `size`"
    )]
    OtherSize {
        /// The mirror.
        mirror: String,
        /// Bytes in the record.
        found: u64,
        /// Bytes configured.
        expected: u64,
    },
    /// The backing store is shorter than the mirror.
    #[error("mirror {mirror}: {} has room for {has} bytes of data, and the mirror has {needs}: the store was truncated or is another one; restore it to its size", path.display())]
    BackingTooShort {
        /// The mirror.
        mirror: String,
        /// The store.
        path: PathBuf,
        /// Bytes there.
        has: u64,
        /// Bytes needed.
        needs: u64,
    },
    /// The metadata could not be made durable or repaired.
    #[error("mirror {mirror}: {}: {doing}: {error}", path.display())]
    Io {
        /// The mirror.
        mirror: String,
        /// The store.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        error: io::Error,
    },
    /// The mirror's thread doesn't exist.
    #[error(
        "mirror {mirror}: there is no data-plane thread {thread}: `threads` in [node] is {threads}"
    )]
    NoThread {
        /// The mirror.
        mirror: String,
        /// The configured thread.
        thread: u16,
        /// How many there are.
        threads: u16,
    },
    /// A mirror of this name or id runs.
    #[error("mirror {0} runs already")]
    Exists(String),
    /// Its arbiter can't be used.
    #[error("mirror {mirror}: {error}")]
    Arbiter {
        /// The mirror.
        mirror: String,
        /// Why.
        error: String,
    },
    /// The engine stops.
    #[error("mirror {0}: not started, the daemon is stopping")]
    Stopping(String),
}

impl StartError {
    /// A store is in use by somebody else.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Fence { error, .. } if error.is_held())
    }
}

/// A mirror's stores, open and fenced, and what they hold.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) config: MirrorConfig,
    pub(super) recovered: Recovered,
    /// What was found in the metadata, for people.
    pub(super) findings: Vec<String>,
    pub(super) data: Result<(StoreFile, Area), String>,
    /// `None`: in the data's store.
    pub(super) metadata_file: Option<StoreFile>,
    pub(super) metadata_area: Area,
    pub(super) holes: Option<Holes>,
}

/// Opens and reads everything. Blocks.
///
/// # Errors
///
/// [`StartError`]; the stores are closed again then.
pub(super) fn open(config: MirrorConfig, node: NodeId) -> Result<Opened, StartError> {
    let name = || config.name.clone();
    let fence = |error| StartError::Fence {
        mirror: name(),
        error,
    };
    let backing = match StoreFile::open(&config.backing, config.fence_wait) {
        // Who has the data has the metadata too: to wait for that as well would only be silence.
        Err(error @ FenceError::Held { .. }) => return Err(fence(error)),
        other => other,
    };
    let separate = match &config.metadata {
        Some(path) => Some(StoreFile::open(path, config.fence_wait).map_err(fence)?),
        None => None,
    };
    let (backing, lost) = match (backing, &separate) {
        (Ok(file), _) => (Some(file), None),
        // Without its own metadata store, and for what an operator must put right, it is refused.
        (Err(error @ (FenceError::Missing { .. } | FenceError::Io { .. })), Some(_)) => {
            (None, Some(error.to_string()))
        }
        (Err(error), _) => return Err(fence(error)),
    };
    let placement = if separate.is_some() {
        Placement::Own
    } else {
        Placement::Tail
    };
    let Some(store) = separate.as_ref().or(backing.as_ref()) else {
        unreachable!("one of both is open");
    };
    let reader = Reader::new(store, &config.name)?;
    let (mut recovered, metadata_area) = reader.recover(placement, config.mirror)?;
    check(&config, node, store.path(), &recovered)?;
    let mut findings = report(&config.name, &recovered);
    let tail = separate.is_none().then_some(metadata_area);
    let area = backing
        .as_ref()
        .map(|file| data_area(&config, file, &recovered, tail))
        .transpose()?;
    if separate.is_some() {
        findings.extend(meet_store(&config, backing.as_ref(), &mut recovered));
    }
    reader.repair(metadata_area, &mut recovered)?;
    let data = backing.zip(area).ok_or_else(|| lost.unwrap_or_default());
    let data_start = recovered.superblock.backing.data_offset;
    let file = data.as_ref().ok().map(|(file, _)| file);
    let file = file.filter(|file| file.capabilities().kind == StoreKind::File);
    // Without, all of it counts as data.
    let holes = file.and_then(|file| Holes::of(file.file(), data_start).ok());
    Ok(Opened {
        recovered,
        findings,
        data,
        metadata_file: separate,
        metadata_area,
        holes,
        config,
    })
}

/// Reads one metadata store.
pub(super) struct Reader<'a> {
    store: &'a StoreFile,
    mirror: &'a str,
    pool: Pool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(store: &'a StoreFile, mirror: &'a str) -> Result<Self, StartError> {
        let config = PoolConfig {
            bytes: 2 * STEP as usize,
            reserve: 0,
            lock: false,
        };
        let this = |pool| Self {
            store,
            mirror,
            pool,
        };
        Pool::new(&config)
            .map(this)
            .map_err(|error| StartError::Io {
                mirror: mirror.to_owned(),
                path: store.path().to_owned(),
                doing: "taking memory to read the metadata",
                error,
            })
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> StartError {
        let (mirror, path) = (self.mirror.to_owned(), self.store.path().to_owned());
        move |error| StartError::Io {
            mirror,
            path,
            doing,
            error,
        }
    }

    /// Reads a range; blocks that the disk refuses are filled so that they pass for nothing.
    fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        match self.store.read(&self.pool, offset, len as usize) {
            Ok(bytes) => bytes.into(),
            Err(error) => {
                tracing::error!(mirror = self.mirror, path = %self.store.path().display(), offset, len, %error,
                    "the metadata can't be read whole; what is missing counts as marked");
                let mut bytes = vec![UNREADABLE; len as usize];
                for (page, part) in bytes.chunks_exact_mut(PAGE).enumerate() {
                    if let Ok(read) =
                        self.store
                            .read(&self.pool, offset + (page * PAGE) as u64, PAGE)
                    {
                        part.copy_from_slice(&read);
                    }
                }
                bytes
            }
        }
    }

    pub(super) fn recover(
        &self,
        placement: Placement,
        mirror: u128,
    ) -> Result<(Recovered, Area), StartError> {
        // What a killed daemon wrote may be in the disk's cache: it must not be lost after it was read.
        self.store
            .file()
            .sync_data()
            .map_err(self.io("making the last daemon's writes durable"))?;
        let superblock = |error| StartError::Superblock {
            mirror: self.mirror.to_owned(),
            path: self.store.path().to_owned(),
            error,
        };
        let len = self.store.capabilities().size;
        let slots = placement.slots_at(len).ok_or_else(|| {
            superblock(SuperblockFault::Truncated {
                has: len,
                needs: SLOTS_BYTES,
            })
        })?;
        let read =
            read_slots(&self.read(slots, SLOTS_BYTES), len, Some(mirror)).map_err(superblock)?;
        let layout = read.superblock.layout;
        let start = layout.area_start(len).map_err(|error| StartError::Layout {
            mirror: self.mirror.to_owned(),
            path: self.store.path().to_owned(),
            error,
        })?;
        let units = |units: u32| u64::from(units) * PAGE as u64;
        let mut recovery = Recovery::new(read);
        recovery.log(&self.read(start + layout.log_offset, units(layout.log_records)));
        recovery.directory(&self.read(
            start + layout.directory_offset,
            units(layout.directory_pages),
        ));
        let pages = units(recovery.pages_wanted());
        for at in (0..pages).step_by(STEP as usize) {
            recovery.pages(&self.read(start + layout.pages_offset + at, STEP.min(pages - at)));
        }
        Ok((
            recovery.finish(),
            Area {
                start,
                len: layout.total_len,
            },
        ))
    }

    /// Writes what recovery wants written, each step durable before the next.
    pub(super) fn repair(&self, area: Area, recovered: &mut Recovered) -> Result<(), StartError> {
        let steps = std::mem::take(&mut recovered.repair);
        self.write(area, steps, "repairing the metadata")
    }

    /// Writes to the metadata, each step durable before the next.
    pub(super) fn write(
        &self,
        area: Area,
        steps: Vec<Vec<(u64, Bytes)>>,
        doing: &'static str,
    ) -> Result<(), StartError> {
        for (offset, bytes) in steps.into_iter().flatten() {
            let written = self
                .store
                .write_durably(&self.pool, area.start + offset, &bytes);
            written.map_err(self.io(doing))?;
        }
        Ok(())
    }
}

fn check(
    config: &MirrorConfig,
    node: NodeId,
    path: &Path,
    recovered: &Recovered,
) -> Result<(), StartError> {
    let record = &recovered.superblock.record;
    if record.node != node.0 {
        return Err(StartError::OtherNode {
            mirror: config.name.clone(),
            path: path.to_owned(),
            found: NodeId(record.node),
            expected: node,
        });
    }
    if let Some(found) = record
        .peer
        .map(NodeId)
        .filter(|found| *found != config.peer)
    {
        return Err(StartError::OtherPeer {
            mirror: config.name.clone(),
            found,
            expected: config.peer,
        });
    }
    if let Some(expected) = config.size.filter(|size| *size != record.size) {
        return Err(StartError::OtherSize {
            mirror: config.name.clone(),
            found: record.size,
            expected,
        });
    }
    Ok(())
}

/// Holds the backing store against the one that the metadata speak of. (Metadata in its tail come and go
/// with it.) What is to be told of it.
fn meet_store(
    config: &MirrorConfig,
    found: Option<&StoreFile>,
    recovered: &mut Recovered,
) -> Option<String> {
    let Some(file) = found else {
        recovered.meet_store(None);
        return None;
    };
    let known = recovered.superblock.store_name.clone();
    let capabilities = file.capabilities();
    let names = store_name::names(file.file(), capabilities.kind);
    let why = recovered.meet_store(Some(FoundStore {
        names: &names,
        size: capabilities.size,
    }))?;
    let or_none = |name: &str| {
        if name.is_empty() {
            "no name".to_owned()
        } else {
            name.to_owned()
        }
    };
    let now = or_none(names.first().map_or("", String::as_str));
    let text = format!(
        "the backing store is {why}: what it holds counts for nothing, and every block will be compared with the peer's ({now}; the copy was on: {})",
        or_none(&known)
    );
    tracing::warn!(mirror = config.name, path = %config.backing.display(), "{text}");
    Some(text)
}

/// Where the data lie, if there is room for them.
fn data_area(
    config: &MirrorConfig,
    file: &StoreFile,
    recovered: &Recovered,
    tail: Option<Area>,
) -> Result<Area, StartError> {
    let start = recovered.superblock.backing.data_offset;
    let needs = recovered.superblock.geometry().blocks() * BLOCK;
    let mut has = file.capabilities().usable_from(start);
    if let Some(tail) = tail {
        has = has.min(tail.start.saturating_sub(start));
    }
    if has < needs {
        return Err(StartError::BackingTooShort {
            mirror: config.name.clone(),
            path: config.backing.clone(),
            has,
            needs,
        });
    }
    Ok(Area { start, len: needs })
}

/// Tells the log what was found.
fn report(mirror: &str, recovered: &Recovered) -> Vec<String> {
    let mut texts = Vec::new();
    for finding in &recovered.findings {
        if finding.is_damage() {
            tracing::error!(mirror, "{finding}");
        } else {
            tracing::info!(mirror, "{finding}");
        }
        texts.push(finding.to_string());
    }
    texts
}
