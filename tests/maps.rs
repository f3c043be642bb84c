//! A crate's or a folder's first page names each of its modules: whoever reads it knows what there is.

use std::path::Path;

const ROOTS: [&str; 8] = [
    "bitmap/src/lib.rs",
    "replicator/src/core/mod.rs",
    "replicator/src/shell/mod.rs",
    "cli/src/lib.rs",
    "cli/src/control/mod.rs",
    "failover/src/lib.rs",
    "tests/lib.rs",
    "tests/model/mod.rs",
];

/// The modules that a file declares, its unit tests aside.
fn modules(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| {
            let declared = line.strip_prefix("pub ").unwrap_or(line);
            declared.strip_prefix("mod ")?.strip_suffix(';')
        })
        .filter(|name| *name != "tests")
}

#[test]
fn each_module_is_named_in_the_header_of_its_root() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut missing = Vec::new();
    for root in ROOTS {
        let text =
            std::fs::read_to_string(tree.join(root)).unwrap_or_else(|e| panic!("{root}: {e}"));
        let header: String = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .collect();
        assert!(
            modules(&text).count() > 3,
            "{root} declares next to nothing"
        );
        for module in modules(&text) {
            if !header.contains(&format!("`{module}`")) {
                missing.push(format!("{root}: {module}"));
            }
        }
    }
    assert!(missing.is_empty(), "no word of {missing:#?}");
}
