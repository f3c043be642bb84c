//! What the Debian package brings beside the program fits the program: the commands in its units and its
//! udev rule are commands of this one, its example is a configuration.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use kagami::args::Cli;
use kagami::config::Config;
use kagami::config::places::Places;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("package")
}

fn text(name: &str) -> String {
    let path = folder().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_command_in_a_unit_or_a_rule_is_one_of_this_program() {
    let mut found = 0;
    for entry in fs::read_dir(folder()).expect("the folder") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_str().expect("a name");
        let kind = Path::new(name).extension().and_then(|kind| kind.to_str());
        if !matches!(kind, Some("service" | "rules")) {
            continue;
        }
        for line in text(name).lines().filter(|line| !line.starts_with('#')) {
            let Some(at) = line.find("/usr/bin/kagami") else {
                continue;
            };
            let command = line[at..].split('"').next().expect("a command");
            let command = command.replace("%i", "pg").replace("$devnode", "/dev/nbd0");
            let parsed = Cli::try_parse_from(command.split_whitespace());
            assert!(parsed.is_ok(), "{name}: {line}\n{parsed:?}");
            found += 1;
        }
    }
    // up, reload; attach, detach; witness; failover; the name of a device.
    assert_eq!(found, 7);
}

#[test]
fn the_example_is_a_configuration() {
    let file = folder().join("kagami.toml");
    let config = Config::parse(&file, &text("kagami.toml"), &Places::of_root());
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.mirrors.len(), 1);
}
