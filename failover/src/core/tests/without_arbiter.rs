//! Without an arbiter: who says that the other node does not run a group, where a group has no mirror that would.

use super::*;

fn web(arbiter: &str, group: &str, more: &str) -> String {
    format!(
        r#"
[cluster]
name = "shop"
revision = 3
nodes = ["alpha", "beta"]
[arbiter]
kind = "none"
{arbiter}
[heartbeat.lan]
type = "lan"
priority = 1
addresses = {{ alpha = "10.0.0.1:7791", beta = "10.0.0.2:7791" }}
[group.web]
nodes = ["alpha", "beta"]
{group}
[group.web.resource.proxy]
type = "systemd"
unit = "haproxy"
{more}
"#
    )
}

fn fenced() -> String {
    web("", "", "[fence]\nscript = \"/fence\"\n")
}

fn manual() -> String {
    web("", "failover = \"manual\"", "")
}

const SURE: Command = Command::Start {
    group: 0,
    on: None,
    sure: true,
};

/// An operator who has not looked is refused, and told what to do; one who has is believed.
fn start_by_hand(host: &mut TestHost) {
    let refusal = host.command(START).expect_err("the other node may run it");
    assert!(matches!(refusal, Refusal::Unsure { .. }), "{refusal}");
    assert!(refusal.to_string().contains("--not-elsewhere"), "{refusal}");
    assert_eq!(host.command(SURE), Ok(()));
}

/// This node has run the group when it went down, and boots.
fn booted(text: &str) -> TestHost {
    let mut host = TestHost::new(text);
    host.hear();
    assert_eq!(host.command(START), Ok(()));
    host.agree();
    host.right(0, Right::Granted);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
    let order = &host.durable.groups[0].order.value;
    assert!(order.wanted && order.owner == 0);
    TestHost::from(text, host.durable, 2)
}

#[test]
fn a_node_that_boots_alone_fences_before_it_starts_its_own_group() {
    let mut host = booted(&fenced());
    host.fails = vec!["Fence"];
    host.until(310_000);
    assert!(matches!(host.runs[0].0, Work::Fence { node: 1 }));
    assert_eq!(host.asked, []);
    host.fails.clear();
    host.until(316_000);
    assert_eq!(host.asked, [(0, true)]);
    // Where the script can't tell, an operator's word stands in for it: not before that is known.
    let mut host = booted(&fenced());
    host.fails = vec!["Fence"];
    host.until(310_000);
    start_by_hand(&mut host);
    assert_eq!(host.asked, [(0, false)]);
}

#[test]
fn without_a_fence_a_node_that_boots_alone_waits_for_the_other_one_or_an_operator() {
    let may_run = "not started: node beta is not heard, and may run it";
    let mut host = booted(&manual());
    host.until(900_000);
    assert_eq!(host.asked, []);
    assert_eq!(host.told(may_run), 1, "{:?}", host.alerts);
    start_by_hand(&mut host);
    assert_eq!(host.asked, [(0, false)]);

    let mut host = booted(&manual());
    host.until(400_000);
    host.agree();
    assert_eq!(
        host.asked,
        [(0, false)],
        "the other node says that it does not run it"
    );

    let risk = crate::config::cluster::ACCEPTED_RISK;
    let mut host = booted(&web(&format!("accepted-risk = \"{risk}\""), "", ""));
    host.until(300_000);
    assert_eq!(host.asked, [(0, false)]);
    assert_eq!(host.told(may_run), 0);

    // The word of an operator is about now: once the other node was heard, it knows better.
    let mut host = booted(&manual());
    host.until(400_000);
    start_by_hand(&mut host);
    host.right(0, Right::Refused("not yet".to_owned()));
    let mut message = host.snapshot(1);
    message.groups[0].busy = true;
    host.beat(0, message);
    host.until(500_000);
    assert_eq!(host.asked.len(), 1);
}

#[test]
fn whoever_has_said_good_bye_with_nothing_left_is_not_fenced() {
    for busy in [false, true] {
        let mut host = booted(&fenced());
        let mut message = host.snapshot(1);
        message.phase = Phase::Gone;
        message.groups[0].busy = busy;
        host.beat(0, message);
        host.until(300_000);
        assert_eq!(host.asked, [(0, busy)]);
    }
}

#[test]
fn an_accepted_risk_is_none_of_what_the_other_node_has_said_to_be_active_still() {
    let risk = crate::config::cluster::ACCEPTED_RISK;
    let risky = format!("accepted-risk = \"{risk}\"");
    let mirrored = replaced(
        "kind = \"witness\"\nname = \"gamma\"",
        &format!("kind = \"none\"\n{risky}"),
    );
    for text in [web(&risky, "", ""), mirrored] {
        only_what_it_has_not_said_is_risked(&text);
    }
}

fn only_what_it_has_not_said_is_risked(risky: &str) {
    let what = "not started: node beta could not stop it, and its manager has ended";
    let good_bye = |host: &mut TestHost, busy: bool| {
        let mut message = host.agreed();
        message.phase = Phase::Gone;
        (message.groups[0].busy, message.groups[0].active) = (busy, busy);
        host.beat(0, message);
    };
    // Its own group, and one that the other node has run.
    let taken = || {
        let mut host = TestHost::new(risky);
        host.hear();
        let there = Command::Start {
            group: 0,
            on: Some(1),
            sure: false,
        };
        assert_eq!(host.command(there), Ok(()));
        host
    };
    for begin in [&(|| booted(risky)) as &dyn Fn() -> TestHost, &taken] {
        let mut host = begin();
        good_bye(&mut host, false);
        host.until(300_000);
        assert_eq!(host.asked, [(0, false)], "{:?}", host.alerts);

        let mut host = begin();
        good_bye(&mut host, true);
        host.until(900_000);
        assert_eq!(host.asked, []);
        assert_eq!(host.told(what), 1, "{:?}", host.alerts);
        // The next manager has not heard it, and knows all the same.
        let mut host = TestHost::from(risky, host.durable, 3);
        host.until(900_000);
        assert_eq!(host.asked, []);
        start_by_hand(&mut host);
        assert_eq!(host.asked, [(0, false)]);

        // It is back, with nothing of the group, and lost in silence.
        let mut host = begin();
        good_bye(&mut host, true);
        let mut message = host.agreed();
        message.incarnation += 1;
        host.beat(0, message);
        host.until(900_000);
        assert!(host.manager.peer_lost());
        assert_eq!(host.asked.last(), Some(&(0, false)), "{:?}", host.alerts);
    }
}

#[test]
fn whoever_has_another_configuration_is_not_fenced_and_may_run_it() {
    let mut host = booted(&fenced());
    let mut message = host.snapshot(1);
    message.revision = 4;
    host.beat(0, message);
    assert_eq!(host.manager.phase(), Phase::Running);
    host.until(10_000);
    assert_eq!(host.asked, []);
    assert_eq!(host.runs.len(), 0);
    let what = "not started: node beta has another configuration, and may run it";
    assert_eq!(host.told(what), 1, "{:?}", host.alerts);
    host.agree();
    assert_eq!(host.asked, [(0, false)]);
}

#[test]
fn an_order_is_carried_out_once_the_other_node_knows_it() {
    let mut host = TestHost::new(&manual());
    host.hear();
    assert_eq!(host.command(START), Ok(()));
    // What it told last is from before: it may have begun by an earlier order.
    host.hear();
    assert_eq!(host.asked, []);
    let mut begun = host.agreed();
    begun.groups[0].busy = true;
    host.beat(0, begun);
    assert_eq!(host.asked, []);
    host.agree();
    assert_eq!(host.asked, [(0, false)]);
}

#[test]
fn a_manager_that_begins_anew_gives_the_other_node_the_time_to_be_heard() {
    let risk = crate::config::cluster::ACCEPTED_RISK;
    let risky = web(&format!("accepted-risk = \"{risk}\""), "", "");
    for text in [fenced(), risky] {
        let mut host = TestHost::new(&text);
        host.hear();
        assert_eq!(host.command(START), Ok(()));
        // The other node has not taken the order over yet.
        assert_eq!(host.asked, []);
        let mut host = TestHost::from(&text, host.durable, 1);
        host.until(1_000);
        assert_eq!((host.runs.len(), host.asked.len()), (0, 0));
        host.agree();
        host.until(20_000);
        assert_eq!(host.runs.len(), 0, "{:?}", host.alerts);
        assert_eq!(host.asked, [(0, false)]);
    }
}

#[test]
fn an_operators_word_about_the_other_node_ends_where_that_speaks() {
    // It has another configuration.
    let mut host = booted(&manual());
    let mut message = host.snapshot(1);
    message.revision = 4;
    host.beat(0, message);
    start_by_hand(&mut host);
    assert_eq!(host.asked, [(0, false)]);
    host.right(0, Right::Granted);
    host.agree();
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    host.agree();
    let asked = host.asked.len();
    // The other node runs it, gives it back, and is lost before that has ended.
    let mut message = host.agreed();
    let order = &mut message.groups[0].order;
    let mut there = order.value.clone();
    (there.wanted, there.owner) = (true, 1);
    order.set(1, there.clone());
    there.owner = 0;
    order.set(1, there);
    message.groups[0].busy = true;
    host.beat(0, message);
    host.until(host.now + 60_000);
    assert!(host.manager.peer_lost());
    assert_eq!(host.asked.len(), asked, "{:?}", host.alerts);
}

#[test]
fn an_operators_word_counts_for_a_node_with_another_configuration_beside_a_fence() {
    let mut host = booted(&fenced());
    let mut message = host.snapshot(1);
    message.revision = 4;
    host.beat(0, message);
    start_by_hand(&mut host);
    assert_eq!(host.asked, [(0, false)]);
    assert_eq!(host.runs.len(), 0);
}

#[test]
fn a_node_that_does_not_take_over_an_order_is_told() {
    let mut host = TestHost::new(&manual());
    host.hear();
    assert_eq!(host.command(START), Ok(()));
    host.hear_until(60_000);
    assert_eq!(host.asked, []);
    let what = "node beta does not take over the order";
    assert_eq!(host.told(what), 1, "{:?}", host.alerts);
    host.agree();
    assert_eq!(host.asked, [(0, false)]);
}

#[test]
fn each_order_has_its_own_time_to_be_taken_over() {
    let mut host = TestHost::new(&manual());
    host.hear();
    assert_eq!(host.command(START), Ok(()));
    host.hear_until(5_000);
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    host.hear_until(60_000);
    assert_eq!(host.command(START), Ok(()));
    host.hear_until(65_000);
    let what = "node beta does not take over the order";
    assert_eq!(host.told(what), 0, "{:?}", host.alerts);
    host.hear_until(75_000);
    assert_eq!(host.told(what), 1, "{:?}", host.alerts);
}

/// Beta, which ran the group, is lost while this node's state can't be written.
fn fence_waits() -> TestHost {
    let mut host = TestHost::new(&fenced());
    host.hear();
    let there = Command::Start {
        group: 0,
        on: Some(1),
        sure: false,
    };
    assert_eq!(host.command(there), Ok(()));
    let mut message = host.agreed();
    let brief = &mut message.groups[0];
    (brief.busy, brief.active, brief.online) = (true, true, true);
    host.beat(0, message);
    host.persist_fails = true;
    host.until(host.now + 60_000);
    assert!(host.manager.peer_lost());
    let what = "is made sure to be down, by the fence script";
    assert_eq!(host.told(what), 1, "{:?}", host.alerts);
    host
}

#[test]
fn a_fence_script_that_waits_for_the_disk_is_not_run_once_the_other_node_is_heard() {
    let mut host = fence_waits();
    host.agree();
    host.persist_fails = false;
    host.until(host.now + 5_000);
    assert!(host.manager.peer_up());
    assert_eq!(host.runs, [], "{:?}", host.alerts);
    assert_eq!(host.told("the fence script is not run any more"), 1);
}

#[test]
fn what_waits_for_the_disk_by_the_word_of_a_fence_script_is_not_asked_once_the_other_node_is_heard()
{
    let mut host = booted(&fenced());
    host.until(310_000);
    assert_eq!(host.asked, [(0, true)]);
    host.right(0, Right::Refused("not yet".to_owned()));
    host.persist_fails = true;
    for (id, command) in [(1, Command::Suspend), (2, Command::Resume)] {
        host.handle(Event::Command { id, command });
    }
    host.until(host.manager.beats.late_until().0);
    let mut message = host.agreed();
    message.groups[0].able = false;
    host.beat(0, message);
    host.persist_fails = false;
    host.until(host.now + 5_000);
    assert_eq!(host.asked, [(0, true), (0, false)], "{:?}", host.alerts);
    host.right(0, Right::Granted);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}

#[test]
fn in_a_suspended_cluster_no_fence_script_begins() {
    let mut host = fence_waits();
    let command = Command::Suspend;
    host.handle(Event::Command { id: 1, command });
    host.persist_fails = false;
    host.until(host.now + 5_000);
    assert_eq!(host.runs, [], "{:?}", host.alerts);
    assert_eq!(host.command(Command::Resume), Ok(()));
    assert!(matches!(host.runs[..], [(Work::Fence { node: 1 }, _)]));
    assert_eq!(host.asked, [(0, true)], "{:?}", host.alerts);
}

#[test]
fn a_node_that_cant_run_the_group_fences_nobody() {
    let text = CLUSTER.replacen("kind = \"witness\"\nname = \"gamma\"", "kind = \"none\"", 1)
        + "[fence]\nscript = \"/fence\"\n";
    let diskless = |diskless| Event::Diskless { group: 0, diskless };
    let untrusted = |untrusted| Event::Untrusted {
        group: 0,
        untrusted,
    };
    let states: [(&dyn Fn(bool) -> Event, &str); 2] = [
        (&diskless, "node alpha has no disk under it"),
        (&untrusted, "node alpha has no copy under it that could be"),
    ];
    for (state, what) in states {
        let lost = || {
            let mut host = TestHost::new(&text);
            host.handle(state(true));
            host.hear();
            let there = Command::Start {
                group: 0,
                on: Some(1),
                sure: false,
            };
            assert_eq!(host.command(there), Ok(()));
            host.agree();
            host.until(host.now + 60_000);
            assert!(host.manager.peer_lost());
            host
        };
        let mut host = lost();
        host.until(900_000);
        assert_eq!((host.runs.len(), host.asked.len()), (0, 0));
        assert_eq!(host.told(what), 1, "{:?}", host.alerts);
        // It is put right.
        host.handle(state(false));
        assert!(matches!(host.runs[..], [(Work::Fence { node: 1 }, _)]));
        assert_eq!(host.asked, [(0, true)]);
    }
}

#[test]
fn a_node_that_reaches_nothing_starts_nothing_of_its_own() {
    let risk = crate::config::cluster::ACCEPTED_RISK;
    let ping = "ping = [\"10.0.0.254\"]";
    let risky = web(&format!("accepted-risk = \"{risk}\"\n{ping}"), "", "");
    let fence = web(ping, "", "[fence]\nscript = \"/fence\"\n");
    for (text, fenced) in [(risky, false), (fence, true)] {
        let alone = || {
            let mut host = booted(&text);
            host.handle(Event::Outside { reachable: false });
            host.until(400_000);
            assert_eq!((host.runs.len(), host.asked.len()), (0, 0));
            let what = "not started: this node reaches none of the `ping` addresses";
            assert_eq!(host.told(what), 1, "{:?}", host.alerts);
            host
        };
        let mut host = alone();
        host.handle(Event::Outside { reachable: true });
        assert_eq!(host.asked, [(0, fenced)], "{:?}", host.alerts);
        // An operator has looked.
        let mut host = alone();
        start_by_hand(&mut host);
        assert_eq!(host.asked, [(0, false)]);
        // A good-bye was of another time.
        let mut host = booted(&text);
        host.handle(Event::Outside { reachable: false });
        let mut message = host.agreed();
        message.phase = Phase::Gone;
        host.beat(0, message);
        host.until(400_000);
        assert_eq!((host.runs.len(), host.asked.len()), (0, 0));
    }
}

#[test]
fn a_lone_node_that_nothing_lets_start_its_groups_says_so() {
    let mut host = TestHost::new(&manual());
    host.until(310_000);
    assert_eq!(host.asked, []);
    let what = "group web: not started: nothing may decide";
    assert_eq!(host.told(what), 1, "{:?}", host.alerts);
    host.until(900_000);
    assert_eq!((host.told(what), host.asked.len()), (1, 0));
    start_by_hand(&mut host);
    assert_eq!(host.asked, [(0, false)]);
}

#[test]
fn what_the_fence_script_said_before_this_manager_stood_still_counts_no_more() {
    let is_fence = |run: &&(Work, _)| matches!(run.0, Work::Fence { node: 1 });
    let mut host = booted(&fenced());
    host.until(310_000);
    assert_eq!(host.asked, [(0, true)]);
    // The other node may have booted meanwhile, has heard nothing from here, and may be about to start it.
    host.now += 60_000;
    host.right(0, Right::Granted);
    assert_eq!(host.manager.group_status(0), GroupStatus::OnlinePending);
    assert_eq!(host.runs.iter().filter(is_fence).count(), host.runs.len());
    // It is listened to; it is not there, and is fenced anew.
    host.until(host.now + 3_000);
    assert_eq!(host.runs.iter().filter(is_fence).count(), 2);
    assert_eq!(host.asked, [(0, true), (0, true)], "{:?}", host.alerts);
    host.right(0, Right::Granted);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}

/// Told once why an operator's word is over, and what to do; and a new one counts.
fn word_is_over(host: &mut TestHost, why: &str) {
    let told = format!(
        "not started: node beta may run it by now: an operator has said that it does not, and {why}"
    );
    assert_eq!(host.told(&told), 1, "{:?}", host.alerts);
    assert_eq!(host.told("kagami group start web --not-elsewhere"), 2);
    let asked = host.asked.len();
    host.until(host.now + 2_000);
    assert_eq!(host.asked.len(), asked, "{:?}", host.alerts);
    start_by_hand(host);
    assert_eq!(host.asked.len(), asked + 1, "{:?}", host.alerts);
    host.right(0, Right::Granted);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}

#[test]
fn an_operators_word_is_over_once_this_manager_stood_still() {
    let why = "this manager stood still since";
    let word = || {
        let mut host = booted(&manual());
        host.until(400_000);
        host
    };
    // The right was asked for, and is granted by a word of that time.
    let mut host = word();
    start_by_hand(&mut host);
    host.now += 10_000;
    host.right(0, Right::Granted);
    assert_eq!(host.runs.len(), 0, "{:?}", host.alerts);
    word_is_over(&mut host, why);

    // The order waited for the disk.
    let mut host = word();
    host.persist_fails = true;
    host.handle(Event::Command {
        id: 1,
        command: SURE,
    });
    host.persist_fails = false;
    host.now += 10_000;
    host.handle(Event::Timer);
    assert_eq!(host.asked, [], "{:?}", host.alerts);
    word_is_over(&mut host, why);

    // What it was to activate waited for the disk.
    let mut host = word();
    start_by_hand(&mut host);
    host.persist_fails = true;
    host.right(0, Right::Granted);
    host.persist_fails = false;
    host.now += 10_000;
    host.handle(Event::Timer);
    assert_eq!(host.runs.len(), 0, "{:?}", host.alerts);
    word_is_over(&mut host, why);
}

#[test]
fn an_operators_word_that_comes_to_a_manager_that_stood_still_is_refused() {
    let mut host = booted(&manual());
    host.until(400_000);
    host.now += 10_000;
    let refusal = host
        .command(SURE)
        .expect_err("when it was given is not known");
    assert!(matches!(refusal, Refusal::Late { .. }), "{refusal}");
    assert!(refusal.to_string().contains("--not-elsewhere"), "{refusal}");
    host.until(host.now + 2_000);
    assert_eq!(host.asked, []);
    start_by_hand(&mut host);
    assert_eq!(host.asked, [(0, false)]);
}

#[test]
fn an_operators_word_lasts_as_long_as_the_heartbeats_time_out() {
    let mut host = booted(&manual());
    host.until(400_000);
    start_by_hand(&mut host);
    host.until(host.now + 29_000);
    assert_eq!(host.told("may run it by now"), 0, "{:?}", host.alerts);
    host.until(host.now + 1_000);
    word_is_over(&mut host, "30000 ms have passed since");

    // What was begun by it in time goes on.
    let mut host = booted(&manual());
    host.until(400_000);
    start_by_hand(&mut host);
    host.right(0, Right::Granted);
    host.until(host.now + 60_000);
    host.now += 10_000;
    host.handle(Event::Timer);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
    assert_eq!(host.told("may run it by now"), 0, "{:?}", host.alerts);
}

#[test]
fn what_the_other_manager_left_active_is_believed_until_something_was_begun_by_an_operators_word() {
    let risk = crate::config::cluster::ACCEPTED_RISK;
    let mut host = booted(&web(&format!("accepted-risk = \"{risk}\""), "", ""));
    let mut message = host.agreed();
    message.phase = Phase::Gone;
    (message.groups[0].busy, message.groups[0].active) = (true, true);
    host.beat(0, message);
    host.until(400_000);
    start_by_hand(&mut host);
    host.now += 10_000;
    host.right(0, Right::Granted);
    host.until(host.now + 60_000);
    assert_eq!(host.asked, [(0, false)], "{:?}", host.alerts);
    start_by_hand(&mut host);
    host.right(0, Right::Granted);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}
