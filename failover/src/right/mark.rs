//! What a node's disk says of the right to run a group without a mirror (Marked-first,
//! [`super::lease`]): one small file for each group.
//!
//! The file is there while the node holds the right and has promised nothing since: 32 hexadecimal
//! digits, the boot of the machine that it was written in, and a newline. Written whole: a new file, sync, rename,
//! sync of the folder.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::lease::{Before, Mark};

/// The folder of the marks, in the manager's state folder.
pub const FOLDER: &str = "right";

fn file(state: &Path, register: u128) -> PathBuf {
    state.join(FOLDER).join(format!("{register:032x}"))
}

/// What an earlier manager left.
pub fn read(state: &Path, register: u128, boot: u128) -> Before {
    let path = file(state, register);
    match fs::read_to_string(&path) {
        Ok(text) => match u128::from_str_radix(text.trim_end(), 16) {
            Ok(of) if of == boot => Before::Held,
            Ok(_) => Before::HeldBeforeBoot,
            Err(error) => {
                tracing::warn!("{}: {error}: it counts for nothing", path.display());
                Before::Unknown
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Before::Free,
        Err(error) => {
            tracing::warn!("{}: {error}: it counts for nothing", path.display());
            Before::Unknown
        }
    }
}

/// Makes a mark durable.
///
/// # Errors
/// The system refuses; what is there is the mark before, or this one.
pub fn write(state: &Path, register: u128, boot: u128, mark: Mark) -> io::Result<()> {
    let path = file(state, register);
    let folder = state.join(FOLDER);
    fs::create_dir_all(&folder)?;
    match mark {
        Mark::Held => {
            let new = path.with_extension("new");
            let mut written = File::create(&new)?;
            writeln!(written, "{boot:032x}")?;
            written.sync_all()?;
            fs::rename(&new, &path)?;
        }
        Mark::Free => match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        },
    }
    File::open(&folder)?.sync_all()?;
    File::open(state)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_its_boot() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path();
        assert_eq!(read(state, 7, 1), Before::Free);
        write(state, 7, 1, Mark::Held).expect("written");
        assert_eq!(read(state, 7, 1), Before::Held);
        assert_eq!(read(state, 7, 2), Before::HeldBeforeBoot);
        assert_eq!(read(state, 8, 1), Before::Free, "another group's");
        fs::write(file(state, 7), "?").expect("written");
        assert_eq!(read(state, 7, 1), Before::Unknown);
        write(state, 7, 1, Mark::Free).expect("removed");
        write(state, 7, 1, Mark::Free).expect("removed already");
        assert_eq!(read(state, 7, 1), Before::Free);
    }
}
