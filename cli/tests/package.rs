//! What the Debian package brings beside the program fits the program: the commands in its units and its
//! udev rule are commands of this one, its example is a configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// A machine that goes down, as `unmount-at-shutdown` sees it: a device is mounted on /srv. Every sleep of the
/// script is so many seconds of its clock. Gives what it said.
struct GoesDown {
    folder: tempfile::TempDir,
}

impl GoesDown {
    /// `umount` and `sleep`: what these commands do, with `$at` for the folder of all and `$up` for the clock.
    fn new(device: &str, umount: &str, sleep: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path();
        let block = format!("sys/block/{device}");
        for inner in [
            &format!("{block}/holders"),
            "proc/self",
            "bin",
            "dev/kagami",
        ] {
            fs::create_dir_all(at.join(inner)).expect("made");
        }
        let target = Path::new("..").join(device);
        std::os::unix::fs::symlink(target, at.join("dev/kagami/pg")).expect("linked");
        let files = [
            (&*format!("{block}/dev"), "43:7\n"),
            (&*format!("{block}/stat"), "1 0 8 0 1 0 8 0\n"),
            ("proc/self/mountinfo", "40 1 43:7 / /srv rw - ext4 x rw\n"),
            ("proc/uptime", "100.50 0\n"),
        ];
        for (name, text) in files {
            fs::write(at.join(name), text).expect("written");
        }
        let clock = "read -r up _ <$at/proc/uptime; up=${up%.*}";
        let commands = [
            ("systemctl", "echo stopping".to_owned()),
            (
                "kagami",
                format!("echo '{{\"path\":\"/dev/{device}\"}}'\n[ ! -e $at/silent ] || exit 124"),
            ),
            ("systemd-notify", "echo \"$@\" >>$at/notified".to_owned()),
            ("umount", format!("echo \"$@\" >>$at/tried\n{umount}")),
            ("sleep", format!("{clock}\n{sleep}")),
        ];
        for (name, does) in commands {
            let text = format!("#!/bin/sh\nat={}\n{does}\n", at.display());
            // Another process writes it: no child of a thread of this one has it open for writing.
            let written = Command::new("sh")
                .args(["-c", "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\""])
                .arg(at.join("bin").join(name))
                .arg(text)
                .status();
            assert!(written.expect("a shell").success());
        }
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }

    fn run(&self) -> String {
        // Files: an umount that hangs keeps them open.
        let file = |name: &str| fs::File::create(self.path().join(name)).expect("made");
        let ended = Command::new("sh")
            .arg(folder().join("unmount-at-shutdown"))
            .args(["sys", "proc", "dev"].map(|tree| self.path().join(tree)))
            .env(
                "PATH",
                format!("{}/bin:/usr/bin:/bin", self.path().display()),
            )
            .stdout(file("said"))
            .stderr(file("errors"))
            .status()
            .expect("run");
        assert!(ended.success(), "{ended}: {}", self.read("errors"));
        self.read("said")
    }
}

/// Waits until a test says that it may end, or has ended.
const HANGS: &str = "while [ -d $at ] && [ ! -e $at/end ]; do /bin/sleep 0.01; done";

#[test]
fn an_umount_that_writes_back_for_minutes_gets_the_time_and_the_unit_hears_of_it() {
    let goes_down = GoesDown::new(
        "nbd7",
        &format!("{HANGS}\n: >$at/proc/self/mountinfo"),
        "up=$((up + 1)); echo $up.00 0 >$at/proc/uptime; echo 1 0 8 0 $up 0 8 0 >$at/sys/block/nbd7/stat
         [ $up -lt 220 ] || : >$at/end",
    );
    assert_eq!(goes_down.run(), "");
    let tried = goes_down.read("tried");
    assert_eq!(tried.lines().count(), 1, "{tried}");
    let notified = goes_down.read("notified");
    assert!(notified.lines().count() > 60, "{notified}");
    assert!(
        notified
            .lines()
            .all(|line| line.starts_with("EXTEND_TIMEOUT_USEC="))
    );
}

#[test]
fn what_stays_in_use_and_an_umount_that_gets_nowhere_end_by_the_clock() {
    let later = "up=$((up + 10)); echo $up.00 0 >$at/proc/uptime";
    for umount in ["exit 32", HANGS] {
        let goes_down = GoesDown::new("nbd7", umount, later);
        let said = goes_down.run();
        assert!(
            said.starts_with("still in use") && said.ends_with("/srv\n"),
            "{said}"
        );
        let tried = goes_down.read("tried");
        assert!((1..20).contains(&tried.lines().count()), "{tried}");
    }
}

/// nbd's devices say themselves whose they are, ublk's don't.
#[test]
fn a_device_of_either_driver_is_unmounted_also_where_the_daemon_does_not_answer() {
    for device in ["nbd7", "ublkb7"] {
        for is_silent in [false, true] {
            let later = "up=$((up + 10)); echo $up.00 0 >$at/proc/uptime";
            let goes_down = GoesDown::new(device, ": >$at/proc/self/mountinfo", later);
            let at = goes_down.path();
            if device == "nbd7" {
                let backend = at.join("sys/block/nbd7/backend");
                fs::write(backend, "kagami-x\n").expect("written");
            }
            if is_silent {
                fs::write(at.join("silent"), "").expect("written");
            }
            assert_eq!(goes_down.run(), "", "{device} {is_silent}");
            let tried = goes_down.read("tried");
            assert_eq!(tried, "-- /srv\n", "{device} {is_silent}");
        }
    }
}
