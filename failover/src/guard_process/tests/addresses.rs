//! Floating addresses that do not go at once.

use super::*;

#[tokio::test]
async fn a_group_whose_address_stays_is_thawed_when_it_is_gone_and_not_before() {
    let mut scene = Scene::new();
    let (guards, mut lost) = scene.guards();
    *scene.done.removals.lock().unwrap() = vec![Removal::Fails, Removal::Fails];
    guards.arm(&watched(LONG, LONG)).await;
    scene.mirrors.set(session(LONG));
    scene.mirrors.set(Standing::Refused);
    scene.does(&["freeze", "drop", "drop"]).await;
    assert!(lost.try_recv().is_err(), "it is not to stop, frozen");
    scene.does(&["drop", "thaw"]).await;
    assert_eq!(lost.recv().await.as_deref(), Some("g"));
    guards.disarm("g").await;
    scene.does(&["thaw", "rest"]).await;
    // And one that never goes resets the node.
    scene.done.removals.lock().unwrap().push(Removal::Hangs);
    guards.arm(&watched(LONG, 100)).await;
    scene.mirrors.set(session(LONG));
    scene.mirrors.set(Standing::Refused);
    scene.does(&["freeze", "drop", "reset"]).await;
}

#[tokio::test]
async fn an_address_that_can_t_be_removed_holds_up_no_other_group() {
    let mut scene = Scene::new();
    let (guards, _lost) = scene.guards();
    scene.done.removals.lock().unwrap().push(Removal::Hangs);
    guards.arm(&watched(LONG, LONG)).await;
    scene.mirrors.set(session(LONG));
    scene.mirrors.set(Standing::Refused);
    scene.does(&["freeze", "drop"]).await;
    guards.arm(&leased("h", clock::now().after(50))).await;
    scene.does(&["freeze"]).await;
}
