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
