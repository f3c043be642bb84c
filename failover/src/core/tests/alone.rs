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
