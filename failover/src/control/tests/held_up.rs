//! What one side knows and the other does not, and what must not wait for either.

use super::*;
use crate::core::durable::EndKind;

#[tokio::test]
async fn what_runs_by_a_newer_configuration_is_dropped_only_by_force() {
    let [alpha, beta] = Fake::pair();
    // Beta has a group that alpha has not heard of, and runs it.
    let newer = TEXT.replace("revision = 7", "revision = 8")
        + "[group.web]\nnodes = [\"alpha\", \"beta\"]\n[group.web.resource.page]\ntype = \"exec\"\nstart = \"/bin/page\"\n";
    beta.adopt(newer.clone(), (*cluster(&newer)).clone())
        .await
        .unwrap();
    {
        let mut view = beta.view.lock().unwrap();
        let web = GroupView {
            state: RunState::Online,
            order: OrderView {
                version: 1,
                by: 1,
                wanted: true,
                owner: 1,
            },
            resources: vec![RunState::Online],
            ..GroupView::default()
        };
        view.groups.push(web);
    }
    let without = TEXT.replace("revision = 7", "revision = 9");
    for dry_run in [true, false] {
        let push = Ask::Push {
            text: without.clone(),
            force: false,
            dry_run,
        };
        let said = refusal(answer(alpha.as_ref(), push).await);
        assert!(
            said.contains("node beta: revision 9 is not taken over: it would drop what runs")
                && said.contains("group web is online on beta, and is not in it any more")
                && said.contains("\n  next: stop those groups first, or add --force"),
            "{said}"
        );
        assert_eq!((alpha.cluster().revision, beta.cluster().revision), (7, 8));
    }
    // With it nothing is dropped, whatever runs on the other node.
    let with = newer.replace("revision = 8", "revision = 9");
    let pushed = answer(alpha.as_ref(), push_of(&with, false)).await;
    assert!(matches!(pushed, Answer::Pushed(_)), "{pushed:?}");
    assert_eq!((alpha.cluster().revision, beta.cluster().revision), (9, 9));
    let forced = without.replace("revision = 9", "revision = 10");
    beta.view.lock().unwrap().revision = 9;
    let pushed = answer(alpha.as_ref(), push_of(&forced, true)).await;
    assert!(matches!(pushed, Answer::Pushed(_)), "{pushed:?}");
    assert_eq!(
        (alpha.cluster().revision, beta.cluster().revision),
        (10, 10)
    );
}

#[tokio::test]
async fn orders_that_nobody_waits_for_any_more_keep_nobody_out() {
    let [alpha, _beta] = Fake::pair();
    alpha.holds.store(true, Ordering::Relaxed);
    let served = served(&alpha);
    let order = Ask::Order {
        node: None,
        order: Order::StopGroup {
            group: "pg".to_owned(),
        },
    };
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = Client::connect(&served.path).await.unwrap();
        client.send(order.clone()).await.unwrap();
        clients.push(client);
    }
    while alpha.commands.lock().unwrap().len() < clients.len() {
        tokio::task::yield_now().await;
    }
    drop(clients);
    let patience = std::time::Duration::from_secs(20);
    let answered = tokio::time::timeout(patience, ask(&served.path, Ask::Status)).await;
    assert!(
        matches!(answered, Ok(Answer::Cluster(_))),
        "their places are free"
    );
}

/// Done on alpha, and beta has not got it.
fn untold() -> Answer {
    Answer::DoneHere {
        without: "beta".to_owned(),
        why: "node beta does not answer: connection refused".to_owned(),
    }
}

fn end() -> Ask {
    end_at(None)
}

fn end_at(node: Option<&str>) -> Ask {
    Ask::Order {
        node: node.map(str::to_owned),
        order: Order::EndCluster {
            kind: EndKind::Manager,
        },
    }
}

#[tokio::test]
async fn the_end_of_the_cluster_comes_to_the_other_node_by_the_channel_too() {
    let [alpha, beta] = Fake::pair();
    let ended = [Command::EndCluster(EndKind::Manager)];
    assert_eq!(answer(alpha.as_ref(), end()).await, Answer::Done);
    assert_eq!(*alpha.commands.lock().unwrap(), ended);
    assert_eq!(
        *beta.commands.lock().unwrap(),
        ended,
        "its heartbeats may be cut"
    );

    // Whichever is asked.
    assert_eq!(
        answer(beta.as_ref(), end_at(Some("alpha"))).await,
        Answer::Done
    );
    for node in [&alpha, &beta] {
        assert_eq!(*node.commands.lock().unwrap(), [ended[0], ended[0]]);
    }

    // Nobody tells it: this node ends, and the answer says that the other one does not.
    alpha.commands.lock().unwrap().clear();
    *alpha.other.lock().unwrap() = None;
    alpha.view.lock().unwrap().other = NodeState::Offline;
    assert_eq!(answer(alpha.as_ref(), end()).await, untold());
    assert_eq!(*alpha.commands.lock().unwrap(), ended);

    // The other one was to be asked: nothing is done.
    alpha.commands.lock().unwrap().clear();
    refusal(answer(alpha.as_ref(), end_at(Some("beta"))).await);
    assert_eq!(*alpha.commands.lock().unwrap(), []);

    // Heartbeats tell it, and this manager does not end before they have.
    alpha.view.lock().unwrap().other = NodeState::Online;
    assert_eq!(answer(alpha.as_ref(), end()).await, Answer::Done);
}

#[tokio::test]
async fn words_that_the_other_node_did_not_get_are_told_here_all_the_same() {
    let alpha = Fake::new(0);
    let note = Ask::Note {
        text: "moving".to_owned(),
        id: None,
        severity: Severity::Warning,
        reach: Reach::Cluster,
    };
    assert_eq!(answer(alpha.as_ref(), note).await, untold());
    assert_eq!(alpha.alerts.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_order_that_the_other_node_may_carry_out_is_not_called_refused() {
    let alpha = Fake::new(0);
    let stop = Ask::Order {
        node: Some("beta".to_owned()),
        order: Order::StopGroup {
            group: "pg".to_owned(),
        },
    };
    for (ask, cut) in [
        (stop.clone(), false),
        (stop, true),
        (end_at(Some("beta")), false),
        (end_at(Some("beta")), true),
    ] {
        // It had got the order when the connection ended, or it could not be connected to.
        alpha.cuts.store(cut, Ordering::Relaxed);
        let Answer::Refused(said) = answer(alpha.as_ref(), ask).await else {
            panic!("nobody has answered");
        };
        assert_eq!(said.unknown, cut, "{said}");
        let words = "whether node beta carries it out is not known";
        assert_eq!(said.what.contains(words), cut, "{said}");
        assert!(said.next.contains("kagami cluster status"), "{said}");
    }
    assert_eq!(*alpha.commands.lock().unwrap(), []);
}
