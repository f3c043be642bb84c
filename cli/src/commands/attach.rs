//! `kagami attach` and `kagami detach`: a mirror as a block device of this machine.

use std::time::{Duration, Instant};

use serde_json::json;

use super::order::{Carried, ask, give, tell};
use super::{Context, confirm, print_dry_run, print_json, print_out, unexpected};
use crate::args::{AttachArgs, DetachArgs, KernelDeviceVerb};
use crate::control::driver::Driver;
use crate::control::message::{Answer, Order};
use crate::control::report::{Condition, Connection, DeviceState, MirrorReport, Role};
use crate::daemon::attach::device::Kernel;
use crate::daemon::attach::{helper, ublk_child};
use crate::exit::{DONE, Failure, Outcome, Status};

/// How often a mirror that can't be attached yet is tried.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A peer that is there is found within.
const SEARCH: Duration = Duration::from_secs(5);

/// `kagami attach`
///
/// # Errors
/// See [`give`].
pub async fn attach(context: &Context, args: &AttachArgs) -> Outcome {
    let mirror = &args.order.mirror;
    let order = order_of(args)?;
    let limit = args.order.timeout;
    let answer = match args.wait {
        None => ask(context, mirror, order, limit).await?,
        Some(wait) => patiently(context, mirror, &order, limit, wait).await?,
    };
    let (device, link, already) = match answer {
        Answer::Attached {
            device,
            link,
            already,
        } => (device, link, already),
        Answer::Refused(refusal) => return Err(Failure::of_refusal(mirror, &refusal)),
        other => return Err(unexpected(&other)),
    };
    if args.order.json {
        let outcome = if already { "nothing" } else { "done" };
        print_json(&json!({
            "mirror": mirror, "outcome": outcome, "device": device, "link": link,
        }))?;
    } else if already {
        print_out(&format!(
            "mirror {mirror}: nothing to do: it is {device} already ({link})\n"
        ))?;
    } else {
        print_out(&format!("mirror {mirror}: attached as {device} ({link})\n"))?;
    }
    DONE
}

/// What the daemon is asked for.
///
/// # Errors
/// A device that is none of ublk's, with `--ublk`.
fn order_of(args: &AttachArgs) -> Result<Order, Failure> {
    let driver = match args.device {
        Some(id) if args.ublk && id.driver != Driver::Ublk => {
            return Err(Failure::new(
                Status::Usage,
                format!(
                    "--ublk: {id} is a device of {}\nnext: name a /dev/ublkbN, or leave one of both away",
                    id.driver
                ),
            ));
        }
        Some(id) => Some(id.driver),
        None => args.ublk.then_some(Driver::Ublk),
    };
    Ok(Order::Attach {
        device: args.device.map(|id| id.index),
        // A number without a driver is nbd's: so it is for an older daemon, too.
        driver: driver.filter(|driver| !driver.is_nbd()),
    })
}

/// Asks again and again for up to `wait`, as long as the answer may become another by itself. Gives the
/// last answer.
async fn patiently(
    context: &Context,
    mirror: &str,
    order: &Order,
    limit: Duration,
    wait: Duration,
) -> Result<Answer, Failure> {
    let begin = Instant::now();
    let mut said = String::new();
    loop {
        let state = context.mirror(mirror).await;
        let waited = begin.elapsed();
        let is_over = waited >= wait;
        let may_change = match &state {
            Ok(report) => may_change(report),
            Err(failure) => failure.status == Status::NoDaemon,
        };
        let words = match &state {
            // A daemon that just began looks for its peer: to go on alone would be rash.
            Ok(report)
                if report.condition == Condition::Connecting && waited < SEARCH && !is_over =>
            {
                format!("mirror {mirror}: looking for the peer")
            }
            _ => match ask(context, mirror, order.clone(), limit).await {
                Ok(answer @ Answer::Refused(_)) if is_over || !may_change => return Ok(answer),
                Ok(Answer::Refused(refusal)) => Failure::of_refusal(mirror, &refusal).words,
                Ok(answer) => return Ok(answer),
                Err(failure) if failure.status != Status::NoDaemon => return Err(failure),
                Err(failure) if is_over || !may_change => return Err(failure),
                Err(failure) => failure.words,
            },
        };
        if words != said {
            anstream::eprintln!("{words}\nwaiting for up to {}", left(wait, waited));
            said = words;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What is left of a time, in whole seconds.
fn left(all: Duration, gone: Duration) -> humantime::FormattedDuration {
    let seconds = all.saturating_sub(gone).as_secs();
    humantime::format_duration(Duration::from_secs(seconds))
}

/// Whether a mirror that can't be attached now may be later, with nobody's help.
fn may_change(report: &MirrorReport) -> bool {
    let is_over_there = report
        .peer
        .as_ref()
        .is_some_and(|peer| peer.role == Some(Role::Primary));
    let is_stale = report
        .device
        .as_ref()
        .is_some_and(|device| device.state == DeviceState::Stale);
    let needs_a_person = matches!(
        report.condition,
        Condition::SplitBrain
            | Condition::Refused
            | Condition::BothStale
            | Condition::NotPaired
            | Condition::NotOpened
    );
    !is_over_there && !is_stale && !needs_a_person
}

/// `kagami detach`
///
/// # Errors
/// See [`give`].
pub async fn detach(context: &Context, args: &DetachArgs) -> Outcome {
    let mirror = &args.order.mirror;
    if args.force || args.danger.dry_run {
        let report = context.mirror(mirror).await?;
        let words = consequences(&report, args.force);
        if args.danger.dry_run {
            return print_dry_run("mirror", mirror, &words, args.order.json);
        }
        if report.device.is_some() {
            confirm(&words, args.danger.yes)?;
        }
    }
    let order = Order::Detach { force: args.force };
    let carried = give(context, mirror, order, args.order.timeout).await?;
    let done = detached(&context.mirror(mirror).await?);
    let carried = match carried {
        Carried::Started => Carried::Done,
        other => other,
    };
    tell(mirror, &carried, &done, args.order.json)?;
    DONE
}

/// A device that was stale, or waited, was of a node that is Secondary now.
fn detached(report: &MirrorReport) -> String {
    let there = report.peer.as_ref().filter(|peer| {
        peer.role == Some(Role::Primary) && report.connection == Connection::Connected
    });
    match (report.role, there) {
        (Role::Primary, _) => format!(
            "detached; it stays Primary here until `kagami demote {}`",
            report.name
        ),
        (Role::Secondary, Some(peer)) => format!("detached; {} is Primary", peer.name),
        (Role::Secondary, None) => "detached; it is Secondary here".to_owned(),
    }
}

/// What a detach does and loses.
fn consequences(report: &MirrorReport, force: bool) -> String {
    let name = &report.name;
    let Some(device) = &report.device else {
        return format!("mirror {name}: it is not attached: nothing is done");
    };
    let path = &device.path;
    let mounted = match &device.mounted[..] {
        [] => "it is not seen to be mounted".to_owned(),
        places => format!("it is mounted ({})", places.join(", ")),
    };
    if force {
        format!(
            "mirror {name}: --force overrides the rule that {path} is taken down only when nobody uses it: {} requests that wait there and all later ones fail with input/output errors, and what applications had not flushed is lost\n  {mounted}",
            report.in_flight
        )
    } else {
        format!(
            "mirror {name}: {path} is flushed and taken down, if nobody uses it; nothing is lost\n  {mounted}"
        )
    }
}

/// `kagami kernel-device`: the daemon's child, and udev's. What it says on standard output is all
/// that counts.
///
/// # Errors
/// None: the daemon reads the output.
pub fn kernel_device(verb: KernelDeviceVerb) -> Outcome {
    match verb {
        KernelDeviceVerb::Hold { device, flush } => helper::hold_here(&device, flush),
        KernelDeviceVerb::Tune {
            sysfs,
            device,
            max_kb,
        } => helper::tune_here(sysfs, device, max_kb),
        KernelDeviceVerb::Name { device } => {
            if let Some(name) = Kernel::default().name(device) {
                print_out(&format!("KAGAMI_MIRROR={name}\n"))?;
            }
        }
        KernelDeviceVerb::Ublk(verb) => ublk_child::answer(&verb),
    }
    DONE
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Verb};

    /// The order of `kagami attach pg WORDS`, as the daemon gets it.
    fn order(words: &str) -> Result<String, Failure> {
        let line = format!("kagami attach pg {words}");
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("right usage");
        let Verb::Attach(args) = cli.verb else {
            panic!("another verb: {:?}", cli.verb);
        };
        order_of(&args).map(|order| serde_json::to_string(&order).expect("spelled"))
    }

    /// A daemon from before ublk understands what it can do, and refuses the rest: it knows no `driver`.
    #[test]
    fn what_nbd_can_do_is_asked_for_as_before() {
        for (words, expected) in [
            ("", r#"{"attach":{"device":null}}"#),
            ("--device /dev/nbd3", r#"{"attach":{"device":3}}"#),
            ("--ublk", r#"{"attach":{"device":null,"driver":"ublk"}}"#),
            (
                "--device ublkb3",
                r#"{"attach":{"device":3,"driver":"ublk"}}"#,
            ),
            (
                "--device /dev/ublkb3 --ublk",
                r#"{"attach":{"device":3,"driver":"ublk"}}"#,
            ),
        ] {
            let said = order(words).expect("an order");
            assert_eq!(said, expected, "{words}");
            let order: Order = serde_json::from_str(&said).expect("understood");
            assert_eq!(serde_json::to_string(&order).expect("spelled"), expected);
        }
        let failure = order("--ublk --device /dev/nbd3").expect_err("both");
        assert_eq!(failure.status, Status::Usage);
        assert!(
            failure.words.contains("/dev/nbd3 is a device of nbd"),
            "{}",
            failure.words
        );
    }

    #[test]
    fn an_order_is_spelled_as_on_the_command_line() {
        for (json, words) in [
            (r#"{"attach":{"device":null}}"#, "attach"),
            (r#"{"attach":{"device":3}}"#, "attach --device /dev/nbd3"),
            (
                r#"{"attach":{"device":null,"driver":"ublk"}}"#,
                "attach --ublk",
            ),
            (
                r#"{"attach":{"device":3,"driver":"ublk"}}"#,
                "attach --device /dev/ublkb3",
            ),
        ] {
            let order: Order = serde_json::from_str(json).expect("understood");
            assert_eq!(order.to_string(), words);
        }
    }
}
