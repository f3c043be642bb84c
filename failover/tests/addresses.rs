//! Floating addresses with a real kernel: in a network namespace of the test's own, with another machine
//! at the other end of a wire.

mod common;

use std::process::{Child, Command, Stdio};

use common::{TestNode, until, why};
use kagami_failover::config::Ms;
use kagami_failover::core::OpResult;

/// Set in the test's own namespace.
const INSIDE: &str = "KAGAMI_TEST_NAMESPACE";

/// Runs this test again in a namespace; true: this is it.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let can = Command::new("unshare").args(["-rn", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        eprintln!("{test}: left out: this machine gives no network namespace");
        return false;
    }
    let status = Command::new("unshare")
        .arg("-rn")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "in the namespace: {status}");
    false
}

fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The other machine, with `here` on this side of the wire and `there` on its own.
struct Other(Child);

impl Other {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["-n", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let other = Self(child);
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let link = format!("/proc/{}/ns/net", other.0.id());
        while std::fs::read_link(&link).unwrap() == own {
            std::thread::yield_now();
        }
        run("ip link set lo up; ip link add here type veth peer name there");
        run(&format!("ip link set there netns {}", other.0.id()));
        run("ip address add 10.9.0.1/24 dev here; ip link set here up");
        run("ip -6 address add fd09::1/64 dev here nodad");
        other.run("ip link set lo up; ip link set there address 02:00:00:00:00:99");
        other.run("ip address add 10.9.0.2/24 dev there; ip link set there up");
        other.run("ip -6 address add fd09::2/64 dev there nodad");
        other
    }

    fn run(&self, line: &str) -> String {
        run(&format!("nsenter -t {} -n sh -ec '{line}'", self.0.id()))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn node(address: &str) -> TestNode {
    TestNode::new(&format!(
        "[group.g.resource.ip]\ntype = \"floating-ip\"\naddress = \"{address}\"\n"
    ))
}

#[tokio::test]
async fn an_address_is_added_announced_and_removed() {
    if !inside("an_address_is_added_announced_and_removed") {
        return;
    }
    let other = Other::new();
    for (address, network) in [("10.9.0.10", "10.9.0.10/24"), ("fd09::10", "fd09::10/64")] {
        let node = node(network);
        assert!(why(node.probe("ip").await).contains("on no interface"));
        // The neighbour believes that somebody else has it, as after a failover.
        other.run(&format!(
            "ip neigh replace {address} lladdr 02:00:00:00:00:77 dev there nud stale"
        ));
        let begin = std::time::Instant::now();
        assert_eq!(node.start("ip").await, OpResult::Done);
        assert!(begin.elapsed().as_millis() >= 500, "it was asked for first");
        assert_eq!(node.probe("ip").await, OpResult::Done);
        assert!(run("ip address show dev here").contains(&format!("{network} ")));
        let mac = run("cat /sys/class/net/here/address 2>/dev/null || true");
        let own = run("ip -br link show dev here");
        let own = own.split_whitespace().nth(2).unwrap().to_owned();
        drop(mac);
        until("the neighbour learns of it", || {
            other
                .run(&format!("ip neigh show {address}"))
                .contains(&own)
        })
        .await;
        // It is there already: nothing is in the way of saying so again.
        assert_eq!(node.start("ip").await, OpResult::Done);
        assert_eq!(node.stop("ip").await, OpResult::Done);
        assert!(!run("ip address show").contains(address));
        assert_eq!(node.stop("ip").await, OpResult::Done);
        assert!(
            run("ip address show dev here").contains("10.9.0.1/24"),
            "the node keeps its own"
        );
    }
}

#[tokio::test]
async fn an_address_that_a_stranger_has_is_not_added() {
    if !inside("an_address_that_a_stranger_has_is_not_added") {
        return;
    }
    let other = Other::new();
    other.run(
        "ip address add 10.9.0.10/24 dev there; ip -6 address add fd09::10/64 dev there nodad",
    );
    for network in ["10.9.0.10/24", "fd09::10/64"] {
        let node = node(network);
        let why = why(node.start("ip").await);
        assert!(why.contains("in use on here by 02:00:00:00:00:99"), "{why}");
        assert!(!run("ip address show dev here").contains(network));
    }
    other.run("ip address del 10.9.0.10/24 dev there");
    assert_eq!(node("10.9.0.10/24").start("ip").await, OpResult::Done);
}

#[tokio::test]
async fn an_address_of_no_network_and_an_interface_that_is_down_are_refused() {
    if !inside("an_address_of_no_network_and_an_interface_that_is_down_are_refused") {
        return;
    }
    let _other = Other::new();
    let reason = why(node("10.77.0.10/24").start("ip").await);
    assert!(reason.contains("in no network of this node"), "{reason}");
    let named = |interface: &str| {
        TestNode::new(&format!(
            "[group.g.resource.ip]\ntype = \"floating-ip\"\naddress = \"10.9.0.10/24\"\ninterface = \"{interface}\"\n"
        ))
    };
    let reason = why(named("eth7").start("ip").await);
    assert!(reason.contains("no interface eth7"), "{reason}");
    // An interface without neighbours asks nobody.
    assert_eq!(named("lo").start("ip").await, OpResult::Done);
    let reason = why(named("here").start("ip").await);
    assert!(reason.contains("is on lo of this node already"), "{reason}");
    assert_eq!(named("lo").stop("ip").await, OpResult::Done);
    run("ip link set here down");
    let reason = why(named("here").start("ip").await);
    assert!(reason.contains("interface here is down"), "{reason}");
}

#[tokio::test]
async fn a_network_is_watched() {
    if !inside("a_network_is_watched") {
        return;
    }
    let other = Other::new();
    let node = TestNode::new(
        "[group.g.resource.x]\ntype = \"exec\"\nstart = \"/bin/true\"\n\
         [monitor.both]\ntype = \"ip\"\ntargets = [\"10.9.0.77\", \"10.9.0.2\"]\ntarget = \"g\"\n\
         [monitor.six]\ntype = \"ip\"\ntargets = [\"fd09::2\"]\ntarget = \"g\"\n\
         [monitor.silent]\ntype = \"ip\"\ntargets = [\"10.9.0.77\", \"fd09::77\"]\ntarget = \"g\"\n\
         [monitor.far]\ntype = \"ip\"\ntargets = [\"192.0.2.1\"]\ntarget = \"g\"\n\
         [monitor.wire]\ntype = \"nic\"\ninterface = \"here\"\ntarget = \"g\"\n\
         [monitor.none]\ntype = \"nic\"\ninterface = \"eth7\"\ntarget = \"g\"\n\
         [monitor.port]\ntype = \"tcp\"\naddress = \"127.0.0.1:4711\"\ntarget = \"g\"\n",
    );
    run("ip link set lo up");
    let look = async |name: &str, ms: u64| {
        let monitor = node.place.cluster.monitors.iter().find(|m| m.name == name);
        kagami_failover::probe::probe(&node.place, monitor.unwrap(), &[], Ms(ms)).await
    };
    assert_eq!(look("both", 20_000).await, OpResult::Done);
    assert_eq!(look("six", 20_000).await, OpResult::Done);
    for silent in ["silent", "far"] {
        let reason = why(look(silent, 1500).await);
        let said = [
            "10.9.0.77 does not answer",
            "192.0.2.1: Network is unreachable",
        ];
        assert!(said.iter().any(|said| reason.contains(said)), "{reason}");
    }
    assert_eq!(look("wire", 20_000).await, OpResult::Done);
    assert!(why(look("none", 20_000).await).contains("no interface eth7"));
    // The cable is pulled at the other end.
    other.run("ip link set there down");
    let reason = why(look("wire", 20_000).await);
    assert!(reason.contains("has no link"), "{reason}");
    assert!(why(look("both", 1500).await).contains("10.9.0.2 does not answer"));
    run("ip link set here down");
    assert!(why(look("wire", 20_000).await).contains("is down"));
    assert!(why(look("port", 20_000).await).contains("127.0.0.1:4711"));
    let listener = std::net::TcpListener::bind("127.0.0.1:4711").unwrap();
    assert_eq!(look("port", 20_000).await, OpResult::Done);
    drop(listener);
}
