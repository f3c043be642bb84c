//! A node that starts alone, and what it leaves for later.

use super::*;

fn manual() -> String {
    replaced("[group.pg]\n", "[group.pg]\nstartup = \"manual\"\n")
}

/// What the other node says that runs the group by the order that both know.
fn runs_it(host: &mut TestHost) -> Snapshot {
    let mut message = host.agreed();
    let brief = &mut message.groups[0];
    (brief.busy, brief.active, brief.online) = (true, true, true);
    message
}

/// An operator has started the group on the other node, and both know that.
fn runs_there(text: &str) -> TestHost {
    let mut host = TestHost::new(text);
    host.hear();
    let there = Command::Start {
        group: 0,
        on: Some(1),
        sure: false,
    };
    assert_eq!(host.command(there), Ok(()));
    let message = runs_it(&mut host);
    host.beat(0, message);
    let order = host.manager.order_of(0);
    assert!(order.wanted && order.owner == 1, "{:?}", host.alerts);
    host
}

#[test]
fn a_group_left_to_an_operator_is_taken_over_once_the_other_node_has_run_it() {
    // Both lose their power; this one is back first.
    let mut host = TestHost::from(&manual(), runs_there(&manual()).durable, 2);
    host.until(310_000);
    assert_eq!(host.asked, [], "an operator starts it");
    let idle = host.agreed();
    host.beat(0, idle);
    host.until(320_000);
    assert_eq!(host.asked, [], "it has not run there since");
    // The other one starts again what it ran, and needs no new order for that.
    let message = runs_it(&mut host);
    host.beat(0, message);
    assert_eq!(host.asked, []);
    host.until(330_000);
    assert!(host.manager.peer_lost());
    assert_eq!(host.asked, [(0, false)], "{:?}", host.alerts);
}

/// An operator has started the group here; power is lost, and this node is back first.
fn ran_here(text: &str) -> TestHost {
    let mut host = TestHost::new(text);
    host.hear();
    assert_eq!(host.command(START), Ok(()));
    host.right(0, Right::Granted);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
    let mut host = TestHost::from(text, host.durable, 2);
    host.until(310_000);
    assert_eq!(host.asked, [], "an operator starts it");
    host
}

#[test]
fn a_group_left_to_an_operator_is_left_so_by_the_other_node_too() {
    // It comes, and this one goes, or is lost.
    let mut host = ran_here(&manual());
    host.agree();
    let order = host.manager.order_of(0);
    assert!(!order.wanted, "{order:?}");
    host.agree();
    let command = Command::EndNode(EndKind::Reboot);
    host.handle(Event::Command { id: 1, command });
    let order = host.manager.order_of(0);
    assert!(!order.wanted && order.owner == 0, "{order:?}");
    assert_eq!(host.ended, Some(EndKind::Reboot));
    // Before it has heard what this node remembers nothing is handed to it.
    let mut host = ran_here(&manual());
    host.hear();
    let command = Command::EndNode(EndKind::Reboot);
    host.handle(Event::Command { id: 1, command });
    assert_eq!(host.manager.order_of(0).owner, 0, "{:?}", host.alerts);
    // An operator starts it all the same.
    let mut host = ran_here(&manual());
    host.agree();
    assert_eq!(host.command(START), Ok(()));
    assert_eq!(host.asked, [(0, false)]);
}

fn asks_outside() -> String {
    replaced(
        "name = \"gamma\"\n",
        "name = \"gamma\"\nping = [\"10.0.0.254\"]\n",
    )
}

fn outside(host: &mut TestHost, reachable: bool) {
    host.handle(Event::Outside { reachable });
}

#[test]
fn what_could_not_be_started_alone_for_want_of_a_ping_is_started_with_the_first() {
    let mut host = TestHost::new(&asks_outside());
    outside(&mut host, false);
    host.until(300_000);
    host.until(400_000);
    assert_eq!(host.asked, []);
    let what = "not started: this node reaches none of the `ping` addresses";
    assert_eq!(host.told(what), 1, "{:?}", host.alerts);
    outside(&mut host, true);
    assert_eq!(host.asked, [(0, false)]);
    // Lost again before the right is there: it is given back, and asked for anew.
    outside(&mut host, false);
    host.right(0, Right::Granted);
    host.until(410_000);
    assert_eq!((host.asked.len(), host.runs.len()), (1, 0));
    outside(&mut host, true);
    assert_eq!(host.asked.len(), 2);
    host.right(0, Right::Granted);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);

    // Once it was started it is not started again.
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    host.until(500_000);
    assert_eq!(host.asked.len(), 2);
}

#[test]
fn what_is_still_to_be_started_alone_outlives_the_manager_and_no_word_of_the_other_node() {
    let text = asks_outside();
    let waiting = || {
        let mut host = TestHost::new(&text);
        host.until(310_000);
        assert_eq!(host.asked, []);
        host
    };
    let mut host = TestHost::from(&text, waiting().durable, 1);
    host.until(10_000);
    outside(&mut host, true);
    assert_eq!(host.asked, [(0, false)], "{:?}", host.alerts);

    // An operator has decided.
    let mut host = waiting();
    assert_eq!(host.command(START), Ok(()));
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    let asked = host.asked.len();
    outside(&mut host, true);
    host.until(400_000);
    assert_eq!(host.asked.len(), asked);

    // Or that it is not to start.
    let mut host = waiting();
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    outside(&mut host, true);
    host.until(400_000);
    assert_eq!(host.asked, [], "{:?}", host.alerts);
    assert!(host.command(Command::Stop { group: 0 }).is_err());
    let mut host = TestHost::new(CLUSTER);
    host.until(310_000);
    assert_eq!(host.asked, [(0, false)], "the arbiter does not answer");
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    host.right(0, Right::Granted);
    host.until(400_000);
    assert_eq!((host.runs.len(), host.asked.len()), (0, 1));

    // The other node has another configuration: they have not met.
    let mut host = waiting();
    let mut message = host.snapshot(1);
    (message.met, message.revision) = (0, 4);
    host.beat(0, message);
    host.until(400_000);
    assert!(host.manager.peer_lost());
    outside(&mut host, true);
    assert_eq!(host.asked, [(0, false)], "{:?}", host.alerts);

    // The other node was at work: it knows what should run.
    let mut host = waiting();
    let mut message = host.snapshot(1);
    message.met = 99;
    host.beat(0, message);
    host.until(400_000);
    assert!(host.manager.peer_lost());
    outside(&mut host, true);
    assert_eq!(host.asked, [], "{:?}", host.alerts);
}

#[test]
fn a_right_that_comes_while_the_cluster_is_suspended_keeps_no_group_from_its_start() {
    let event = |host: &TestHost| {
        let (_, environment) = host.runs.first().expect("a start");
        let event = environment.iter().find(|(name, _)| name == "CLP_EVENT");
        event.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    // It starts alone, or takes the group over from the other node; and the arbiter is away.
    let alone = || {
        let mut host = TestHost::new(CLUSTER);
        host.until(300_000);
        host
    };
    let taking = || {
        let mut host = runs_there(CLUSTER);
        host.until(host.now + 60_000);
        host
    };
    for (begin, why) in [
        (&alone as &dyn Fn() -> TestHost, "START"),
        (&taking, "FAILOVER"),
    ] {
        let mut host = begin();
        assert_eq!(host.asked, [(0, false)]);
        assert_eq!(host.command(Command::Suspend), Ok(()));
        host.right(0, Right::Granted);
        host.until(host.now + 10_000);
        assert_eq!((host.runs.len(), host.asked.len()), (0, 1));
        assert_eq!(host.command(Command::Resume), Ok(()));
        assert_eq!(host.asked.len(), 2, "{:?}", host.alerts);
        host.right(0, Right::Granted);
        assert_eq!(host.manager.group_status(0), GroupStatus::Online);
        assert_eq!(event(&host), why);
    }
}
