//! `kagami cluster suspend` and `resume`.

use std::time::Duration;

use kagami_failover::control::Order;
use serde_json::json;

use super::{Context, print_json, print_out};
use crate::exit::{DONE, Outcome};

/// Nobody acts any more, or they act again.
///
/// # Errors
/// There is no failover manager, or it does not take it within `limit`.
pub async fn run(context: &Context, suspend: bool, json: bool, limit: Duration) -> Outcome {
    let report = context.cluster_within(limit).await?;
    let name = &report.cluster;
    let order = if suspend {
        Order::Suspend
    } else {
        Order::Resume
    };
    let nothing = report.suspended == suspend;
    if !nothing {
        let object = format!("cluster {name}");
        context.order(&object, None, order, limit).await?;
    }
    let words = match (nothing, suspend) {
        (true, true) => "suspended already",
        (true, false) => "not suspended: nothing to do",
        (false, true) => {
            "suspended: the services go on, nobody acts; `kagami cluster resume` ends it"
        }
        (false, false) => "resumed",
    };
    if json {
        let outcome = if nothing { "nothing" } else { "done" };
        print_json(&json!({"cluster": name, "outcome": outcome, "text": words}))?;
    } else {
        print_out(&format!("cluster {name}: {words}\n"))?;
    }
    DONE
}
