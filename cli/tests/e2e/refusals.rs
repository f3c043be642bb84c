//! Bad input from the world: no daemon, two daemons, strangers, stores that are not what they must be.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use kagami::commands::demo::node::{Node, wait_until};
use kagami::commands::demo::scratch::{MIRROR, in_sync};
use kagami::config::Config;
use kagami::control::report::{Condition, MirrorReport};

use crate::support::{
    DEADLINE, Pair, beside, down, laid_out, noise, ok, pair, put, refused, succeed, until, up,
};

#[test]
fn commands_without_a_daemon_say_so() {
    let pair = laid_out("never", "16M");
    for args in [
        &["status"][..],
        &["promote", MIRROR],
        &["down"],
        &["events"],
        &["resync", MIRROR],
        &["reload"],
    ] {
        let words = refused(&pair.nodes.alpha, args, 3);
        assert!(
            words.contains("no daemon") && words.contains("next:"),
            "{words}"
        );
    }
}

#[test]
fn a_second_daemon_finds_the_store_taken() {
    let mut pair = pair("always", "16M");
    // The same configuration: the control socket answers.
    let words = refused(&pair.nodes.alpha, &["up"], 1);
    assert!(words.contains("already"), "{words}");
    // The same stores under another configuration: the stores are locked.
    let file = pair.nodes.alpha.config();
    let text = fs::read_to_string(&file).expect("the configuration");
    let folder = beside(&pair.nodes.alpha, "other");
    fs::create_dir(&folder).expect("a folder");
    let mut document: toml_edit::DocumentMut = text.parse().expect("TOML");
    document["node"]["run-dir"] = toml_edit::value(folder.display().to_string());
    let port = ok(kagami::commands::demo::scratch::free_port());
    let mut listen = toml_edit::Array::new();
    listen.push(format!("127.0.0.1:{port}"));
    document["node"]["listen"] = toml_edit::value(listen);
    let other = folder.join("kagami.toml");
    fs::write(&other, document.to_string()).expect("written");
    let mut command = Command::new(crate::support::KAGAMI);
    command.arg("--config").arg(&other).arg("up");
    let log = folder.join("log");
    let file = fs::File::create(&log).expect("a log");
    command
        .stdout(file.try_clone().expect("a log"))
        .stderr(file);
    let mut second = command.spawn().expect("a second daemon");
    put(&mut pair.on_alpha(), 0, &noise(65536, 1));
    let words = || fs::read_to_string(&log).unwrap_or_default();
    // It says at once that it waits, and gives up in the end: a killed daemon's writes would have landed.
    let refusal = wait_until("the second daemon", "its refusal", DEADLINE, || {
        words().contains("not opened").then(&words)
    });
    second.kill().expect("ended");
    second.wait().expect("ended");
    let refusal = refusal.unwrap_or_else(|error| panic!("{error}\n{}", words()));
    assert!(
        refusal.contains("in use") && refusal.contains("tried again"),
        "{refusal}"
    );
    assert!(
        in_sync(&ok(pair.nodes.alpha.mirror(MIRROR))),
        "the first daemon was disturbed"
    );
    pair.stop_and_compare();
}

#[test]
fn a_stranger_with_the_peers_address_is_not_let_in() {
    let mut pair = laid_out("always", "16M");
    // beta lost its key: what comes from its address now is a stranger.
    fs::remove_dir_all(beside(&pair.nodes.beta, "keys")).expect("beta's key");
    pair.up();
    let log = pair.nodes.alpha.log();
    let other = pair.nodes.beta.log();
    ok(wait_until(
        "either node",
        "a word about the unknown key",
        DEADLINE,
        || {
            let words = fs::read_to_string(&log).unwrap_or_default()
                + &fs::read_to_string(&other).unwrap_or_default();
            (words.contains("fingerprint") || words.contains("key")).then_some(())
        },
    ));
    let state = ok(pair.nodes.alpha.mirror(MIRROR));
    assert_eq!(state.condition, Condition::Connecting, "{state:?}");
    // By one place: the link, which knows the peer's name.
    for log in [log, other] {
        let words = fs::read_to_string(&log).unwrap_or_default();
        let of_links = words.lines().filter(|line| line.contains("pinned"));
        let mut told: Vec<_> = of_links
            .map(|line| line.contains("not connected"))
            .collect();
        told.dedup();
        assert!(told.is_empty() || told == [true], "told twice:\n{words}");
    }
}

/// Both stores of a node: data and metadata.
fn stores(node: &Node) -> (PathBuf, PathBuf) {
    let config = Config::load(&node.config()).expect("a configuration");
    let mirror = config.mirror(MIRROR).expect("the mirror");
    (mirror.backing.clone(), mirror.metadata.clone())
}

/// Starts beta on a store that it must not take, and gives what it says; alpha is not disturbed.
fn not_opened(pair: &mut Pair) -> MirrorReport {
    up(&mut pair.nodes.beta);
    let state = until(&mut pair.nodes.beta, Condition::NotOpened);
    assert!(state.fault.is_some() && !state.next.is_empty(), "{state:?}");
    state
}

/// A pair with data, beta stopped.
fn without_beta() -> Pair {
    let mut pair = pair("always", "16M");
    put(&mut pair.on_alpha(), 0, &noise(1 << 20, 2));
    down(&mut pair.nodes.beta);
    pair
}

#[test]
fn a_foreign_superblock_is_not_touched() {
    let mut pair = without_beta();
    let (_, metadata) = stores(&pair.nodes.beta);
    let before = fs::read(&metadata).expect("the metadata");
    let foreign = vec![0x42; before.len()];
    fs::write(&metadata, &foreign).expect("written");
    let state = not_opened(&mut pair);
    assert!(
        fs::read(&metadata).expect("the metadata") == foreign,
        "it was written to: {state:?}"
    );
    // The right one back, and all is well.
    down(&mut pair.nodes.beta);
    fs::write(&metadata, &before).expect("written");
    up(&mut pair.nodes.beta);
    pair.stop_and_compare();
}

#[test]
fn another_mirrors_metadata_is_refused() {
    let mut pair = without_beta();
    let other = laid_out("always", "16M");
    let (_, metadata) = stores(&pair.nodes.beta);
    fs::copy(stores(&other.nodes.beta).1, &metadata).expect("a copy");
    let state = not_opened(&mut pair);
    assert!(
        state
            .fault
            .as_ref()
            .is_some_and(|fault| fault.contains("mirror")),
        "{state:?}"
    );
}

#[test]
fn truncated_metadata_is_refused() {
    let mut pair = without_beta();
    let (_, metadata) = stores(&pair.nodes.beta);
    OpenOptions::new()
        .write(true)
        .open(&metadata)
        .and_then(|file| file.set_len(10_000))
        .expect("truncated");
    not_opened(&mut pair);
}

#[test]
fn one_flipped_bit_in_the_superblock_is_survived_or_told() {
    let mut pair = without_beta();
    let (_, metadata) = stores(&pair.nodes.beta);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&metadata)
        .expect("the metadata");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], 100).expect("written");
    up(&mut pair.nodes.beta);
    // A second copy of the superblock is as good as the first; without one it is refused.
    let state = ok(pair.nodes.beta.wait(MIRROR, "an end", DEADLINE, |state| {
        in_sync(state) || state.condition == Condition::NotOpened
    }));
    if in_sync(&state) {
        pair.stop_and_compare();
    }
}

#[test]
fn a_store_that_cannot_be_written_is_told() {
    let mut pair = without_beta();
    let (_, metadata) = stores(&pair.nodes.beta);
    // Nobody's mode stops root: what can't be a store stops everybody.
    if rustix::process::geteuid().is_root() {
        fs::remove_file(&metadata).expect("removed");
        fs::create_dir(&metadata).expect("a folder in its place");
    } else {
        fs::set_permissions(&metadata, fs::Permissions::from_mode(0o400)).expect("read-only");
    }
    not_opened(&mut pair);
}

#[test]
fn init_does_not_overwrite_what_is_there() {
    let pair = laid_out("never", "16M");
    let words = refused(&pair.nodes.alpha, &["init", MIRROR, "--size", "16M"], 1);
    assert!(words.contains(MIRROR), "{words}");
    let file = beside(&pair.nodes.alpha, "precious");
    fs::write(&file, noise(16 << 20, 3)).expect("a file");
    let path = file.display().to_string();
    let printed =
        ok(pair
            .nodes
            .alpha
            .try_run(&["init", "other", "--size", "16M", "--backing", &path]));
    assert!(!printed.success, "it took a used file: {}", printed.out);
    assert!(
        fs::read(&file).expect("the file") == noise(16 << 20, 3),
        "the file was changed"
    );
}

#[test]
fn the_demo_refuses_a_folder_that_is_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("alpha")).expect("a folder");
    let output = Command::new(crate::support::KAGAMI)
        .args(["demo", "--dir"])
        .arg(folder.path())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("--dir"),
        "{output:?}"
    );
    assert!(
        folder.path().join("alpha").is_dir(),
        "it removed what it had not made"
    );
}

#[test]
fn the_scratch_pair_is_served_and_removed() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("pair");
    let mut child = Command::new(crate::support::KAGAMI)
        .args(["demo", "--serve", "--size", "32M", "--dir"])
        .arg(&dir)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("its output"))
        .read_line(&mut first)
        .expect("its first line");
    let info = succeed(crate::support::program("nbdinfo").arg(first.trim()));
    assert!(info.contains("33554432"), "{info}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("told to end");
    let status = ok(wait_until("the demo", "its end", DEADLINE, || {
        child.try_wait().ok().flatten()
    }));
    assert!(status.success(), "{status}");
    assert!(!dir.exists(), "it left its files");
}
