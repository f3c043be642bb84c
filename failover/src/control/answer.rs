//! What is answered, for both nodes or for this one.
//!
//! [`answer`] is for people's commands, [`answer_peer`] for the manager of the other node. What needs
//! both nodes is brought together here, by way of [`Desk::forward`]; what a peer asks is answered for
//! this node alone, so that no question comes back.

use std::time::Duration;

use tokio::time::timeout;
use tracing::info;

use super::desk::{Desk, Unreached};
use super::message::{Answer, Ask, Order, PROTOCOL, Reach, Refused};
use super::status::{ClusterReport, NodeState, NodeView};
use super::{adopt, merge::merge, order};

/// The other node's word is waited for so long; then the state is told without it.
const VIEW_PATIENCE: Duration = Duration::from_millis(1500);
/// And for so long with the end of both: a manager that has ended serves its clients no longer than five seconds.
const END_PATIENCE: Duration = Duration::from_secs(4);

/// Answers what has one answer, for both nodes.
pub async fn answer<D: Desk>(desk: &D, ask: Ask) -> Answer {
    match ask {
        Ask::Status => Answer::Cluster(Box::new(status(desk).await)),
        Ask::Order { node, order } => order_on(desk, node, order).await,
        Ask::Alerts {
            filter,
            reach: Reach::Cluster,
        } => {
            let (mine, theirs) = tokio::join!(
                desk.alerts(filter.since_ms),
                desk.forward(Ask::Alerts {
                    filter: filter.clone(),
                    reach: Reach::Node,
                })
            );
            let mut alerts = mine.alerts;
            let theirs = match theirs {
                Ok(Answer::Alerts {
                    alerts: theirs,
                    missing,
                }) => {
                    alerts.extend(theirs);
                    missing
                }
                Ok(other) => Some(unexpected(desk, &other)),
                Err(unreached) => Some(unreached.why),
            };
            let mine = (mine.missing).map(|why| unread(desk, &why));
            let missing: Vec<String> = mine.into_iter().chain(theirs).collect();
            Answer::Alerts {
                alerts: filter.of(alerts),
                missing: (!missing.is_empty()).then(|| missing.join("; ")),
            }
        }
        Ask::Note {
            text,
            id,
            severity,
            reach,
        } => {
            desk.note(text.clone(), id, severity).await;
            if reach == Reach::Node {
                return Answer::Done;
            }
            let ask = Ask::Note {
                text,
                id,
                severity,
                reach: Reach::Node,
            };
            match done_there(desk, ask).await {
                Ok(()) => Answer::Done,
                Err(unreached) => done_here(desk, unreached.why),
            }
        }
        Ask::Push {
            text,
            force,
            dry_run,
        } => match adopt::push(desk, text, force, dry_run).await {
            Ok(pushed) => Answer::Pushed(pushed),
            Err(refused) => Answer::Refused(refused),
        },
        Ask::Logs { node: Some(node) } => match order::node(&desk.cluster(), &node) {
            Err(refused) => Answer::Refused(refused),
            Ok(at) if at == desk.me() => answer_peer(desk, Ask::Logs { node: None }).await,
            Ok(_) => match desk.forward(Ask::Logs { node: None }).await {
                Ok(answer @ Answer::Logs { .. }) => answer,
                Ok(other) => refused_by_other(unexpected(desk, &other)),
                Err(unreached) => refused_by_other(unreached.why),
            },
        },
        ask => answer_peer(desk, ask).await,
    }
}

/// Answers what has one answer, for this node alone: what the manager of the other node may ask.
pub async fn answer_peer<D: Desk>(desk: &D, ask: Ask) -> Answer {
    match ask {
        Ask::View => Answer::Node(Box::new(desk.view().await)),
        Ask::Order { node: None, order } => give(desk, &order).await,
        Ask::Alerts { filter, .. } => {
            let kept = desk.alerts(filter.since_ms).await;
            Answer::Alerts {
                alerts: filter.of(kept.alerts),
                missing: kept.missing.map(|why| unread(desk, &why)),
            }
        }
        Ask::Note {
            text, id, severity, ..
        } => {
            desk.note(text, id, severity).await;
            Answer::Done
        }
        Ask::Configuration => Answer::Configuration {
            text: desk.configuration(),
            revision: desk.cluster().revision,
        },
        Ask::Adopt {
            text,
            replaces,
            force,
            dry_run,
        } => match adopt::adopt(desk, text, replaces, force, dry_run).await {
            Ok(()) => Answer::Done,
            Err(refused) => Answer::Refused(refused),
        },
        Ask::Logs { node: None } => Answer::Logs {
            files: desk.logs().await,
        },
        ask => not_understood(format!(
            "this is not for the manager of another node to ask: {ask:?}"
        )),
    }
}

fn unread<D: Desk>(desk: &D, why: &str) -> String {
    let node = &desk.cluster().nodes[desk.me()];
    format!("node {node} can't read all of its own: {why}")
}

pub(super) fn other<D: Desk>(desk: &D) -> String {
    desk.cluster().nodes[1 - desk.me()].clone()
}

pub(super) fn unexpected<D: Desk>(desk: &D, answer: &Answer) -> String {
    match answer {
        Answer::Refused(refused) => refused.words(),
        Answer::NotUnderstood { why, .. } => {
            format!("node {} does not understand: {why}", other(desk))
        }
        answer => format!("node {} answers another question: {answer:?}", other(desk)),
    }
}

fn refused_by_other(why: String) -> Answer {
    let mut refused = Refused::of_words(&why);
    if refused.next.is_empty() {
        "see `kagami cluster status`, or ask on that node itself".clone_into(&mut refused.next);
    }
    Answer::Refused(refused)
}

/// What is known of an order that the other node has not answered.
fn not_answered<D: Desk>(desk: &D, unreached: Unreached) -> Answer {
    if !unreached.asked {
        return refused_by_other(unreached.why);
    }
    let other = other(desk);
    let what = format!("whether node {other} carries it out is not known");
    let mut refused = Refused::new(
        what,
        format!("`kagami cluster status` shows what is under way, also when it is asked on node {other}; give it again where nothing is"),
    )
    .fact(format!("it was sent there: {}", unreached.why))
    .fact("an order counts once the manager that gets it has written it to its disk");
    refused.unknown = true;
    Answer::Refused(refused)
}

/// What the other node says of itself; or why it says nothing.
pub(super) async fn their_view<D: Desk>(desk: &D) -> Result<NodeView, String> {
    match timeout(VIEW_PATIENCE, desk.forward(Ask::View)).await {
        Ok(Ok(Answer::Node(view))) => Ok(*view),
        Ok(Ok(answer)) => Err(unexpected(desk, &answer)),
        Ok(Err(unreached)) => Err(unreached.why),
        Err(_) => Err(format!(
            "node {} does not answer within {} ms",
            other(desk),
            VIEW_PATIENCE.as_millis()
        )),
    }
}

pub(super) async fn status<D: Desk>(desk: &D) -> ClusterReport {
    let (mine, theirs) = tokio::join!(desk.view(), their_view(desk));
    let (cluster, time) = (desk.cluster(), desk.time_ms());
    merge(&cluster, desk.me(), &mine, theirs.ok().as_ref(), time)
}

/// Hands over what the other node is to do, too.
///
/// Errors: it has not got it, does not do it, or does not say.
async fn done_there<D: Desk>(desk: &D, ask: Ask) -> Result<(), Unreached> {
    match desk.forward(ask).await? {
        Answer::Done => Ok(()),
        answer => Err(Unreached {
            why: unexpected(desk, &answer),
            asked: false,
        }),
    }
}

fn done_here<D: Desk>(desk: &D, why: String) -> Answer {
    let without = other(desk);
    Answer::DoneHere { without, why }
}

/// The end of both managers. The one that is asked tells the other by its heartbeats, and by the channel at once, since
/// heartbeats may be what is cut: whoever is not told takes over what stops here.
async fn end_cluster<D: Desk>(desk: &D, order: Order) -> Answer {
    let ask = Ask::Order {
        node: None,
        order: order.clone(),
    };
    // A manager whose heartbeats are heard ends only once they have told the other one.
    let heard = matches!(
        desk.view().await.other,
        NodeState::Online | NodeState::Caution
    );
    let here = give(desk, &order).await;
    if here != Answer::Done {
        return here;
    }
    match timeout(END_PATIENCE, done_there(desk, ask)).await {
        Ok(Err(unreached)) if !heard => done_here(desk, unreached.why),
        Err(_) if !heard => {
            let patience = END_PATIENCE.as_secs();
            let why = format!("node {} does not answer within {patience} s", other(desk));
            done_here(desk, why)
        }
        _ => here,
    }
}

/// An order to a node: this one, or the other one's own manager.
async fn order_on<D: Desk>(desk: &D, node: Option<String>, order: Order) -> Answer {
    let at = match node.map(|node| order::node(&desk.cluster(), &node)) {
        None => desk.me(),
        Some(Ok(at)) => at,
        Some(Err(refused)) => return Answer::Refused(refused),
    };
    if at == desk.me() {
        return match order {
            Order::EndCluster { .. } => end_cluster(desk, order).await,
            order => give(desk, &order).await,
        };
    }
    if let Order::EndCluster { .. } = order {
        let ask = Ask::Order {
            node: None,
            order: order.clone(),
        };
        // Its heartbeats may not come here, either.
        return match done_there(desk, ask).await {
            Ok(()) => give(desk, &order).await,
            Err(unreached) => not_answered(desk, unreached),
        };
    }
    match desk.forward(Ask::Order { node: None, order }).await {
        Ok(answer @ (Answer::Done | Answer::Refused(_))) => answer,
        Ok(answer) => refused_by_other(unexpected(desk, &answer)),
        Err(unreached) => not_answered(desk, unreached),
    }
}

async fn give<D: Desk>(desk: &D, order: &Order) -> Answer {
    let cluster = desk.cluster();
    let view = desk.view().await;
    let report = merge(&cluster, desk.me(), &view, None, desk.time_ms());
    let active = |group: usize| {
        let current = report.groups.get(group)?.current.as_ref()?;
        cluster.nodes.iter().position(|node| node == current)
    };
    match order::command(&cluster, order, active) {
        Err(refused) => Answer::Refused(refused),
        Ok(command) => {
            info!("an operator's order: {order:?}");
            match desk.command(command).await {
                Ok(()) => Answer::Done,
                Err(refused) => Answer::Refused(refused),
            }
        }
    }
}

pub(super) fn not_understood(why: String) -> Answer {
    Answer::NotUnderstood {
        why,
        protocol: PROTOCOL,
    }
}
