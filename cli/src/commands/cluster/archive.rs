//! The archive of collected logs.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes a tar archive of (name, text), readable by its owner alone; an archive that is there is not
/// written over. `seconds`: since 1970.
///
/// # Errors
/// It can't be written, or is there already.
pub fn write(path: &Path, files: &[(String, String)], seconds: u64) -> io::Result<()> {
    let out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let mut archive = tar::Builder::new(out);
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        archive.append_data(&mut header, name, text.as_bytes())?;
    }
    archive.into_inner()?.sync_all()
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
        for (name, text) in &files {
            assert_eq!(
                &std::fs::read_to_string(folder.path().join(name)).unwrap(),
                text
            );
        }
    }
}
