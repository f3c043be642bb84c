//! What other users of the machine can reach: nothing that orders the daemon, tells a secret, or can be
//! locked to keep it from its work.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use crate::support::pair;

#[test]
fn sockets_keys_locks_and_stores_are_their_owners_alone() {
    let mut pair = pair("never", "64M");
    let (mut sockets, mut files) = (0, 0);
    for node in [&pair.nodes.alpha, &pair.nodes.beta] {
        walk(node.folder(), &mut |path, meta| {
            let kind = meta.file_type();
            let mode = meta.permissions().mode() & 0o777;
            // Configuration, logs, tokens and what commands said tell no secret.
            let name = path.to_string_lossy();
            let open = [".toml", ".log", ".err", ".out", ".unbroken"];
            if kind.is_dir() || open.iter().any(|end| name.ends_with(end)) {
                assert_eq!(mode & 0o022, 0, "{name} has mode {mode:o}");
                return;
            }
            assert_eq!(mode & 0o077, 0, "{name} has mode {mode:o}");
            sockets += u32::from(kind.is_socket());
            files += u32::from(kind.is_file());
        });
    }
    // Each node: control and one mirror; keys, locks, two stores.
    assert!(
        sockets >= 4 && files >= 8,
        "{sockets} sockets, {files} files"
    );
    pair.stop_and_compare();
}

fn walk(folder: &Path, see: &mut dyn FnMut(&Path, &fs::Metadata)) {
    for entry in fs::read_dir(folder).expect("a folder of the pair") {
        let path = entry.expect("an entry").path();
        // What a daemon removes meanwhile is nobody's.
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        see(&path, &meta);
        if meta.is_dir() {
            walk(&path, see);
        }
    }
}
