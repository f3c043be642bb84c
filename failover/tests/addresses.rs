//! Floating addresses with a real kernel: in a network namespace of the test's own, with another machine
//! at the other end of a wire.

mod common;

use std::process::{Child, Command, Stdio};

use common::{TestNode, Want, left_out, until, why};
use kagami_failover::config::Ms;
use kagami_failover::core::OpResult;
use kagami_failover::resource::neighbour::{self, Interface, Wire};

/// Set in the test's own namespace.
const INSIDE: &str = "KAGAMI_TEST_NAMESPACE";

/// Runs this test again in a namespace; true: this is it.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let can = Command::new("unshare").args(["-rn", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        left_out(
            test,
            Want::Kernel("this machine gives no network namespace"),
        );
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

/// A machine of its own, as far as the network goes.
struct Machine(Child);

impl Machine {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["-n", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Self(child);
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let link = format!("/proc/{}/ns/net", machine.0.id());
        while std::fs::read_link(&link).unwrap() == own {
            std::thread::yield_now();
        }
        machine.run("ip link set lo up");
        machine
    }

    /// The other machine, with `here` on this side of the wire and `there` on its own.
    fn other() -> Self {
        let other = Self::new();
        run("ip link set lo up; ip link add here type veth peer name there");
        other.takes("there");
        run("ip address add 10.9.0.1/24 dev here; ip link set here up");
        run("ip -6 address add fd09::1/64 dev here nodad");
        other.run("ip link set there address 02:00:00:00:00:99");
        other.run("ip address add 10.9.0.2/24 dev there; ip link set there up");
        other.run("ip -6 address add fd09::2/64 dev there nodad");
        other
    }

    fn takes(&self, interface: &str) {
        run(&format!("ip link set {interface} netns {}", self.0.id()));
    }

    fn run(&self, line: &str) -> String {
        run(&format!("nsenter -t {} -n sh -ec '{line}'", self.0.id()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A switch, into which this node is plugged twice (`here`, `second`), a stranger and a client.
struct Lan {
    switch: Machine,
    stranger: Machine,
    client: Machine,
}

impl Lan {
    fn new() -> Self {
        let lan = Self {
            switch: Machine::new(),
            stranger: Machine::new(),
            client: Machine::new(),
        };
        run("ip link set lo up");
        let switch = &lan.switch;
        switch.run("ip link add lan type bridge; ip link set lan up");
        let plugs = [
            ("here", None, 1),
            ("second", None, 3),
            ("there", Some(&lan.stranger), 2),
            ("client", Some(&lan.client), 9),
        ];
        for (name, whose, last) in plugs {
            run(&format!("ip link add {name} type veth peer name to-{name}"));
            switch.takes(&format!("to-{name}"));
            switch.run(&format!("ip link set to-{name} master lan up"));
            let up = format!(
                "ip link set {name} address 02:00:00:00:00:0{last} up
                 ip address add 10.9.0.{last}/24 dev {name}
                 ip -6 address add fd09::{last}/64 dev {name} nodad"
            );
            match whose {
                None => run(&up),
                Some(machine) => {
                    machine.takes(name);
                    machine.run(&up)
                }
            };
        }
        lan
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
    let other = Machine::other();
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
    let other = Machine::other();
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

const BOTH: [(&str, &str, &str); 2] = [
    ("10.9.0.10", "10.9.0.10/24", ""),
    ("fd09::10", "fd09::10/64", "nodad"),
];

#[tokio::test]
async fn an_address_that_a_stranger_takes_is_told_of_and_defended() {
    if !inside("an_address_that_a_stranger_takes_is_told_of_and_defended") {
        return;
    }
    let lan = Lan::new();
    for (address, network, more) in BOTH {
        let node = node(network);
        // Not by the resource, whose own announcements would be taken for the defence.
        run(&format!("ip address add {network} dev here {more}"));
        assert_eq!(node.probe("ip").await, OpResult::Done);
        lan.stranger
            .run(&format!("ip address add {network} dev there {more}"));
        // It has told the client, which believes it.
        lan.client.run(&format!(
            "ip neigh replace {address} lladdr 02:00:00:00:00:02 dev client nud stale"
        ));
        let why = match node.probe("ip").await {
            OpResult::Warned(why) => why,
            other => panic!("{address}: {other:?}"),
        };
        for word in [address, "on here", "02:00:00:00:00:02", "\n  next: "] {
            assert!(why.contains(word), "no `{word}` in: {why}");
        }
        until("the client comes back to this node", || {
            let knows = lan.client.run(&format!("ip neigh show {address}"));
            knows.contains("02:00:00:00:00:01")
        })
        .await;
        lan.stranger
            .run(&format!("ip address del {network} dev there"));
        assert_eq!(node.probe("ip").await, OpResult::Done);
    }
}

#[tokio::test]
async fn this_nodes_other_interfaces_are_no_strangers() {
    if !inside("this_nodes_other_interfaces_are_no_strangers") {
        return;
    }
    let lan = Lan::new();
    for (address, network, more) in BOTH {
        run(&format!("ip address add {network} dev here {more}"));
        assert_eq!(node(network).probe("ip").await, OpResult::Done, "{address}");
    }
    drop(lan);
}

/// This node's other interface, as somebody's who has this hardware address.
fn second(mac: neighbour::Mac) -> Interface {
    let link = run("ip -o link show dev second");
    Interface {
        name: "second".to_owned(),
        index: link.split(':').next().unwrap().parse().unwrap(),
        mac,
    }
}

#[tokio::test]
async fn a_stranger_who_asks_for_an_address_does_not_have_it() {
    if !inside("a_stranger_who_asks_for_an_address_does_not_have_it") {
        return;
    }
    let lan = Lan::new();
    let mac = [2, 0, 0, 0, 0, 0x77];
    let stranger = second(mac);
    for (address, network, more) in BOTH {
        run(&format!("ip address add {network} dev here {more}"));
        let node = node(network);
        let address = address.parse().unwrap();
        let wire = Wire::open(stranger.clone(), address).unwrap();
        let question = neighbour::probe(mac, address);
        let mut asked = 0;
        let asking = async {
            loop {
                wire.send(&question).await.unwrap();
                asked += 1;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            looked = node.probe("ip") => assert_eq!(looked, OpResult::Done, "{address}"),
            () = asking => {}
        }
        assert!(asked > 1);
    }
    drop(lan);
}

#[tokio::test]
async fn a_look_asks_no_more_when_the_address_has_gone() {
    if !inside("a_look_asks_no_more_when_the_address_has_gone") {
        return;
    }
    let lan = Lan::new();
    run("ip address add 10.9.0.10/24 dev here");
    let node = TestNode::new(
        "[group.g.resource.ip]\ntype = \"floating-ip\"\naddress = \"10.9.0.10/24\"\nprobe-time = \"6s\"\n",
    );
    let address = "10.9.0.10".parse().unwrap();
    let wire = Wire::open(second([2, 0, 0, 0, 0, 3]), address).unwrap();
    // An ARP question for it.
    let question = |frame: &[u8]| {
        let asks = frame[20..22] == [0, 1] && frame[38..42] == [10, 9, 0, 10];
        asks.then_some([0; 6])
    };
    let far = || tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    let other_node = async {
        let heard = wire.ask_once(address, far(), question).await.unwrap();
        assert!(heard.is_some(), "this node asks");
        run("ip address del 10.9.0.10/24 dev here");
        wire.ask_once(address, far(), question).await.unwrap()
    };
    tokio::select! {
        looked = node.probe("ip") => assert!(why(looked).contains("on no interface")),
        heard = other_node => panic!("it was asked for again: {heard:?}"),
    }
    drop(lan);
}

#[tokio::test]
async fn a_look_at_an_address_that_nobody_can_be_asked_for_warns() {
    if !inside("a_look_at_an_address_that_nobody_can_be_asked_for_warns") {
        return;
    }
    let _other = Machine::other();
    run("ip address add 10.9.0.10/24 dev here");
    let mut all = rustix::thread::capabilities(None).unwrap();
    all.effective.remove(rustix::thread::CapabilitySet::NET_RAW);
    rustix::thread::set_capabilities(None, all).unwrap();
    let why = match node("10.9.0.10/24").probe("ip").await {
        OpResult::Warned(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(why.contains("can't be asked on here"), "{why}");
    // Where nobody is to be asked, nobody is.
    let silent = TestNode::new(
        "[group.g.resource.ip]\ntype = \"floating-ip\"\naddress = \"10.9.0.10/24\"\nprobe-time = \"0s\"\n",
    );
    assert_eq!(silent.probe("ip").await, OpResult::Done);
}

#[tokio::test]
async fn a_look_at_an_address_ends_within_its_time_out() {
    if !inside("a_look_at_an_address_ends_within_its_time_out") {
        return;
    }
    let _other = Machine::other();
    run("ip address add 10.9.0.10/24 dev here");
    let slow = TestNode::new(
        "[group.g.resource.ip]\ntype = \"floating-ip\"\naddress = \"10.9.0.10/24\"\nprobe-time = \"60s\"\n\
         [monitor.ip]\ntype = \"floating-ip\"\nresource = \"g/ip\"\n",
    );
    let monitor = &slow.place.cluster.monitors[0];
    let looked = kagami_failover::probe::probe(&slow.place, monitor, &[], Ms(4000)).await;
    assert_eq!(looked, OpResult::Done);
}

#[tokio::test]
async fn an_address_of_no_network_and_an_interface_that_is_down_are_refused() {
    if !inside("an_address_of_no_network_and_an_interface_that_is_down_are_refused") {
        return;
    }
    let _other = Machine::other();
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
    let other = Machine::other();
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
