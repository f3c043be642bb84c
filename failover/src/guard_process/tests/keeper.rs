//! What a keeper does when the right is lost, when the daemon is gone, and for a group that an earlier manager has
//! left active.

use super::*;

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
