//! Making this node's copy of a mirror: a backing store, a metadata store, and a record in it.
//!
//! For `init` and `pair --join`. Everything is looked at before anything is made; files that were made
//! are taken back when a later step fails, devices are only ever read before the last step.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kagami_bitmap::{Backing, Fill, Format, Geometry, Layout, Placement, Record, Superblock};
use kagami_replicator::shell::buffers::{Pool, PoolConfig};
use kagami_replicator::shell::fence::StoreFile;
use kagami_replicator::shell::store::{self, StoreError};
use kagami_replicator::shell::store_name;

use crate::args::StoreArgs;
use crate::config::value::spell_size;
use crate::daemon::report::wall_ms;
use crate::exit::Failure;
use crate::render::units::size as words;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The mirror's name.
    pub name: &'a str,
    /// The mirror's uuid.
    pub uuid: [u8; 16],
    /// This node's id.
    pub node: u64,
    /// The peer's, where it is known.
    pub peer: Option<u64>,
    /// Bytes; `None`: all of the device.
    pub size: Option<u64>,
    /// Keep what is there.
    pub keep_data: bool,
    /// 512 or 4096.
    pub logical_block: u32,
    /// Hot extents.
    pub extents: u32,
    /// Where files go that nobody named.
    pub state_dir: &'a Path,
    /// Where.
    pub store: &'a StoreArgs,
}

/// What will be made.
#[derive(Debug)]
pub struct Plan {
    /// The mirror's size, bytes.
    pub size: u64,
    /// The backing store.
    pub backing: PathBuf,
    /// The metadata store.
    pub metadata: PathBuf,
    /// The backing store is made as a sparse file.
    creates_backing: bool,
    /// The data there are kept.
    keep_data: bool,
    layout: Layout,
    record: Record,
    /// Held from the look at it to the end.
    device: Option<StoreFile>,
}

/// A copy that was made.
#[derive(Debug)]
pub struct Made {
    /// The mirror's size, bytes.
    pub size: u64,
    /// The backing store.
    pub backing: PathBuf,
    /// The metadata store.
    pub metadata: PathBuf,
    /// It is known to read as zeroes.
    pub zeroed: bool,
    created: Vec<PathBuf>,
}

impl Made {
    /// A copy whose stores stay where they are.
    pub fn kept(size: u64, backing: &Path, metadata: &Path) -> Self {
        Self {
            size,
            backing: backing.to_owned(),
            metadata: metadata.to_owned(),
            zeroed: false,
            created: Vec::new(),
        }
    }

    /// Takes back the files that were made.
    pub fn take_back(&self) {
        for path in &self.created {
            // The failure that led here is the one to report.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn refused(error: &StoreError) -> Failure {
    Failure::refused(format!("no store made: {error}\n  next: {}", error.next()))
}

impl Plan {
    /// Looks at everything and decides what will be made. Changes nothing.
    ///
    /// # Errors
    /// Something is in use, too small or looks used.
    pub fn new(wanted: &Wanted<'_>) -> Result<Self, Failure> {
        let store = wanted.store;
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let backing = store
            .device
            .as_ref()
            .or(store.backing.as_ref())
            .map_or_else(
                || wanted.state_dir.join(format!("{}.data", wanted.name)),
                absolute,
            );
        let metadata = store.metadata.as_ref().map_or_else(
            || wanted.state_dir.join(format!("{}.meta", wanted.name)),
            absolute,
        );
        if metadata == backing {
            return Err(Failure::usage(
                "no store made: --metadata is the backing store\n  next: name another file or device for the metadata",
            ));
        }
        let (size, device) = look(wanted, &backing)?;
        Geometry::new(size).map_err(|error| {
            Failure::usage(format!(
                "no store made: {error}\n  next: name another --size"
            ))
        })?;
        let max_size = match store.max_size {
            Some(max) if max < size => {
                return Err(Failure::usage(format!(
                    "no store made: --max-size {} is less than the size {}\n  next: leave it away, or name at least the size",
                    spell_size(max),
                    spell_size(size)
                )));
            }
            Some(max) => max.next_multiple_of(4096),
            None => default_max(size),
        };
        let layout = Layout::new(max_size, wanted.extents, Placement::Own)
            .map_err(|error| Failure::usage(format!("no store made: {error}")))?;
        metadata_place(&metadata, &layout)?;
        let mut record = Record::new(u128::from_be_bytes(wanted.uuid), wanted.node, size);
        record.logical_block = wanted.logical_block;
        record.peer = wanted.peer;
        if wanted.keep_data {
            // docs/protocol.md §1: data that are kept have a generation from the beginning.
            record.mint(random()?);
        }
        let creates_backing = device.is_none();
        record.zeroed = creates_backing && !wanted.keep_data;
        Ok(Self {
            size,
            backing,
            metadata,
            creates_backing,
            keep_data: wanted.keep_data,
            layout,
            record,
            device,
        })
    }

    /// What will be made, a line each.
    pub fn lines(&self) -> Vec<String> {
        let backing = if self.keep_data {
            format!(
                "backing   {}: kept as it is, {} ({} bytes)",
                self.backing.display(),
                words(self.size),
                self.size
            )
        } else if self.creates_backing {
            format!(
                "backing   {}: a new sparse file of {}",
                self.backing.display(),
                words(self.size)
            )
        } else {
            format!(
                "backing   {}: {} of it are used",
                self.backing.display(),
                words(self.size)
            )
        };
        vec![
            backing,
            format!(
                "metadata  {}: {}, enough for {}",
                self.metadata.display(),
                words(self.layout.total_len),
                words(self.layout.max_size)
            ),
        ]
    }

    /// Makes it.
    ///
    /// # Errors
    /// The system refused; files that were made are gone again.
    pub fn make(self) -> Result<Made, Failure> {
        let mut made = Made {
            size: self.size,
            backing: self.backing.clone(),
            metadata: self.metadata.clone(),
            zeroed: self.record.zeroed,
            created: Vec::new(),
        };
        let result = self.make_into(&mut made);
        if let Err(failure) = result {
            made.take_back();
            return Err(failure);
        }
        Ok(made)
    }

    fn make_into(self, made: &mut Made) -> Result<(), Failure> {
        for path in [&self.backing, &self.metadata] {
            if let Some(folder) = path.parent() {
                folder_for(folder)?;
            }
        }
        let backing = if let Some(device) = self.device {
            device
        } else {
            let new = store::create_backing_file(&self.backing, self.size, true)
                .map_err(|error| refused(&error))?;
            made.created.push(self.backing.clone());
            new.file
        };
        // Written extents where they are written all the time: superblock and activity log.
        let hot = 0..self.layout.directory_offset;
        let is_file = !is_device(&self.metadata);
        let metadata = store::create_metadata_store(
            &self.metadata,
            self.layout.total_len,
            std::slice::from_ref(&hot),
        )
        .map_err(|error| refused(&error))?;
        if is_file {
            made.created.push(self.metadata.clone());
        }
        let place = Backing {
            data_offset: 0,
            store_size: backing.capabilities().size,
        };
        let mut superblock = Superblock::new(self.layout, place, wall_ms() / 1000, self.record);
        let names = store_name::names(backing.file(), backing.capabilities().kind);
        superblock.store_name = names.into_iter().next().unwrap_or_default();
        format(&metadata, &superblock).map_err(|error| {
            Failure::system(format!(
                "no store made: {}: writing the metadata: {error}\n  next: check the disk, and try again",
                self.metadata.display()
            ))
        })
    }
}

/// Writes the structures; the store reads as zeroes.
fn format(metadata: &StoreFile, superblock: &Superblock) -> std::io::Result<()> {
    let pool = Pool::new(&PoolConfig {
        bytes: 4 << 20,
        reserve: 0,
        lock: false,
    })?;
    for chunk in Format::new(superblock, Fill::Blank) {
        // Each is durable before the next, which is more than the order that is asked for.
        metadata.write_durably(&pool, chunk.offset, &chunk.bytes)?;
    }
    metadata.file().sync_all()
}

/// The size of the mirror, and the store where there is one already.
fn look(wanted: &Wanted<'_>, backing: &Path) -> Result<(u64, Option<StoreFile>), Failure> {
    let device = wanted.store.device.is_some();
    if !device && !wanted.keep_data {
        let size = wanted.size.ok_or_else(|| {
            Failure::usage(
                "no store made: a file needs a size\n  next: add --size, like --size 20G",
            )
        })?;
        if is_device(backing) {
            return Err(Failure::usage(format!(
                "no store made: {} is a block device\n  next: name it with --device",
                backing.display()
            )));
        }
        if let Ok(facts) = backing.metadata()
            && (!facts.is_file() || facts.len() > 0)
        {
            return Err(refused(&StoreError::FileNotEmpty {
                path: backing.to_owned(),
                len: facts.len(),
            }));
        }
        return Ok((whole_blocks(size)?, None));
    }
    if device && !is_device(backing) {
        return Err(Failure::usage(format!(
            "no store made: {} is not a block device\n  next: name a file with --backing and --size",
            backing.display()
        )));
    }
    let file = if wanted.keep_data {
        StoreFile::open(backing, Duration::ZERO)
            .map_err(|error| refused(&StoreError::Fence(error)))?
    } else {
        store::claim_unused(backing).map_err(|error| refused(&error))?
    };
    let there = file.capabilities().size;
    let size = match wanted.size {
        Some(size) => whole_blocks(size)?,
        None if wanted.keep_data && !there.is_multiple_of(4096) => {
            return Err(Failure::refused(format!(
                "no store made: {} has {there} bytes, and its last {} would not be mirrored: a mirror has whole blocks of 4096\n  next: enlarge it to {} bytes, or name --size {} if nothing is at its end",
                backing.display(),
                there % 4096,
                there.next_multiple_of(4096),
                there - there % 4096,
            )));
        }
        None => there - there % 4096,
    };
    let have = file.capabilities().usable_from(0);
    if size > have {
        return Err(refused(&StoreError::TooSmall {
            path: backing.to_owned(),
            have,
            wanted: size,
        }));
    }
    Ok((size, Some(file)))
}

fn whole_blocks(size: u64) -> Result<u64, Failure> {
    if size.is_multiple_of(4096) && size >= 1 << 20 {
        return Ok(size);
    }
    Err(Failure::usage(if size < 1 << 20 {
        format!("no store made: a mirror of {size} bytes is too small\n  next: name at least 1MiB")
    } else {
        format!(
            "no store made: {size} bytes are not a multiple of 4096\n  next: name {} or {}",
            size - size % 4096,
            size.next_multiple_of(4096)
        )
    }))
}

/// 16 TiB of bitmap cost little; a mirror grows rarely by more than this.
fn default_max(size: u64) -> u64 {
    size.saturating_mul(4)
        .max(1 << 40)
        .min((16 << 40).max(size))
        .next_multiple_of(4096)
}

/// Refuses a place for the metadata before the backing store is made.
fn metadata_place(path: &Path, layout: &Layout) -> Result<(), Failure> {
    let Ok(facts) = path.metadata() else {
        return Ok(());
    };
    if facts.is_file() && facts.len() > 0 || facts.is_dir() {
        return Err(refused(&StoreError::FileNotEmpty {
            path: path.to_owned(),
            len: facts.len(),
        }));
    }
    if facts.file_type().is_block_device() {
        let store = store::claim_unused(path).map_err(|error| refused(&error))?;
        let have = store.capabilities().usable_from(0);
        if have < layout.total_len {
            return Err(refused(&StoreError::TooSmall {
                path: path.to_owned(),
                have,
                wanted: layout.total_len,
            }));
        }
    }
    Ok(())
}

fn is_device(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|facts| facts.file_type().is_block_device())
}

/// Makes a folder for stores: only its owner reads what is in it.
fn folder_for(folder: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    if folder.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| {
            Failure::system(format!(
                "no store made: {}: making the folder: {error}\n  next: run the command as a user who may, or name another place",
                folder.display()
            ))
        })
}

/// Random bits.
///
/// # Errors
/// The system gives none.
pub fn random() -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::system(format!("the system gives no random numbers: {error}")))?;
    Ok(u64::from_le_bytes(bytes))
}

/// A random id that TOML can hold: never 0, below 2^63.
///
/// # Errors
/// The system gives no random numbers.
pub fn random_id() -> Result<u64, Failure> {
    Ok((random()? >> 1).max(1))
}

/// A mirror's new uuid (RFC 9562, version 4).
///
/// # Errors
/// The system gives no random numbers.
pub fn random_uuid() -> Result<[u8; 16], Failure> {
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&random()?.to_le_bytes());
    uuid[8..].copy_from_slice(&random()?.to_le_bytes());
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}
