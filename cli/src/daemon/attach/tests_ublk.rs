//! Keepers of ublk's devices, where they differ from nbd's: what is made, taken over, parked and closed.

use std::fs;
use std::time::Duration;

use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Replication, Role};

use super::Attachments;
use super::made::{IDENTIFIER, Machine, Made, UUID, shown, until};
use super::made_ublk::{SHAPE, fault};
use super::record::Record;
use super::ublk::{FaultKind, Form, Mark, State, UblkControl as _};
use crate::control::driver::{DeviceId, Driver, Wanted};
use crate::control::report::DeviceState;

const UBLK: Wanted = Wanted {
    driver: Some(Driver::Ublk),
    index: None,
};
const THIRD: DeviceId = DeviceId::ublk(3);

/// A device that a daemon before this one left when it died as Primary.
fn left_behind() -> Machine {
    let machine = Machine::new();
    machine.left_behind(&Record::new(UUID, THIRD, 1));
    machine
        .mirror
        .change(|mirror| mirror.status.was_primary = true);
    machine
}

async fn is(daemon: &Attachments<Made>, state: DeviceState) {
    let what = format!("{state:?}");
    until(&what, || shown(daemon) == Some(state)).await;
}

fn why(daemon: &Attachments<Made>) -> String {
    let report = daemon.report("pg");
    report.and_then(|report| report.why).unwrap_or_default()
}

fn log(machine: &Machine) -> Vec<String> {
    machine.ublk(|ublk| ublk.log.clone())
}

impl Machine {
    fn refuses(&self, verb: &'static str, kind: Option<FaultKind>) {
        self.ublk(|ublk| match kind {
            Some(kind) => ublk.refuses.insert(verb, fault(kind)),
            None => ublk.refuses.remove(verb),
        });
    }

    /// The mirror refuses what only a Primary answers, or takes it again; and there is always a request.
    fn is_primary(&self, is: bool) {
        self.mirror.is_primary(is);
        self.mirror
            .change(|mirror| mirror.refuses.send_replace(!is));
    }
}

#[tokio::test]
async fn the_kernel_waits_before_the_queues_are_fetched_and_closes_them_last() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", UBLK, None).await.expect("attached");
    assert_eq!(log(&machine), ["add 0", "start 0", "fetch 0", "live 0"]);
    let record = machine.record().expect("remembered");
    assert_eq!(record.id(), DeviceId::ublk(0));
    let report = daemon.report("pg").expect("attached");
    assert!(report.path.ends_with("/dev/ublkb0"), "{}", report.path);
    daemon.detach("pg", false).await.expect("detached");
    // That it refuses what waits before it is stopped is asserted there.
    assert_eq!(log(&machine)[4..], ["stop 0", "close 0", "delete 0"]);
    assert!(machine.record().is_none());
}

#[tokio::test]
async fn what_ublk_refuses_leaves_neither_a_device_nor_a_promotion() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    // No module, an old kernel: said before anything is promoted.
    machine.refuses("check", Some(FaultKind::TooOld));
    let refused = daemon.attach("pg", UBLK, None).await.expect_err("too old");
    assert!(refused.what.contains("TooOld"), "{}", refused.what);
    assert!(refused.next.contains("6.12"), "{}", refused.next);
    machine.refuses("check", None);
    // A number that another program has.
    machine.ublk(|ublk| ublk.leave_behind(1, Mark(1), State::Dead));
    fs::create_dir_all(machine.path().join("proc/4711")).expect("made");
    fs::write(machine.path().join("proc/4711/comm"), "rublk\n").expect("written");
    let one = Wanted::exactly(DeviceId::ublk(1));
    let refused = daemon.attach("pg", one, None).await.expect_err("taken");
    assert!(refused.what.contains("ublkb1 is in use by another program"));
    assert!(refused.facts[0].contains("process 4711 (rublk)"));
    assert_eq!(machine.mirror.change(|mirror| mirror.promotions), 0);
    // Each step that fails takes back those before it.
    for verb in ["add", "start", "waiting", "fetch", "live"] {
        machine.refuses(verb, Some(FaultKind::Failed));
        let refused = daemon.attach("pg", UBLK, None).await.expect_err(verb);
        assert!(refused.what.contains("Failed"), "{verb}: {}", refused.what);
        machine.refuses(verb, None);
        let left = machine.ublk(|ublk| ublk.devices.keys().copied().collect::<Vec<_>>());
        assert_eq!(left, [1], "{verb}");
        let role = machine.mirror.change(|mirror| mirror.status.role);
        assert_eq!(role, Role::Secondary, "{verb}");
        assert!(machine.record().is_none() && shown(&daemon).is_none());
    }
    daemon.attach("pg", UBLK, None).await.expect("attached");
}

#[tokio::test]
async fn one_that_was_never_started_is_removed_and_made_anew() {
    let machine = left_behind();
    machine.ublk(|ublk| ublk.leave_behind(3, Mark::of(IDENTIFIER), State::Dead));
    let daemon = machine.daemon().await;
    is(&daemon, DeviceState::Attached).await;
    assert_eq!(
        log(&machine),
        [
            "stop 3", "delete 3", "add 3", "start 3", "fetch 3", "live 3",
        ]
    );
    // Not remembered, it is in nobody's way.
    let machine = Machine::new();
    machine.ublk(|ublk| ublk.leave_behind(0, Mark::of(IDENTIFIER), State::Dead));
    let daemon = machine.daemon().await;
    assert!(shown(&daemon).is_none());
    daemon.attach("pg", UBLK, None).await.expect("attached");
    assert_eq!(log(&machine)[..3], ["stop 0", "delete 0", "add 0"]);
}

#[tokio::test]
async fn a_daemon_that_died_in_a_recovery_is_followed_by_another() {
    let machine = left_behind();
    {
        let ublk = machine.mirror.ublk.clone();
        let mut going = ublk.recover(3, Mark::of(IDENTIFIER)).expect("begun");
        let patience = Duration::ZERO;
        going.waiting(patience).expect("at once").expect("it waits");
    }
    // And one whose queues can't be opened tries again.
    machine
        .mirror
        .change(|mirror| mirror.opens = Err("no locked memory"));
    let daemon = machine.daemon().await;
    until("a word", || why(&daemon).contains("no locked memory")).await;
    assert!(log(&machine).contains(&"give-up 3".to_owned()));
    machine.mirror.change(|mirror| mirror.opens = Ok(()));
    is(&daemon, DeviceState::Attached).await;
    assert_eq!(machine.ublk(|ublk| ublk.count("fetch")), 1);
}

#[tokio::test]
async fn a_parked_session_is_served_again_without_a_recovery() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", UBLK, None).await.expect("attached");
    for _ in 0..2 {
        machine.is_primary(false);
        is(&daemon, DeviceState::Waiting).await;
        until("a word", || why(&daemon).contains("the peer is away")).await;
        machine.is_primary(true);
        is(&daemon, DeviceState::Attached).await;
    }
    assert_eq!(machine.mirror.change(|mirror| mirror.sessions), 1);
    assert_eq!(
        (
            machine.served_again(),
            machine.ublk(|ublk| ublk.count("fetch"))
        ),
        (0, 1)
    );
    until("it began again", || {
        machine.ublk(|ublk| ublk.count("on")) == 2
    })
    .await;
    // Parked at a stop, it is left as every other.
    machine.is_primary(false);
    is(&daemon, DeviceState::Waiting).await;
    daemon.stop().await;
    assert_eq!(log(&machine).last().expect("ordered"), "leave 0");
    machine.process_ends();
    machine.is_primary(true);
    let next = machine.daemon().await;
    is(&next, DeviceState::Attached).await;
    assert_eq!(machine.served_again(), 1);
}

#[tokio::test]
async fn what_is_parked_is_never_begun_again_once_the_mirror_has_moved() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", UBLK, None).await.expect("attached");
    machine.is_primary(false);
    is(&daemon, DeviceState::Waiting).await;
    machine.mirror.is_overwritten();
    machine.is_primary(true);
    is(&daemon, DeviceState::Stale).await;
    daemon.stop().await;
    machine.process_ends();
    let next = machine.daemon().await;
    is(&next, DeviceState::Stale).await;
    assert_eq!(machine.ublk(|ublk| ublk.count("on")), 0);
    assert_eq!(machine.served_again(), 0);
    // By force it goes, and comes back as another.
    next.detach("pg", true).await.expect("detached");
    assert_eq!(machine.ublk(|ublk| ublk.devices.len()), 0);
    next.attach("pg", UBLK, None).await.expect("attached");
}

#[tokio::test]
async fn a_stale_one_that_is_parked_goes_by_force() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", UBLK, None).await.expect("attached");
    machine.is_primary(false);
    is(&daemon, DeviceState::Waiting).await;
    machine.mirror.change(|mirror| {
        mirror.status.replication = Replication::SyncTarget;
    });
    machine.mirror.is_overwritten();
    is(&daemon, DeviceState::Stale).await;
    daemon.detach("pg", true).await.expect("detached");
    let log = log(&machine);
    assert_eq!(log[log.len() - 3..], ["stop 0", "close 0", "delete 0"]);
    assert_eq!(machine.ublk(|ublk| ublk.devices.len()), 0);
}

#[tokio::test]
async fn one_that_is_parked_and_one_that_nobody_serves_are_detached() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", UBLK, None).await.expect("attached");
    machine.is_primary(false);
    is(&daemon, DeviceState::Waiting).await;
    daemon.detach("pg", false).await.expect("detached");
    assert_eq!(machine.ublk(|ublk| ublk.devices.len()), 0);
    assert!(machine.record().is_none());

    let machine = left_behind();
    machine.is_primary(false);
    let daemon = machine.daemon().await;
    until("a word", || why(&daemon).contains("the peer is away")).await;
    daemon.detach("pg", false).await.expect("detached");
    assert_eq!(log(&machine), ["stop 3", "delete 3"]);
    assert!(machine.record().is_none());
}

#[tokio::test]
async fn one_that_the_kernel_does_not_let_go_is_not_served_again() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", UBLK, None).await.expect("attached");
    machine.refuses("stop", Some(FaultKind::Failed));
    let refused = daemon.detach("pg", false).await.expect_err("refused");
    assert!(refused.what.contains("not detached"), "{}", refused.what);
    is(&daemon, DeviceState::Stale).await;
    let stale = machine.record().expect("remembered").stale;
    assert!(stale.expect("why").contains("being detached"));
    machine.refuses("stop", None);
    daemon.detach("pg", true).await.expect("detached");
    assert!(machine.record().is_none() && machine.ublk(|ublk| ublk.devices.is_empty()));
}

#[tokio::test]
async fn one_of_another_size_and_one_that_is_lost_are_stale() {
    let machine = left_behind();
    machine.ublk(|ublk| {
        let device = ublk.devices.get_mut(&3).expect("there");
        device.form = Form::new(SHAPE, 2 << 20, 512);
    });
    let daemon = machine.daemon().await;
    is(&daemon, DeviceState::Stale).await;
    assert!(why(&daemon).contains("another size"), "{}", why(&daemon));
    assert_eq!(machine.ublk(|ublk| ublk.count("fetch")), 0);

    let machine = left_behind();
    machine.refuses("waiting", Some(FaultKind::Lost));
    let daemon = machine.daemon().await;
    is(&daemon, DeviceState::Stale).await;
    assert!(why(&daemon).contains("Lost"), "{}", why(&daemon));
}

#[tokio::test]
async fn queues_that_the_kernel_does_not_go_on_with_wait_for_the_next_daemon() {
    let machine = left_behind();
    machine.refuses("live", Some(FaultKind::Failed));
    let daemon = machine.daemon().await;
    until("a word", || why(&daemon).contains("did not go on")).await;
    // Neither closed nor opened twice, however often it looks.
    machine.mirror.happens(Notice::Role {
        from: Role::Secondary,
        to: Role::Primary,
        cause: "made up",
    });
    daemon.stop().await;
    assert_eq!(
        machine.ublk(|ublk| (ublk.count("fetch"), ublk.count("close"))),
        (1, 0)
    );
    machine.process_ends();
    machine.refuses("live", None);
    let next = machine.daemon().await;
    is(&next, DeviceState::Attached).await;
}

#[tokio::test]
async fn a_session_that_breaks_is_the_next_daemons() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", UBLK, None).await.expect("attached");
    machine.mirror.cut_session();
    until("a word", || why(&daemon).contains("broken")).await;
    assert_eq!(machine.served_again(), 0);
    daemon.stop().await;
    machine.process_ends();
    let next = machine.daemon().await;
    is(&next, DeviceState::Attached).await;
}

/// Whose the devices are can't be asked: that is no sign that there are none.
#[tokio::test]
async fn silence_of_the_driver_is_not_taken_for_an_empty_machine() {
    let machine = left_behind();
    machine.refuses("list", Some(FaultKind::Failed));
    machine
        .mirror
        .change(|mirror| mirror.status.was_primary = false);
    let daemon = machine.daemon().await;
    is(&daemon, DeviceState::Stale).await;
    let refused = daemon.detach("pg", false).await.expect_err("not looked at");
    assert!(refused.what.contains("not looked at"), "{}", refused.what);
    assert!(machine.record().is_some());
}

/// Closed queues fail what waits in them.
#[tokio::test]
async fn one_look_that_shows_no_device_closes_no_queues() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", UBLK, None).await.expect("attached");
    machine.is_primary(false);
    is(&daemon, DeviceState::Waiting).await;
    until("a word", || why(&daemon).contains("the peer is away")).await;
    machine.ublk(|ublk| ublk.blind = 1);
    machine.mirror.happens(Notice::Released);
    until("it looked", || machine.ublk(|ublk| ublk.blind) == 0).await;
    machine.is_primary(true);
    is(&daemon, DeviceState::Attached).await;
    assert!(machine.record().is_some());
    assert_eq!(machine.ublk(|ublk| ublk.count("close")), 0);
}

#[tokio::test]
async fn queues_that_are_open_in_part_are_the_next_daemons() {
    let machine = left_behind();
    machine.mirror.change(|mirror| mirror.keeps_queues = true);
    let daemon = machine.daemon().await;
    until("a word", || why(&daemon).contains("broken")).await;
    machine.mirror.change(|mirror| mirror.keeps_queues = false);
    machine.mirror.happens(Notice::Released);
    // They are not opened twice.
    daemon.stop().await;
    assert_eq!(machine.ublk(|ublk| ublk.count("recover")), 1);
    machine.process_ends();
    let next = machine.daemon().await;
    is(&next, DeviceState::Attached).await;
}

/// It waits for a child longer than the stop waits for it; nothing has moved.
#[tokio::test]
async fn a_keeper_that_does_not_hear_a_stop_leaves_a_device_that_the_next_daemon_serves() {
    let machine = left_behind();
    machine.helper_waits();
    let daemon = machine.daemon().await;
    until("the helper runs", || machine.helper_has_begun()).await;
    daemon.stop_within(Duration::ZERO).await;
    assert_eq!(machine.record().expect("remembered").stopped_at, Some(9));
    machine.release_helper();
    machine.process_ends();
    machine.mirror.is_primary(false);
    machine.mirror.change(|mirror| {
        mirror.status.was_primary = false;
        mirror.promotes = Ok(());
    });
    let next = machine.daemon().await;
    is(&next, DeviceState::Attached).await;
}
