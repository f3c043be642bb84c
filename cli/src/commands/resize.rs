//! `kagami resize`: this node's copy of a mirror becomes larger. Never smaller: what lies behind the
//! new end would be lost.
//!
//! The daemon must be stopped here; the other node is grown by the same command there. While the sizes
//! differ the two refuse each other, and say whose is to be grown (docs/protocol.md §6, row 1). What is
//! new is marked unless it is a hole in a file that this command made: then it reads as zeroes.

use std::fs::OpenOptions;
use std::time::Duration;

use kagami_bitmap::Geometry;
use kagami_replicator::shell::engine::{OfflineCopy, StartError};
use kagami_replicator::shell::fence::StoreFile;
use kagami_replicator::shell::probe::StoreKind;
use serde_json::json;

use super::order::{Carried, tell};
use super::{Context, print_dry_run, print_json, print_out, stopped};
use crate::args::ResizeArgs;
use crate::config::Mirror;
use crate::config::edit::Editor;
use crate::config::keys::Section;
use crate::config::value::spell_size;
use crate::exit::{DONE, Failure, Outcome};
use crate::unit::Starter;

/// Makes the copy larger and writes its size into the configuration.
///
/// # Errors
/// Less than it is, no room in the store or the metadata, the daemon runs, the system refuses.
pub async fn run(context: &Context, args: &ResizeArgs) -> Outcome {
    let name = &args.mirror;
    let config = context.config()?;
    let Some(mirror) = config.mirror(name) else {
        return Err(Failure::refused(format!(
            "there is no mirror {name} in {}\n  next: `kagami config show` names those there are",
            context.file.display()
        )));
    };
    let wanted = args.grow;
    if wanted < mirror.size {
        return Err(Failure::refused(format!(
            "mirror {name}: not resized: it has {}, and a mirror never becomes smaller: what lies behind {} would be lost\n  next: make a smaller one with `kagami init`, and copy what is needed",
            spell_size(mirror.size),
            spell_size(wanted)
        )));
    }
    if !wanted.is_multiple_of(4096) {
        return Err(Failure::usage(format!(
            "mirror {name}: not resized: {wanted} bytes are not a multiple of 4096\n  next: name {}",
            wanted.next_multiple_of(4096)
        )));
    }
    Geometry::new(wanted)
        .map_err(|error| Failure::usage(format!("mirror {name}: not resized: {error}")))?;
    let command = format!("kagami resize {name} --grow {}", spell_size(wanted));
    stopped(&config, &format!("mirror {name}: not resized"), &command).await?;
    let id = u128::from_be_bytes(mirror.uuid);
    let mut copy = OfflineCopy::open(name, id, &mirror.metadata, Duration::ZERO)
        .map_err(|error| refused(&error))?;
    let (before, max) = (copy.record().size, copy.superblock().layout.max_size);
    if copy.record().node != config.node.id {
        return Err(Failure::refused(format!(
            "mirror {name}: not resized: {} holds the copy of another node\n  next: `kagami resize` on that node; for this one write its own `metadata` into {}",
            mirror.metadata.display(),
            config.file.display()
        )));
    }
    if wanted < before {
        return Err(Failure::refused(format!(
            "mirror {name}: not resized: its copy here has {}, more than that\n  next: name that size",
            spell_size(before)
        )));
    }
    if wanted > max {
        return Err(Failure::refused(format!(
            "mirror {name}: not resized: its metadata are enough for {}\n  next: new stores with more room, on one node after the other: `kagami replace-disk {name} --backing FILE --max-size {}` (or --device), each time until the copies are in sync",
            spell_size(max),
            spell_size(wanted)
        )));
    }
    if wanted <= before && wanted == mirror.size {
        let why = format!("it has {} already", spell_size(wanted));
        tell(name, &Carried::Nothing(why), "", args.json)?;
        return DONE;
    }
    if args.dry_run {
        room(mirror, before, wanted, false)?;
        let words = format!(
            "mirror {name}: this node's copy would grow from {} to {}",
            spell_size(before),
            spell_size(wanted)
        );
        return print_dry_run("mirror", name, &words, args.json);
    }
    let zeroed = room(mirror, before, wanted, true)?;
    if wanted > before {
        copy.grow(wanted, zeroed).map_err(|error| refused(&error))?;
    }
    let mut editor = Editor::open(&context.file)?;
    editor.set(Section::Mirror, name, "size", spell_size(wanted));
    editor.save(&context.places)?;
    let marked = if zeroed { 0 } else { wanted - before };
    if args.json {
        print_json(&json!({
            "mirror": name, "from_bytes": before, "size_bytes": wanted, "marked_bytes": marked,
        }))?;
        return DONE;
    }
    let up = Starter::of_file(&context.file).up();
    let then = match &mirror.peer {
        Some(peer) => format!(
            "next: `{up}` here, then the same on {peer}, unless it is done there: until then the two refuse each other, and the Primary goes on alone"
        ),
        None => format!("next: `{up}`"),
    };
    print_out(&format!(
        "mirror {name}: this node's copy has {} now (it had {})\n  what is new {}\n{then}\n  a device that is attached shows its new size after `kagami detach` and `kagami attach`\n",
        spell_size(wanted),
        spell_size(before),
        if zeroed {
            "reads as zeroes"
        } else {
            "is marked: it is sent to the other node"
        }
    ))?;
    DONE
}

fn refused(error: &StartError) -> Failure {
    Failure::refused(format!(
        "not resized: {error}\n  next: put that right, then again"
    ))
}

/// Looks for room in the backing store of a copy of `before` bytes; a file gets it (`extend`). True if what is
/// new is known to read as zeroes.
fn room(mirror: &Mirror, before: u64, wanted: u64, extend: bool) -> Result<bool, Failure> {
    let path = &mirror.backing;
    let open = || {
        StoreFile::open(path, Duration::ZERO)
            .map_err(|error| Failure::refused(format!(
                "mirror {}: not resized: {error}\n  next: put that right, then again; its copy here is as it was",
                mirror.name
            )))
    };
    let store = open()?;
    let capabilities = store.capabilities();
    let (kind, have) = (capabilities.kind, capabilities.usable_from(0));
    if kind == StoreKind::BlockDevice {
        if have < wanted {
            return Err(Failure::refused(format!(
                "mirror {}: not resized: {} has {}\n  next: enlarge the device first (`lvextend --size {wanted}b {}`), then again",
                mirror.name,
                path.display(),
                spell_size(have),
                path.display()
            )));
        }
        return Ok(false);
    }
    // A file that ends where the copy does: what comes behind is a hole. One that is longer, be it by an odd sector that
    // no block has, holds data there which the other node's file does not.
    let zeroed = capabilities.size == before;
    if have >= wanted || !extend {
        return Ok(zeroed);
    }
    // Through the locked descriptor's own file: nobody else has it.
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| {
            file.set_len(wanted)?;
            file.sync_all()
        })
        .map_err(|error| {
            Failure::system(format!(
                "mirror {}: not resized: {}: {error}\n  next: make room on its file system, then again",
                mirror.name,
                path.display()
            ))
        })?;
    Ok(zeroed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Config;

    const MIB: u64 = 1 << 20;

    /// Whether what is new counts as zeroes in a file of so many bytes, of which a copy has `before`; the configuration
    /// says `configured`.
    fn reads_as_zeroes(file: u64, before: u64, configured: u64) -> bool {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::File::create(at("pg"))
            .and_then(|made| made.set_len(file))
            .expect("made");
        let text = format!(
            "[node]\nname = \"alpha\"\nid = 7\n[mirror.pg]\nuuid = \"00112233445566778899aabbccddeeff\"\nsize = \"{}\"\nbacking = \"{}\"\nmetadata = \"/d/pg.meta\"\n",
            spell_size(configured),
            at("pg").display()
        );
        fs::write(at("kagami.toml"), text).expect("written");
        let config = Config::load(&at("kagami.toml")).expect("a configuration");
        let mirror = config.mirror("pg").expect("it is there");
        let zeroed = room(mirror, before, 64 * MIB, true).expect("room");
        assert_eq!(
            fs::metadata(at("pg")).expect("there").len(),
            file.max(64 * MIB)
        );
        zeroed
    }

    /// *Marked-before-different*: what lies behind the copy's end is not the other node's.
    #[test]
    fn what_the_file_has_behind_the_copy_is_no_hole() {
        assert!(reads_as_zeroes(16 * MIB, 16 * MIB, 16 * MIB));
        // An odd sector behind the last block.
        assert!(!reads_as_zeroes(16 * MIB + 512, 16 * MIB, 16 * MIB));
        // A size that was written by hand.
        assert!(!reads_as_zeroes(24 * MIB, 16 * MIB, 32 * MIB));
        assert!(!reads_as_zeroes(64 * MIB, 16 * MIB, 16 * MIB));
    }
}
