//! No guard is to be had, or one that does not know all that is asked of it.

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::super::client::Trouble;
use super::*;

type Troubles = UnboundedReceiver<Trouble>;

/// Of the guard that listens there, or is begun by this line.
fn guards(
    folder: &Path,
    line: Option<String>,
    within: Duration,
) -> ((Guards, UnboundedReceiver<String>), Troubles) {
    let (told, troubles) = unbounded_channel();
    let starter = Starter {
        socket: folder.join("guard.sock"),
        command: line.map(|line| ("/bin/sh".into(), vec!["-c".into(), line.into()])),
        log: None,
        within,
    };
    let tell = move |trouble| {
        let _ = told.send(trouble);
    };
    (Guards::start(starter, tell), troubles)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("in time")
}

fn not(armed: Armed) -> String {
    match armed {
        Armed::Not(why) => why,
        armed => panic!("{armed:?}"),
    }
}

#[tokio::test]
async fn without_a_guard_nothing_waits_for_ever_and_people_are_told_once() {
    let mut scene = Scene::new();
    scene.kill_guard().await;
    let folder = scene.folder.path();
    // It may not have come so far.
    let _ = std::fs::remove_file(folder.join("guard.sock"));
    let begun = folder.join("begun");
    let line = format!("echo >>{}; exit 7", begun.display());
    let (guarding, mut troubles) = guards(folder, Some(line), Duration::from_secs(1));
    let guards = guarding.0.clone();
    // Before it is clear that there is none, and afterwards.
    for _ in 0..2 {
        let why = not(soon(guards.arm(&watched(LONG, LONG))).await);
        assert!(
            why.contains("no guard runs: it has ended: exit status: 7"),
            "{why}"
        );
    }
    assert!(soon(guards.alive(LONG)).await.is_err());
    soon(guards.disarm("g")).await;
    let times = std::fs::read_to_string(&begun).expect("begun").len();
    assert!(times <= 12, "it was begun {times} times");
    // What asks for the right is refused it, and nothing is promoted.
    let mut kept = Kept::with(&scene, guarding);
    kept.keeper.ask(0, false, false);
    let (group, refused) = kept.hears().await;
    assert!(
        matches!(&refused, Right::Refused(why) if why.contains("no guard runs")) && group == 0,
        "{refused:?}"
    );
    assert_eq!(scene.mirrors.of().asked, 0);
    let trouble = troubles.try_recv().expect("told");
    assert!(trouble.what.contains("no guard runs"), "{trouble:?}");
    assert!(trouble.why.contains("exit status: 7"), "{trouble:?}");
    assert!(troubles.try_recv().is_err(), "once");
    // A node that is to be reset is, as soon as there is one.
    guards.begin_reset("its disk hangs".to_owned());
    assert!(soon(guards.alive(LONG)).await.is_err());
    scene.start_guard();
    scene.does(&["reset"]).await;
    assert_eq!(
        soon(guards.arm(&watched(LONG, LONG))).await,
        Armed::Watching
    );
}

/// A guard of another build: it hangs up when it is asked for signs of life, and says that it does not know group `new`.
async fn of_another_build(listener: UnixListener, connections: Arc<Mutex<usize>>) {
    while let Ok((stream, _)) = listener.accept().await {
        *connections.lock().unwrap() += 1;
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            let id = &said["id"];
            if said["want"].get("alive").is_some() {
                break;
            }
            let answer = if said["want"]["arm"]["watched"]["group"] == "new" {
                format!("{{\"unknown\":{{\"id\":{id},\"why\":\"no such field\"}}}}\n")
            } else {
                format!("{{\"done\":{{\"id\":{id},\"stopping\":false}}}}\n")
            };
            write.write_all(answer.as_bytes()).await.expect("taken");
        }
    }
}

#[tokio::test]
async fn what_a_guard_of_another_build_does_not_know_is_not_asked_for_ever() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = UnixListener::bind(folder.path().join("guard.sock")).expect("bound");
    let connections = Arc::new(Mutex::new(0));
    let guard = tokio::spawn(of_another_build(listener, connections.clone()));
    let ((guards, _lost), mut troubles) = guards(folder.path(), None, PATIENCE);
    let known = watched(LONG, LONG);
    assert_eq!(soon(guards.arm(&known)).await, Armed::Watching);
    for _ in 0..2 {
        let why = soon(guards.alive(LONG)).await.expect_err("not heard");
        assert!(
            why.contains("does not know \"alive\": it has hung up"),
            "{why}"
        );
    }
    let new = Watched {
        group: "new".to_owned(),
        ..known.clone()
    };
    let why = not(soon(guards.arm(&new)).await);
    assert!(
        why.contains("does not know \"arm\": no such field"),
        "{why}"
    );
    // What it knows it does.
    assert_eq!(soon(guards.arm(&known)).await, Armed::Watching);
    assert!(*connections.lock().unwrap() <= 7, "{connections:?}");
    let told: Vec<_> = std::iter::from_fn(|| troubles.try_recv().ok()).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    guard.abort();
}

#[tokio::test]
async fn a_guard_says_what_it_does_not_know_and_serves_on() {
    let scene = Scene::new();
    let socket = scene.folder.path().join("guard.sock");
    let connect = async {
        loop {
            if let Ok(stream) = UnixStream::connect(&socket).await {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (read, mut write) = soon(connect).await.into_split();
    let asked = "{\"id\":5,\"want\":{\"fly\":\"high\"}}\n{\"id\":6,\"want\":{\"disarm\":\"g\"}}\n";
    write.write_all(asked.as_bytes()).await.expect("taken");
    let mut lines = BufReader::new(read).lines();
    for wanted in ["{\"unknown\":{\"id\":5,", "{\"done\":{\"id\":6,"] {
        let said = soon(lines.next_line())
            .await
            .expect("it is there")
            .expect("it serves on");
        assert!(said.starts_with(wanted), "{said}");
    }
}
