//! docs/guarantees.md names what shows each promise: all of it is there.

use std::path::Path;

/// The words in back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn each_test_and_scenario_that_the_guarantees_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &Path| {
        std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let page = read(&root.join("docs/guarantees.md"));
    let defects = read(&root.join("bitmap/src/planted.rs"));
    let mut found = 0;
    for name in quoted(&page) {
        if let Some(scenario) = name.strip_prefix("vm: ") {
            let script = root.join(format!("tests/vm/scenarios/{scenario}.sh"));
            assert!(script.is_file(), "there is no scenario {scenario}");
        } else if let Some((file, function)) = name.split_once(".rs: ") {
            let text = read(&root.join(format!("{file}.rs")));
            let there = text.contains(&format!("fn {function}("));
            assert!(there, "{file}.rs has no test {function}");
        } else if Path::new(name).extension().is_some_and(|end| end == "rs") {
            assert!(root.join(name).is_file(), "there is no {name}");
        } else {
            continue;
        }
        found += 1;
    }
    assert!(found > 20, "only {found} tests are named");
    for after in page.split("planted `").skip(1) {
        let defect = after.split('`').next().unwrap_or_default();
        assert!(
            defects.contains(&format!("    {defect}: ")),
            "no defect {defect} is planted"
        );
    }
}
