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

#[test]
fn who_has_not_recorded_what_follows_from_the_meeting_is_waited_for() {
    // It was alone, hears this node, and goes down before it has recorded that the cluster starts.
    let mut host = TestHost::new(CLUSTER);
    come(&mut host, Phase::Running, 0);
    assert_eq!(host.manager.phase(), Phase::Waiting);
    host.until(10_000);
    let mut message = host.snapshot(1);
    (message.incarnation, message.phase, message.met) = (8, Phase::Waiting, 0);
    host.beat(0, message);
    assert!(host.manager.order_of(0).wanted, "{:?}", host.alerts);

    // It has, and knows what should run where.
    let mut host = TestHost::new(CLUSTER);
    come(&mut host, Phase::Running, 0);
    let met = host.manager.incarnation;
    come(&mut host, Phase::Running, met);
    assert_eq!(host.manager.phase(), Phase::Running);
    assert!(!host.manager.order_of(0).wanted);
    assert_eq!(host.told("starts: both nodes are there"), 0);
}

#[test]
fn who_went_before_it_recorded_what_follows_is_met_anew() {
    let mut host = TestHost::new(CLUSTER);
    come(&mut host, Phase::Running, 0);
    assert_eq!(host.manager.phase(), Phase::Waiting);
    // It never comes back in time, and this node starts alone and is refused.
    host.until(300_000);
    assert_eq!(host.manager.phase(), Phase::Running);
    host.right(0, Right::Refused("nobody answers".to_owned()));
    assert!(!host.manager.order_of(0).wanted);
    let mut message = host.snapshot(1);
    (message.incarnation, message.phase, message.met) = (8, Phase::Waiting, 0);
    host.beat(0, message);
    assert!(host.manager.order_of(0).wanted, "{:?}", host.alerts);
}

#[test]
fn that_they_have_met_is_told_with_what_follows_from_it() {
    let met = |host: &TestHost| host.said.as_ref().map(|said| said.met);
    let mut host = refused(CLUSTER);
    host.persist_hangs = true;
    come(&mut host, Phase::Waiting, 0);
    assert!(host.manager.order_of(0).wanted);
    assert_eq!(met(&host), Some(0));
    host.disk_answers();
    assert_eq!(met(&host), Some(7));
}
