//! The other node: heard, lost, lying, wanted for a takeover; and an operator's word about it.

use super::*;

/// The other node has been told to run the group, and does.
fn active_there(host: &mut TestHost) -> Snapshot {
    let mut message = host.snapshot(1);
    let brief = &mut message.groups[0];
    brief.order.version = 5;
    (brief.order.value.wanted, brief.order.value.owner) = (true, 1);
    (brief.busy, brief.active) = (true, true);
    message
}

#[test]
fn without_an_arbiter_a_lost_nodes_group_is_taken_over_only_as_permitted() {
    let none = |more: &str| {
        replaced(
            "kind = \"witness\"\nname = \"gamma\"",
            &format!("kind = \"none\"\n{more}"),
        )
    };
    let lost = |text: &str| {
        let mut host = TestHost::new(text);
        host.handle(Event::Ready {
            group: 0,
            ready: true,
        });
        let message = active_there(&mut host);
        host.beat(0, message);
        assert_eq!(host.manager.order_of(0).owner, 1);
        host.until(host.now + 60_000);
        host
    };
    let manual = none("").replacen("[group.pg]\n", "[group.pg]\nfailover = \"manual\"\n", 1);
    let host = lost(&manual);
    assert!(host.asked.is_empty());
    assert_eq!(host.told("not taken over from the lost node"), 1);
    let risk = format!(
        "accepted-risk = \"{}\"",
        crate::config::cluster::ACCEPTED_RISK
    );
    assert_eq!(lost(&none(&risk)).asked, [(0, false)]);
    let fenced = none("") + "[fence]\nscript = \"/fence\"\n";
    let host = lost(&fenced);
    assert_eq!(host.asked, [(0, true)]);
    assert!(matches!(host.runs[0].0, Work::Fence { node: 1 }));
    assert!(
        host.runs[0]
            .1
            .contains(&("CLP_SERVER_DOWN".to_owned(), "beta".to_owned()))
    );
    // With an arbiter nobody needs a power switch.
    let host = lost(&(CLUSTER.to_owned() + "[fence]\nscript = \"/fence\"\n"));
    assert_eq!(host.asked, [(0, false)]);
    // Who reaches none of the ping addresses does not take over.
    let host = lost(&replaced(
        "name = \"gamma\"",
        "name = \"gamma\"\nping = [\"10.0.0.254\"]",
    ));
    assert!(host.asked.is_empty());
    assert_eq!(host.told("reaches none of the `ping` addresses"), 1);
}

#[test]
fn what_was_on_its_way_when_its_node_was_fenced_is_not_heard() {
    let text = replaced("kind = \"witness\"\nname = \"gamma\"", "kind = \"none\"")
        + "[fence]\nscript = \"/fence\"\n";
    let mut host = TestHost::new(&text);
    host.handle(Event::Ready {
        group: 0,
        ready: true,
    });
    let message = active_there(&mut host);
    host.beat(0, message);
    while host.asked.is_empty() {
        assert!(host.now < 600_000, "{:?}", host.alerts);
        host.until(host.now + 50);
    }
    assert_eq!(host.asked, [(0, true)]);
    assert_eq!(host.manager.beats.up, Some(false));
    let until = host.manager.beats.late_until().0;
    host.hear();
    assert_eq!(host.manager.beats.up, Some(false), "an old word");
    host.until(until - 1);
    host.hear();
    assert_eq!(host.manager.beats.up, Some(false), "an old word");
    host.until(until);
    host.hear();
    assert_eq!(host.manager.beats.up, Some(true), "in spite of the script");
}

#[test]
fn a_fence_script_that_fails_is_asked_again_and_nothing_starts() {
    let text = replaced("kind = \"witness\"\nname = \"gamma\"", "kind = \"none\"")
        + "[fence]\nscript = \"/fence\"\n";
    let mut host = TestHost::new(&text);
    host.fails = vec!["Fence"];
    host.until(320_000);
    assert!(host.asked.is_empty(), "{:?}", host.alerts);
    assert!(host.runs.len() >= 3, "every five seconds");
    host.fails.clear();
    host.until(326_000);
    assert_eq!(host.asked, [(0, true)]);
}

#[test]
fn a_group_waits_for_another_one_and_not_for_ever() {
    let text = CLUSTER.to_owned()
        + "[group.web]\nnodes = [\"alpha\", \"beta\"]\nwait-for = [\"pg\"]\nwait-timeout = \"1m\"\n\
           resource.u = { type = \"systemd\", unit = \"nginx\" }\n";
    let mut host = TestHost::new(&text);
    host.until(300_000);
    assert_eq!(host.asked, [(0, false)], "web waits");
    host.until(330_000);
    host.right(0, Right::Granted);
    assert_eq!(host.asked, [(0, false), (1, false)]);
    let mut host = TestHost::new(&text);
    host.until(400_000);
    assert_eq!(
        host.told("group web: not started: group pg is not online after 60s"),
        1
    );
    host.right(0, Right::Granted);
    assert_eq!(host.asked.len(), 1);
    // An operator's word, and now that the other one is online, it starts.
    let start = Command::Start {
        group: 1,
        on: None,
        sure: false,
    };
    assert_eq!(host.command(start), Ok(()));
    assert_eq!(host.asked.len(), 2);
}

#[test]
fn a_wait_for_another_group_that_is_over_does_not_count_later() {
    let text = CLUSTER.to_owned()
        + "[group.web]\nnodes = [\"alpha\", \"beta\"]\nwait-for = [\"pg\"]\nwait-timeout = \"1m\"\n\
           resource.u = { type = \"systemd\", unit = \"nginx\" }\n";
    // Beta is heard for so long, and has both groups.
    let hear_beta_until = |host: &mut TestHost, ms: u64| {
        while host.now < ms {
            let mut message = host.snapshot(2);
            for brief in &mut message.groups {
                brief.order.version = 5;
                brief.order.value.wanted = true;
                brief.order.value.owner = 1;
                (brief.busy, brief.active, brief.online) = (true, true, true);
            }
            host.beat(0, message);
            host.until((host.now + 500).min(ms));
        }
    };
    let not_started = "group web: not started: group pg is not online";
    for lost_for in [5_000, 70_000] {
        let mut host = TestHost::new(&text);
        hear_beta_until(&mut host, 1_000);
        host.until(1_000 + lost_for);
        // Only where the silence is as long as that it has waited in vain.
        assert_eq!(host.told(not_started), usize::from(lost_for > 60_000));
        host.right(0, Right::Refused("beta has it".to_owned()));
        hear_beta_until(&mut host, 200_000);
        host.until(205_000);
        host.right(0, Right::Granted);
        assert_eq!(host.asked.last(), Some(&(1, false)), "{:?}", host.alerts);
        assert_eq!(host.told(not_started), usize::from(lost_for > 60_000));
    }
}

#[test]
fn heartbeats_of_strangers_replays_and_old_lives_count_for_nothing() {
    let mut host = TestHost::new(CLUSTER);
    // It does not say that it hears this life: it could be of yesterday.
    let mut old = host.snapshot(1);
    old.echo = 0;
    host.beat(0, old);
    assert_eq!(host.manager.node_status(), state::NodeStatus::Unknown);
    assert_eq!(
        host.said.as_ref().map(|said| said.echo),
        Some(7),
        "but it is answered"
    );
    let message = host.snapshot(1);
    host.beat(0, message.clone());
    assert!(host.manager.peer_up());
    // Again: nothing new is heard, so that it is lost in time.
    host.until(1_900);
    host.beat(0, message.clone());
    host.until(2_100);
    assert!(host.manager.peer_lost());
    // An earlier life, whatever it says.
    let mut earlier = message;
    earlier.incarnation = 6;
    earlier.seq = 1_000_000;
    host.beat(0, earlier);
    assert!(host.manager.peer_lost());
    // Another revision: it is there, and what it says of groups is not taken over.
    let mut other = host.snapshot(1);
    other.revision = 4;
    other.groups[0].order.version = 99;
    host.beat(1, other);
    assert!(host.manager.peer_up());
    assert_eq!(
        host.told("has revision 4 of the configuration: this node has revision 3"),
        1
    );
    assert_ne!(host.manager.durable.groups[0].order.version, 99);
    // A heartbeat that the configuration does not have.
    let message = host.snapshot(1);
    host.beat(9, message);
}

#[test]
fn a_node_is_lost_when_all_heartbeats_are_silent() {
    let mut host = TestHost::new(CLUSTER);
    host.hear();
    let message = host.snapshot(1);
    host.beat(1, message);
    host.until(2_500);
    assert_eq!(host.manager.node_status(), state::NodeStatus::Caution);
    assert_eq!(
        host.manager.heartbeat_status(0),
        state::HeartbeatStatus::Caution
    );
    assert_eq!(
        host.manager.heartbeat_status(1),
        state::HeartbeatStatus::Normal
    );
    host.until(4_100);
    assert_eq!(host.manager.node_status(), state::NodeStatus::Offline);
    assert_eq!(
        host.manager.heartbeat_status(1),
        state::HeartbeatStatus::Error
    );
    assert_eq!(host.told("node beta: lost"), 1);
}

#[test]
fn commands_are_refused_with_the_reason_and_nothing_changes() {
    let mut host = TestHost::new(CLUSTER);
    let refused = |host: &mut TestHost, command, words: &[&str]| {
        let before = host.durable.clone();
        let refusal = host
            .command(command)
            .err()
            .unwrap_or_else(|| panic!("{command:?} is taken"));
        let said = refusal.to_string();
        for word in words.iter().chain(&["\n  next: "]) {
            assert!(said.contains(word), "no `{word}` in: {said}");
        }
        assert_eq!(host.durable, before, "{command:?}");
    };
    refused(&mut host, START, &["group pg", "has just started"]);
    refused(&mut host, Command::Stop { group: 9 }, &["no such group"]);
    refused(&mut host, Command::SuspendMonitor(9), &["no such monitor"]);
    let mut host = TestHost::alone_and_online(CLUSTER);
    refused(&mut host, START, &["running on node alpha already"]);
    // A start moves nothing, and it is not there.
    let elsewhere = Command::Start {
        group: 0,
        on: Some(1),
        sure: false,
    };
    let refusal = host.command(elsewhere).expect_err("it runs here");
    assert!(!refusal.is_nothing_to_do());
    let words = refusal.to_string();
    assert!(
        words.contains("`kagami group move pg --to beta`"),
        "{words}"
    );
    refused(
        &mut host,
        Command::Move { group: 0, to: 0 },
        &["running on node alpha already"],
    );
    refused(
        &mut host,
        Command::Move { group: 0, to: 1 },
        &["node beta can't run it now", "not heard"],
    );
    refused(
        &mut host,
        Command::Move { group: 0, to: 2 },
        &["not in its list"],
    );
    let mut message = host.snapshot(1);
    message.groups[0].ready = false;
    host.beat(0, message);
    refused(
        &mut host,
        Command::Move { group: 0, to: 1 },
        &["copy of the data is not in sync"],
    );
    assert_eq!(host.command(Command::Suspend), Ok(()));
    refused(
        &mut host,
        Command::Stop { group: 0 },
        &["the cluster is suspended"],
    );
    assert_eq!(host.command(Command::Resume), Ok(()));
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
    let refusal = host.command(Command::Stop { group: 0 });
    let refusal = refusal.expect_err("there is nothing to stop");
    assert!(refusal.is_nothing_to_do());
    assert!(refusal.to_string().contains("stopped already"), "{refusal}");
    refused(
        &mut host,
        Command::Move { group: 0, to: 1 },
        &["does not run"],
    );
    assert_eq!(host.command(Command::EndNode(EndKind::Manager)), Ok(()));
    assert_eq!(host.ended, Some(EndKind::Manager));
}

#[test]
fn a_command_for_a_node_that_is_not_heard_is_refused() {
    let mut host = TestHost::new(CLUSTER);
    let mut message = host.snapshot(1);
    message.groups[0].order.version = 5;
    message.groups[0].order.value.wanted = true;
    message.groups[0].order.value.owner = 1;
    message.groups[0].busy = true;
    host.beat(0, message);
    host.handle(Event::Ready {
        group: 0,
        ready: true,
    });
    host.until(10_000);
    let refusal = host
        .command(Command::Stop { group: 0 })
        .err()
        .map(|r| r.to_string());
    let refusal = refusal.unwrap_or_else(|| panic!("the group may run on beta"));
    assert!(
        refusal.contains("ran on node beta last, which is not heard"),
        "{refusal}"
    );
}

#[test]
fn home_comes_back_and_takes_its_group() {
    let text = replaced(
        "nodes = [\"alpha\", \"beta\"]\n[group.pg.r",
        "nodes = [\"beta\", \"alpha\"]\nfailback = \"automatic\"\n[group.pg.r",
    );
    let mut host = TestHost::alone_and_online(&text);
    host.hear();
    assert_eq!(host.told("goes back to its home"), 1);
    assert_eq!(host.manager.order_of(0).owner, 1);
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
    host.hear_until(host.now + 5_000);
    assert_eq!(host.told("goes back to its home"), 1);
}

#[test]
fn that_it_is_at_work_is_told_with_the_orders_that_follow_from_it() {
    let mut host = TestHost::new(CLUSTER);
    let mut message = host.snapshot(1);
    message.phase = Phase::Waiting;
    let mut out = Actions::new();
    let beat = Event::Beat {
        heartbeat: 0,
        message: Box::new(message),
    };
    host.manager.handle(Time(host.now), beat, &mut out);
    assert_eq!(host.manager.phase(), Phase::Running);
    // Its orders are not durable yet: the other node would go by those of another time.
    let told = out.iter().filter_map(|action| match action {
        Action::Beat { message, .. } => Some(message.phase),
        _ => None,
    });
    assert!(told.into_iter().all(|phase| phase == Phase::Waiting));
    host.carry_out(out);
    host.until(host.now + 1_000);
    let said = host.said.expect("a heartbeat");
    assert_eq!(said.phase, Phase::Running);
    assert!(said.groups[0].order.version > 0 && said.groups[0].order.value.wanted);
}
