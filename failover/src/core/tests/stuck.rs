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
