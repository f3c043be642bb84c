//! Keeps the documents that are made from tables in step with them.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name)
}

/// Fails when docs/`name` is not `text`; with `KAGAMI_WRITE_DOCS` set it writes the file instead.
pub fn assert_current(name: &str, text: &str) {
    if env::var_os("KAGAMI_WRITE_DOCS").is_some() {
        fs::write(path(name), text).expect("docs/ can be written");
    }
    let there = fs::read_to_string(path(name)).unwrap_or_default();
    assert!(
        there == text,
        "docs/{name} is not what the code says: run KAGAMI_WRITE_DOCS=1 cargo test -p kagami documents"
    );
}
