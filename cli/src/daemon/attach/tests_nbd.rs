//! What only a device of nbd can meet: a kernel that waits for us to read, files that can't be read, sessions that end as
//! soon as they have begun.

use std::time::{Duration, Instant};

use super::lock;
use super::made::{IDENTIFIER, Machine, UUID, shown, until};
use super::made_nbd::Unreadable;
use super::record::Record;
use crate::control::driver::{DeviceId, Wanted};
use crate::control::report::DeviceState;

const fn nbd(index: u32) -> Wanted {
    Wanted::exactly(DeviceId::nbd(index))
}

/// Held writes fill our memory, then the socket; the kernel's sender waits there and has the lock that taking the
/// device down needs. Our end has to be shut before.
#[tokio::test]
async fn by_force_a_device_is_taken_down_whose_sender_waits_for_us() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", nbd(0), None).await.expect("attached");
    lock(&machine.driver).sender_is_stuck = true;
    daemon.detach("pg", true).await.expect("detached");
    assert!(!machine.is_set_up(DeviceId::nbd(0)) && machine.record().is_none());
}

/// What the kernel refuses is told as what it is, and the device is served on.
#[tokio::test]
async fn a_device_that_the_kernel_keeps_up_is_not_detached() {
    for force in [false, true] {
        let machine = Machine::new();
        let daemon = machine.daemon().await;
        daemon.attach("pg", nbd(0), None).await.expect("attached");
        lock(&machine.driver).keeps_up = Some(1);
        let refused = daemon.detach("pg", force).await.expect_err("refused");
        assert!(
            refused.what.starts_with("not detached: "),
            "{}",
            refused.what
        );
        assert!(machine.record().is_some() && machine.is_set_up(DeviceId::nbd(0)));
        until("served on", || {
            shown(&daemon) == Some(DeviceState::Attached)
        })
        .await;
        let answered = || machine.mirror.change(|mirror| mirror.answered) > 0;
        until("an answer", || {
            machine.mirror.asks();
            answered()
        })
        .await;
    }
}

/// No descriptor is left for one moment: that is no word about who has the device.
#[tokio::test]
async fn a_device_whose_files_can_not_be_read_is_not_forgotten() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", nbd(0), None).await.expect("attached");
    let sysfs = machine.path().join("sys");
    let unreadable = Unreadable::from_now(&sysfs, 0);
    machine.mirror.cut_session();
    until("it is looked at", || {
        let report = daemon.report("pg");
        report.is_none_or(|report| report.why.is_some_and(|why| why.contains("not looked at")))
    })
    .await;
    assert_eq!(shown(&daemon), Some(DeviceState::Waiting));
    assert!(machine.record().is_some());
    let refused = daemon.attach("pg", nbd(1), None).await;
    refused.expect_err("it is attached");
    unreadable.no_more();
    until("attached", || shown(&daemon) == Some(DeviceState::Attached)).await;
    assert_eq!(machine.served_again(), 1);
}

/// Nor is what made it stale.
#[tokio::test]
async fn a_stale_device_whose_files_can_not_be_read_stays_stale() {
    let machine = Machine::new();
    let mut record = Record::new(UUID, DeviceId::nbd(3), 1);
    record.stale = Some("the other node has become Primary".to_owned());
    machine.left_behind(&record);
    let sysfs = machine.path().join("sys");
    let unreadable = Unreadable::from_now(&sysfs, 3);
    let daemon = machine.daemon().await;
    until("it is looked at", || {
        machine.mirror.change(|mirror| mirror.promotions) > 0
            || shown(&daemon) == Some(DeviceState::Stale)
    })
    .await;
    unreadable.no_more();
    until("a decision", || {
        machine.served_again() > 0 || shown(&daemon) == Some(DeviceState::Stale)
    })
    .await;
    assert_eq!(machine.served_again(), 0);
    assert!(machine.record().expect("remembered").stale.is_some());
    // It is not forgotten either while it can't be looked at.
    let unreadable = Unreadable::from_now(&sysfs, 3);
    let refused = daemon.detach("pg", false).await.expect_err("refused");
    assert!(refused.what.contains("not looked at"), "{}", refused.what);
    unreadable.no_more();
    assert_eq!(shown(&daemon), Some(DeviceState::Stale));
}

/// docs/symptoms.md, *The device is STALE*: who has the old device open still (a lazy unmount) keeps its name in the kernel, and
/// the mirror can be used all the same.
#[tokio::test]
async fn after_a_forced_detach_of_a_device_that_is_open_the_mirror_is_attached_as_another_one() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", nbd(0), None).await.expect("attached");
    lock(&machine.driver).is_open = true;
    daemon.detach("pg", true).await.expect("detached");
    assert!(machine.path().join("sys/block/nbd0/backend").exists());
    daemon
        .attach("pg", nbd(1), None)
        .await
        .expect("another one");
    let taken = daemon.attach("pg", nbd(2), None).await;
    taken.expect_err("it is attached");
    assert_eq!(lock(&machine.driver).devices.len(), 1);
}

/// A mirror that is a device of the kernel already does not become a second one.
#[tokio::test]
async fn a_mirror_that_the_kernel_has_still_is_not_attached_as_another_device() {
    for is_readable in [true, false] {
        let machine = Machine::new();
        let daemon = machine.daemon().await;
        machine.left_behind(&Record::new(UUID, DeviceId::nbd(3), 1));
        machine.records().remove("pg").expect("removed");
        let sysfs = machine.path().join("sys");
        let _unreadable = (!is_readable).then(|| Unreadable::from_now(&sysfs, 3));
        for wanted in [nbd(1), Wanted::default()] {
            let refused = daemon.attach("pg", wanted, None).await;
            let refused = refused.expect_err("the kernel may have it").what;
            let word = if is_readable {
                "has it still"
            } else {
                "not looked at"
            };
            assert!(refused.contains(word), "{refused}");
        }
        assert_eq!(machine.mirror.change(|mirror| mirror.promotions), 0);
        let driver = lock(&machine.driver);
        assert_eq!(driver.devices.len(), 1);
        assert_eq!(driver.devices[&3].0, IDENTIFIER);
    }
}

/// A mirror that is Primary still and answers nothing any more (it is being demoted) would otherwise be given to the
/// kernel as often as that asks.
#[tokio::test]
async fn sessions_that_end_as_soon_as_they_begin_follow_each_other_slowly() {
    const ROUNDS: usize = 3;
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    let began = Instant::now();
    daemon.attach("pg", nbd(0), None).await.expect("attached");
    let mirror = machine.mirror.clone();
    mirror.change(|mirror| mirror.demotes = true);
    for round in 1..=ROUNDS {
        let sessions = || mirror.change(|mirror| mirror.sessions) == round;
        until("a session", sessions).await;
        // The kernel sends it again.
        mirror.asks();
        until("another socket", || machine.served_again() == round).await;
    }
    assert!(
        began.elapsed() >= Duration::from_millis(500) * ROUNDS as u32,
        "{:?}",
        began.elapsed()
    );
}
