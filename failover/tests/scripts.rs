//! Scripts that were written for CLUSTERPRO, as their users have them (`scripts/`), run unchanged.
//!
//! Their commands are found by name in PATH; here this test program itself stands behind the names.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{TestNode, runs, until, why};
use kagami_failover::config::Ms;
use kagami_failover::core::OpResult;
use kagami_failover::core::durable::Why;
use kagami_failover::core::environment::fence_check;
use kagami_failover::probe;
use kagami_failover::process::log;
use kagami_failover::watch_list::{Load, Restart, Seen, WatchError, WatchList};

const COMMANDS: &[&str] = &[
    "clplogcmd",
    "ARMLOAD",
    "ARMLOADC",
    "ARMKILL",
    "ARMLOG",
    "ARMBCAST",
    "ARMSLEEP",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/scripts")
        .join(name)
}

/// A node with the commands in its folder of links.
fn node(resource: &str) -> TestNode {
    let node = TestNode::new(resource);
    let program = std::env::current_exe().unwrap();
    for name in COMMANDS {
        let path = node.place.links.join(name);
        let line = format!(
            "#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done >{0}/words.$$\n\
             KAGAMI_TEST_COMMAND={name} KAGAMI_TEST_WORDS={0}/words.$$ exec {1} --exact as_a_command --nocapture >>{0}/harness 2>&1\n",
            node.folder.path().display(),
            program.display()
        );
        fs::write(&path, line).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    node
}

/// What stands behind a command's name: its words are taken apart here, the rest is the library's.
#[test]
fn as_a_command() {
    let Ok(command) = std::env::var("KAGAMI_TEST_COMMAND") else {
        return;
    };
    let words = fs::read_to_string(std::env::var("KAGAMI_TEST_WORDS").unwrap()).unwrap();
    let words: Vec<&str> = words.lines().collect();
    let run = PathBuf::from(std::env::var("KAGAMI_RUN").unwrap());
    let list = WatchList::new(&run);
    let number = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        words.get(at + 1)?.parse::<u32>().ok()
    };
    let done = match command.as_str() {
        "ARMLOAD" => {
            let at = words
                .iter()
                .position(|word| word.starts_with('/') && word.len() > 2)
                .unwrap();
            list.load(&Load {
                id: words[0].to_owned(),
                monitored: words[..at].contains(&"/M"),
                user: None,
                restart: number("/R").map(|times| Restart {
                    times,
                    hours: number("/H").unwrap_or(24),
                }),
                program: words[at..].iter().map(|word| (*word).to_owned()).collect(),
            })
            .map(drop)
        }
        "ARMLOADC" => list.pause(words[0], words.contains(&"PAUSE")),
        "ARMKILL" if words.contains(&"/C") => list.forget(words[0]).map(drop),
        "ARMKILL" => {
            let time = Duration::from_secs(number("/T").unwrap_or(10).into());
            list.kill(words[0], time)
        }
        _ => {
            let line = format!("{command} {}\n", words.join(" "));
            let path = run.parent().unwrap().join("said");
            let old = fs::read_to_string(&path).unwrap_or_default();
            fs::write(path, old + &line).unwrap();
            Ok(())
        }
    };
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

fn exec(start: &str, stop: &str, more: &str) -> TestNode {
    node(&format!(
        "[group.g.resource.app]\ntype = \"exec\"\nstart = \"{}\"\nstop = \"{}\"\nenvironment = {{ APP_HOME = \"@/app\", APP_TICK = \"0.05\" }}\n{more}",
        fixture(start).display(),
        fixture(stop).display()
    ))
}

#[tokio::test]
async fn scripts_branch_on_why_they_run() {
    let node = exec("start-branches.sh", "stop-branches.sh", "");
    for (why, from, said) in [
        (Why::Start, None, "NORMAL1\nNORMAL2\nEXIT\n"),
        (Why::Failover, Some(1), "FAILOVER1\nFAILOVER2\nEXIT\n"),
        (Why::Recover, None, "RECOVER\nEXIT\n"),
    ] {
        let environment = node.environment("app", why, from);
        assert_eq!(node.start_with("app", &environment).await, OpResult::Done);
        assert!(node.log("app").ends_with(said), "{}", node.log("app"));
    }
    let mut broken = node.environment("app", Why::Start, None);
    for (name, value) in &mut broken {
        if name == "CLP_DISK" {
            *value = "FAILURE".to_owned();
        }
        if name == "CLP_SERVER" {
            *value = "OTHER".to_owned();
        }
    }
    let reason = why(node.start_with("app", &broken).await);
    assert!(reason.contains("ERROR_DISK from START"), "{reason}");
    assert_eq!(node.stop("app").await, OpResult::Done);
    assert!(
        node.log("app")
            .ends_with("START stop: only this resource\nEXIT\n")
    );
    // By hand, without any of it.
    let by_hand = Command::new(fixture("start-branches.sh"))
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(
        (by_hand.status.code(), &by_hand.stdout[..]),
        (Some(1), &b"NO_CLP\n"[..])
    );
}

#[tokio::test]
async fn a_service_in_the_foreground_is_watched() {
    let node = exec(
        "start-foreground.sh",
        "stop-branches.sh",
        "mode = \"async\"\n",
    );
    let at = node.folder.path().display().to_string();
    node.script(
        "app/app",
        &format!("echo $$ >{at}/pid; while :; do sleep 0.05; done"),
    );
    assert_eq!(node.start("app").await, OpResult::Done);
    until("it runs", || !node.read("pid").is_empty()).await;
    assert!(node.read("app/app.log").contains("as HOME (START)"));
    assert!(
        node.read("said")
            .contains("clplogcmd -m app is started: START -i 1 -l INFO")
    );
    assert_eq!(node.probe("app").await, OpResult::Done);
    let killed = Command::new("kill")
        .args(["-9", node.read("pid").trim()])
        .status()
        .unwrap();
    assert!(killed.success());
    until("it has ended", || !runs(&node.read("pid"))).await;
    assert!(why(node.probe("app").await).contains("has ended"));
    assert_eq!(node.stop("app").await, OpResult::Done);
}

#[tokio::test]
async fn a_service_in_the_background_is_not_watched_and_takes_its_time_to_stop() {
    let node = exec("start-background.sh", "stop-background.sh", "");
    let at = node.folder.path().display().to_string();
    // Many of the 120 ticks that its stop script gives it.
    node.script(
        "app/app",
        &format!(
            "trap 'sleep 1; echo in order >{at}/ended; exit 0' TERM; while :; do sleep 0.01; done"
        ),
    );
    node.script("app/repair", &format!("echo repaired >>{at}/repairs"));
    assert_eq!(node.start("app").await, OpResult::Done);
    let pid = node.read("app/app.pid");
    assert!(runs(&pid));
    assert_eq!(node.read("repairs"), "");
    assert_eq!(
        node.stop("app").await,
        OpResult::Done,
        "{}",
        node.log("app")
    );
    assert!(!runs(&pid));
    assert_eq!(node.read("ended"), "in order\n");
    let environment = node.environment("app", Why::Failover, Some(1));
    assert_eq!(node.start_with("app", &environment).await, OpResult::Done);
    assert_eq!(node.read("repairs"), "repaired\n");
    // Nobody watches it: its end changes nothing, and stopping it is no failure.
    let pid = node.read("app/app.pid");
    assert!(
        Command::new("kill")
            .args(["-9", pid.trim()])
            .status()
            .unwrap()
            .success()
    );
    until("it has ended", || !runs(&pid)).await;
    assert_eq!(node.probe("app").await, OpResult::Done);
    assert_eq!(node.stop("app").await, OpResult::Done);
}

#[tokio::test]
async fn a_loaded_program_is_watched_restarted_and_missed() {
    let node = exec("start-armload.sh", "stop-armload.sh", "");
    let at = node.folder.path().display().to_string();
    node.script(
        "app/app",
        &format!("echo \"$$ $2\" >>{at}/pids; while :; do sleep 0.02; done"),
    );
    let list = WatchList::new(&node.place.run);
    assert_eq!(
        node.start("app").await,
        OpResult::Done,
        "{}{}",
        node.log("app"),
        node.read("harness")
    );
    until("it runs", || node.read("pids").lines().count() == 1).await;
    assert!(node.read("pids").trim().ends_with(" one two"));
    let entries = list.entries().unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (entries[0].group.as_str(), entries[0].resource.as_str()),
        ("g", "app")
    );
    assert!(entries[0].monitored && entries[0].process().is_alive());
    assert_eq!(list.poll(1000, |_| None).unwrap(), []);
    let kill = || {
        let pid = node
            .read("pids")
            .lines()
            .last()
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned();
        assert!(
            Command::new("kill")
                .args(["-9", &pid])
                .status()
                .unwrap()
                .success()
        );
        pid
    };
    // Its first unexpected end is made good, the second one within the time is not.
    let first = kill();
    until("it has ended", || !runs(&first)).await;
    let seen = list.poll(1000, |_| None).unwrap();
    assert!(
        matches!(&seen[..], [Seen::Restarted(entry)] if entry.id == "app-watch"),
        "{seen:?}"
    );
    until("it runs again", || node.read("pids").lines().count() == 2).await;
    let second = kill();
    until("it has ended", || !runs(&second)).await;
    list.pause("app-watch", true).unwrap();
    assert_eq!(
        list.poll(1000 + 3600, |_| None).unwrap(),
        [],
        "nobody looks"
    );
    list.pause("app-watch", false).unwrap();
    let seen = list.poll(1000 + 3600, |_| None).unwrap();
    assert!(
        matches!(&seen[..], [Seen::Ended(entry)] if entry.monitored),
        "{seen:?}"
    );
    // It is not forgotten before this node's groups have left, and seen once.
    assert_eq!(list.poll(1000 + 3600, |_| None).unwrap(), []);
    let [failed] = &list.failed().unwrap()[..] else {
        panic!("{:?}", list.entries());
    };
    list.leave(failed, &["g".to_owned()], false).unwrap();
    // The script that stops its group does not make it forgotten either.
    list.kill("app-watch", Duration::ZERO).unwrap();
    assert_eq!(list.failed().unwrap()[0].left, ["g"]);
    list.leave(failed, &["h".to_owned()], true).unwrap();
    assert_eq!(list.entries().unwrap(), []);
    // Loaded again, and stopped in order: nobody misses it.
    assert_eq!(node.start("app").await, OpResult::Done);
    until("it runs", || node.read("pids").lines().count() == 3).await;
    let third = node
        .read("pids")
        .lines()
        .last()
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(node.stop("app").await, OpResult::Done);
    assert!(!runs(&third));
    assert_eq!(list.poll(9000, |_| None).unwrap(), []);
    assert_eq!(list.entries().unwrap(), []);
}

/// Its log is on a disk that hangs. The list's lock, which every script that loads or ends a program waits for, is held
/// meanwhile.
#[tokio::test]
async fn a_program_is_begun_again_although_its_log_hangs() {
    let node = exec("start-armload.sh", "stop-armload.sh", "");
    let at = node.folder.path().display().to_string();
    node.script(
        "app/app",
        &format!("echo $$ >>{at}/pids; while :; do sleep 0.02; done"),
    );
    assert_eq!(node.start("app").await, OpResult::Done);
    until("it runs", || node.read("pids").lines().count() == 1).await;
    let first = node.read("pids").trim().to_owned();
    // Nobody reads it: who opens it to write waits for ever.
    let log = node.place.log("g@app");
    fs::remove_file(&log).unwrap();
    assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
    assert!(
        Command::new("kill")
            .args(["-9", &first])
            .status()
            .unwrap()
            .success()
    );
    until("it has ended", || !runs(&first)).await;
    let list = WatchList::new(&node.place.run);
    let place = std::sync::Arc::clone(&node.place);
    let looked = tokio::task::spawn_blocking(move || {
        list.poll(1000, |_| {
            log::begin_again(&place, "g@app", "app again").ok()
        })
    });
    let seen = tokio::time::timeout(Duration::from_secs(15), looked).await;
    let seen = seen.expect("the list's lock is free again").unwrap();
    assert!(matches!(&seen.unwrap()[..], [Seen::Restarted(entry)] if entry.id == "app-watch"));
    until("it runs again", || node.read("pids").lines().count() == 2).await;
    assert_eq!(node.stop("app").await, OpResult::Done);
}

#[tokio::test]
async fn what_a_stop_script_forgets_to_end_ends_with_its_resource() {
    let node = exec("start-armload.sh", "stop-branches.sh", "");
    let at = node.folder.path().display().to_string();
    node.script(
        "app/app",
        &format!("echo $$ >>{at}/pids; while :; do sleep 0.02; done"),
    );
    assert_eq!(node.start("app").await, OpResult::Done);
    until("it runs", || node.read("pids").lines().count() == 1).await;
    assert_eq!(node.stop("app").await, OpResult::Done);
    assert!(!runs(&node.read("pids")));
    let list = WatchList::new(&node.place.run);
    assert_eq!(list.entries().unwrap(), [], "it is not missed");
}

#[test]
fn a_program_that_leaves_the_list_while_its_resource_stops_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let list = WatchList::new(folder.path());
    let load = |id: &str, script: &str| Load {
        id: id.to_owned(),
        program: ["sh", "-c", script].map(str::to_owned).into(),
        ..Load::default()
    };
    let at = |name: &str| folder.path().join(name).display().to_string();
    // While the first one ends the second one is taken off the list, as the manager does with what has ended.
    let script = format!(
        "trap 'rm {}; exit' TERM; touch {}; while :; do sleep 0.02; done",
        at("watch/b.json"),
        at("hears")
    );
    let first = list.load(&load("a", &script)).unwrap();
    list.load(&load("b", "true")).unwrap();
    let begun = std::time::Instant::now();
    while !folder.path().join("hears").exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it runs");
        std::thread::sleep(Duration::from_millis(5));
    }
    list.end_of("", "", Duration::from_secs(20)).unwrap();
    assert!(!first.process().is_alive());
    assert_eq!(list.entries().unwrap(), []);
}

#[test]
fn the_watch_list_refuses_what_can_not_be() {
    let folder = tempfile::tempdir().unwrap();
    let list = WatchList::new(folder.path());
    let load = |id: &str, program: &[&str]| Load {
        id: id.to_owned(),
        program: program.iter().map(|word| (*word).to_owned()).collect(),
        ..Load::default()
    };
    let entry = list.load(&load("one", &["sleep", "600"])).unwrap();
    assert!(entry.process().is_alive());
    let taken = list.load(&load("one", &["sleep", "600"])).unwrap_err();
    assert!(matches!(taken, WatchError::Taken { pid, .. } if pid == entry.pid));
    assert!(taken.to_string().contains("next: "), "{taken}");
    assert!(matches!(
        list.load(&load("two", &["no-such-program-here"])),
        Err(WatchError::NotRun { .. })
    ));
    assert!(matches!(
        list.load(&load("two", &[])),
        Err(WatchError::NotRun { .. })
    ));
    for bad in ["", "a/b", "..", ".x", "a b"] {
        assert!(
            matches!(
                list.load(&load(bad, &["sleep", "1"])),
                Err(WatchError::NotAName(_))
            ),
            "{bad}"
        );
    }
    assert!(matches!(
        list.kill("two", Duration::ZERO),
        Err(WatchError::Unknown(_))
    ));
    assert!(matches!(
        list.pause("two", true),
        Err(WatchError::Unknown(_))
    ));
    // Its watch alone ends: it runs on.
    list.forget("one").unwrap();
    assert!(entry.process().is_alive());
    assert_eq!(list.entries().unwrap(), []);
    let again = list.load(&load("one", &["sleep", "600"])).unwrap();
    list.kill("one", Duration::from_secs(10)).unwrap();
    assert!(!again.process().is_alive());
    assert!(
        Command::new("kill")
            .arg(entry.pid.to_string())
            .status()
            .unwrap()
            .success()
    );
}

#[tokio::test]
async fn scripts_before_recovery_and_for_fencing_see_their_words() {
    let node = node("[group.g.resource.x]\ntype = \"exec\"\nstart = \"/bin/true\"\n");
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let seen = [
        set("CLP_ACTION", "RESTART"),
        set("CLP_MONITORNAME", "rows"),
        set("CLP_RESTARTCOUNT", "2"),
    ];
    let before = fixture("preaction.sh");
    let ran = probe::recovery_script(&node.place, "rows", &before, &seen, Ms::seconds(60)).await;
    assert_eq!(ran, OpResult::Done);
    let log = fs::read_to_string(node.place.log("monitor@rows")).unwrap();
    assert!(log.ends_with("rows: RESTART 2\n"), "{log}");
    let switch = node.path("switch");
    let script = fixture("forcestop.sh");
    let mut environment = fence_check(&node.place.cluster, 0);
    environment.push(set("POWER_SWITCH", &switch.display().to_string()));
    let asked = probe::fence(&node.place, &script, &environment, Ms::seconds(60)).await;
    assert!(why(asked).contains("no power switch"));
    fs::write(&switch, "").unwrap();
    let asked = probe::fence(&node.place, &script, &environment, Ms::seconds(60)).await;
    assert_eq!(
        (asked, fs::read_to_string(&switch).unwrap().as_str()),
        (OpResult::Done, "")
    );
    for (name, value) in &mut environment {
        if name == "CLP_FORCESTOP_MODE" {
            *value = "1".to_owned();
        }
    }
    let asked = probe::fence(&node.place, &script, &environment, Ms::seconds(60)).await;
    assert_eq!(
        (asked, fs::read_to_string(&switch).unwrap().as_str()),
        (OpResult::Done, "off beta\n")
    );
}
