//! The right to run, where its words come in another order than usual.

use super::*;

#[test]
fn permission_after_a_lease_that_ended_before_anything_ran_is_the_right() {
    let mut host = TestHost::new(CLUSTER);
    host.until(300_000);
    assert_eq!(host.asked, [(0, false)], "{:?}", host.alerts);
    host.right(0, Right::LeaseEnded);
    assert!(host.runs.is_empty(), "not without permission");
    host.right(0, Right::Renewed);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}

/// A group with two mirrors: the first one's mount runs a script, the second one is needed by the address.
fn two_mirrors() -> String {
    let second =
        "[group.pg.resource.more]\ntype = \"mirror\"\nmirror = \"more\"\nmount = \"/srv/more\"\n";
    let text = replaced(
        "mount = \"/srv/pg\"\n",
        "mount = \"/srv/pg\"\nbefore-start = \"/etc/shop/tell\"\n",
    );
    text.replacen(
        "[group.pg.resource.address]",
        &format!("{second}[group.pg.resource.address]"),
        1,
    )
    .replacen("depends = [\"data\"]", "depends = [\"data\", \"more\"]", 1)
}

impl TestHost {
    fn works(&self) -> Vec<Work> {
        self.runs.iter().map(|(work, _)| *work).collect()
    }
}

#[test]
fn in_the_margin_mirrors_are_mounted_and_nothing_else_is_begun() {
    let start = |resource| Work::Start { group: 0, resource };
    let mut host = TestHost::new(CLUSTER);
    host.until(300_000);
    host.right(0, Right::MirrorsOnly);
    assert_eq!(host.works(), [start(0)], "{:?}", host.alerts);
    assert_eq!(host.manager.group_status(0), GroupStatus::OnlinePending);
    host.right(0, Right::Granted);
    assert_eq!(host.works(), [start(0), start(1)]);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
    assert_eq!((host.told("group pg: starts"), host.told("online")), (1, 1));

    // An operator's script may do what users notice.
    let mut host = TestHost::new(&two_mirrors());
    host.until(300_000);
    host.right(0, Right::MirrorsOnly);
    assert_eq!(host.works(), [start(1)]);
    host.right(0, Right::Granted);
    assert_eq!(host.works(), [start(1), start(0), start(2)]);
}

#[test]
fn a_group_of_mirrors_alone_is_online_with_the_whole_right() {
    let end = CLUSTER.find("[group.pg.resource.address]").expect("there");
    let mut host = TestHost::new(&CLUSTER[..end]);
    host.until(300_000);
    host.right(0, Right::MirrorsOnly);
    assert_eq!(host.told("online"), 0, "{:?}", host.alerts);
    host.right(0, Right::Granted);
    assert_eq!(host.told("online"), 1);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}

#[test]
fn what_was_mounted_in_the_margin_is_unmounted_where_the_right_does_not_come() {
    let stop = Work::Stop {
        group: 0,
        resource: 0,
    };
    let cannot = || Right::Refused("the mirror is not served".to_owned());
    for change in [cannot(), Right::Lost] {
        let mut host = TestHost::new(CLUSTER);
        host.until(300_000);
        host.right(0, Right::MirrorsOnly);
        host.right(0, change);
        assert_eq!(host.works().last(), Some(&stop), "{:?}", host.alerts);
        let is_down = host.durable.groups[0].resources[0].state == ResourceState::Offline;
        assert!(is_down, "{:?}", host.alerts);
    }
    // Nor does it stay where an operator stops the group meanwhile.
    let mut host = TestHost::new(CLUSTER);
    host.until(300_000);
    host.right(0, Right::MirrorsOnly);
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    assert_eq!(host.works().last(), Some(&stop), "{:?}", host.alerts);
}

#[test]
fn a_mount_that_fails_in_the_margin_is_tried_again_with_the_whole_right() {
    let text = replaced(
        "mount = \"/srv/pg\"\n",
        "mount = \"/srv/pg\"\nretries = 1\n",
    );
    let mut host = TestHost::new(&text);
    host.fails = vec!["Start { group: 0, resource: 0 }"];
    host.until(300_000);
    host.right(0, Right::MirrorsOnly);
    host.until(host.now + 60_000);
    assert_eq!(host.runs.len(), 1, "{:?}", host.alerts);
    host.fails.clear();
    host.right(0, Right::Granted);
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}

#[test]
fn a_manager_that_begins_anew_in_the_margin_begins_nothing_before_the_whole_right() {
    let mut host = TestHost::new(CLUSTER);
    host.until(300_000);
    host.right(0, Right::MirrorsOnly);
    let mut next = TestHost::from(CLUSTER, host.durable, 1);
    next.until(1000);
    next.right(0, Right::MirrorsOnly);
    assert!(next.runs.is_empty(), "{:?}", next.alerts);
    next.right(0, Right::Granted);
    assert_eq!(next.manager.group_status(0), GroupStatus::Online);
}
