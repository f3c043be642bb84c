//! Two nodes that meet for the first time when one of them has already started alone.

use super::*;

/// Alone, refused, and nothing is wanted: the other node comes.
fn refused(text: &str) -> TestHost {
    let mut host = TestHost::new(text);
    host.until(300_000);
    if !host.asked.is_empty() {
        host.right(0, Right::Refused("the copies have never met".to_owned()));
    }
    assert!(!host.manager.order_of(0).wanted);
    host
}

fn come(host: &mut TestHost, phase: Phase, met: u64) {
    let mut message = host.snapshot(1);
    (message.phase, message.met) = (phase, met);
    host.beat(0, message);
}

#[test]
fn what_could_not_be_started_alone_starts_when_the_other_node_comes() {
    let arbiter = "kind = \"witness\"\nname = \"gamma\"";
    let manual = replaced(arbiter, "kind = \"none\"").replacen(
        "[group.pg]\n",
        "[group.pg]\nfailover = \"manual\"\n",
        1,
    );
    for text in [CLUSTER, &manual] {
        // It waits still, has heard this one first, or was alone itself.
        for (phase, first) in [
            (Phase::Waiting, false),
            (Phase::Running, true),
            (Phase::Running, false),
        ] {
            let mut host = refused(text);
            let met = if first { host.manager.incarnation } else { 0 };
            come(&mut host, phase, met);
            let order = host.manager.order_of(0);
            assert!(order.wanted && order.owner == 0, "{:?}", host.alerts);
            assert_eq!(host.told("starts: both nodes are there"), 1);
            host.until(302_000);
            assert_eq!(host.asked.last(), Some(&(0, false)));
        }
    }
}

#[test]
fn what_an_operator_has_stopped_is_not_started_by_a_reconnect() {
    // The other node was at work with an earlier life of this one.
    let mut host = refused(CLUSTER);
    come(&mut host, Phase::Running, 99);
    assert!(!host.manager.order_of(0).wanted);

    // It had been heard here: what was stopped since stays so, whoever starts again.
    let stopped = || {
        let mut host = TestHost::alone_and_online(CLUSTER);
        host.hear();
        assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
        host
    };
    let mut host = stopped();
    host.until(host.now + 60_000);
    assert!(host.manager.peer_lost());
    come(&mut host, Phase::Waiting, 0);
    assert!(host.manager.peer_up() && !host.manager.order_of(0).wanted);
    let mut host = TestHost::from(CLUSTER, stopped().durable, 1);
    come(&mut host, Phase::Waiting, 0);
    assert!(host.manager.peer_up() && !host.manager.order_of(0).wanted);

    // Nor by a first meeting: it was stopped for a reason.
    let mut host = TestHost::alone_and_online(CLUSTER);
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
    come(&mut host, Phase::Waiting, 0);
    assert!(host.manager.peer_up() && !host.manager.order_of(0).wanted);

    // A group that an operator starts is left to one.
    let manual = replaced("[group.pg]\n", "[group.pg]\nstartup = \"manual\"\n");
    let mut host = refused(&manual);
    come(&mut host, Phase::Waiting, 0);
    assert!(!host.manager.order_of(0).wanted);
}

#[test]
fn what_the_other_node_is_giving_up_is_not_taken_for_its_own() {
    let mut host = refused(CLUSTER);
    let come_busy = |host: &mut TestHost, busy: bool| {
        let mut message = host.snapshot(1);
        (message.phase, message.met) = (Phase::Running, 0);
        message.groups[0].busy = busy;
        host.beat(0, message);
    };
    // The right of its earlier life is on its way back.
    come_busy(&mut host, true);
    assert!(!host.manager.order_of(0).wanted);
    come_busy(&mut host, false);
    let order = host.manager.order_of(0);
    assert!(order.wanted && order.owner == 0, "{:?}", host.alerts);
}

#[test]
fn nodes_with_different_configurations_have_not_met_yet() {
    let mut host = refused(CLUSTER);
    let mut message = host.snapshot(1);
    (message.phase, message.met, message.revision) = (Phase::Waiting, 0, 4);
    host.beat(0, message);
    assert!(host.manager.peer_up() && !host.manager.order_of(0).wanted);
    // It is pushed to it, and both managers begin anew.
    let mut host = TestHost::from(CLUSTER, host.durable, 1);
    come(&mut host, Phase::Running, 0);
    let order = host.manager.order_of(0);
    assert!(order.wanted && order.owner == 0, "{:?}", host.alerts);
}
