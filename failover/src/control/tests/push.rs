//! A new configuration: which one follows, what it may drop, and how it comes to both nodes.

use super::*;

#[tokio::test]
async fn a_new_configuration_comes_to_both_nodes() {
    let [alpha, beta] = Fake::pair();
    let new = TEXT
        .replace("revision = 7", "revision = 8")
        .replace("10.0.0.254", "10.0.0.253");
    let Answer::Pushed(pushed) = answer(alpha.as_ref(), push_of(&new, false)).await else {
        panic!("not pushed");
    };
    assert_eq!((pushed.from, pushed.revision), (7, 8));
    assert_eq!(pushed.nodes, ["beta", "alpha"]);
    assert_eq!(
        (alpha.cluster().revision, beta.configuration()),
        (8, new.clone())
    );
    // Once more does no harm: it finds a node that lacked it.
    assert!(matches!(
        answer(beta.as_ref(), push_of(&new, false)).await,
        Answer::Pushed(_)
    ));
}

#[tokio::test]
async fn a_configuration_that_is_not_the_next_one_is_refused() {
    let [alpha, beta] = Fake::pair();
    for (from, to, says) in [
        (
            "revision = 7",
            "revision = 6",
            "it has revision 6, and revision 7 is in force",
        ),
        (
            "10.0.0.254",
            "10.0.0.253",
            "it differs from the one in force, which has revision 7",
        ),
        ("\"shop\"", "\"ship\"", "it is of cluster ship"),
        (
            "nodes = [\"alpha\", \"beta\"]\n[arbiter]",
            "nodes = [\"beta\", \"alpha\"]\n[arbiter]",
            "its nodes are beta and alpha, and not alpha and beta",
        ),
        (
            "kind = \"witness\"",
            "kind = \"wittness\"",
            "the configuration is wrong, nothing was changed",
        ),
    ] {
        let text = TEXT.replace(from, to);
        assert_ne!(text, TEXT);
        let said = refusal(answer(alpha.as_ref(), push_of(&text, true)).await);
        assert!(said.contains(says), "{said}");
        assert!(said.contains("\n  next: "), "{said}");
    }
    // The other node has a newer one.
    let newer = TEXT.replace("revision = 7", "revision = 9");
    beta.adopt(newer.clone(), (*cluster(&newer)).clone())
        .await
        .unwrap();
    let mine = TEXT.replace("revision = 7", "revision = 8");
    let said = refusal(answer(alpha.as_ref(), push_of(&mine, true)).await);
    assert!(
        said.contains("node beta has revision 9, which is newer"),
        "{said}"
    );
    assert_eq!((alpha.cluster().revision, beta.cluster().revision), (7, 9));
}

#[tokio::test]
async fn what_runs_is_dropped_only_by_force() {
    let [alpha, beta] = Fake::pair();
    let next = TEXT.replace("revision = 7", "revision = 8");
    let moved = next.replace("10.0.0.10/24", "10.0.0.11/24");
    let away = next.replace(
        "nodes = [\"alpha\", \"beta\"]\n[group.pg.r",
        "nodes = [\"beta\"]\n[group.pg.r",
    );
    let renamed = next.replace("group.pg", "group.db");
    for (text, says) in [
        (
            &moved,
            "resource pg/address is online on alpha as address 10.0.0.10/24",
        ),
        (
            &away,
            "group pg is online on alpha, where it may not run by it",
        ),
        (
            &renamed,
            "group pg is online on alpha, and is not in it any more",
        ),
    ] {
        let said = refusal(answer(beta.as_ref(), push_of(text, false)).await);
        assert!(said.contains(says), "{said}");
        assert_eq!(alpha.cluster().revision, 7, "nothing was changed");
    }
    let Answer::Pushed(pushed) = answer(beta.as_ref(), push_of(&moved, true)).await else {
        panic!("not pushed");
    };
    assert_eq!(pushed.changes.len(), 1);
    assert_eq!(alpha.cluster().revision, 8);
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_left_behind_only_by_force() {
    let alpha = Fake::new(0);
    let next = TEXT.replace("revision = 7", "revision = 8");
    let said = refusal(answer(alpha.as_ref(), push_of(&next, false)).await);
    assert!(said.contains("node beta can't be given it"), "{said}");
    let Answer::Pushed(pushed) = answer(alpha.as_ref(), push_of(&next, true)).await else {
        panic!("not pushed");
    };
    assert_eq!(pushed.nodes, ["alpha"]);
    assert!(pushed.missing.is_some());
}

#[tokio::test]
async fn a_push_that_one_node_could_not_take_over_can_be_repeated() {
    let [alpha, beta] = Fake::pair();
    let next = TEXT.replace("revision = 7", "revision = 8");
    alpha.refuses.store(true, Ordering::Relaxed);
    let said = refusal(answer(alpha.as_ref(), push_of(&next, false)).await);
    assert!(
        said.contains("node beta has it already: push again"),
        "{said}"
    );
    assert_eq!((alpha.cluster().revision, beta.cluster().revision), (7, 8));
    alpha.refuses.store(false, Ordering::Relaxed);
    assert!(matches!(
        answer(alpha.as_ref(), push_of(&next, false)).await,
        Answer::Pushed(_)
    ));
    assert_eq!(alpha.cluster().revision, 8);
}

#[tokio::test]
async fn an_agent_is_not_stopped_with_other_parameters_than_it_was_started_with() {
    let [alpha, beta] = Fake::pair();
    let exec = "type = \"exec\"\nstart = \"/etc/kagami/pg/start\"";
    let agent = |revision: u64, parameters: &str| {
        let text = TEXT.replace("revision = 7", &format!("revision = {revision}"));
        let agent = format!("type = \"ocf\"\nagent = \"shop:till\"\nparameters = {parameters}");
        let agent = text.replace(exec, &agent);
        assert_ne!(agent, text);
        agent
    };
    let first = agent(8, "{ port = \"81\", secret = \"x\" }");
    for node in [&alpha, &beta] {
        let adopted = node.adopt(first.clone(), (*cluster(&first)).clone());
        adopted.await.unwrap();
    }
    for parameters in [
        "{ port = \"82\", secret = \"x\" }",
        "{ port = \"81\" }",
        "{}",
    ] {
        let said = refusal(answer(alpha.as_ref(), push_of(&agent(9, parameters), false)).await);
        let was = "resource pg/server is online on alpha as agent shop:till with port, secret";
        assert!(said.contains(was), "{parameters}: {said}");
        assert!(
            said.contains("next: stop those groups first, or add --force"),
            "{said}"
        );
    }
    let same = agent(9, "{ secret = \"x\", port = \"81\" }");
    let pushed = answer(alpha.as_ref(), push_of(&same, false)).await;
    assert!(matches!(pushed, Answer::Pushed(_)), "{pushed:?}");
}
