//! Between two tries of an activation: what goes on in the pause, and what does not wait for it.

use super::*;

/// In the first pause of the address, whose tries all fail.
fn pausing(text: &str) -> TestHost {
    let mut host = TestHost::new(text);
    host.fails = vec!["Start { group: 0, resource: 1 }"];
    host.until(300_000);
    host.right(0, Right::Granted);
    assert_eq!(host.runs.len(), 2, "{:?}", host.alerts);
    host
}

/// With a pause that is longer than what the monitor needs to fail, and a monitor that looks all the time.
fn long_pause() -> String {
    replaced("retries = 5", "retries = 5\nretry-pause = \"1m\"")
        .replace("active = \"pg/address\"\n", "")
}

#[test]
fn without_a_pause_all_tries_follow_at_once() {
    let mut host = TestHost::new(&replaced(
        "retries = 5",
        "retries = 5\nretry-pause = \"0s\"",
    ));
    host.fails = vec!["Start { group: 0, resource: 1 }"];
    host.until(300_000);
    host.right(0, Right::Granted);
    assert_eq!(host.runs.len(), 1 + 6);
    assert_eq!(host.told("tried again in"), 0);
    assert_eq!(host.told("not activated in 6 tries"), 1);
}

#[test]
fn what_was_in_the_way_and_has_gone_costs_one_pause() {
    let mut host = pausing(CLUSTER);
    host.fails.clear();
    host.until(304_999);
    assert_eq!(host.manager.group_status(0), GroupStatus::OnlinePending);
    host.until(305_000);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
    // The next activation begins with its tries, and without a pause.
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    assert_eq!(host.command(START), Ok(()));
    host.right(0, Right::Granted);
    assert_eq!(host.now, 305_000);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}

#[test]
fn a_stop_does_not_wait_for_a_pause() {
    let mut host = pausing(CLUSTER);
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    assert_eq!(host.now, 300_000);
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
    let stops: Vec<Work> = host.runs[2..].iter().map(|(work, _)| *work).collect();
    let stop = |resource| Work::Stop { group: 0, resource };
    assert_eq!(stops, [stop(1), stop(0)]);
    // Nor does the start after it.
    assert_eq!(host.command(START), Ok(()));
    host.right(0, Right::Granted);
    assert_eq!((host.now, host.runs.len()), (300_000, 6));
}

#[test]
fn an_operators_start_in_a_pause_tries_at_once() {
    let mut host = pausing(CLUSTER);
    host.until(302_000);
    host.fails.clear();
    assert_eq!(host.command(START), Ok(()));
    assert_eq!(
        host.told("what could not be activated is tried again: an operator"),
        1
    );
    assert_eq!(host.now, 302_000);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
    assert_eq!(host.runs.len(), 3);
    assert!(host.command(START).is_err(), "it runs");
    // Its tries count from 0: of two more the first does not use up a retry.
    let mut host = pausing(&replaced("retries = 5", "retries = 1"));
    host.until(302_000);
    assert_eq!(host.command(START), Ok(()));
    assert_eq!((host.runs.len(), host.told("not activated in")), (3, 0));
    host.until(307_000);
    assert_eq!((host.runs.len(), host.told("not activated in")), (4, 1));
}

#[test]
fn a_monitor_recovers_nothing_in_a_pause() {
    let mut host = pausing(&long_pause());
    host.probe_fails = true;
    host.until(359_000);
    assert_eq!(host.runs.len(), 2, "one pause is not over");
    assert_eq!(host.told("monitor port: failure: it took too long"), 2);
    assert_eq!(host.told("recovers"), 0);
    // What can be activated after it is, and the next failure counts.
    host.fails.clear();
    host.until(361_000);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
    assert_eq!(host.told("recovers"), 0);
    host.until(385_000);
    assert_eq!(host.told("recovers: reactivation"), 1, "{:?}", host.alerts);
}

#[test]
fn a_pause_that_nothing_follows_does_not_keep_monitors_waiting() {
    // Another resource is given up while the address pauses: nothing is tried any more.
    let text = long_pause()
        + "[group.pg.resource.server]\ntype = \"exec\"\nstart = \"/s\"\ndepends = [\"data\"]\n";
    let mut host = TestHost::new(&text);
    host.fails = vec![
        "Start { group: 0, resource: 1 }",
        "Start { group: 0, resource: 2 }",
    ];
    host.probe_fails = true;
    host.until(300_000);
    host.right(0, Right::Granted);
    assert_eq!(host.manager.group_status(0), GroupStatus::OnlineFailure);
    host.until(359_000);
    assert_eq!((host.runs.len(), host.told("recovers")), (3, 0));
    host.until(385_000);
    assert_eq!(host.told("recovers: reactivation"), 1, "{:?}", host.alerts);
}
