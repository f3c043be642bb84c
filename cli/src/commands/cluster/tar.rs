//! A tar archive (POSIX ustar) of small texts.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

const BLOCK: usize = 512;

/// Writes an archive of (name, text), readable by its owner alone; an archive that is there is not
/// written over. Names longer than 100 bytes keep their ends.
///
/// # Errors
/// It can't be written, or is there already.
pub fn write(path: &Path, files: &[(String, String)], seconds: u64) -> io::Result<()> {
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    for (name, text) in files {
        out.write_all(&header(name, text.len(), seconds))?;
        out.write_all(text.as_bytes())?;
        let rest = text.len().next_multiple_of(BLOCK) - text.len();
        out.write_all(&[0; BLOCK][..rest])?;
    }
    out.write_all(&[0; 2 * BLOCK])?;
    out.sync_all()
}

fn header(name: &str, len: usize, seconds: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    let mut name = name;
    while name.len() > 100 {
        let first = name.chars().next().map_or(1, char::len_utf8);
        name = &name[first..];
    }
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{len:011o}\0").as_bytes());
    put(
        136,
        format!("{:011o}\0", seconds.min(0o77_777_777_777)).as_bytes(),
    );
    // The sum is taken with blanks in its own place.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_takes_out_what_was_put_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let long = format!("{}/end.log", "x".repeat(120));
        let files = [
            ("alpha/alerts.log".to_owned(), "one\n".to_owned()),
            ("beta/empty".to_owned(), String::new()),
            ("beta/block".to_owned(), "b".repeat(512)),
            (long, "long\n".to_owned()),
        ];
        write(&path, &files, 1_763_726_400).unwrap();
        assert_eq!(
            write(&path, &files, 0).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        let run = std::process::Command::new("tar")
            .arg("-xf")
            .arg(&path)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(run.status.success(), "{run:?}");
        for (name, text) in &files[..3] {
            assert_eq!(
                &std::fs::read_to_string(folder.path().join(name)).unwrap(),
                text
            );
        }
        let cut = format!("{}/end.log", "x".repeat(92));
        assert_eq!(
            std::fs::read_to_string(folder.path().join(cut)).unwrap(),
            "long\n"
        );
    }
}
