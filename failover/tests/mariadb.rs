//! `MariaDB`, the real one, with a data folder and a socket of its own: as the process of a script, as the service
//! of the distribution's OCF agent, and under the monitor that writes a row.

mod common;

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{TestNode, Want, left_out, runs, until, why};
use kagami_failover::config::Ms;
use kagami_failover::core::OpResult;
use kagami_failover::probe::probe;

/// Monitors, by their place in the configuration.
const BY_SOCKET: usize = 0;
const BY_PORT: usize = 1;
const BY_AGENT: usize = 2;

const AGENT: &str = "/usr/lib/ocf/resource.d/heartbeat/mysql";

async fn look(node: &TestNode, monitor: usize, ms: u64) -> OpResult {
    let monitor = &node.place.cluster.monitors[monitor];
    probe(&node.place, monitor, &[], Ms(ms)).await
}

fn shell(line: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir("/");
    let null = || Stdio::null();
    command.stdin(null()).stdout(null()).stderr(null());
    command.status().is_ok_and(|status| status.success())
}

/// The server does not run as root; whoever else tries this runs it himself.
const NOBODY: u32 = 65534;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A node with a new, empty data folder, and two ways to run a server on it. `None`: there is no `MariaDB` here.
fn node() -> Option<TestNode> {
    if !shell("command -v mariadbd mariadb mariadb-install-db") {
        left_out("the monitor of MariaDB", Want::Program("MariaDB"));
        return None;
    }
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = port.local_addr().expect("its address").port();
    let as_user = if is_root() { "user = \"nobody\"\n" } else { "" };
    let monitor = |name: &str, address: &str| {
        format!(
            "[monitor.{name}]\ntype = \"database\"\nengine = \"mysql\"\naddress = \"{address}\"\ndatabase = \"shop\"\n\
             user = \"watcher\"\npassword-file = \"@/password\"\ntarget = \"g\"\n"
        )
    };
    let parameters = "{ binary = \"/usr/sbin/mariadbd\", client_binary = \"mariadb\", config = \"@/my.cnf\", \
         datadir = \"@/db/data\", socket = \"@/db/sock\", pid = \"@/db/pid\", log = \"@/db/server.err\", user = \"nobody\", group = \"nogroup\" }";
    let node = TestNode::new(&format!(
        "[group.g.resource.server]\ntype = \"exec\"\nmode = \"async\"\nstart = \"@/start\"\n{as_user}\
         [group.g.resource.agent]\ntype = \"ocf\"\nagent = \"heartbeat:mysql\"\nparameters = {parameters}\n\
         {}{}[monitor.agent]\ntype = \"agent\"\nagent = \"heartbeat:mysql\"\nparameters = {parameters}\ntarget = \"g\"\n",
        monitor("socket", "@/db/sock"),
        monitor("port", &format!("127.0.0.1:{port}")),
    ));
    let at = node.folder.path().display().to_string();
    let write = |name: &str, text: &str| std::fs::write(node.path(name), text).expect("a file");
    write("password", "secret\n");
    // What a person would do once, by hand; it is done at each start.
    write(
        "accounts.sql",
        "CREATE DATABASE IF NOT EXISTS shop;\n\
         CREATE USER IF NOT EXISTS watcher@localhost IDENTIFIED BY 'secret';\n\
         CREATE USER IF NOT EXISTS watcher@127.0.0.1 IDENTIFIED BY 'secret';\n\
         GRANT ALL ON shop.* TO watcher@localhost;\n\
         GRANT ALL ON shop.* TO watcher@127.0.0.1;\n",
    );
    write(
        "my.cnf",
        &format!(
            "[mariadbd]\ndatadir={at}/db/data\nsocket={at}/db/sock\ntmpdir={at}/db\npid-file={at}/db/pid\nlog-error={at}/db/server.err\n\
             bind-address=127.0.0.1\nport={port}\nskip-name-resolve\ninit-file={at}/accounts.sql\n\
             innodb-buffer-pool-size=8M\ninnodb-log-file-size=4M\nperformance-schema=off\n"
        ),
    );
    node.script(
        "start",
        &format!("exec mariadbd --defaults-file={at}/my.cnf"),
    );
    std::fs::create_dir(node.path("db")).expect("a folder");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(node.folder.path(), open).expect("its mode");
    if is_root() {
        chown(node.path("db"), Some(NOBODY), Some(NOBODY)).expect("its owner");
    }
    // (Each server clears its folder for temporary tables when it starts, of another's too.)
    let install = format!(
        "exec >{at}/install 2>&1; mariadb-install-db --no-defaults --datadir={at}/db/data --tmpdir={at}/db --auth-root-authentication-method=normal \
         --skip-test-db --innodb-log-file-size=4M {}",
        if is_root() { "--user=nobody" } else { "" }
    );
    assert!(shell(&install), "{}", node.read("install"));
    Some(node)
}

/// Whatever a failed test leaves running ends with it.
struct Ended<'n>(&'n TestNode);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let pid = self.0.path("db/pid");
        shell(&format!("kill -KILL $(cat {})", pid.display()));
    }
}

/// One statement of the server's own administrator.
fn administer(node: &TestNode, statement: &str) {
    let socket = node.path("db/sock").display().to_string();
    let line =
        format!("mariadb --no-defaults --socket={socket} --user=root --execute='{statement}'");
    assert!(shell(&line), "{line}");
}

async fn until_it_takes_a_row(node: &TestNode) {
    for _ in 0..300 {
        if look(node, BY_SOCKET, 60_000).await == OpResult::Done {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!(
        "{:?}\n{}",
        look(node, BY_SOCKET, 60_000).await,
        node.read("db/server.err")
    );
}

#[tokio::test]
async fn as_the_process_of_a_script_it_takes_a_row_dies_and_ends_well() {
    let Some(node) = &node() else {
        return;
    };
    let _ended = Ended(node);
    let reason = why(look(node, BY_SOCKET, 60_000).await);
    assert!(
        reason.contains("mariadb") && reason.contains("Can't connect"),
        "{reason}"
    );
    assert_eq!(node.start("server").await, OpResult::Done);
    until_it_takes_a_row(node).await;
    assert_eq!(look(node, BY_SOCKET, 60_000).await, OpResult::Done);
    assert_eq!(look(node, BY_PORT, 60_000).await, OpResult::Done);
    assert_eq!(node.probe("server").await, OpResult::Done);

    std::fs::write(node.path("password"), "wrong\n").unwrap();
    let reason = why(look(node, BY_PORT, 60_000).await);
    assert!(reason.contains("Access denied"), "{reason}");
    std::fs::write(node.path("password"), "secret\n").unwrap();
    // It still takes connections, and no rows.
    administer(node, "SET GLOBAL read_only = ON");
    let reason = why(look(node, BY_SOCKET, 60_000).await);
    assert!(reason.contains("read-only"), "{reason}");
    administer(node, "SET GLOBAL read_only = OFF");
    // It is there, and does not answer.
    let pid = node.read("db/pid").trim().to_owned();
    assert!(shell(&format!("kill -STOP {pid}")));
    assert_eq!(look(node, BY_SOCKET, 1000).await, OpResult::TimedOut);
    assert!(shell(&format!("kill -CONT {pid}")));
    assert_eq!(look(node, BY_SOCKET, 60_000).await, OpResult::Done);

    // It dies, and is found as it was left.
    administer(node, "CREATE TABLE shop.orders AS SELECT 42 AS id");
    assert!(shell(&format!("kill -KILL {pid}")));
    until("it has ended", || !runs(&pid)).await;
    assert!(why(node.probe("server").await).contains("has ended"));
    // Its threads may take a moment longer than its process.
    let reason = why(look(node, BY_PORT, 60_000).await);
    assert!(
        reason.contains("Can't connect") || reason.contains("Lost connection"),
        "{reason}"
    );
    assert_eq!(node.start("server").await, OpResult::Done);
    until_it_takes_a_row(node).await;
    administer(
        node,
        "INSERT INTO shop.orders SELECT id + 1 FROM shop.orders WHERE id = 42",
    );

    // It ends as it should, not by force.
    let pid = node.read("db/pid");
    assert_eq!(node.stop("server").await, OpResult::Done);
    assert!(!runs(&pid));
    let log = node.read("db/server.err");
    assert!(log.trim_end().ends_with("Shutdown complete"), "{log}");
}

#[tokio::test]
async fn as_the_service_of_its_agent_it_takes_a_row() {
    // The agent becomes another user by `su`.
    let test = "as_the_service_of_its_agent_it_takes_a_row";
    if !is_root() {
        left_out(test, Want::Kernel("this is not root"));
        return;
    }
    if !Path::new(AGENT).exists() {
        left_out(test, Want::Program("agent of resource-agents"));
        return;
    }
    let Some(node) = &node() else {
        return;
    };
    let _ended = Ended(node);
    assert!(why(node.probe("agent").await).contains("does not run"));
    assert!(why(look(node, BY_AGENT, 60_000).await).contains("does not run"));
    assert_eq!(
        node.start("agent").await,
        OpResult::Done,
        "{}",
        node.log("agent")
    );
    until_it_takes_a_row(node).await;
    assert_eq!(node.probe("agent").await, OpResult::Done);
    assert_eq!(look(node, BY_AGENT, 60_000).await, OpResult::Done);
    let pid = node.read("db/pid");
    assert!(runs(&pid));
    // What the agent began is the group's: the guard freezes it with the rest.
    if let Some(group) = node.place.group_control_group("g") {
        let place = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.trim())).unwrap();
        let own = place.lines().find_map(|line| line.strip_prefix("0::"));
        let own = own.expect("a control group");
        let below = own.split("/r@agent").next().unwrap();
        assert!(
            below != own && group.display().to_string().ends_with(below),
            "{own}, {}",
            group.display()
        );
    }
    assert_eq!(node.stop("agent").await, OpResult::Done);
    assert!(!runs(&pid));
    assert!(why(node.probe("agent").await).contains("does not run"));
}
