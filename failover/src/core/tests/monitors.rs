//! What a monitor makes of its probes: failures that count, warnings, an answer that is taken in late.

use super::*;

#[test]
fn a_monitors_counters_are_cleared_by_time() {
    let mut host = TestHost::alone_and_online(CLUSTER);
    host.probe_fails = true;
    let began = host.now;
    host.until(began + 45_000);
    assert_eq!(host.told("recovers: reactivation"), 1, "{:?}", host.alerts);
    assert_eq!(host.told("recovers: final action"), 1);
    assert_eq!(host.durable.monitors[0].reactivations, 1);
    host.probe_fails = false;
    host.until(host.now + 590_000);
    assert_eq!(host.durable.monitors[0].reactivations, 1);
    host.until(host.now + 30_000);
    let record = &host.durable.monitors[0];
    assert_eq!((record.reactivations, record.final_done), (0, false));
    host.probe_fails = true;
    host.until(host.now + 45_000);
    assert_eq!(host.told("recovers: reactivation"), 2);
}

#[test]
fn switches_of_a_monitor() {
    let with = |keys: &str| {
        replaced(
            "failovers = 0\nclear-after",
            &format!("failovers = 0\n{keys}\nclear-after"),
        )
    };
    let mut host = TestHost::alone_and_online(&with("no-retry-after-timeout = true"));
    host.probe_fails = true;
    host.until(host.now + 11_000);
    assert_eq!(
        host.told("recovers: reactivation"),
        1,
        "the first time-out counts"
    );
    let mut host = TestHost::alone_and_online(&with("no-recovery-after-timeout = true"));
    host.probe_fails = true;
    host.until(host.now + 60_000);
    assert_eq!(host.told("recovers"), 0);
    assert_eq!(
        host.told("nothing is recovered: it failed by its time-out"),
        1,
        "told once"
    );
    let mut host =
        TestHost::alone_and_online(&with("final-needs-other-node = true\nfinal = \"reboot\""));
    host.probe_fails = true;
    host.until(host.now + 120_000);
    assert_eq!(host.told("no other healthy node is left"), 1);
    assert_eq!(host.ended, None);
    // A rehearsal, and an operator's pause of it.
    let mut host = TestHost::alone_and_online(CLUSTER);
    assert_eq!(host.command(Command::FailMonitor(0, true)), Ok(()));
    host.until(host.now + 25_000);
    assert_eq!(host.told("recovers: reactivation"), 1);
    assert_eq!(host.command(Command::SuspendMonitor(0)), Ok(()));
    assert_eq!(host.manager.monitor_status(0), MonitorStatus::Suspended);
    host.until(host.now + 60_000);
    assert_eq!(host.told("recovers"), 1);
}

#[test]
fn a_warning_is_told_once_and_nothing_is_recovered() {
    let warning = "monitor port: caution: somebody else has it";
    let mut host = TestHost::alone_and_online(CLUSTER);
    host.probe_warns = true;
    host.until(host.now + 300_000);
    assert_eq!(host.manager.monitor_status(0), MonitorStatus::Caution);
    assert_eq!(host.told(warning), 1, "{:?}", host.alerts);
    assert_eq!(host.told("recovers"), 0);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
    // It ends, and is told when it comes again.
    host.probe_warns = false;
    host.until(host.now + 10_000);
    assert_eq!(host.manager.monitor_status(0), MonitorStatus::Normal);
    assert_eq!(host.told("monitor port: normal"), 1);
    host.probe_warns = true;
    host.until(host.now + 30_000);
    assert_eq!(host.told(warning), 2);
    // Failures in a row: one before a warning and one after it are not two.
    host.probe_fails = true;
    host.until(host.now + 10_000);
    assert_eq!(host.told("monitor port: failure 1, tried again"), 1);
    host.probe_fails = false;
    host.until(host.now + 10_000);
    assert_eq!(host.told(warning), 3, "it was a failure meanwhile");
    host.probe_fails = true;
    host.until(host.now + 10_000);
    assert_eq!(host.told("recovers"), 0);
    host.until(host.now + 10_000);
    assert_eq!(host.told("recovers: reactivation"), 1, "{:?}", host.alerts);
    // Who lets a monitor fail does not want a warning.
    let mut host = TestHost::alone_and_online(CLUSTER);
    host.probe_warns = true;
    assert_eq!(host.command(Command::FailMonitor(0, true)), Ok(()));
    host.until(host.now + 25_000);
    assert_eq!(host.told("caution"), 0);
    assert_eq!(host.told("recovers: reactivation"), 1);
}

#[test]
fn a_manager_that_stood_still_takes_in_a_probes_answer_before_it_gives_the_probe_up() {
    let begin = || {
        let mut host = TestHost::alone_and_online(CLUSTER);
        host.probe_hangs = true;
        while host.probing.is_none() {
            host.until(host.now + 1000);
        }
        host
    };
    let mut host = begin();
    host.now += 600_000;
    host.handle(Event::Timer);
    let probe = host.probing.take().expect("one is under way");
    let result = OpResult::Done;
    host.handle(Event::Probed { probe, result });
    assert_eq!(host.told("it took too long"), 0, "{:?}", host.alerts);

    // One that never answers is given up.
    let mut host = begin();
    host.until(host.now + 600_000);
    assert!(host.told("it took too long") > 0, "{:?}", host.alerts);
}
