//! What names a backing store, so that another one under the same path is not taken for it
//! (`kagami_bitmap::store`).
//!
//! A name is a kind, a blank and what the kernel says: it stays over a reboot and another path, and
//! no other store of that kind has it. What nobody numbers (a virtual disk without a serial) has none.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kagami_bitmap::store::NAME_MAX;
use rustix::fs::{AtFlags, StatxFlags};

use super::probe::StoreKind;

/// The names of an open store, the best first.
pub fn names(file: &File, kind: StoreKind) -> Vec<String> {
    let names = match kind {
        StoreKind::File => of_file(file).into_iter().collect(),
        StoreKind::BlockDevice => file.metadata().map_or_else(
            |_| Vec::new(),
            |device| {
                let (major, minor) = (
                    rustix::fs::major(device.rdev()),
                    rustix::fs::minor(device.rdev()),
                );
                of_device(Path::new(&format!("/sys/dev/block/{major}:{minor}")))
            },
        ),
    };
    names
        .into_iter()
        .filter(|name| name.len() <= NAME_MAX)
        .collect()
}

/// A file's number, and when it was made: the number alone is given again. (A file system that does not
/// know the second may not keep the first either.)
fn of_file(file: &File) -> Option<String> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    if stat.stx_mask & wanted.bits() != wanted.bits() {
        return None;
    }
    let made = stat.stx_btime;
    Some(format!(
        "inode {} made {}.{:09}",
        stat.stx_ino, made.tv_sec, made.tv_nsec
    ))
}

/// As sysfs tells of a disk, or of a part of one.
fn of_device(sysfs: &Path) -> Vec<String> {
    // A partition is a place on its disk.
    if let Some(start) = line(&sysfs.join("start")).filter(|_| sysfs.join("partition").exists()) {
        let disk = fs::canonicalize(sysfs).ok();
        let disk = disk.as_deref().and_then(Path::parent).map(of_device);
        let part = |name: String| format!("{name} from sector {start}");
        return disk.unwrap_or_default().into_iter().map(part).collect();
    }
    let told = [
        ("dm", "dm/uuid"),
        ("md", "md/uuid"),
        ("wwid", "wwid"),
        ("wwid", "device/wwid"),
        ("serial", "serial"),
        ("serial", "device/serial"),
    ];
    let mut names: Vec<String> = told
        .into_iter()
        .filter_map(|(kind, place)| Some(format!("{kind} {}", line(&sysfs.join(place))?)))
        .collect();
    let file = line(&sysfs.join("loop/backing_file")).map(PathBuf::from);
    let file = file.and_then(|path| File::open(path).ok());
    names.extend(
        file.as_ref()
            .and_then(of_file)
            .map(|name| format!("loop {name}")),
    );
    names
}

/// A line of sysfs, its blanks made one each; nothing for an empty one.
fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let words: Vec<&str> = text.split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_has_another_name_and_the_same_one_keeps_it() {
        let folder = tempfile::tempdir().expect("tempdir");
        let (path, moved) = (folder.path().join("pg.data"), folder.path().join("moved"));
        let made = |path: &Path| {
            let file = File::create_new(path).expect("a file");
            file.set_len(1 << 20).expect("its size");
            names(&file, StoreKind::File)
        };
        let first = made(&path);
        fs::rename(&path, &moved).expect("rename");
        let again = File::open(&moved).expect("open");
        assert_eq!(names(&again, StoreKind::File), first);
        // (Not every file system knows when a file was made; then nothing is said.)
        if let [first] = &first[..] {
            assert!(first.starts_with("inode "), "{first}");
            assert_ne!(made(&path).first(), Some(first));
        }
    }

    #[test]
    fn a_device_is_named_by_what_sysfs_tells() {
        let folder = tempfile::tempdir().expect("tempdir");
        let disk = folder.path().join("sdb");
        let part = disk.join("sdb1");
        fs::create_dir_all(disk.join("device")).expect("folders");
        fs::create_dir_all(&part).expect("folders");
        assert_eq!(of_device(&disk), Vec::<String>::new());
        fs::write(disk.join("device/wwid"), "t10.ATA     Disk   S1\n").expect("wwid");
        fs::write(disk.join("serial"), "\n").expect("no serial");
        assert_eq!(of_device(&disk), ["wwid t10.ATA Disk S1"]);
        fs::write(part.join("partition"), "1\n").expect("partition");
        fs::write(part.join("start"), "2048\n").expect("start");
        assert_eq!(of_device(&part), ["wwid t10.ATA Disk S1 from sector 2048"]);
        fs::create_dir_all(disk.join("dm")).expect("folders");
        fs::write(disk.join("dm/uuid"), "LVM-abc\n").expect("uuid");
        assert_eq!(of_device(&disk)[0], "dm LVM-abc");
    }
}
