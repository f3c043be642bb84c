//! Heartbeats through a partition or file that both nodes reach.
//!
//! The first 16 KiB are four slots of 4 KiB: two for each node, which it writes in turn, so that a
//! torn write leaves the heartbeat before it. Both are read past the page cache (`O_DIRECT`): what
//! this node's cache holds is not what the other one has written. A slot is empty (zeroes) or a
//! frame; where anything else is found nothing is ever written, since it is somebody's data.
//!
//! A disk may hang for as long as it likes: each has a thread of its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::core::Node;

use super::{AGAIN, Ear, Newest};

/// Bytes of a slot.
const SLOT: usize = 4096;
/// The longest frame, in bytes.
pub const FRAME_MAX: usize = SLOT;

/// A slot's bytes, aligned as `O_DIRECT` wants them.
#[repr(align(4096))]
struct Page([u8; SLOT]);

impl Page {
    fn new() -> Box<Self> {
        Box::new(Self([0; SLOT]))
    }

    fn is_ours(&self) -> bool {
        self.0.starts_with(b"KGHB") || self.0.iter().all(|byte| *byte == 0)
    }
}

/// Starts the thread, which ends when there is nothing to be sent any more.
pub(super) fn start(
    path: PathBuf,
    me: Node,
    every: Duration,
    ear: Ear,
    mut newest: Newest,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name("failover-disk".to_owned())
        .spawn(move || {
            let mut told = false;
            loop {
                let ended = run(&path, me, every, &ear, &mut newest, &mut told);
                match ended {
                    Ok(()) => return,
                    Err(error) => ear.failed(&mut told, &path.display().to_string(), &error),
                }
                std::thread::sleep(AGAIN);
                if newest.has_changed().is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}

fn offset(node: Node, slot: usize) -> u64 {
    ((node * 2 + slot) * SLOT) as u64
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlags::DIRECT | OFlags::DSYNC).bits().cast_signed())
        .open(path)?;
    // A new file is as long as it has to be; a partition is longer.
    if file.metadata()?.is_file() && file.metadata()?.len() < offset(2, 0) {
        file.set_len(offset(2, 0))?;
    }
    let mut page = Page::new();
    for slot in 0..4 {
        file.read_exact_at(&mut page.0, offset(0, slot))?;
        if !page.is_ours() {
            let what = format!(
                "its first 16 KiB hold something else (at byte {}): nothing is written to it",
                offset(0, slot)
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    }
    Ok(file)
}

fn run(
    path: &Path,
    me: Node,
    every: Duration,
    ear: &Ear,
    newest: &mut Newest,
    told: &mut bool,
) -> io::Result<()> {
    let file = open(path)?;
    *told = false;
    let mut page = Page::new();
    let mut turn = 0;
    // Read twice as often as the other one writes.
    let pause = (every / 2).clamp(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        match newest.has_changed() {
            Ok(true) => {
                let frame = newest.borrow_and_update().clone();
                page.0.fill(0);
                page.0[..frame.len()].copy_from_slice(&frame);
                file.write_all_at(&page.0, offset(me, turn))?;
                turn = 1 - turn;
            }
            Ok(false) => {}
            Err(_) => return Ok(()),
        }
        for slot in 0..2 {
            file.read_exact_at(&mut page.0, offset(1 - me, slot))?;
            if page.0[0] != 0 {
                ear.hear(&page.0, true);
            }
        }
        std::thread::sleep(pause);
    }
}
