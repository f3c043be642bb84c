//! A manager that begins anew, by a push, a reload or its own death, with what an earlier one has promised.

use super::*;

#[test]
fn a_promised_failback_is_kept() {
    let text = replaced(
        "[group.pg]\nnodes = [\"alpha\", \"beta\"]\n",
        "[group.pg]\nnodes = [\"beta\", \"alpha\"]\nfailback = \"automatic\"\n",
    );
    let promised = |text: &str| {
        let mut host = TestHost::alone_and_online(text);
        let mut message = host.agreed();
        message.groups[0].ready = false;
        host.beat(0, message);
        assert!(host.manager.peer_up());
        assert_eq!(host.manager.order_of(0).owner, 0, "its copy is not ready");
        host
    };
    let next = |text: &str| {
        let mut host = TestHost::from(text, promised(text).durable, 1);
        host.right(0, Right::Granted);
        assert_eq!(host.manager.group_status(0), GroupStatus::Online);
        host.agree();
        host
    };
    let host = next(&text);
    assert_eq!(host.told("goes back to its home"), 1, "{:?}", host.alerts);
    assert_eq!(host.manager.order_of(0).owner, 1);

    // The new configuration promises none.
    let durable = promised(&text).durable;
    let by_hand = text.replacen("failback = \"automatic\"\n", "", 1);
    let mut host = TestHost::from(&by_hand, durable, 1);
    host.right(0, Right::Granted);
    host.agree();
    assert_eq!(host.manager.order_of(0).owner, 0, "{:?}", host.alerts);
}

#[test]
fn a_group_left_to_an_operator_is_not_started_by_the_next_manager() {
    let manual = replaced("[group.pg]\n", "[group.pg]\nstartup = \"manual\"\n");
    let ran = || {
        let mut host = TestHost::new(&manual);
        host.hear();
        assert_eq!(host.command(START), Ok(()));
        host.right(0, Right::Granted);
        assert_eq!(host.manager.group_status(0), GroupStatus::Online);
        host.durable
    };
    let left = || {
        let mut host = TestHost::from(&manual, ran(), 2);
        host.until(300_000);
        assert_eq!(host.asked, [], "an operator starts it");
        host
    };
    let mut host = TestHost::from(&manual, left().durable, 2);
    host.until(60_000);
    assert_eq!(host.asked, [], "{:?}", host.alerts);
    assert_eq!(host.command(START), Ok(()));
    assert_eq!(host.asked, [(0, false)]);

    // It was about one start: where the other node is at work the next one goes by the order.
    let mut ended = left();
    let command = Command::EndNode(EndKind::Manager);
    ended.handle(Event::Command { id: 1, command });
    assert_eq!(ended.ended, Some(EndKind::Manager));
    for (durable, boot) in [(left().durable, 3), (ended.durable, 2)] {
        let mut host = TestHost::from(&manual, durable, boot);
        host.agree();
        assert_eq!(host.asked, [(0, false)], "{:?}", host.alerts);
    }
}

#[test]
fn a_reactivation_ends_where_something_active_has_come_to_need_what_is_in_it() {
    // By the configuration of before the address did not need the mirror.
    let mut durable = TestHost::alone_and_online(CLUSTER).durable;
    durable.groups[0].bounce.insert(0);
    let mut host = TestHost::from(CLUSTER, durable, 1);
    host.right(0, Right::Granted);
    let works: Vec<Work> = host.runs.iter().map(|(work, _)| *work).collect();
    let stop = |resource| Work::Stop { group: 0, resource };
    let start = |resource| Work::Start { group: 0, resource };
    assert_eq!(works, [stop(1), stop(0), start(0), start(1)]);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}
