//! Monitors that ask a program, a script or a database.

mod common;

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::{TestNode, Want, left_out, runs, until, why};
use kagami_failover::config::Ms;
use kagami_failover::core::OpResult;
use kagami_failover::probe::probe;

fn node(monitors: &str) -> TestNode {
    TestNode::new(&format!(
        "[group.g.resource.x]\ntype = \"exec\"\nstart = \"/bin/true\"\n{monitors}"
    ))
}

async fn look(node: &TestNode, ms: u64) -> OpResult {
    probe(&node.place, &node.place.cluster.monitors[0], &[], Ms(ms)).await
}

#[tokio::test]
async fn a_script_says_whether_all_is_well() {
    let node = node("[monitor.orders]\ntype = \"script\"\nprobe = \"@/look\"\ntarget = \"g\"\n");
    let at = node.folder.path().display().to_string();
    node.script(
        "look",
        &format!("echo $CLP_MONITORNAME on $KAGAMI_NODE >{at}/seen"),
    );
    assert_eq!(look(&node, 60_000).await, OpResult::Done);
    assert_eq!(node.read("seen"), "orders on alpha\n");
    node.script("look", "echo 'three orders are stuck'; exit 2");
    assert!(why(look(&node, 60_000).await).contains("status 2: three orders are stuck"));
    // It hangs: it is given up in time, and does not stay.
    node.script("look", &format!("echo $$ >{at}/pid; exec sleep 600"));
    assert_eq!(look(&node, 500).await, OpResult::TimedOut);
    until("it was ended", || !runs(&node.read("pid"))).await;
    node.script("look", "exit 0");
    assert_eq!(look(&node, 60_000).await, OpResult::Done);
}

/// A look, on a thread as the manager has one; `None`: it goes on no more.
fn look_on_one_thread(node: &TestNode) -> Option<OpResult> {
    let place = Arc::clone(&node.place);
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let looked = probe(&place, &place.cluster.monitors[0], &[], Ms(60_000));
        done.send(runtime.block_on(looked)).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(30)).ok()
}

#[test]
fn a_log_that_hangs_holds_up_nobody() {
    let node = node("[monitor.orders]\ntype = \"script\"\nprobe = \"@/look\"\ntarget = \"g\"\n");
    node.script("look", "exit 3");
    let log = node.place.log("monitor@orders");
    let made = Command::new("mkfifo").arg(&log).status().unwrap();
    assert!(made.success());
    // Who reads it waits for somebody who writes.
    let looked = look_on_one_thread(&node).expect("it goes on");
    assert!(why(looked).contains("status 3"));
    // Who writes to it waits for somebody who reads.
    let mut options = std::fs::OpenOptions::new();
    let options = options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    let mut pipe = options.open(&log).unwrap();
    let full = loop {
        if let Err(error) = pipe.write(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    let looked = look_on_one_thread(&node).expect("it goes on");
    assert!(why(looked).contains("status 3"));
    // One that comes while it hangs.
    let looked = look_on_one_thread(&node).expect("it goes on");
    assert!(why(looked).contains("status 3"));
}

#[tokio::test]
async fn a_look_that_does_not_hear_that_it_is_to_end_is_killed() {
    let hangs = |at: &str| format!("trap '' TERM; echo $$ >{at}; while :; do sleep 0.05; done");
    let of_script = node("[monitor.m]\ntype = \"script\"\nprobe = \"@/look\"\ntarget = \"g\"\n");
    let of_resource =
        TestNode::new("[group.g.resource.a]\ntype = \"action\"\nscript = \"@/look\"\n");
    for node in [of_script, of_resource] {
        let pid = node.path("pid").display().to_string();
        node.script("look", &hangs(&pid));
        assert_eq!(look(&node, 1000).await, OpResult::TimedOut);
        until("it was killed", || !runs(&node.read("pid"))).await;
    }
}

#[tokio::test]
async fn an_agent_is_asked_by_its_monitor_verb() {
    let mut node = node(
        "[monitor.till]\ntype = \"agent\"\nagent = \"shop:till\"\nparameters = { port = \"81\" }\ntarget = \"g\"\n",
    );
    let root = node.path("ocf");
    node.change(|place| place.ocf_root = root);
    node.script(
        "ocf/resource.d/shop/till",
        "[ \"$1 $OCF_RESKEY_port\" = 'monitor 81' ] || exit 2\n[ -e $OCF_ROOT/up ] || exit 7",
    );
    assert!(why(look(&node, 60_000).await).contains("does not run"));
    std::fs::write(node.path("ocf/up"), "").unwrap();
    assert_eq!(look(&node, 60_000).await, OpResult::Done);
}

/// Debian keeps the servers' programs outside of PATH, by version.
const SERVERS: &str = "PATH=$PATH$(printf ':%s' /usr/lib/postgresql/*/bin);";

/// A server of its own, in the node's folder.
struct Server {
    folder: String,
    as_user: Vec<String>,
}

impl Server {
    fn run(&self, line: &str) -> bool {
        let words = [
            &self.as_user[..],
            &["sh".into(), "-c".into(), format!("{SERVERS} {line}")],
        ]
        .concat();
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .current_dir("/")
            .stdin(Stdio::null());
        // What it leaves running must not hold the test's output.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let folder = &self.folder;
        self.run(&format!("pg_ctl -D {folder}/data -m immediate -w stop"));
    }
}

#[tokio::test]
async fn a_database_takes_a_row_and_gives_it_back() {
    let found = Command::new("sh")
        .args([
            "-c",
            &format!("{SERVERS} command -v initdb && command -v pg_ctl && command -v psql"),
        ])
        .output()
        .unwrap();
    if !found.status.success() {
        left_out(
            "a_database_takes_a_row_and_gives_it_back",
            Want::Program("PostgreSQL"),
        );
        return;
    }
    let node = node(
        "[monitor.rows]\ntype = \"database\"\nengine = \"postgresql\"\naddress = \"@/pg\"\ndatabase = \"postgres\"\n\
         user = \"watcher\"\npassword-file = \"@/password\"\ntarget = \"g\"\n",
    );
    let folder = node.path("pg").display().to_string();
    std::fs::write(node.path("password"), "secret\n").unwrap();
    // The server does not run as root.
    let root = rustix::process::geteuid().is_root();
    let as_user = if root {
        [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ]
        .map(str::to_owned)
        .into()
    } else {
        vec!["env".to_owned()]
    };
    std::fs::create_dir(&folder).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(node.folder.path(), open).unwrap();
    if root {
        std::os::unix::fs::chown(&folder, Some(65534), Some(65534)).unwrap();
    }
    let server = Server {
        folder: folder.clone(),
        as_user,
    };
    assert!(server.run(&format!("echo secret >{folder}/pw && initdb -D {folder}/data -U watcher -A scram-sha-256 --pwfile={folder}/pw -N")));
    let reason = why(look(&node, 60_000).await);
    assert!(reason.contains("psql"), "{reason}");
    let up = format!("pg_ctl -D {folder}/data -o '-k {folder} -h \"\"' -l {folder}/log -w start");
    assert!(server.run(&up));
    assert_eq!(look(&node, 60_000).await, OpResult::Done);
    assert_eq!(look(&node, 60_000).await, OpResult::Done);
    std::fs::write(node.path("password"), "wrong\n").unwrap();
    let reason = why(look(&node, 60_000).await);
    assert!(
        reason.contains("password authentication failed"),
        "{reason}"
    );
    std::fs::write(node.path("password"), "secret\n").unwrap();
    // It still takes connections, and no rows.
    let psql = format!("PGPASSWORD=secret psql -h {folder} -U watcher -d postgres -c");
    assert!(server.run(&format!(
        "{psql} \"ALTER DATABASE postgres SET default_transaction_read_only = on\""
    )));
    let reason = why(look(&node, 60_000).await);
    assert!(reason.contains("read-only transaction"), "{reason}");
    // It is there, and does not answer.
    let stopped = format!("kill -STOP $(head -1 {folder}/data/postmaster.pid)");
    assert!(server.run(&stopped));
    assert_eq!(look(&node, 1000).await, OpResult::TimedOut);
    assert!(server.run(&stopped.replace("STOP", "CONT")));
}
