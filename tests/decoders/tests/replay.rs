//! What the fuzzer kept, run again: every input of every corpus, and every one that ever failed.

use std::fs;
use std::path::Path;

use kagami_decoders::TARGETS;

fn folder(kind: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz")
        .join(kind)
}

#[test]
fn every_kept_input_passes() {
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for kind in ["corpus", "regressions"] {
            let Ok(files) = fs::read_dir(folder(kind).join(name)) else {
                continue;
            };
            for file in files {
                let path = file.expect("a listed file").path();
                let input = fs::read(&path).expect("a kept input");
                println!("{}", path.display()); // shown if it fails
                target(&input);
                inputs += 1;
            }
        }
        assert!(inputs > 0, "{name} has no corpus");
        target(&[]);
    }
}

#[test]
fn every_corpus_has_its_target_and_its_fuzzer() {
    for kind in ["corpus", "regressions"] {
        for entry in fs::read_dir(folder(kind)).expect("tests/fuzz is there") {
            let name = entry.expect("a listed folder").file_name();
            assert!(
                TARGETS.iter().any(|(target, _)| name == **target),
                "{kind}/{} belongs to no target",
                name.display()
            );
        }
    }
    let manifest = fs::read_to_string(folder("Cargo.toml")).expect("tests/fuzz/Cargo.toml");
    for (name, _) in TARGETS {
        let line = format!("name = \"{name}\"");
        assert!(manifest.contains(&line), "{name} has no fuzzer");
        assert!(
            folder("targets").join(format!("{name}.rs")).is_file(),
            "{name} has no fuzzer"
        );
    }
}
