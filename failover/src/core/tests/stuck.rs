//! What stands still until something, or somebody, lets it go on: a state that can't be written, a resource that
//! can't be deactivated, a recovery whose script before it is configured no more.

use super::durable::{Recovering, Step};
use super::*;

#[test]
fn a_state_that_cant_be_written_is_told_once_and_piles_nothing_up() {
    let what = "the manager's state can't be written";
    let mut host = TestHost::alone_and_online(CLUSTER);
    host.persist_fails = true;
    let command = Command::SuspendMonitor(0);
    host.handle(Event::Command { id: 1, command });
    let began = host.now;
    host.until(began + 10_500);
    assert_eq!(host.told(what), 1, "{:?}", host.alerts);
    assert_eq!(host.manager.telling.len(), 0);
    assert!(host.answers.is_empty(), "it is not durable");
    host.persist_fails = false;
    host.until(began + 12_000);
    assert_eq!(host.answers.remove(&1), Some(Ok(())));
    assert!(host.durable.monitors[0].suspended);
    // Another time it is news.
    host.persist_fails = true;
    let command = Command::ResumeMonitor(0);
    host.handle(Event::Command { id: 2, command });
    host.until(began + 20_000);
    assert_eq!(host.told(what), 2);
}

#[test]
fn a_disk_that_answers_no_more_is_told_and_so_is_its_next_time() {
    let what = "the manager's state can't be written";
    let mut host = TestHost::alone_and_online(CLUSTER);
    for times in 1..=2 {
        host.persist_hangs = true;
        let command = Command::FailMonitor(0, false);
        let began = host.now;
        host.handle(Event::Command { id: 1, command });
        let command = Command::SuspendMonitor(0);
        host.until(began + 9_000);
        // Later ones wait for the first.
        host.handle(Event::Command { id: 2, command });
        host.until(began + 9_999);
        assert_eq!(host.told(what), times - 1, "{:?}", host.alerts);
        host.until(began + 10_000);
        assert_eq!(host.told(what), times, "{:?}", host.alerts);
        host.until(began + 300_000);
        assert_eq!(host.told(what), times, "{:?}", host.alerts);
        assert!(host.answers.is_empty());
        host.disk_answers();
        assert_eq!(host.answers.remove(&1), Some(Ok(())));
        assert_eq!(host.answers.remove(&2), Some(Ok(())));
        assert_eq!(host.command(Command::ResumeMonitor(0)), Ok(()));
    }
}

/// It runs here, and the other node is heard and agrees.
fn online(text: &str) -> TestHost {
    let mut host = TestHost::alone_and_online(text);
    host.agree();
    host
}

/// The disk hangs, and this is ordered then.
fn hanging(mut host: TestHost, command: Command) -> TestHost {
    host.persist_hangs = true;
    host.handle(Event::Command { id: 1, command });
    host
}

const AWAY: Command = Command::Move { group: 0, to: 1 };

#[test]
fn a_group_that_cant_leave_for_a_disk_that_hangs_ends_with_its_node() {
    let mut host = hanging(online(CLUSTER), AWAY);
    let began = host.now;
    host.until(began + 30_999);
    assert_eq!(host.resets.len(), 0, "{:?}", host.alerts);
    host.until(began + 31_000);
    let why = "group pg can't be stopped: the manager's state could not be written for 30s";
    assert_eq!(host.resets, [why], "{:?}", host.alerts);
    assert_eq!(host.told(&format!("node alpha: is reset: {why}")), 1);
    host.until(began + 300_000);
    assert_eq!(host.resets.len(), 1);

    // So it is where each write fails.
    let mut host = online(CLUSTER);
    host.persist_fails = true;
    let command = AWAY;
    host.handle(Event::Command { id: 1, command });
    host.until(host.now + 31_000);
    assert_eq!(host.resets.len(), 1);

    // The node is to end, with what it could not stop before or what it can't stop now.
    for host in [online(CLUSTER), unstopped()] {
        let mut host = hanging(host, Command::EndNode(EndKind::Reboot));
        host.until(host.now + 31_000);
        assert_eq!(host.resets.len(), 1, "{:?}", host.alerts);
    }
}

#[test]
fn a_recovery_that_a_disk_keeps_from_stopping_its_target_ends_with_the_node() {
    let before = CLUSTER.to_owned() + "[preaction]\nscript = \"/before\"\n";
    let script = "script = \"/mend\"\nscript-runs = 1\nreactivations = 1\n";
    let script = replaced("reactivations = 1\n", script);
    for text in [CLUSTER, &before, &script] {
        let mut host = online(text);
        (host.persist_hangs, host.probe_fails) = (true, true);
        host.until(host.now + 60_000);
        assert_eq!(host.resets.len(), 1, "{:?}", host.alerts);
    }
    // One that would stop nothing is told, and that is all.
    let nothing = replaced("reactivations = 1\n", "reactivations = 0\n");
    let before = nothing.clone() + "[preaction]\nscript = \"/before\"\n";
    let script = script.replacen("reactivations = 1\n", "reactivations = 0\n", 1);
    for text in [&nothing, &before, &script] {
        let mut host = online(text);
        (host.persist_hangs, host.probe_fails) = (true, true);
        host.until(host.now + 300_000);
        assert_eq!(host.resets.len(), 0, "{:?}", host.alerts);
        assert_eq!(host.told("the disk does not answer"), 1);
    }
}

#[test]
fn a_node_where_all_goes_on_well_or_nothing_runs_is_not_reset_for_its_disk() {
    let stays = |mut host: TestHost| {
        host.until(host.now + 300_000);
        assert_eq!(host.resets.len(), 0, "{:?}", host.alerts);
        assert_eq!(host.told("the disk does not answer"), 1);
    };
    stays(hanging(online(CLUSTER), Command::SuspendMonitor(0)));
    // It goes on until the operator's word can be written, and nobody waits for it.
    stays(hanging(online(CLUSTER), Command::Stop { group: 0 }));
    let left = replaced("retries = 5", "retries = 5\nstop-final = \"nothing\"");
    stays(hanging(online(&left), AWAY));
    let mut suspended = hanging(online(CLUSTER), AWAY);
    let command = Command::Suspend;
    suspended.handle(Event::Command { id: 2, command });
    stays(suspended);
    let mut idle = online(CLUSTER);
    assert_eq!(idle.command(Command::Stop { group: 0 }), Ok(()));
    stays(hanging(idle, Command::EndNode(EndKind::Shutdown)));
    // The manager alone ends, and no other node waits for what it has to stop.
    let end = Command::EndNode(EndKind::Manager);
    stays(hanging(TestHost::alone_and_online(CLUSTER), end));
    let mut host = hanging(online(CLUSTER), end);
    host.until(host.now + 31_000);
    assert_eq!(host.resets.len(), 1, "{:?}", host.alerts);
    // The disk answers in the end.
    let mut host = hanging(online(CLUSTER), AWAY);
    host.until(host.now + 30_500);
    host.hear();
    host.disk_answers();
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
    host.until(host.now + 60_000);
    assert_eq!(host.resets.len(), 0);
}

#[test]
fn a_manager_that_stood_still_itself_hears_the_disk_before_it_judges_it() {
    let mut host = hanging(online(CLUSTER), AWAY);
    host.now += 100_000;
    host.agree();
    assert_eq!(host.resets.len(), 0);
    host.disk_answers();
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
    host.until(host.now + 60_000);
    assert_eq!(host.resets.len(), 0, "{:?}", host.alerts);
}

#[test]
fn a_right_that_the_other_node_waits_for_ends_with_a_node_that_cant_give_it_up() {
    for heard in [true, false] {
        let mut host = online(CLUSTER);
        host.hangs_at = Some("Stop { group: 0, resource: 0 }");
        let command = AWAY;
        host.handle(Event::Command { id: 1, command });
        assert!(!host.manager.is_begun(0), "{:?}", host.alerts);
        let end = host.now + 60_000;
        if heard {
            host.hear_until(end);
        } else {
            host.until(end);
        }
        assert_eq!(host.resets.len(), usize::from(heard), "{:?}", host.alerts);
    }
}

#[test]
fn who_may_not_speak_yet_is_not_woken_to_speak() {
    let mut out = Actions::new();
    let start = start_of(CLUSTER, Durable::default(), 1);
    Manager::new(start, Time(0), &mut out);
    let timer = out.iter().find_map(|action| match action {
        Action::SetTimer { at } => Some(*at),
        _ => None,
    });
    // The longest time-out of a heartbeat.
    assert_eq!(timer, Some(Time(4000)));
}

/// Its address can't be deactivated, and nothing follows.
fn unstopped() -> TestHost {
    let text = replaced("retries = 5", "retries = 5\nstop-final = \"nothing\"");
    let mut host = TestHost::alone_and_online(&text);
    host.fails = vec!["Stop { group: 0, resource: 1 }"];
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    assert_eq!(host.manager.group_status(0), GroupStatus::OfflineFailure);
    // Somebody puts it right.
    host.fails.clear();
    let runs = host.runs.len();
    host.until(host.now + 60_000);
    assert_eq!(host.runs.len(), runs);
    host
}

#[test]
fn what_could_not_be_deactivated_is_tried_again_at_an_operators_word() {
    let mut host = unstopped();
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);

    let mut host = unstopped();
    assert_eq!(host.command(START), Ok(()));
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);

    // Said to the other node.
    let mut host = unstopped();
    let mut message = host.snapshot(1);
    let mut order = host.durable.groups[0].order.clone();
    order.set(1, order.value.clone());
    message.groups[0].order = order;
    host.beat(0, message);
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);

    // It was on its way to the other node.
    let text = replaced("retries = 5", "retries = 5\nstop-final = \"nothing\"");
    let mut host = TestHost::alone_and_online(&text);
    host.fails = vec!["Stop { group: 0, resource: 1 }"];
    host.hear();
    assert_eq!(host.command(Command::Move { group: 0, to: 1 }), Ok(()));
    assert_eq!(host.manager.group_status(0), GroupStatus::OfflineFailure);
    host.fails.clear();
    host.hear();
    assert_eq!(host.command(START), Ok(()));
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
    assert_eq!(host.told("what could not be deactivated is tried again"), 1);
}

#[test]
fn what_could_not_be_deactivated_for_a_reactivation_can_be_moved() {
    let text = replaced("retries = 5", "retries = 5\nstop-final = \"nothing\"");
    let mut host = TestHost::alone_and_online(&text);
    host.fails = vec!["Stop { group: 0, resource: 1 }"];
    host.probe_fails = true;
    host.until(host.now + 25_000);
    assert_eq!(host.manager.group_status(0), GroupStatus::OfflineFailure);
    assert!(!host.durable.groups[0].bounce.is_empty());
    host.fails.clear();
    host.agree();
    assert_eq!(host.command(AWAY), Ok(()), "{:?}", host.alerts);
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
    assert_eq!(host.manager.order_of(0).owner, 1);
}

#[test]
fn a_recovery_goes_on_whose_script_before_it_is_configured_no_more() {
    let mut durable = TestHost::alone_and_online(CLUSTER).durable;
    durable.next_op += 1;
    durable.monitors[0].recovering = Some(Recovering {
        step: Step::Reactivate,
        op: OpId(durable.next_op),
        prepared: false,
    });
    let mut host = TestHost::after(CLUSTER, durable, 1, |op| {
        let result = OpResult::Done;
        Event::OpDone { op, result }
    });
    host.right(0, Right::Granted);
    assert_eq!(
        host.told("group pg: is reactivated"),
        1,
        "{:?}",
        host.alerts
    );
    assert_eq!(host.durable.monitors[0].recovering, None);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}

#[test]
fn an_order_that_comes_after_the_end_is_not_kept_for_the_next_manager() {
    let mut host = TestHost::alone_and_online(CLUSTER);
    host.hear();
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    host.agree();
    // Nothing is left to be stopped: it has ended once that is written.
    host.persist_fails = true;
    let command = Command::EndNode(EndKind::Manager);
    host.handle(Event::Command { id: 1, command });
    assert_eq!(host.ended, None);
    let mut message = host.agreed();
    message.shutdown.set(1, Some(EndKind::Reboot));
    host.beat(0, message);
    host.persist_fails = false;
    host.until(host.now + 10_000);
    assert_eq!(host.ended, Some(EndKind::Manager));
    let mut next = TestHost::from(CLUSTER, host.durable, 1);
    next.until(300_000);
    assert_eq!(next.ended, None, "{:?}", next.alerts);
}

#[test]
fn a_node_whose_state_cant_be_written_is_not_able() {
    for hangs in [false, true] {
        let mut host = online(CLUSTER);
        assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
        let able = |host: &TestHost| host.said.as_ref().expect("a heartbeat").groups[0].able;
        assert!(able(&host));
        (host.persist_fails, host.persist_hangs) = (!hangs, hangs);
        let command = Command::SuspendMonitor(0);
        host.handle(Event::Command { id: 1, command });
        host.until(host.now + 11_000);
        assert!(!able(&host), "hangs: {hangs}");
        host.persist_fails = false;
        host.disk_answers();
        host.until(host.now + 2_000);
        assert!(able(&host), "hangs: {hangs}");
    }
}

#[test]
fn a_group_that_the_other_node_cant_begin_comes_back() {
    let mut host = online(CLUSTER);
    let before = host.agreed().groups[0].order.clone();
    assert_eq!(host.command(AWAY), Ok(()));
    assert_eq!(host.manager.order_of(0).owner, 1);
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
    let asked = host.asked.len();
    let hear = |host: &mut TestHost, able: bool, ms: u64| {
        let end = host.now + ms;
        while host.now < end {
            let mut message = host.snapshot(1);
            let brief = &mut message.groups[0];
            (brief.order, brief.able, brief.unsure) = (before.clone(), able, false);
            host.beat(0, message);
            host.until((host.now + 500).min(end));
        }
    };
    // It takes the order over in a moment.
    hear(&mut host, true, 20_000);
    hear(&mut host, false, 9_500);
    assert_eq!(host.manager.order_of(0).owner, 1, "{:?}", host.alerts);
    hear(&mut host, false, 1_000);
    assert_eq!(host.manager.order_of(0).owner, 0, "{:?}", host.alerts);
    let what = "comes back, since node beta does not take over the order";
    assert_eq!(host.told(what), 1, "{:?}", host.alerts);
    assert_eq!(host.asked.len(), asked + 1);
    host.right(0, Right::Granted);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}

#[test]
fn a_node_that_was_not_heard_has_its_time_to_take_an_order_over() {
    // It is lost in the meantime, or this manager stands still.
    for stands_still in [false, true] {
        let mut host = online(CLUSTER);
        let before = host.agreed().groups[0].order.clone();
        assert_eq!(host.command(AWAY), Ok(()));
        let hear = |host: &mut TestHost| {
            let mut message = host.snapshot(1);
            let brief = &mut message.groups[0];
            (brief.order, brief.able, brief.unsure) = (before.clone(), false, false);
            host.beat(0, message);
        };
        hear(&mut host);
        if stands_still {
            host.now += 60_000;
        } else {
            host.until(host.now + 60_000);
            assert!(host.manager.peer_lost());
        }
        hear(&mut host);
        assert!(host.manager.peer_up());
        assert_eq!(host.manager.order_of(0).owner, 1, "{:?}", host.alerts);
    }
}

#[test]
fn a_right_that_was_not_asked_for_yet_keeps_the_other_node_from_nothing() {
    let mut host = online(CLUSTER);
    assert_eq!(host.command(AWAY), Ok(()));
    host.agree();
    let asked = host.asked.len();
    // It comes back here, which this node can't write, and goes away again.
    host.persist_hangs = true;
    let mut order = host.durable.groups[0].order.clone();
    for owner in [0, 1] {
        let mut value = order.value.clone();
        value.owner = owner;
        order.set(1, value);
        let mut message = host.snapshot(1);
        (message.groups[0].order, message.groups[0].unsure) = (order.clone(), false);
        host.beat(0, message);
        host.until(host.now + 600);
        let said = host.said.as_ref().expect("a heartbeat");
        assert!(!said.groups[0].busy, "{owner}: {:?}", host.alerts);
    }
    host.disk_answers();
    assert_eq!(host.asked.len(), asked);
}
