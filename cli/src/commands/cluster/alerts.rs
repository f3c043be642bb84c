//! `kagami alerts`: what both nodes told, by time; and what this one tells from now on.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use kagami_failover::control::message::Reach;
use kagami_failover::control::{AlertFilter, AlertReport, Answer, Ask};

use super::status::ended;
use super::{Context, known, print_json, print_out, unexpected};
use crate::args::AlertsArgs;
use crate::exit::{DONE, Failure, Outcome};
use crate::render::Look;
use crate::render::cluster::alert_line;

/// Prints alerts.
///
/// # Errors
/// There is no failover manager; a time makes no sense.
pub async fn run(context: &Context, args: &AlertsArgs) -> Outcome {
    let look = Look::of_stdout();
    let now = jiff::Timestamp::now().as_millisecond();
    let time = |text: &Option<String>| {
        let text = text.as_deref();
        text.map(|text| moment(text, now, &look.zone)).transpose()
    };
    let filter = AlertFilter {
        since_ms: time(&args.since)?,
        until_ms: time(&args.until)?,
        severity: args.severity.into(),
        kinds: args.kind.clone(),
        objects: args.objects.clone(),
        last: Some(args.last),
    };
    // First listen, then look: nothing falls between; what is in both is told once.
    let mut followed = if args.follow {
        let mut client = context.manager().await?;
        let filter = AlertFilter {
            since_ms: None,
            until_ms: None,
            ..filter.clone()
        };
        client.send(Ask::Follow { filter }).await?;
        Some(client)
    } else {
        None
    };
    let ask = Ask::Alerts {
        filter,
        reach: Reach::Cluster,
    };
    let told = match context.manager().await?.ask(ask).await? {
        Answer::Alerts { alerts, missing } => {
            if let Some(missing) = missing {
                anstream::eprintln!("some alerts are missing: {missing}");
            }
            alerts
        }
        other => return Err(unexpected(&other)),
    };
    known_objects(context, &args.objects, &told).await?;
    let print = |alert: &_| {
        if args.json {
            print_json(alert)
        } else {
            print_out(&format!("{}\n", alert_line(alert, &look)))
        }
    };
    for alert in &told {
        print(alert)?;
    }
    while let Some(client) = &mut followed {
        let answer = tokio::select! {
            answer = client.next() => answer?,
            _ = tokio::signal::ctrl_c() => return DONE,
        };
        match answer {
            Some(Answer::Alert(alert)) if told.contains(&alert) => {}
            Some(Answer::Alert(alert)) => print(&alert)?,
            Some(Answer::Missed { alerts }) => {
                anstream::eprintln!(
                    "{alerts} alerts came faster than they were read: `kagami alerts` has them"
                );
            }
            Some(other) => return Err(unexpected(&other)),
            None => return Err(ended()),
        }
    }
    DONE
}

/// Each name is one of the cluster's, or of one that is told of: it may have left the configuration. (A number is that of a
/// message.)
async fn known_objects(
    context: &Context,
    names: &[String],
    told: &[AlertReport],
) -> Result<(), Failure> {
    let is_told = |name: &String| told.iter().any(|alert| alert.is_about(name));
    let is_number = |name: &String| name.parse::<u32>().is_ok();
    let mut untold = names
        .iter()
        .filter(|name| !is_told(name) && !is_number(name));
    let Some(first) = untold.next() else {
        return Ok(());
    };
    let report = context.cluster().await?;
    let mut objects = vec!["cluster".to_owned()];
    for group in &report.groups {
        objects.push(group.name.clone());
        let resources = group.resources.iter();
        objects.extend(resources.map(|one| format!("{}/{}", group.name, one.name)));
    }
    objects.extend(report.monitors.iter().map(|one| one.name.clone()));
    objects.extend(report.nodes.iter().map(|one| one.name.clone()));
    objects.extend(report.heartbeats.iter().map(|one| one.name.clone()));
    for name in std::iter::once(first).chain(untold) {
        let objects = objects.iter().map(String::as_str);
        known("group, monitor, node or heartbeat", name, objects)?;
    }
    Ok(())
}

/// `2h` ago, or a moment of this machine's clock; milliseconds since 1970.
fn moment(text: &str, now_ms: i64, zone: &TimeZone) -> Result<u64, Failure> {
    let ms = if let Ok(ago) = humantime::parse_duration(text) {
        Some(now_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)))
    } else {
        let at = text.parse::<DateTime>().ok();
        at.and_then(|at| at.to_zoned(zone.clone()).ok())
            .map(|at| at.timestamp().as_millisecond())
    };
    ms.map(|ms| u64::try_from(ms).unwrap_or(0)).ok_or_else(|| {
        Failure::usage(format!(
            "`{text}` is no time\n  next: write a length of time like 2h, or a moment like 2026-05-04T10:00"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_length_or_a_moment() {
        let now = 1_763_726_400_000; // 2025-11-21 12:00 UTC
        let at = |text| moment(text, now, &TimeZone::UTC).map_err(|failure| failure.words);
        assert_eq!(at("2h"), Ok(1_763_719_200_000));
        assert_eq!(at("2025-11-21T11:00"), Ok(1_763_722_800_000));
        assert_eq!(at("2025-11-21"), Ok(1_763_683_200_000));
        assert_eq!(at("9999y"), Ok(0));
        assert!(
            at("soon")
                .unwrap_err()
                .starts_with("`soon` is no time\n  next: ")
        );
    }
}
