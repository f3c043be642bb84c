//! Making mirrors with the binary: `init`, `pair`, `witness`, `arbiter`, and what they refuse.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use kagami::config::Config;
use kagami_bitmap::read_slots;
use kagami_bitmap::superblock::Record;
use kagami_replicator::shell::engine::OfflineCopy;
use tempfile::TempDir;

/// A node's folder; no daemon runs.
struct Node {
    folder: TempDir,
}

impl Node {
    /// A node that has a configuration with this name, on loopback.
    fn named(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let text = format!(
            "# {name}'s own words\n[node]\nname = \"{name}\"\nid = {}\nlisten = [\"127.0.0.1:7789\"]\nstate-dir = \"{at}/state\"\nrun-dir = \"{at}/run\"\n",
            name.bytes().map(u64::from).sum::<u64>()
        );
        std::fs::write(folder.path().join("kagami.toml"), text).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagami"));
        command
            .env_clear()
            .env("KAGAMI_CONFIG", self.path("kagami.toml"))
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        words(self.command(arguments).output().unwrap())
    }

    /// Runs what must be done.
    fn done(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {err}");
        out
    }

    fn config(&self) -> Config {
        Config::load(&self.path("kagami.toml")).unwrap()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path("kagami.toml")).unwrap()
    }

    /// The record in a mirror's metadata.
    fn record(&self, mirror: &str) -> Record {
        let config = self.config();
        let bytes = std::fs::read(&config.mirror(mirror).unwrap().metadata).unwrap();
        let read = read_slots(&bytes, bytes.len() as u64, None).unwrap();
        read.superblock.record
    }

    /// The mirror's metadata, as no daemon has them open.
    fn copy(&self, mirror: &str) -> OfflineCopy {
        let config = self.config();
        let mirror = config.mirror(mirror).unwrap();
        let id = u128::from_be_bytes(mirror.uuid);
        OfflineCopy::open(&mirror.name, id, &mirror.metadata, Duration::ZERO).unwrap()
    }

    /// Starts what prints a token and waits, and gives the token.
    fn offer(&self, arguments: &[&str]) -> (Child, BufReader<ChildStdout>, String) {
        let mut child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut token = None;
        while token.is_none() {
            let mut line = String::new();
            if lines.read_line(&mut line).unwrap() == 0 {
                break;
            }
            token = line
                .split_whitespace()
                .find(|word| word.starts_with("kg") && word.contains("1-"))
                .map(str::to_owned);
        }
        if let Some(token) = token {
            (child, lines, token)
        } else {
            let mut why = String::new();
            let mut stderr = child.stderr.take().unwrap();
            stderr.read_to_string(&mut why).unwrap();
            panic!("no token ({}): {why}", child.wait().unwrap());
        }
    }
}

fn words(output: Output) -> (i32, String, String) {
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn init_makes_a_copy_and_says_what_the_default_means() {
    let node = Node::named("alpha");
    let out = node.done(&["init", "pg", "--size", "16M", "--max-size", "1G"]);
    assert!(
        out.contains("pg.data: a new sparse file of 16.0 MiB"),
        "{out}"
    );
    assert!(out.contains("solo = \"never\" is the default"), "{out}");
    assert!(
        out.contains("kagami arbiter join TOKEN --mirror pg"),
        "{out}"
    );
    let record = node.record("pg");
    let config = node.config();
    let mirror = config.mirror("pg").unwrap();
    assert_eq!(record.mirror, u128::from_be_bytes(mirror.uuid));
    assert_eq!(record.node, config.node.id);
    assert_eq!(record.size, 16 << 20);
    assert!(record.zeroed && record.current.is_none());
    assert_eq!(mirror.backing.metadata().unwrap().len(), 16 << 20);
    assert!(node.text().starts_with("# alpha's own words\n"));
    // Nothing is overwritten: not the mirror, not its files.
    let (code, _, err) = node.run(&["init", "pg", "--size", "16M"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("mirror pg is in"), "{err}");
    let backing = mirror.backing.display().to_string();
    let (code, _, err) = node.run(&["init", "pg2", "--size", "16M", "--backing", &backing]);
    assert_eq!(code, 1);
    assert!(
        err.contains("there is a file of 16777216 bytes already"),
        "{err}"
    );
    let metadata = mirror.metadata.display().to_string();
    let (code, _, err) = node.run(&["init", "pg2", "--size", "16M", "--metadata", &metadata]);
    assert_eq!(code, 1);
    assert!(err.contains("already"), "{err}");
    assert!(!node.path("state/pg2.data").exists());
}

#[test]
fn init_makes_the_activity_log_as_large_as_asked() {
    let node = Node::named("alpha");
    let metadata = node.folder.path().join("metadata");
    let place = metadata.to_str().unwrap();
    node.done(&[
        "init",
        "pg",
        "--size",
        "16M",
        "--metadata",
        place,
        "--activity-log-extents",
        "64",
    ]);
    assert_eq!(node.config().mirror("pg").unwrap().activity_log_extents, 64);
    // docs/on-disk-format.md: LOG_CAPACITY, in the payload of the superblock's first sector.
    let store = std::fs::read(metadata).unwrap();
    assert_eq!(store[40 + 144..][..4], 64_u32.to_le_bytes());
}

#[test]
fn init_refuses_sizes_and_places_that_do_not_fit() {
    let node = Node::named("alpha");
    for (arguments, status, expected) in [
        (
            &["init", "pg", "--size", "5000001"][..],
            2,
            "next: name 4997120 or 5001216",
        ),
        (
            &["init", "pg", "--size", "4K"],
            2,
            "next: name at least 1MiB",
        ),
        (
            &["init", "pg", "--size", "2M", "--max-size", "1M"],
            2,
            "is less than the size",
        ),
        (
            &["init", "pg", "--device", "/dev/null"],
            2,
            "is not a block device",
        ),
        (
            &["init", "pg", "--device", "/nowhere"],
            2,
            "is not a block device",
        ),
        (
            &["init", "pg", "--size", "2M", "--backing", "/dev/null"],
            1,
            "/dev/null",
        ),
        (
            &["init", "pg", "--size", "2M", "--activity-log-extents", "63"],
            2,
            "63 is not in 64..=65536",
        ),
        (&["init", "p g", "--size", "2M"], 2, "is not a name"),
        (
            &["init", "pg", "--size", "2M", "--backing", "/proc/pg"],
            6,
            "/proc",
        ),
    ] {
        let (code, _, err) = node.run(arguments);
        assert!(err.contains(expected), "{arguments:?}: {err}");
        if status != 6 {
            assert_eq!(code, status, "{arguments:?}: {err}");
        }
        assert!(
            !node.path("state").join("pg.meta").exists(),
            "{arguments:?}"
        );
    }
    assert!(node.config().mirrors.is_empty());
}

#[test]
fn keep_data_keeps_every_byte_and_begins_a_generation() {
    let node = Node::named("alpha");
    let file = node.path("disk");
    let data: Vec<u8> = (0..4 << 20).map(|n: u32| (n / 4096 + n) as u8).collect();
    std::fs::write(&file, &data).unwrap();
    let at = file.display().to_string();
    let out = node.done(&[
        "init",
        "pg",
        "--backing",
        &at,
        "--keep-data",
        "--size",
        "4M",
    ]);
    assert!(out.contains("kept as it is"), "{out}");
    assert_eq!(std::fs::read(&file).unwrap(), data);
    let record = node.record("pg");
    assert!(!record.zeroed && record.current.is_some() && record.alone);
}

/// The configuration may say more than the copy has: what a file holds behind the copy's end is no hole.
#[test]
fn what_lies_behind_a_copy_is_marked_when_it_grows_to_what_the_file_says() {
    let node = Node::named("alpha");
    let file = node.path("disk");
    std::fs::write(&file, vec![7; 6 << 20]).unwrap();
    let at = file.display().to_string();
    let init = ["init", "pg", "--backing", &at, "--keep-data"];
    node.done(&[&init[..], &["--size", "4M"]].concat());
    let marked = node.copy("pg").marked_bytes();
    let text = node.text().replace("size = \"4MiB\"", "size = \"8MiB\"");
    std::fs::write(node.path("kagami.toml"), text).unwrap();
    let out = node.done(&["resize", "pg", "--grow", "8M"]);
    assert!(out.contains("is marked"), "{out}");
    assert_eq!(node.copy("pg").marked_bytes(), marked + (4 << 20));
}

#[test]
fn a_first_init_writes_the_node() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new/kagami.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_kagami"))
        .env_clear()
        .env("HOME", folder.path())
        .env("XDG_STATE_HOME", folder.path().join("state"))
        .arg("--config")
        .arg(&file)
        .args(["init", "pg", "--size", "1M", "--node-name", "alpha"])
        .args(["--backing", folder.path().join("d").to_str().unwrap()])
        .args([
            "--metadata",
            folder.path().join("m").to_str().unwrap(),
            "--dry-run",
        ])
        .output()
        .unwrap();
    let (code, out, err) = words(output);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("would be made"), "{out}");
    assert!(!file.exists() && !folder.path().join("d").exists());
}

#[test]
fn a_pasted_line_makes_a_pair() {
    let (alpha, beta) = (Node::named("alpha"), Node::named("beta"));
    alpha.done(&["init", "pg", "--size", "16M", "--logical-block", "4096"]);
    let text = alpha.text().replace(
        "solo = \"never\"",
        "solo = \"always\" # for now\nprotocol = \"B\"",
    );
    std::fs::write(alpha.path("kagami.toml"), text).unwrap();
    let (mut child, mut lines, token) = alpha.offer(&["pair", "pg"]);
    // A dry run does not use the token up.
    let out = beta.done(&["pair", "--join", &token, "--dry-run"]);
    assert!(out.contains("the line was made by alpha"), "{out}");
    let out = beta.done(&["pair", "--join", &token]);
    assert!(out.contains("mirror pg: paired with alpha"), "{out}");
    assert!(
        out.contains("both copies read as zeroes: nothing has to be copied"),
        "{out}"
    );
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(rest.contains("mirror pg: paired with beta"), "{rest}");
    let (here, there) = (alpha.config(), beta.config());
    let (mine, theirs) = (here.mirror("pg").unwrap(), there.mirror("pg").unwrap());
    assert_eq!(mine.uuid, theirs.uuid);
    assert_eq!(mine.size, theirs.size);
    assert_eq!(
        (theirs.logical_block, theirs.solo, theirs.protocol),
        (4096, mine.solo, mine.protocol)
    );
    assert_eq!(
        (mine.peer.as_deref(), theirs.peer.as_deref()),
        (Some("beta"), Some("alpha"))
    );
    assert_eq!(here.peer("beta").unwrap().id, there.node.id);
    assert_eq!(there.peer("alpha").unwrap().id, here.node.id);
    assert!(alpha.text().contains("solo = \"always\" # for now"));
    let record = beta.record("pg");
    assert_eq!(
        (record.node, record.mirror),
        (there.node.id, u128::from_be_bytes(mine.uuid))
    );
    // Once is enough, on both sides.
    let (code, _, err) = alpha.run(&["pair", "pg"]);
    assert_eq!(code, 1);
    assert!(
        err.contains("mirror pg is paired with beta already"),
        "{err}"
    );
    let (code, _, err) = beta.run(&["pair", "--join", &token]);
    assert_ne!(code, 0);
    assert!(err.starts_with("not joined: "), "{err}");
}

#[test]
fn a_node_that_can_not_join_leaves_nothing_behind() {
    let (alpha, beta) = (Node::named("alpha"), Node::named("beta"));
    alpha.done(&["init", "pg", "--size", "16M"]);
    beta.done(&["init", "pg", "--size", "16M"]);
    let before = (alpha.text(), beta.text());
    let (child, _lines, token) = alpha.offer(&["pair", "pg"]);
    let (code, _, err) = beta.run(&["pair", "--join", &token]);
    assert_eq!(code, 1);
    assert!(
        err.contains("another mirror is called pg on node beta"),
        "{err}"
    );
    let (code, _, err) = words(child.wait_with_output().unwrap());
    assert_eq!(code, 1, "{err}");
    assert!(
        err.contains(
            "the other side refused: not joined: another mirror is called pg on node beta"
        ),
        "{err}"
    );
    assert_eq!((alpha.text(), beta.text()), before);
}

/// An old copy that is to be given up may be the only one of what was written there.
#[test]
fn what_an_old_copy_holds_is_looked_at_before_it_is_given_up() {
    let (alpha, beta) = (Node::named("alpha"), Node::named("beta"));
    alpha.done(&["init", "pg", "--size", "16M"]);
    let (mut child, _lines, token) = alpha.offer(&["pair", "pg"]);
    beta.done(&["pair", "--join", &token]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // beta serves alone; alpha comes back, and somebody pairs them anew.
    beta.copy("pg").change(|record| record.mint(7)).unwrap();
    let before = beta.record("pg");
    for (more, status, expected) in [
        (&[][..], 1, "it is generation 1, Consistent, 0 B marked"),
        (&[], 1, "it went on alone"),
        (&["--give-up-copy"], 1, "--give-up-copy --force here"),
        (&["--give-up-copy", "--yes"], 1, "it went on alone"),
        (&["--give-up-copy", "--force"], 2, "add --yes"),
    ] {
        let (child, _lines, token) = alpha.offer(&["pair", "pg", "--again"]);
        let (code, _, err) = beta.run(&[&["pair", "--join", &token][..], more].concat());
        assert_eq!(code, status, "{more:?}: {err}");
        assert!(err.contains(expected), "{more:?}: {err}");
        let (code, _, err) = words(child.wait_with_output().unwrap());
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("the other side refused: "), "{err}");
        assert_eq!(beta.record("pg"), before, "{more:?}");
    }
    let (mut child, _lines, token) = alpha.offer(&["pair", "pg", "--again"]);
    let join = ["pair", "--join", &token, "--give-up-copy"];
    let out = beta.done(&[&join[..], &["--dry-run"]].concat());
    assert!(
        out.contains("mirror pg") && out.contains("it went on alone"),
        "{out}"
    );
    // Other stores are no place of the old copy.
    let device = [&join[..], &["--device", "/dev/null"]].concat();
    assert_eq!(beta.run(&device).0, 2);
    assert_eq!(beta.record("pg"), before);
    let (code, out, err) = beta.run(&[&join[..], &["--force", "--yes"]].concat());
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("given up by force"), "{err}");
    assert!(out.contains("mirror pg: paired with alpha"), "{out}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(beta.record("pg").current, None);
}

/// A volume that is not activated holds what it held: its record is believed.
#[test]
fn a_copy_whose_data_can_not_be_opened_is_judged_by_its_record() {
    let (alpha, beta) = (Node::named("alpha"), Node::named("beta"));
    alpha.done(&["init", "pg", "--size", "16M"]);
    let (mut child, _lines, token) = alpha.offer(&["pair", "pg"]);
    beta.done(&["pair", "--join", &token]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let change = |alone: bool| {
        let mut copy = alpha.copy("pg");
        let changed = copy.change(|record| {
            if record.current.is_none() {
                record.mint(7);
            }
            record.peer = Some(2);
            record.alone = alone;
        });
        changed.unwrap();
    };
    let backing = alpha.config().mirror("pg").unwrap().backing.clone();
    std::fs::rename(&backing, backing.with_extension("away")).unwrap();
    let new = alpha.path("new.data").display().to_string();
    let replace = ["replace-disk", "pg", "--backing", &new, "--dry-run"];
    change(true);
    let (code, _, err) = alpha.run(&replace);
    assert_eq!(code, 1, "{err}");
    for words in [
        "it went on alone",
        "it is generation 1",
        "can't be read now",
        "--force",
    ] {
        assert!(err.contains(words), "{words}: {err}");
    }
    // One of a pair whose disk died.
    change(false);
    let out = alpha.done(&replace);
    assert!(
        out.contains("it is generation 1") && out.contains("can't be read now"),
        "{out}"
    );
}

#[test]
fn wrong_tokens_say_what_is_wrong() {
    let node = Node::named("beta");
    for (token, expected) in [
        ("hello", "this is no token"),
        ("kgm1-AAAA", "this token"),
        ("kgm9-AAAA", "version 9"),
    ] {
        let (code, _, err) = node.run(&["pair", "--join", token]);
        assert_eq!(code, 2, "{token}: {err}");
        assert!(err.contains(expected), "{token}: {err}");
    }
    let (code, _, err) = node.run(&["pair", "pg"]);
    assert_eq!(code, 1);
    assert!(err.contains("there is no mirror pg"), "{err}");
}

#[test]
fn a_witness_is_enrolled_by_a_pasted_line() {
    let (witness, alpha) = (Node::named("witness1"), Node::named("alpha"));
    alpha.done(&["init", "pg", "--size", "16M"]);
    let out = witness.done(&["witness", "list"]);
    assert!(out.starts_with("no node may use this witness yet"), "{out}");
    let (mut child, mut lines, token) =
        witness.offer(&["witness", "enrol", "--address", "127.0.0.1"]);
    // The wrong kind of line is told apart.
    let (code, _, err) = alpha.run(&["pair", "--join", &token]);
    assert_eq!(code, 2);
    assert!(err.contains("enrols a node at a witness"), "{err}");
    let out = alpha.done(&["arbiter", "join", &token, "--mirror", "pg"]);
    assert!(
        out.starts_with("witness witness1 is known to this node"),
        "{out}"
    );
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(rest.contains("node alpha may use this witness"), "{rest}");
    let config = alpha.config();
    let arbiter = config.arbiter("witness1").unwrap();
    assert_eq!(arbiter.addresses, ["127.0.0.1:7790"]);
    assert_eq!(
        config.mirror("pg").unwrap().arbiter.as_deref(),
        Some("witness1")
    );
    let out = witness.done(&["witness", "list"]);
    assert!(out.starts_with("alpha  sha256:"), "{out}");
}

/// A machine that was set up anew has the name of the witness before, and none of its registers.
#[test]
fn a_witness_with_another_key_is_another_arbiter() {
    let (first, second) = (Node::named("witness1"), Node::named("witness1"));
    let alpha = Node::named("alpha");
    alpha.done(&["init", "pg", "--size", "16M"]);
    let enrol = ["witness", "enrol", "--address", "127.0.0.1"];
    let (mut child, _lines, token) = first.offer(&enrol);
    alpha.done(&["arbiter", "join", &token, "--mirror", "pg"]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let before = alpha.text();
    let (mut child, _lines, token) = second.offer(&enrol);
    for (more, expected) in [
        (&[][..], "--mirror pg --replace"),
        (&["--mirror", "pg"], "--mirror pg --replace"),
        (&["--mirror", "pg", "--replace"], "no daemon runs here"),
    ] {
        let (code, _, err) = alpha.run(&[&["arbiter", "join", &token][..], more].concat());
        assert_eq!(code, 1, "{more:?}: {err}");
        assert!(
            err.contains("not enrolled") || err.contains("not replaced"),
            "{err}"
        );
        assert!(err.contains(expected), "{more:?}: {err}");
        assert_eq!(alpha.text(), before, "{more:?}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The same witness again, while it changes its key: both stay known.
    let known = alpha.config().arbiter("witness1").unwrap().fingerprints[0].clone();
    let next = format!("sha256:{}", "77".repeat(32));
    let both = before.replace(
        &format!("[\"{known}\"]"),
        &format!("[\"{known}\", \"{next}\"]"),
    );
    assert_ne!(both, before);
    std::fs::write(alpha.path("kagami.toml"), both).unwrap();
    let (mut child, _lines, token) = first.offer(&enrol);
    alpha.done(&["arbiter", "join", &token, "--mirror", "pg"]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let config = alpha.config();
    assert_eq!(
        config.arbiter("witness1").unwrap().fingerprints,
        [known, next]
    );
}
