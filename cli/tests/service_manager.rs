//! What a service manager hears of the daemon: READY, its state in a line, RELOADING, STOPPING, and
//! signs of life for as long as the data-plane threads turn.

mod support;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use kagami::daemon::service::Service;
use kagami_replicator::core::state::{Connection, DiskState, Replication, Role};
use support::Node;

/// What systemd would be configured with.
const LIMIT: Duration = Duration::from_millis(400);
const DEADLINE: Duration = Duration::from_secs(10);

/// The manager's end; it listens all the time, as a manager does.
struct Manager(Receiver<String>);

impl Manager {
    fn at(folder: &Path) -> Self {
        let socket = UnixDatagram::bind(folder.join("notify")).expect("bound");
        let (tell, heard) = channel();
        std::thread::spawn(move || {
            let mut text = [0; 4096];
            while let Ok(len) = socket.recv(&mut text) {
                let said = String::from_utf8_lossy(&text[..len]).into_owned();
                if tell.send(said).is_err() {
                    return;
                }
            }
        });
        Self(heard)
    }

    /// The next message, within.
    fn hear(&self, patience: Duration) -> Option<String> {
        self.0.recv_timeout(patience).ok()
    }

    /// Waits for a message with this line; gives what came before it.
    fn until(&self, line: &str) -> Vec<String> {
        let deadline = Instant::now() + DEADLINE;
        let mut before = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.hear(left) {
                Some(said) if said.lines().any(|found| found == line) => return before,
                Some(said) => before.push(said),
                None => panic!("never {line:?}, but {before:?}"),
            }
        }
    }
}

fn served() -> (Node, Manager) {
    let mut manager = None;
    let node = Node::with_service(|folder| {
        manager = Some(Manager::at(folder));
        Service::at(folder.join("notify").as_os_str(), Some(LIMIT)).expect("a service")
    });
    (node, manager.expect("made"))
}

#[test]
fn it_hears_of_the_start_of_each_change_and_of_the_stop() {
    let (mut node, manager) = served();
    manager.until("READY=1");
    manager.until("STATUS=pg in sync, Primary here");
    node.engine.set(|status| {
        status.role = Role::Secondary;
        status.peer_role = None;
        status.peer_disk = DiskState::Unknown;
        status.connection = Connection::Connecting;
        status.replication = Replication::Off;
    });
    manager.until("STATUS=pg connecting");

    let reload = node.run(&["reload"]);
    assert_eq!(reload.code, 0, "{reload:?}");
    manager.until("RELOADING=1");
    manager.until("READY=1");
    // A configuration that is refused is no reload that never ends.
    let file = node.file();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}\nnonsense = 1\n")).unwrap();
    // The command reads the file, too; the daemon is asked past it.
    std::fs::write(node.folder.path().join("good.toml"), &text).unwrap();
    let good = node.folder.path().join("good.toml");
    let reload = node
        .command(&["reload", "--config", good.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(reload.status.code(), Some(2), "{reload:?}");
    manager.until("RELOADING=1");
    manager.until("READY=1");
    std::fs::write(&file, text).unwrap();

    node.terminate();
    manager.until("STOPPING=1");
}

#[test]
fn a_thread_that_is_stuck_ends_the_signs_of_life_and_one_that_turns_again_brings_them_back() {
    let (node, manager) = served();
    for _ in 0..3 {
        manager.until("WATCHDOG=1");
    }
    node.engine.stuck.send_replace(true);
    // Some may have been on their way. One that beats is never silent for so long.
    let deadline = Instant::now() + DEADLINE;
    while manager.hear(3 * LIMIT).is_some() {
        assert!(Instant::now() < deadline, "signs of life of a stuck daemon");
    }
    node.engine.stuck.send_replace(false);
    manager.until("WATCHDOG=1");
}

#[test]
fn a_stuck_thread_keeps_no_stop_from_being_told() {
    let (mut node, manager) = served();
    manager.until("WATCHDOG=1");
    node.engine.stuck.send_replace(true);
    node.terminate();
    manager.until("STOPPING=1");
    assert!(*node.engine.stopped.lock().unwrap());
}
