//! Stores that are no longer where the configuration says.

use std::fs;
use std::path::{Path, PathBuf};

use kagami::commands::demo::node::Node;
use kagami::commands::demo::scratch::MIRROR;
use kagami::config::Config;
use kagami::control::report::Condition;

use crate::support::{beside, down, get, noise, pair, put, until, up};

/// Writes another place of a store into a node's configuration.
fn tell(node: &Node, key: &str, place: &Path) {
    let file = node.config();
    let text = fs::read_to_string(&file).expect("the configuration");
    let mut document: toml_edit::DocumentMut = text.parse().expect("TOML");
    document["mirror"][MIRROR][key] = toml_edit::value(place.display().to_string());
    fs::write(&file, document.to_string()).expect("written");
}

fn moved(node: &Node, store: &Path) -> PathBuf {
    let folder = beside(node, "elsewhere");
    fs::create_dir_all(&folder).expect("a folder");
    let place = folder.join(store.file_name().expect("a file"));
    fs::rename(store, &place).expect("moved");
    place
}

#[test]
fn a_store_that_moved_is_named_and_used_again_where_it_is() {
    let mut pair = pair("always", "16M");
    put(&mut pair.on_alpha(), 0, &noise(1 << 20, 4));
    let config = Config::load(&pair.nodes.beta.config()).expect("a configuration");
    let stores = config.mirror(MIRROR).expect("the mirror").clone();

    // The metadata: the mirror is not opened, and nothing is made in the old place.
    down(&mut pair.nodes.beta);
    let metadata = moved(&pair.nodes.beta, &stores.metadata);
    up(&mut pair.nodes.beta);
    let state = until(&mut pair.nodes.beta, Condition::NotOpened);
    let fault = state.fault.expect("why");
    let place = stores.metadata.display().to_string();
    assert!(
        fault.contains(&place) && fault.contains("moved") && fault.contains("configuration"),
        "{fault}"
    );
    assert!(!stores.metadata.exists(), "it was made anew");
    down(&mut pair.nodes.beta);
    tell(&pair.nodes.beta, "metadata", &metadata);

    // The data: alpha serves on, and the reason is said.
    let backing = moved(&pair.nodes.beta, &stores.backing);
    up(&mut pair.nodes.beta);
    let state = until(&mut pair.nodes.beta, Condition::Unusable);
    let fault = state.disk_fault.expect("why");
    let place = stores.backing.display().to_string();
    assert!(fault.contains(&place) && fault.contains("moved"), "{fault}");
    assert!(!stores.backing.exists(), "it was made anew");
    put(&mut pair.on_alpha(), 4 << 20, &noise(1 << 20, 5));
    down(&mut pair.nodes.beta);
    tell(&pair.nodes.beta, "backing", &backing);

    // In its new place it is the copy that it was, and gets what it missed.
    up(&mut pair.nodes.beta);
    until(&mut pair.nodes.alpha, Condition::InSync);
    let read = get(&mut pair.on_alpha(), 4 << 20, 1 << 20);
    assert!(read == noise(1 << 20, 5), "alpha's data changed");
    pair.stop_and_compare();
    let there = fs::read(&backing).expect("beta's copy");
    assert!(there[..1 << 20] == noise(1 << 20, 4), "beta's data changed");
}
