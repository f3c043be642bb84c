//! What a keeper does when the right is asked for, refused and lost, when the daemon is gone, and for a group that an
//! earlier manager has left active.

use super::*;

#[tokio::test]
async fn the_right_is_asked_for_renewed_lost_and_given_up() {
    let mut scene = Scene::new();
    let mut kept = Kept::new(&scene);
    scene.mirrors.of().promoted_to = Some(session(LONG));
    kept.keeper.ask(0, false, false);
    assert_eq!(kept.hears().await, (0, Right::Granted));
    kept.keeper.ask(0, false, false);
    assert_eq!(
        kept.hears().await,
        (0, Right::Granted),
        "it may be said again"
    );
    scene.mirrors.set(Standing::Sought);
    assert_eq!(kept.hears().await, (0, Right::LeaseEnded));
    scene.does(&["freeze"]).await;
    scene.mirrors.set(Standing::Alone);
    assert_eq!(kept.hears().await, (0, Right::Renewed));
    scene.does(&["thaw"]).await;
    // No permission within the margin: the guard says so, once the address is gone.
    scene.mirrors.set(Standing::Sought);
    assert_eq!(kept.hears().await, (0, Right::LeaseEnded));
    scene.does(&["freeze", "drop", "thaw"]).await;
    assert_eq!(kept.hears().await, (0, Right::Lost));
    kept.keeper.ask(0, false, false);
    assert_eq!(
        kept.hears().await,
        (0, Right::Lost),
        "the guard is stopping it"
    );
    kept.keeper.stopped(0);
    scene.does(&["thaw", "rest"]).await;
    kept.keeper.release(0);
    assert_eq!(kept.hears().await, (0, Right::Released));
    let standing = scene.mirrors.of().says["pg"].standing;
    assert_eq!(standing, Standing::Secondary, "it was demoted");
}

#[tokio::test]
async fn who_takes_over_waits_until_the_other_node_has_lost_its_address() {
    let scene = Scene::new();
    let mut kept = Kept::new(&scene);
    let ends = clock::now().after(300);
    scene.mirrors.change(|says| {
        says.connected = false;
        says.peer_lease_ends = ends;
    });
    scene.mirrors.of().promoted_to = Some(Standing::Alone);
    let begun = Instant::now();
    kept.keeper.ask(0, false, false);
    assert_eq!(kept.hears().await, (0, Right::MirrorsOnly));
    assert!(clock::now() < ends.after(MARGIN), "{:?}", begun.elapsed());
    assert_eq!(kept.hears().await, (0, Right::Granted));
    assert!(clock::now() >= ends.after(MARGIN), "{:?}", begun.elapsed());
    // What an earlier manager has left active has no use for half of it.
    kept.keeper.release(0);
    assert_eq!(kept.hears().await, (0, Right::Released));
    let ends = clock::now().after(100);
    scene.mirrors.change(|says| says.peer_lease_ends = ends);
    kept.keeper.ask(0, false, true);
    assert_eq!(kept.hears().await, (0, Right::Granted));
    // The fence script has said that it is down: nothing to wait for.
    kept.keeper.release(0);
    assert_eq!(kept.hears().await, (0, Right::Released));
    let late = clock::now().after(LONG);
    scene.mirrors.change(|says| says.peer_lease_ends = late);
    kept.keeper.ask(0, true, false);
    assert_eq!(kept.hears().await, (0, Right::Granted));
}

#[tokio::test]
async fn what_was_true_before_a_promotion_does_not_refuse_it() {
    let scene = Scene::new();
    // The other node was Primary a moment ago, and that it is no more is heard late.
    scene.mirrors.change(|says| says.peer_is_primary = true);
    let mut kept = Kept::new(&scene);
    let heard = async { while !matches!(kept.inputs.event().await, Event::Ready { .. }) {} };
    timeout(PATIENCE, heard).await.expect("its first word");
    scene.mirrors.of().promoted_to = Some(session(LONG));
    scene.mirrors.of().lagging = true;
    kept.keeper.ask(0, false, false);
    let early = timeout(Duration::from_millis(300), kept.hears()).await;
    assert!(early.is_err(), "{early:?}");
    scene.mirrors.of().lagging = false;
    scene.mirrors.set(session(LONG));
    assert_eq!(kept.hears().await, (0, Right::Granted));
}

/// One that has asked while the other node, which is connected, counts as Primary: nothing is said yet.
async fn waits_for_the_other_node(scene: &Scene) -> Kept {
    scene.mirrors.change(|says| {
        says.connected = true;
        says.peer_is_primary = true;
    });
    scene.mirrors.of().refuses = Some("the peer is Primary".to_owned());
    let mut kept = Kept::new(scene);
    kept.keeper.ask(0, false, false);
    let early = timeout(Duration::from_millis(200), kept.hears()).await;
    assert!(early.is_err(), "{early:?}");
    scene.mirrors.of().refuses = None;
    kept
}

#[tokio::test]
async fn a_mirror_that_the_other_node_has_just_given_up_is_waited_for() {
    let scene = Scene::new();
    // Its manager has said so; its daemon's word is on its way.
    let mut kept = waits_for_the_other_node(&scene).await;
    scene.mirrors.of().promoted_to = Some(session(LONG));
    scene.mirrors.change(|says| says.peer_is_primary = false);
    assert_eq!(kept.hears().await, (0, Right::Granted));
}

#[tokio::test]
async fn a_node_that_the_daemon_has_not_lost_yet_is_waited_for() {
    let scene = Scene::new();
    let mut kept = waits_for_the_other_node(&scene).await;
    scene.mirrors.of().promoted_to = Some(Standing::Alone);
    scene.mirrors.change(|says| says.connected = false);
    assert_eq!(kept.hears().await, (0, Right::Granted));
}

#[tokio::test]
async fn a_refusal_says_why_and_a_group_without_a_mirror_needs_a_lease() {
    let scene = Scene::new();
    let mut kept = Kept::new(&scene);
    scene.mirrors.of().refuses = Some("the peer is Primary".to_owned());
    kept.keeper.ask(0, false, false);
    let refused = kept.hears().await;
    let why = "mirror pg: the peer is Primary".to_owned();
    assert_eq!(refused, (0, Right::Refused(why)));
    kept.keeper.ask(1, false, false);
    let (group, refused) = kept.hears().await;
    assert!(
        group == 1 && matches!(refused, Right::Refused(_)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_daemon_that_was_started_again_is_told_that_this_node_is_primary() {
    let scene = Scene::new();
    let mut kept = Kept::new(&scene);
    scene.mirrors.of().promoted_to = Some(session(LONG));
    kept.keeper.ask(0, false, false);
    assert_eq!(kept.hears().await, (0, Right::Granted));
    scene.mirrors.set(Standing::Secondary);
    let begun = Instant::now();
    while scene.mirrors.of().says["pg"].standing == Standing::Secondary {
        assert!(begun.elapsed() < PATIENCE, "not promoted again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn standing(scene: &Scene) -> Standing {
    scene.mirrors.of().says["pg"].standing
}

impl Kept {
    async fn hears_of_the_copies(&mut self, ready: bool, diskless: bool) {
        let wait = async {
            let mut seen = (None, None);
            while seen != (Some(ready), Some(diskless)) {
                match self.inputs.event().await {
                    Event::Ready { group: 0, ready } => seen.0 = Some(ready),
                    Event::Diskless { group: 0, diskless } => seen.1 = Some(diskless),
                    Event::Right { change, .. } => panic!("{change:?}"),
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("told in time");
    }

    /// Nothing of the right was told until now.
    async fn has_heard_nothing(&mut self) {
        let heard = timeout(Duration::ZERO, self.hears_now()).await;
        assert!(heard.is_err(), "{heard:?}");
    }

    async fn hears_now(&mut self) -> Right {
        loop {
            if let Event::Right { change, .. } = self.inputs.event().await {
                return change;
            }
        }
    }
}

#[tokio::test]
async fn what_was_lost_does_not_stay_primary_once_the_group_has_stopped() {
    let mut scene = Scene::new();
    let mut kept = Kept::new(&scene);
    scene.mirrors.of().promoted_to = Some(session(LONG));
    kept.keeper.ask(0, false, false);
    assert_eq!(kept.hears().await, (0, Right::Granted));
    scene.mirrors.set(Standing::Sought);
    assert_eq!(kept.hears().await, (0, Right::LeaseEnded));
    assert_eq!(kept.hears().await, (0, Right::Lost));
    assert_eq!(standing(&scene), Standing::Sought, "it is stopped first");
    scene.mirrors.of().promoted_to = Some(Standing::Alone);
    kept.keeper.stopped(0);
    // It may be asked for at once: that is taken afterwards.
    kept.keeper.ask(0, false, false);
    scene
        .does(&["freeze", "drop", "thaw", "thaw", "rest"])
        .await;
    assert_eq!(kept.hears().await, (0, Right::Granted));
    assert_eq!(scene.mirrors.of().demoted, 1);
    assert_eq!(standing(&scene), Standing::Alone);
}

#[tokio::test]
async fn permission_that_is_gone_again_before_a_group_starts_is_waited_for() {
    let scene = Scene::new();
    let mut kept = Kept::new(&scene);
    scene.mirrors.of().promoted_to = Some(Standing::Sought);
    kept.keeper.ask(0, false, false);
    let sought = |daemon: &Daemon| daemon.says["pg"].standing == Standing::Sought;
    scene.mirrors.becomes(sought).await;
    scene.mirrors.set(Standing::Alone);
    assert_eq!(kept.hears().await, (0, Right::Granted));
}

#[tokio::test]
async fn a_node_whose_daemon_is_gone_counts_as_one_without_a_disk() {
    let scene = Scene::new();
    let mut kept = Kept::new(&scene);
    scene.mirrors.end();
    kept.hears_of_the_copies(false, true).await;
    // Nothing is Primary here: nobody waits for it, and nothing is to be had.
    kept.keeper.release(0);
    assert_eq!(kept.hears().await, (0, Right::Released));
    kept.keeper.ask(0, false, false);
    assert!(matches!(kept.hears().await, (0, Right::Refused(_))));
    // One that is started again may take back what was attached to it.
    scene.mirrors.begin(Standing::Alone);
    kept.hears_of_the_copies(true, false).await;
    let secondary = |daemon: &Daemon| daemon.says["pg"].standing == Standing::Secondary;
    scene.mirrors.becomes(secondary).await;
}

#[tokio::test]
async fn a_lease_runs_on_without_the_daemon() {
    let mut scene = Scene::new();
    let mut kept = Kept::new(&scene);
    scene.mirrors.of().promoted_to = Some(session(LONG));
    kept.keeper.ask(0, false, false);
    assert_eq!(kept.hears().await, (0, Right::Granted));
    scene.mirrors.end();
    kept.hears_of_the_copies(false, true).await;
    kept.has_heard_nothing().await;
    assert!(scene.deeds.try_recv().is_err());
}

#[tokio::test]
async fn a_group_that_is_active_stays_so_while_the_daemon_is_on_its_way_back() {
    let mut scene = Scene::new();
    scene.mirrors.set(session(LONG));
    let (earlier, _lost) = scene.guards();
    assert_eq!(earlier.arm(&watched(LONG, LONG)).await, Armed::Watching);
    let mut kept = Kept::new(&scene);
    scene.mirrors.end();
    kept.keeper.ask(0, false, true);
    scene.mirrors.becomes(|daemon| daemon.asked >= 3).await;
    kept.has_heard_nothing().await;
    let deed = scene.deeds.try_recv();
    assert!(deed.is_err(), "{deed:?}");
    scene.mirrors.of().promoted_to = Some(session(LONG));
    scene.mirrors.begin(Standing::Secondary);
    assert_eq!(kept.hears().await, (0, Right::Granted));
}

#[tokio::test]
async fn an_active_group_that_is_not_to_be_primary_again_is_stopped_under_guard() {
    let mut scene = Scene::new();
    let mut kept = Kept::new(&scene);
    scene.mirrors.of().refuses = Some("this copy is Outdated".to_owned());
    kept.keeper.ask(0, false, true);
    // The guard died with the manager, and this one has never seen the right.
    scene.does(&["freeze", "drop", "thaw"]).await;
    assert_eq!(kept.hears().await, (0, Right::Lost));
    kept.keeper.stopped(0);
    scene.does(&["thaw", "rest"]).await;
}

#[tokio::test]
async fn an_active_group_whose_promotion_is_refused_again_and_again_is_told_of() {
    let mut scene = Scene::new();
    scene.mirrors.set(session(LONG));
    // What runs here rests on other mirrors, and the guard takes nothing away.
    let (earlier, _lost) = scene.guards();
    assert_eq!(earlier.arm(&watched(LONG, LONG)).await, Armed::Watching);
    let mut kept = Kept::new(&scene);
    scene.mirrors.of().refuses = Some("there is no such mirror".to_owned());
    kept.keeper.ask(0, false, true);
    let alert = timeout(PATIENCE, kept.inputs.alert()).await.expect("told");
    assert_eq!(alert.object, Object::Group("g".to_owned()));
    assert_eq!(alert.cause, "mirror pg: there is no such mirror");
    assert!(scene.mirrors.of().asked > 1, "not at the first refusal");
    // It is asked for still.
    scene.mirrors.of().refuses = None;
    scene.mirrors.of().promoted_to = Some(session(LONG));
    assert_eq!(kept.hears().await, (0, Right::Granted));
    let deed = scene.deeds.try_recv();
    assert!(deed.is_err(), "{deed:?}");
}

#[tokio::test]
async fn a_promotion_that_does_not_show_is_refused() {
    let scene = Scene::new();
    let mut kept = Kept::new(&scene);
    let begun = Instant::now();
    // It is answered, and then the daemon is Secondary all the same.
    kept.keeper.ask(0, false, false);
    let (_, refused) = kept.hears().await;
    assert!(matches!(refused, Right::Refused(_)), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}
