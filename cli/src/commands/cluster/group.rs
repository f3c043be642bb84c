//! `kagami group`: an order to a group, and the wait until it is carried out.

use std::time::{Duration, Instant};

use kagami_failover::control::status::{GroupReport, RunState};
use kagami_failover::control::{Answer, Ask, ClusterReport, Order, Refused};
use serde_json::json;

use super::status::ended;
use super::{Context, known, print_json, print_out, unexpected, within};
use crate::args::{GroupVerb, GroupWaitArgs};
use crate::exit::{DONE, Failure, Outcome};

/// What a group shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    /// Online on this node; none: wherever its order says.
    Online(Option<String>),
    /// Offline.
    Offline,
}

/// How far a group is from its goal.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// There: the words.
    Reached(String),
    /// On the way.
    Going,
    /// It will not get there: why.
    Lost(String),
}

/// Orders, and waits.
///
/// # Errors
/// Refused, it came to another end, timed out, interrupted, no failover manager.
pub async fn run(context: &Context, verb: GroupVerb) -> Outcome {
    let (group, wait, order, goal) = match verb {
        GroupVerb::Start {
            group,
            on,
            not_elsewhere,
            wait,
        } => {
            let order = Order::StartGroup {
                group: group.clone(),
                on: on.clone(),
                not_elsewhere,
            };
            (group, wait, order, Goal::Online(on))
        }
        GroupVerb::Stop { group, wait } => {
            let order = Order::StopGroup {
                group: group.clone(),
            };
            (group, wait, order, Goal::Offline)
        }
        GroupVerb::Move { group, to, wait } => {
            let report = context.cluster().await?;
            known_group(&report, &group)?;
            let to = to.or_else(|| elsewhere(&report, &group));
            let order = Order::MoveGroup {
                group: group.clone(),
                to: to.clone(),
            };
            (group, wait, order, Goal::Online(to))
        }
    };
    let (outcome, words) = carry_out(context, &group, order, &goal, &wait).await?;
    if wait.json {
        print_json(&json!({"group": group, "outcome": outcome, "text": words}))?;
    } else {
        print_out(&format!("group {group}: {words}\n"))?;
    }
    DONE
}

/// A group of that name.
///
/// # Errors
/// There is none.
pub fn known_group(report: &ClusterReport, group: &str) -> Result<(), Failure> {
    known(
        "group",
        group,
        report.groups.iter().map(|one| one.name.as_str()),
    )
}

/// The node where the group does not run.
pub fn elsewhere(report: &ClusterReport, group: &str) -> Option<String> {
    let current = report.group(group)?.current.as_ref()?;
    let mut nodes = report.nodes.iter().map(|node| &node.name);
    nodes.find(|node| *node != current).cloned()
}

/// What became of it, in a word and in words.
async fn carry_out(
    context: &Context,
    group: &str,
    order: Order,
    goal: &Goal,
    wait: &GroupWaitArgs,
) -> Result<(&'static str, String), Failure> {
    let begun = Instant::now();
    if let Some(as_wanted) = give(context, group, order, wait.timeout).await? {
        // What runs by an earlier order may be on its way still.
        if !wait.no_wait && matches!(goal, Goal::Online(_)) {
            reach(context, group, goal, begun, wait.timeout).await?;
        }
        let object = format!("group {group}: ");
        let why = as_wanted.what.strip_prefix(&object);
        let why = why.unwrap_or(&as_wanted.what);
        let hint = match goal {
            Goal::Online(None) => bring_here(&context.cluster().await?, group),
            _ => String::new(),
        };
        return Ok(("nothing", format!("nothing to do: {why}{hint}")));
    }
    if wait.no_wait {
        let words = "ordered; `kagami cluster status` shows how it goes";
        return Ok(("started", words.to_owned()));
    }
    let words = reach(context, group, goal, begun, wait.timeout).await?;
    Ok(("done", words))
}

/// How to have it on this node, if it is on the other one and may be here.
fn bring_here(report: &ClusterReport, group: &str) -> String {
    let here = &report.local;
    match report.group(group) {
        Some(at) if at.current.as_ref() != Some(here) && at.nodes.contains(here) => {
            format!("; `kagami group move {group} --to {here}` brings it here")
        }
        _ => String::new(),
    }
}

/// Gives the order; it is recorded when this returns, or there was nothing to do, and why.
async fn give(
    context: &Context,
    group: &str,
    order: Order,
    limit: Duration,
) -> Result<Option<Refused>, Failure> {
    let object = format!("group {group}");
    match context.put(&object, None, order, limit).await? {
        Answer::Done => Ok(None),
        Answer::Refused(refused) if refused.nothing => Ok(Some(refused)),
        other => Err(unexpected(&other)),
    }
}

/// The same where an order that has nothing to do is a refusal, as it is of the commands of CLUSTERPRO.
async fn insist(
    context: &Context,
    group: &str,
    order: Order,
    limit: Duration,
) -> Result<(), Failure> {
    match give(context, group, order, limit).await? {
        None => Ok(()),
        Some(refused) => Err(Failure::refused(refused.words())),
    }
}

/// Orders a start or a move, and waits until the group is online.
///
/// # Errors
/// See [`run`].
pub async fn bring_up(
    context: &Context,
    group: &str,
    order: Order,
    on: Option<String>,
    limit: Duration,
) -> Result<String, Failure> {
    let begun = Instant::now();
    insist(context, group, order, limit).await?;
    reach(context, group, &Goal::Online(on), begun, limit).await
}

/// Orders a stop, and waits until the group is offline.
///
/// # Errors
/// See [`run`].
pub async fn bring_down(
    context: &Context,
    group: &str,
    order: Order,
    limit: Duration,
) -> Result<String, Failure> {
    let begun = Instant::now();
    insist(context, group, order, limit).await?;
    reach(context, group, &Goal::Offline, begun, limit).await
}

async fn reach(
    context: &Context,
    group: &str,
    goal: &Goal,
    begun: Instant,
    limit: Duration,
) -> Result<String, Failure> {
    let look =
        "the failover managers go on with it\n  next: `kagami cluster status` shows how it ends";
    within(
        Some(limit.saturating_sub(begun.elapsed())),
        || {
            format!(
                "group {group}: not done within {}; {look}",
                humantime::format_duration(limit)
            )
        },
        || format!("group {group}: interrupted; {look}"),
        async {
            let mut client = context.manager().await?;
            client.send(Ask::Watch { every_ms: 200 }).await?;
            loop {
                let report = match client.next().await? {
                    Some(Answer::Cluster(report)) => report,
                    Some(other) => return Err(unexpected(&other)),
                    None => return Err(ended()),
                };
                let Some(now) = report.group(group) else {
                    return Err(Failure::refused(format!(
                        "group {group}: it is not in the configuration any more\n  next: `kagami cluster status`"
                    )));
                };
                match way(now, goal) {
                    Way::Reached(words) => return Ok(words),
                    Way::Going => {}
                    Way::Lost(why) => {
                        return Err(Failure::system(format!(
                            "group {group}: {why}\n  next: `kagami alerts {group}` tells what happened"
                        )));
                    }
                }
            }
        },
    )
    .await
}

/// The resources that could not be activated or deactivated.
fn failed(group: &GroupReport) -> String {
    let names: Vec<&str> = group
        .resources
        .iter()
        .filter(|r| matches!(r.state, RunState::OnlineFailure | RunState::OfflineFailure))
        .map(|r| r.name.as_str())
        .collect();
    if names.is_empty() {
        String::new()
    } else {
        format!(" ({})", names.join(", "))
    }
}

fn way(group: &GroupReport, goal: &Goal) -> Way {
    let at = group.current.as_deref().unwrap_or(&group.owner);
    match goal {
        Goal::Online(on) => {
            let there = on.as_ref().is_none_or(|on| *on == group.owner);
            if !group.wanted {
                Way::Lost("it is to be stopped: somebody, or a failure, has ordered so".to_owned())
            } else if !there {
                Way::Lost(format!(
                    "it could not run there, and is to run on {} now ({})",
                    group.owner, group.state
                ))
            } else if group.current.as_ref() != Some(&group.owner) {
                Way::Going
            } else {
                match group.state {
                    RunState::Online => Way::Reached(format!("online on {at}")),
                    RunState::OnlineFailure => Way::Lost(format!(
                        "it could not be activated on {at}{}",
                        failed(group)
                    )),
                    _ => Way::Going,
                }
            }
        }
        Goal::Offline if group.wanted => Way::Lost(format!(
            "it is to run again, on {}: somebody has ordered so",
            group.owner
        )),
        Goal::Offline => match group.state {
            RunState::Offline => Way::Reached("offline".to_owned()),
            RunState::OfflineFailure => Way::Lost(format!(
                "it could not be deactivated on {at}{}",
                failed(group)
            )),
            _ => Way::Going,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(state: RunState, current: Option<&str>, owner: &str, wanted: bool) -> GroupReport {
        GroupReport {
            state,
            current: current.map(str::to_owned),
            owner: owner.to_owned(),
            wanted,
            ..GroupReport::default()
        }
    }

    #[test]
    fn a_move_has_arrived_where_it_was_sent_and_nowhere_else() {
        use RunState as R;
        let goal = Goal::Online(Some("beta".to_owned()));
        for (state, current, owner, wanted, reached) in [
            // Just ordered: it is still where it was.
            (R::Online, Some("alpha"), "beta", true, None),
            (R::OfflinePending, Some("alpha"), "beta", true, None),
            (R::OnlinePending, None, "beta", true, None),
            (R::OnlinePending, Some("beta"), "beta", true, None),
            (R::Online, Some("beta"), "beta", true, Some(true)),
            (R::OnlineFailure, Some("beta"), "beta", true, Some(false)),
            // It failed there and went back.
            (R::Online, Some("alpha"), "alpha", true, Some(false)),
            (R::OfflinePending, Some("beta"), "beta", false, Some(false)),
        ] {
            let way = way(&group(state, current, owner, wanted), &goal);
            let got = match way {
                Way::Reached(_) => Some(true),
                Way::Going => None,
                Way::Lost(_) => Some(false),
            };
            assert_eq!(got, reached, "{state} {current:?} {owner} {wanted}");
        }
    }

    #[test]
    fn a_stop_is_done_when_nothing_is_active() {
        let stop = |state, wanted| {
            way(
                &group(state, Some("alpha"), "alpha", wanted),
                &Goal::Offline,
            )
        };
        assert_eq!(stop(RunState::OfflinePending, false), Way::Going);
        assert_eq!(
            stop(RunState::Offline, false),
            Way::Reached("offline".to_owned())
        );
        assert!(matches!(
            stop(RunState::OfflineFailure, false),
            Way::Lost(_)
        ));
        assert!(matches!(stop(RunState::Offline, true), Way::Lost(_)));
    }
}
