//! `kagami attach` and `kagami detach`: a mirror as a block device of this machine.

use serde_json::json;

use super::order::{Carried, ask, give, tell};
use super::{Context, confirm, print_json, print_out, unexpected};
use crate::args::{AttachArgs, DetachArgs, KernelDeviceVerb};
use crate::control::message::{Answer, Order};
use crate::control::report::MirrorReport;
use crate::daemon::attach::helper;
use crate::exit::{DONE, Failure, Outcome};

/// `kagami attach`
///
/// # Errors
/// See [`give`].
pub async fn attach(context: &Context, args: &AttachArgs) -> Outcome {
    let mirror = &args.order.mirror;
    let order = Order::Attach {
        device: args.device,
    };
    let (device, link, already) = match ask(context, mirror, order, args.order.timeout).await? {
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
            print_out(&format!("{words}\n"))?;
            return DONE;
        }
        if report.device.is_some() {
            confirm(&words, args.danger.yes)?;
        }
    }
    let order = Order::Detach { force: args.force };
    let carried = give(context, mirror, order, args.order.timeout).await?;
    let done = format!("detached; it stays Primary here until `kagami demote {mirror}`");
    let carried = match carried {
        Carried::Started => Carried::Done,
        other => other,
    };
    tell(mirror, &carried, &done, args.order.json)?;
    DONE
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

/// `kagami kernel-device`: the daemon's child. What it says on standard output is all that counts.
///
/// # Errors
/// None: the daemon reads the output.
pub fn kernel_device(verb: KernelDeviceVerb) -> Outcome {
    match verb {
        KernelDeviceVerb::Hold { device, flush } => helper::hold_here(&device, flush),
        KernelDeviceVerb::Tune {
            sysfs,
            index,
            max_kb,
        } => helper::tune_here(sysfs, index, max_kb),
    }
    DONE
}
