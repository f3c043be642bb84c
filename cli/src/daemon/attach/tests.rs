//! Keepers with a kernel and a mirror that are made up: what is given a socket, and what never is.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use kagami_bitmap::superblock::Generation;
use kagami_replicator::core::event::{Refusal, Reply};
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Connection, DiskState, Replication, Role};

use super::made::{Machine, Made, UUID, refusal, shown, until};
use super::made_nbd::Unreadable;
use super::made_ublk::fault;
use super::record::Record;
use super::ublk::FaultKind;
use super::{Attached, Attachments, lock};
use crate::control::driver::{DeviceId, Driver, Wanted};
use crate::control::report::DeviceState;

const fn nbd(index: u32) -> Wanted {
    Wanted::exactly(DeviceId::nbd(index))
}

const fn id(driver: Driver, index: u32) -> DeviceId {
    DeviceId { driver, index }
}

const fn exactly(driver: Driver, index: u32) -> Wanted {
    Wanted::exactly(id(driver, index))
}

const fn any(driver: Driver) -> Wanted {
    let driver = Some(driver);
    Wanted {
        driver,
        index: None,
    }
}

/// What holds for the devices of either driver.
macro_rules! with_either_driver {
    ($($name:ident)*) => {
        mod of_nbd {
            use super::Driver;
            $(#[tokio::test]
            async fn $name() {
                super::$name(Driver::Nbd).await;
            })*
        }
        mod of_ublk {
            use super::Driver;
            $(#[tokio::test]
            async fn $name() {
                super::$name(Driver::Ublk).await;
            })*
        }
    };
}

with_either_driver! {
    attached_found_again_after_a_stop_and_detached
    a_mirror_in_other_hands_is_attached_where_it_is_primary_and_not_promoted
    an_attach_under_way_at_a_stop_leaves_a_device_that_the_next_daemon_serves
    what_is_demoted_while_it_is_attached_is_not_promoted_again
    what_is_being_demoted_is_not_attached_and_the_other_way_round
    a_stop_does_not_wait_for_a_promotion_that_waits_for_an_arbiter
    another_program_that_takes_it_down_ends_it
    a_dead_primary_takes_its_device_back_and_a_stranger_to_its_data_does_not
    a_device_whose_copy_was_overwritten_is_not_served
    one_whose_moves_were_missed_is_not_served
    one_that_nobody_used_while_its_mirror_moved_is_stale
    a_stop_just_after_the_mirror_moved_leaves_a_stale_device
    a_primary_that_was_none_for_a_moment_goes_on
    a_primary_that_stays_one_beside_another_keeps_its_device
    after_a_reboot_it_is_the_same_device_once_the_copy_is_caught_up
    after_a_reboot_a_device_whose_owner_can_not_be_told_is_attached_once_it_can
    after_a_takeover_it_does_not_come_back_by_itself
    one_that_is_mounted_is_detached_by_force_alone
    a_daemon_that_begins_looks_for_the_peer_before_it_goes_on_without
}

async fn attached_found_again_after_a_stop_and_detached(driver: Driver) {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    let attached = daemon
        .attach("pg", exactly(driver, 2), None)
        .await
        .expect("attached");
    let name = id(driver, 2).name();
    assert!(attached.device.ends_with(&format!("/dev/{name}")) && !attached.already);
    let link = machine.path().join("dev/kagami/pg");
    let target = Path::new("..").join(&name);
    assert_eq!(fs::read_link(&link).expect("a link"), target);
    for wanted in [any(driver), Wanted::default()] {
        let there = daemon.attach("pg", wanted, None).await.expect("there");
        assert!(there.already);
    }
    let other = daemon
        .attach("pg", exactly(driver, 1), None)
        .await
        .expect_err("refused");
    assert!(other.what.contains("already") && other.what.contains(&name));

    daemon.stop().await;
    machine.process_ends();
    assert!(machine.is_set_up(id(driver, 2)), "the kernel keeps it");
    assert_eq!(machine.record().expect("remembered").stopped_at, Some(9));
    machine
        .mirror
        .change(|mirror| mirror.status.role = Role::Secondary);

    let next = machine.daemon().await;
    until("attached again", || {
        shown(&next) == Some(DeviceState::Attached)
    })
    .await;
    assert_eq!(machine.served_again(), 1);
    assert_eq!(machine.record().expect("remembered").stopped_at, None);
    next.detach("pg", false).await.expect("detached");
    assert!(!machine.is_set_up(id(driver, 2)) && machine.record().is_none() && !link.exists());
    let nothing = next.detach("pg", false).await.expect("nothing to do");
    assert!(matches!(nothing, Reply::Nothing(_)));
}

#[tokio::test]
async fn what_is_refused_leaves_the_roles_as_they_were() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    // Another program's device: said before anything is promoted.
    let device = machine.path().join("sys/block/nbd1");
    fs::write(device.join("pid"), "99\n").expect("written");
    fs::create_dir_all(machine.path().join("proc/99")).expect("made");
    fs::write(machine.path().join("proc/99/comm"), "nbd-client\n").expect("written");
    let refused = daemon.attach("pg", nbd(1), None).await.expect_err("taken");
    assert!(refused.what.contains("nbd1 is in use by another program"));
    assert!(refused.facts[0].contains("process 99 (nbd-client)"));
    // Without the right.
    let capabilities = machine.path().join("proc/self/status");
    fs::write(&capabilities, "Name:\tkagami\nCapEff:\t0000000000000400\n").expect("written");
    let refused = daemon
        .attach("pg", Wanted::default(), None)
        .await
        .expect_err("no right");
    assert!(refused.what.contains("CAP_SYS_ADMIN"), "{}", refused.what);
    assert_eq!(machine.mirror.change(|mirror| mirror.promotions), 0);
    fs::write(&capabilities, "CapEff:\t000001ffffffffff\n").expect("written");
    // The driver refuses at last: the promotion is taken back.
    fs::remove_file(device.join("pid")).expect("removed");
    let (theirs, _ours) = UnixStream::pair().expect("a pair");
    let hidden = ("of a program that is not seen".to_owned(), theirs);
    lock(&machine.driver).devices.insert(1, hidden);
    let refused = daemon.attach("pg", nbd(1), None).await.expect_err("busy");
    assert!(refused.what.contains("in use"), "{}", refused.what);
    let role = machine.mirror.change(|mirror| mirror.status.role);
    assert_eq!(role, Role::Secondary);
    // And a promotion that is refused.
    machine
        .mirror
        .change(|mirror| mirror.promotes = Err("the peer is Primary"));
    let refused = daemon
        .attach("pg", Wanted::default(), None)
        .await
        .expect_err("not Primary");
    assert!(refused.what.contains("the peer is Primary"));
    assert!(machine.record().is_none());
}

/// A failover manager says where it is Primary: an attach is no way around it.
async fn a_mirror_in_other_hands_is_attached_where_it_is_primary_and_not_promoted(driver: Driver) {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    let held = || Some(refusal("not attached: another decides"));
    let refused = daemon
        .attach("pg", any(driver), held())
        .await
        .expect_err("held");
    assert!(refused.what.contains("another decides"), "{}", refused.what);
    assert_eq!(machine.mirror.change(|mirror| mirror.promotions), 0);
    machine
        .mirror
        .change(|mirror| mirror.status.role = Role::Primary);
    daemon
        .attach("pg", any(driver), held())
        .await
        .expect("attached");
    assert_eq!(machine.mirror.change(|mirror| mirror.promotions), 0);
}

/// A daemon that attaches the mirror, and waits for its helper.
async fn attaching(
    machine: &Machine,
    driver: Driver,
) -> (
    Attachments<Made>,
    tokio::task::JoinHandle<Result<Attached, Refusal>>,
) {
    machine.helper_waits();
    let daemon = machine.daemon().await;
    let attaching = tokio::spawn({
        let daemon = daemon.clone();
        async move { daemon.attach("pg", exactly(driver, 1), None).await }
    });
    until("the helper runs", || machine.helper_has_begun()).await;
    (daemon, attaching)
}

async fn an_attach_under_way_at_a_stop_leaves_a_device_that_the_next_daemon_serves(driver: Driver) {
    let machine = Machine::new();
    let (daemon, attaching) = attaching(&machine, driver).await;
    let stopping = tokio::spawn({
        let daemon = daemon.clone();
        async move { daemon.stop().await }
    });
    // Of the same mirror: what is refused by a change becomes what is refused by the stop.
    let mut refused = String::new();
    while !refused.contains("stops") {
        refused = daemon.detach("pg", false).await.expect_err("refused").what;
        tokio::task::yield_now().await;
    }
    machine.release_helper();
    attaching.await.expect("ended").expect("attached");
    stopping.await.expect("stopped");
    machine.process_ends();
    machine
        .mirror
        .change(|mirror| mirror.status.role = Role::Secondary);
    assert_eq!(machine.record().expect("remembered").stopped_at, Some(9));

    let next = machine.daemon().await;
    until("attached", || shown(&next) == Some(DeviceState::Attached)).await;
}

async fn what_is_demoted_while_it_is_attached_is_not_promoted_again(driver: Driver) {
    let machine = Machine::new();
    let (_daemon, attaching) = attaching(&machine, driver).await;
    let mirror = machine.mirror.clone();
    mirror.change(|mirror| mirror.status.role = Role::Secondary);
    machine.release_helper();
    let refused = attaching.await.expect("ended").expect_err("demoted");
    assert!(
        refused.what.contains("demoted meanwhile"),
        "{}",
        refused.what
    );
    assert_eq!(mirror.change(|mirror| mirror.promotions), 1);
    assert!(machine.record().is_none());
    assert!(!machine.is_set_up(id(driver, 1)));
}

/// Its role and its term are the old ones until the demotion has ended.
async fn what_is_being_demoted_is_not_attached_and_the_other_way_round(driver: Driver) {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    let mirror = machine.mirror.clone();
    mirror.change(|mirror| mirror.status.role = Role::Primary);
    let [first, second] = [(); 2].map(|()| daemon.demotion("pg").expect("not attached"));
    for demotion in [Some(first), Some(second), None] {
        let attached = daemon.attach("pg", any(driver), None).await;
        match demotion {
            Some(demotion) => {
                let refused = attached.expect_err("it is being demoted").what;
                assert!(refused.contains("demoted"), "{refused}");
                drop(demotion);
            }
            None => assert!(!attached.expect("attached").already),
        }
    }
    let refused = daemon.demotion("pg").expect_err("it is attached");
    assert!(refused.what.contains("it is attached"), "{}", refused.what);
    daemon.detach("pg", false).await.expect("detached");
    drop(daemon.demotion("pg").expect("nothing is in its way"));

    let machine = Machine::new();
    let (daemon, attaching) = attaching(&machine, driver).await;
    let refused = daemon.demotion("pg").expect_err("it is being attached");
    assert!(refused.what.contains("being attached"), "{}", refused.what);
    machine.release_helper();
    attaching.await.expect("ended").expect("attached");
    // A stop does not wait for demotions, nor they for it.
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    let _slow = daemon.demotion("pg").expect("not attached");
    daemon.stop().await;
    let _another = daemon.demotion("pg").expect("not attached");
}

async fn a_stop_does_not_wait_for_a_promotion_that_waits_for_an_arbiter(driver: Driver) {
    let machine = Machine::new();
    machine.mirror.change(|mirror| mirror.waits = true);
    let daemon = machine.daemon().await;
    let attaching = tokio::spawn({
        let daemon = daemon.clone();
        async move { daemon.attach("pg", any(driver), None).await }
    });
    let mirror = machine.mirror.clone();
    until("an attempt", || mirror.change(|m| m.promotions) > 0).await;
    daemon.stop().await;
    let refused = attaching.await.expect("ended").expect_err("refused");
    assert!(refused.what.contains("stops"), "{}", refused.what);
    assert!(machine.record().is_none());
    assert!(!(0..4).any(|index| machine.is_set_up(id(driver, index))));
}

async fn one_that_is_mounted_is_detached_by_force_alone(driver: Driver) {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    let attached = daemon.attach("pg", exactly(driver, 1), None).await;
    attached.expect("attached");
    let mounts = format!("{} /srv ext4 rw 0 0\n", id(driver, 1));
    fs::write(machine.path().join("proc/mounts"), mounts).expect("written");
    let refused = daemon.detach("pg", false).await.expect_err("in use");
    assert!(refused.what.contains("is in use"), "{}", refused.what);
    assert!(refused.facts[0].contains("is mounted on /srv (ext4)"));
    assert!(machine.is_set_up(id(driver, 1)) && machine.record().is_some());
    assert_eq!(shown(&daemon), Some(DeviceState::Attached));
    daemon.detach("pg", true).await.expect("detached");
    assert!(!machine.is_set_up(id(driver, 1)) && machine.record().is_none());
}

#[tokio::test]
async fn a_session_that_ends_is_followed_by_another_on_the_same_device() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", nbd(0), None).await.expect("attached");
    for round in 1..=3 {
        // The kernel has its end of the socket before the mirror has the other.
        let served = || machine.mirror.change(|mirror| mirror.sessions) == round;
        until("a session to cut", served).await;
        machine.mirror.cut_session();
        until("another socket", || machine.served_again() == round).await;
    }
    until("attached", || shown(&daemon) == Some(DeviceState::Attached)).await;
}

async fn another_program_that_takes_it_down_ends_it(driver: Driver) {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon
        .attach("pg", exactly(driver, 0), None)
        .await
        .expect("attached");
    machine.taken_down(id(driver, 0));
    until("it is forgotten", || shown(&daemon).is_none()).await;
    assert!(machine.record().is_none());
}

async fn a_dead_primary_takes_its_device_back_and_a_stranger_to_its_data_does_not(driver: Driver) {
    let machine = Machine::new();
    machine.left_behind(&Record::new(UUID, id(driver, 3), 1));
    // Neither was it Primary when it died, nor did it stop at this generation.
    let daemon = machine.daemon().await;
    until("it is stale", || shown(&daemon) == Some(DeviceState::Stale)).await;
    let refused = daemon
        .attach("pg", any(driver), None)
        .await
        .expect_err("stale");
    assert!(refused.next.contains("umount"), "{}", refused.next);
    assert_eq!(
        (machine.served_again(), machine.is_set_up(id(driver, 3))),
        (0, true)
    );
    daemon.stop().await;

    let machine = Machine::new();
    machine.left_behind(&Record::new(UUID, id(driver, 3), 1));
    machine
        .mirror
        .change(|mirror| mirror.status.was_primary = true);
    let daemon = machine.daemon().await;
    until("attached", || shown(&daemon) == Some(DeviceState::Attached)).await;
    assert_eq!(machine.served_again(), 1);
}

/// However soon this node is Primary again: between, its copy was the other's.
async fn a_device_whose_copy_was_overwritten_is_not_served(driver: Driver) {
    for before_resume in [true, false] {
        let machine = Machine::new();
        machine.left_behind(&Record::new(UUID, id(driver, 3), 1));
        machine.mirror.change(|mirror| {
            mirror.status.was_primary = true;
            mirror.promotes = Err("this copy is being resynchronised");
        });
        let daemon = machine.daemon_before_resume();
        if before_resume {
            // It is over before anybody asks: the events alone tell of it.
            machine.mirror.is_overwritten();
            machine.mirror.change(|mirror| mirror.promotes = Ok(()));
        }
        daemon.resume("pg").await;
        if !before_resume {
            let mirror = machine.mirror.clone();
            until("an attempt", || mirror.change(|m| m.promotions) > 0).await;
            machine.mirror.is_overwritten();
            machine.mirror.change(|mirror| mirror.promotes = Ok(()));
        }
        until("it is stale", || shown(&daemon) == Some(DeviceState::Stale)).await;
        assert_eq!(machine.served_again(), 0);
        let why = machine.record().expect("remembered").stale;
        assert!(why.expect("why").contains("overwritten"));
        daemon.stop().await;
        machine.process_ends();
        // The next daemon knows as well.
        let next = machine.daemon().await;
        until("still stale", || shown(&next) == Some(DeviceState::Stale)).await;
        assert_eq!(machine.served_again(), 0);
    }
}

/// More happens at once than is kept for who listens: the state tells that it is not the copy that was left.
async fn one_whose_moves_were_missed_is_not_served(driver: Driver) {
    let machine = Machine::new();
    machine.left_behind(&Record::new(UUID, id(driver, 3), 1));
    let mirror = &machine.mirror;
    mirror.change(|mirror| {
        mirror.status.was_primary = true;
        mirror.promotes = Err("this copy is being resynchronised");
    });
    let daemon = machine.daemon().await;
    until("an attempt", || mirror.change(|m| m.promotions) > 0).await;
    mirror.is_overwritten();
    for _ in 0..100 {
        mirror.happens(Notice::Connection {
            from: Connection::Connecting,
            to: Connection::Connected,
            cause: String::new(),
        });
    }
    mirror.change(|mirror| {
        mirror.status.was_primary = false;
        mirror.promotes = Ok(());
    });
    until("it is stale", || shown(&daemon) == Some(DeviceState::Stale)).await;
    assert_eq!(machine.served_again(), 0);
}

/// No request came that could have been refused: the role alone tells of it.
async fn one_that_nobody_used_while_its_mirror_moved_is_stale(driver: Driver) {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    let attached = daemon.attach("pg", exactly(driver, 3), None).await;
    attached.expect("attached");
    let mirror = &machine.mirror;
    mirror.is_primary(false);
    mirror.is_overwritten();
    mirror.is_primary(true);
    until("it is stale", || shown(&daemon) == Some(DeviceState::Stale)).await;
    mirror.asks();
    assert_eq!(mirror.change(|mirror| mirror.answered), 0);
    let why = machine.record().expect("remembered").stale;
    assert!(why.expect("why").contains("overwritten"));
    daemon.stop().await;
    machine.process_ends();
    let next = machine.daemon().await;
    until("still stale", || shown(&next) == Some(DeviceState::Stale)).await;
    assert_eq!(machine.served_again(), 0);
    // By force it goes, and comes back as another.
    next.detach("pg", true).await.expect("detached");
    next.attach("pg", any(driver), None).await.expect("anew");
    mirror.asks();
    until("an answer", || mirror.change(|mirror| mirror.answered) == 1).await;
}

async fn a_stop_just_after_the_mirror_moved_leaves_a_stale_device(driver: Driver) {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    let attached = daemon.attach("pg", exactly(driver, 3), None).await;
    attached.expect("attached");
    let mirror = &machine.mirror;
    mirror.is_primary(false);
    mirror.is_overwritten();
    mirror.change(|mirror| {
        mirror.status.generation = Some(Generation {
            counter: 4,
            tag: 10,
        })
    });
    mirror.is_primary(true);
    daemon.stop().await;
    let record = machine.record().expect("remembered");
    assert!(record.stale.is_some(), "{record:?}");
    assert_eq!(record.stopped_at, None);
}

async fn a_primary_that_was_none_for_a_moment_goes_on(driver: Driver) {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    let attached = daemon.attach("pg", exactly(driver, 3), None).await;
    attached.expect("attached");
    let mirror = &machine.mirror;
    for round in 1..=2 {
        mirror.is_primary(false);
        mirror.is_primary(true);
        if driver == Driver::Nbd {
            let sessions = || mirror.change(|mirror| mirror.sessions) == round;
            until("a session", sessions).await;
        }
        // Held, and answered by a session that was looked at.
        mirror.asks();
        if driver == Driver::Nbd {
            let sessions = || mirror.change(|mirror| mirror.sessions) == round + 1;
            until("another session", sessions).await;
            // The kernel sends it again.
            mirror.asks();
        }
        until("an answer", || {
            mirror.change(|mirror| mirror.answered) == round
        })
        .await;
        until("attached", || shown(&daemon) == Some(DeviceState::Attached)).await;
    }
    assert!(machine.record().expect("remembered").stale.is_none());
}

/// Both nodes are Primary, by force: what the kernel holds is what this one holds, whatever the other does.
async fn a_primary_that_stays_one_beside_another_keeps_its_device(driver: Driver) {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    let attached = daemon.attach("pg", exactly(driver, 3), None).await;
    attached.expect("attached");
    let mirror = &machine.mirror;
    mirror.happens(Notice::Peer {
        role: Role::Primary,
        disk: DiskState::UpToDate,
    });
    mirror.asks();
    until("an answer", || mirror.change(|mirror| mirror.answered) == 1).await;
    assert_eq!(shown(&daemon), Some(DeviceState::Attached));
    if driver == Driver::Nbd {
        mirror.cut_session();
        until("another socket", || machine.served_again() == 1).await;
    }
    daemon.stop().await;
    let record = machine.record().expect("remembered");
    assert_eq!((record.stale, record.stopped_at), (None, Some(9)));
}

async fn after_a_reboot_it_is_the_same_device_once_the_copy_is_caught_up(driver: Driver) {
    let machine = Machine::new();
    machine
        .records()
        .write("pg", &Record::new(UUID, id(driver, 3), 1))
        .expect("written");
    machine.mirror.change(|mirror| {
        mirror.promotes = Err("this copy is being resynchronised");
        mirror.status.replication = Replication::SyncTarget;
    });
    let daemon = machine.daemon_before_resume();
    machine.mirror.is_overwritten();
    daemon.resume("pg").await;
    let mirror = machine.mirror.clone();
    until("an attempt", || mirror.change(|m| m.promotions) > 0).await;
    assert_eq!(shown(&daemon), Some(DeviceState::Waiting));
    machine.mirror.change(|mirror| {
        mirror.promotes = Ok(());
        mirror.status.replication = Replication::Established;
    });
    machine.mirror.happens(Notice::Replication {
        from: Replication::SyncTarget,
        to: Replication::Established,
    });
    until("attached", || shown(&daemon) == Some(DeviceState::Attached)).await;
    assert!(machine.is_set_up(id(driver, 3)));
    assert_eq!(machine.record().expect("remembered").device, 3);
}

/// No child can be made, no descriptor is left: that lasts a moment, and says nothing of what the kernel holds.
async fn after_a_reboot_a_device_whose_owner_can_not_be_told_is_attached_once_it_can(
    driver: Driver,
) {
    let machine = Machine::new();
    machine
        .records()
        .write("pg", &Record::new(UUID, id(driver, 3), 1))
        .expect("written");
    let mirror = machine.mirror.clone();
    mirror.change(|mirror| {
        mirror.promotes = Err("this copy is being resynchronised");
        mirror.status.replication = Replication::SyncTarget;
    });
    let daemon = machine.daemon().await;
    until("an attempt", || mirror.change(|m| m.promotions) > 0).await;
    let sysfs = machine.path().join("sys");
    let unreadable = Unreadable::from_now(&sysfs, 3);
    machine.ublk(|ublk| ublk.refuses.insert("list", fault(FaultKind::Failed)));
    mirror.is_overwritten();
    let why = || daemon.report("pg").and_then(|report| report.why);
    until("it is looked at", || {
        why().is_none_or(|why| why.contains("not looked at"))
            || machine.record().is_none()
            || shown(&daemon) == Some(DeviceState::Stale)
    })
    .await;
    assert_eq!(shown(&daemon), Some(DeviceState::Waiting));
    unreadable.no_more();
    machine.ublk(|ublk| ublk.refuses.remove("list"));
    mirror.change(|mirror| {
        mirror.promotes = Ok(());
        mirror.status.replication = Replication::Established;
    });
    mirror.happens(Notice::Replication {
        from: Replication::SyncTarget,
        to: Replication::Established,
    });
    until("attached", || shown(&daemon) == Some(DeviceState::Attached)).await;
    assert!(machine.record().expect("remembered").stale.is_none());
}

async fn after_a_takeover_it_does_not_come_back_by_itself(driver: Driver) {
    let machine = Machine::new();
    machine
        .records()
        .write("pg", &Record::new(UUID, id(driver, 3), 1))
        .expect("written");
    machine.mirror.change(|mirror| {
        mirror.promotes = Err("the peer is Primary");
        mirror.status.peer_role = Some(Role::Primary);
    });
    let daemon = machine.daemon().await;
    until("it is forgotten", || shown(&daemon).is_none()).await;
    assert!(machine.record().is_none() && !machine.is_set_up(id(driver, 3)));
}

async fn a_daemon_that_begins_looks_for_the_peer_before_it_goes_on_without(driver: Driver) {
    let machine = Machine::new();
    machine.left_behind(&Record::new(UUID, id(driver, 3), 1));
    machine.mirror.change(|mirror| {
        mirror.status.was_primary = true;
        mirror.status.connection = Connection::Connecting;
    });
    let daemon = machine.daemon().await;
    until("a word", || {
        daemon
            .report("pg")
            .and_then(|report| report.why)
            .is_some_and(|why| why.contains("looked for"))
    })
    .await;
    assert_eq!(machine.mirror.change(|mirror| mirror.promotions), 0);
    machine
        .mirror
        .change(|mirror| mirror.status.connection = Connection::Connected);
    machine.mirror.happens(Notice::Connection {
        from: Connection::Connecting,
        to: Connection::Connected,
        cause: String::new(),
    });
    until("attached", || shown(&daemon) == Some(DeviceState::Attached)).await;
}
