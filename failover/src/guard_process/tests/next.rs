//! A guard that takes a dead one's place: what it watches, and what it finds.

use super::*;

#[tokio::test]
async fn a_guard_that_has_died_is_replaced_and_knows_what_to_watch() {
    let mut scene = Scene::new();
    let (guards, mut lost) = scene.guards();
    guards.arm(&watched(50, LONG)).await;
    scene.mirrors.set(session(LONG));
    scene.kill_guard().await;
    // While there is none the right is refused.
    scene.mirrors.set(Standing::Refused);
    scene.start_guard();
    scene.does(&["freeze", "drop", "thaw"]).await;
    assert_eq!(lost.recv().await.as_deref(), Some("g"));
}

#[tokio::test]
async fn a_group_that_was_given_up_before_it_was_armed_is_not_watched_by_the_next_guard() {
    let mut scene = Scene::new();
    let (guards, _lost) = scene.guards();
    // Both are on their way before the guard answers either.
    let armed = guards.begin_arm(&leased("g", clock::now().after(LONG)), false);
    guards.begin_disarm("g");
    assert_eq!(armed.await, Armed::Watching);
    scene.does(&["thaw", "rest"]).await;
    scene.kill_guard().await;
    scene.start_guard();
    // Alone, this one's end is the end of all that it watches.
    let other = leased("h", clock::now().after(LONG));
    assert_eq!(guards.arm(&other).await, Armed::Watching);
    guards.disarm("h").await;
    scene.does(&["thaw", "rest"]).await;
}

#[tokio::test]
async fn the_next_guard_knows_an_end_that_was_told_before_the_first_one_answered() {
    let mut scene = Scene::new();
    let (guards, _lost) = scene.guards();
    let first = clock::now().after(2000);
    let armed = guards.begin_arm(&leased("g", first), false);
    guards.extend("g", first.after(LONG));
    assert_eq!(armed.await, Armed::Watching);
    scene.kill_guard().await;
    while clock::now() < first {
        tokio::time::sleep(Duration::from_millis(first.since(clock::now()))).await;
    }
    scene.start_guard();
    guards.arm(&leased("h", clock::now().after(LONG))).await;
    guards.disarm("h").await;
    // Its lease runs on: nothing is frozen.
    scene.does(&["thaw"]).await;
    guards.disarm("g").await;
    scene.does(&["thaw", "rest"]).await;
}

#[tokio::test]
async fn a_group_that_a_dead_guard_has_frozen_goes_on_by_a_real_word_alone() {
    for (word, done) in [
        (Some(session(LONG)), &["thaw"][..]),
        (Some(Standing::Refused), &["drop", "thaw"]),
        // Nothing is heard for as long as the other node waits.
        (None, &["drop", "thaw"]),
    ] {
        let mut scene = Scene::new();
        let (guards, _lost) = scene.guards();
        let margin = if word.is_some() { LONG } else { 200 };
        guards.arm(&watched(margin, LONG)).await;
        scene.mirrors.set(session(LONG));
        scene.mirrors.set(Standing::Sought);
        scene.does(&["freeze"]).await;
        scene.kill_guard().await;
        scene.start_guard();
        guards.arm(&leased("h", clock::now().after(LONG))).await;
        if let Some(word) = word {
            scene.mirrors.set(word);
        }
        scene.does(done).await;
    }
}
