//! Mirrors whose stores don't answer, or are somebody else's, beside one that is well.

use std::fs::File;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use kagami::config::Config;
use kagami::daemon::engine::{Engine as _, MirrorStatus};
use kagami::daemon::mirrors::Mirrors;
use kagami::daemon::mirrors::opening::Patience;
use kagami::daemon::service::Service;
use kagami_replicator::core::event::{Command, Reply};
use kagami_replicator::core::state::Role;
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

const PROMOTE: Command = Command::Promote {
    force: false,
    while_resyncing: false,
};

/// A node with mirrors pg and home, which have no peer; and whoever holds home's metadata.
fn node() -> (TempDir, Config, File) {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().display();
    let file = folder.path().join("kagami.toml");
    let text = format!(
        "[node]\nname = \"alpha\"\nid = 7\nlisten = [\"127.0.0.1:0\"]\nstate-dir = \"{at}/state\"\nrun-dir = \"{at}/run\"\n"
    );
    std::fs::write(&file, text).expect("written");
    for mirror in ["pg", "home"] {
        let made = Process::new(env!("CARGO_BIN_EXE_kagami"))
            .env_clear()
            .env("KAGAMI_CONFIG", &file)
            .stdin(Stdio::null())
            .args(["init", mirror, "--size", "16M"])
            .output()
            .expect("run");
        assert!(made.status.success(), "{made:?}");
    }
    let config = Config::load(&file).expect("a configuration");
    let metadata = &config.mirror("home").expect("it").metadata;
    let holder = File::open(metadata).expect("the store");
    flock(&holder, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
    (folder, config, holder)
}

async fn home(mirrors: &Mirrors) -> MirrorStatus {
    let all = mirrors.status().await;
    let mut named = all.into_iter().filter(|status| status.name == "home");
    let found = named.next().expect("it is told of");
    assert!(named.next().is_none(), "it is told of once");
    found
}

/// Why home is not open.
async fn why(mirrors: &Mirrors) -> Option<String> {
    let closed = home(mirrors).await.core.err()?;
    assert!(closed.opening, "{closed:?}");
    Some(closed.why)
}

/// Tries again and again, for as long as a busy machine takes.
async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(done) = attempt().await {
            return done;
        }
        assert!(Instant::now() < deadline, "it did not come: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn is_promoted(mirrors: &Mirrors, mirror: &str) {
    until("it is open", async || {
        let all = mirrors.status().await;
        let found = all.into_iter().find(|status| status.name == mirror)?;
        found.core.ok()
    })
    .await;
    let done = mirrors.command(mirror, PROMOTE).await;
    assert_eq!(done.expect("it may be"), Reply::Done, "{mirror}");
}

/// From a start that does not wait for home until it has joined.
async fn joins_later(patience: Patience, words: &str) {
    let (_folder, mut config, holder) = node();
    let mirrors = Mirrors::start(&config, &Service::none(), patience)
        .await
        .expect("started");
    is_promoted(&mirrors, "pg").await;
    until(words, async || {
        why(&mirrors).await.filter(|why| why.contains(words))
    })
    .await;
    let refused = mirrors.command("home", PROMOTE).await;
    let refused = refused.expect_err("it is not open");
    assert!(refused.next.contains("by itself"), "{refused:?}");
    assert!(mirrors.detach("home", false).await.is_err());

    // What is reloaded meanwhile counts for it, too.
    let set = config
        .mirrors
        .iter_mut()
        .find(|mirror| mirror.name == "home");
    set.expect("it").solo = kagami::config::Solo::Always;
    mirrors.in_force(&config);
    let settings = kagami::daemon::settings::of(&config, config.mirror("home").expect("it"));
    let told = mirrors.command("home", Command::Set(settings)).await;
    assert_eq!(told.expect("it is told when it joins"), Reply::Done);

    drop(holder);
    let joined = until("home joins", async || {
        let status = home(&mirrors).await;
        status.core.is_ok().then_some(status)
    })
    .await;
    assert!(!joined.served_at.is_empty(), "{joined:?}");
    is_promoted(&mirrors, "home").await;
    let core = home(&mirrors).await.core.expect("open");
    assert_eq!(core.role, Role::Primary);
    assert_eq!(mirrors.stop().await, Vec::<String>::new());
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test);
    runtime.shutdown_background();
}

#[test]
fn a_store_that_does_not_answer_keeps_no_other_mirror_down() {
    let patience = Patience {
        start: Duration::from_millis(300),
        // As long as the test takes it is asked once, and does not answer.
        held: Duration::from_secs(60),
        ..Patience::default()
    };
    run(joins_later(patience, "have not answered"));
}

#[test]
fn a_store_that_somebody_holds_is_tried_again() {
    let patience = Patience {
        start: Duration::from_secs(30),
        held: Duration::from_millis(50),
        pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(100),
    };
    run(joins_later(patience, "tried again in"));
}

#[test]
fn a_daemon_that_stops_waits_for_no_store() {
    let patience = Patience {
        start: Duration::from_millis(50),
        held: Duration::from_secs(60),
        ..Patience::default()
    };
    run(async {
        let (_folder, config, holder) = node();
        let mirrors = Mirrors::start(&config, &Service::none(), patience)
            .await
            .expect("started");
        is_promoted(&mirrors, "pg").await;
        assert_eq!(mirrors.stop().await, Vec::<String>::new());
        // It answers too late: nothing is begun with it, and it is let go of.
        drop(holder);
        let metadata = config.mirror("home").expect("it").metadata.clone();
        until("the store is free", async || {
            let file = File::open(&metadata).expect("the store");
            flock(&file, FlockOperation::NonBlockingLockExclusive).ok()
        })
        .await;
        assert!(home_is_closed(&mirrors).await);
    });
}

async fn home_is_closed(mirrors: &Mirrors) -> bool {
    let all = mirrors.status().await;
    all.iter().all(|status| status.core.is_err())
}
