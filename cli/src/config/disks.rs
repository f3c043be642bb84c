//! What a configuration says against what the disks are: stores that are not there, or too small.
//!
//! [`super::check`] looks at the file alone; this looks at the machine, for `kagami config check`
//! and `kagami up`, before anything is locked or opened for writing.

use std::fs::File;
use std::io::{self, ErrorKind, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::Config;
use super::fault::Fault;
use super::keys::Section;
use super::value::spell_size;

/// Everything about stores that would keep the daemon from opening them, sorted by line.
pub fn check(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    for mirror in &config.mirrors {
        let line = |key| config.sheet.line(Section::Mirror, &mirror.name, key);
        let heading = Section::Mirror.heading(&mirror.name);
        match size_of(&mirror.backing) {
            Ok(size) if size < mirror.size => faults.push(Fault::at(
                line("backing"),
                format!(
                    "{heading} backing: {} has {size} bytes, the mirror {} ({})",
                    mirror.backing.display(),
                    mirror.size,
                    spell_size(mirror.size)
                ),
                "enlarge the store, or name the one that `kagami init` or `kagami pair` made",
            )),
            Ok(_) => {}
            Err(error) => faults.push(not_there(
                line("backing"),
                &heading,
                "backing",
                &mirror.backing,
                &error,
            )),
        }
        if let Err(error) = size_of(&mirror.metadata) {
            faults.push(not_there(
                line("metadata"),
                &heading,
                "metadata",
                &mirror.metadata,
                &error,
            ));
        }
    }
    faults.sort_by_key(|fault| fault.line);
    faults
}

fn not_there(line: usize, heading: &str, key: &str, path: &Path, error: &io::Error) -> Fault {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound => Fault::at(
            line,
            format!("{heading} {key}: there is no {path}"),
            "mount or activate what it is on, or write where the store is now",
        ),
        ErrorKind::PermissionDenied => Fault::at(
            line,
            format!("{heading} {key}: this user may not read {path}"),
            "run kagami as the user that owns the store, or change its permissions",
        ),
        _ => Fault::at(
            line,
            format!("{heading} {key}: {path}: {error}"),
            "name a regular file or a block device",
        ),
    }
}

/// Bytes of a regular file or block device.
///
/// # Errors
/// It can't be opened, or is neither.
pub fn size_of(path: &Path) -> io::Result<u64> {
    let facts = path.metadata()?;
    if facts.file_type().is_block_device() {
        return File::open(path)?.seek(SeekFrom::End(0));
    }
    if facts.is_file() {
        return Ok(facts.len());
    }
    Err(io::Error::other(
        "it is neither a regular file nor a block device",
    ))
}

/// A name that a disk keeps, where `path` is one that another disk may have after the next boot
/// (`/dev/sdb`): a link below `by_id` (`/dev/disk/by-id`) that leads to the same device.
pub fn lasting_name(path: &Path, by_id: &Path) -> Option<PathBuf> {
    let name = path.strip_prefix("/dev").ok()?.to_str()?;
    let passing = ["sd", "vd", "xvd", "hd", "nvme", "mmcblk", "md", "dm-"];
    if !passing.iter().any(|kind| name.starts_with(kind)) || name.contains('/') {
        return None;
    }
    let mut names: Vec<PathBuf> = std::fs::read_dir(by_id)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|link| {
            // Where it leads, though that is not there in a test.
            std::fs::read_link(link).is_ok_and(|to| to.file_name() == path.file_name())
        })
        .collect();
    names.sort();
    names.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_a_name_that_lasts() {
        let folder = tempfile::tempdir().unwrap();
        for (name, to) in [
            ("wwn-1", "../../sdb"),
            ("ata-X", "../../sdb"),
            ("b", "../../sdba"),
        ] {
            std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
        }
        let named = |path: &str| lasting_name(Path::new(path), folder.path());
        assert_eq!(named("/dev/sdb"), Some(folder.path().join("ata-X")));
        assert_eq!(named("/dev/sdc"), None);
        assert_eq!(named("/dev/vg0/sdb"), None);
        assert_eq!(named("/var/lib/sdb"), None);
    }
    use crate::config::places::Places;

    #[test]
    fn stores_that_do_not_fit_are_said_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("small"), [0; 4096]).unwrap();
        let text = format!(
            "[node]\nname = \"a\"\nid = 1\n[mirror.pg]\nuuid = \"{}\"\nsize = \"1M\"\nbacking = \"{}\"\nmetadata = \"{}\"\n",
            "01".repeat(16),
            path("small"),
            path("none"),
        );
        let config = Config::parse(Path::new("k.toml"), &text, &Places::of_root()).unwrap();
        let said: Vec<String> = check(&config)
            .into_iter()
            .map(|fault| format!("{} {}", fault.line.unwrap(), fault.what))
            .collect();
        assert_eq!(
            said,
            [
                format!(
                    "7 [mirror.pg] backing: {} has 4096 bytes, the mirror 1048576 (1MiB)",
                    path("small")
                ),
                format!("8 [mirror.pg] metadata: there is no {}", path("none")),
            ]
        );
        assert!(size_of(folder.path()).is_err());
    }
}
