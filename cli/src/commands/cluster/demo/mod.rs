//! `kagami cluster demo`: a failover cluster at work on this machine, shown and proved (docs/demo.md).
//!
//! [`story`] is what is shown; it drives a cluster ([`making`], [`machine`], [`network`]) that keeps a
//! [`service`] up, while a [`client`] uses it and remembers what it was promised. Where this machine can't
//! ([`here`]), all of it goes to a virtual one ([`vm`]). What shows a mirror alone is
//! [`crate::commands::demo`], with which it shares nodes, processes and the voice.

use std::path::PathBuf;

use serde_json::json;

mod client;
mod here;
mod machine;
mod making;
mod network;
pub mod records;
mod service;
mod story;
mod vm;
mod wire;

use crate::args::ClusterDemoArgs;
use crate::commands::demo::failure;
use crate::commands::demo::fault::DemoError;
use crate::commands::demo::signals;
use crate::commands::demo::tell::{Teller, milliseconds, seconds};
use crate::commands::print_json;
use crate::exit::{DONE, Failure, Outcome};
use crate::render::Look;
use service::Service;

/// Shows it, here or in a virtual machine.
///
/// # Errors
/// Something did not come to its end, or a proof does not hold.
pub fn run(args: &ClusterDemoArgs) -> Outcome {
    signals::watch().map_err(|error| {
        Failure::system(format!("not begun: signals can't be watched: {error}"))
    })?;
    here::programs().map_err(|error| failure(&error))?;
    match here::lacking() {
        None => show(args),
        Some(why) if args.here => Err(failure(&DemoError::Lacking {
            why: format!("not on this machine: {why}"),
            next: "leave --here out: then it runs in a virtual machine".to_owned(),
        })),
        Some(why) => vm::run(args, &why),
    }
}

fn show(args: &ClusterDemoArgs) -> Outcome {
    let folder = match &args.dir {
        Some(folder) => std::path::absolute(folder).map_err(|error| {
            Failure::system(format!("not begun: {}: {error}", folder.display()))
        })?,
        None => PathBuf::from(format!("/var/tmp/kagami-cluster-{}", std::process::id())),
    };
    let service = Service::choose(args.service).map_err(|error| failure(&error))?;
    let name = service.name();
    let mut tell = if args.json {
        Teller::new(Box::new(std::io::sink()), Look::plain())
    } else {
        Teller::new(Box::new(anstream::stdout()), Look::of_stdout())
    };
    let ending =
        story::Story::show(&mut tell, &folder, service).map_err(|error| failure(&error))?;
    let ((proofs, failed), time) = (tell.verdict(), tell.elapsed());
    if args.json {
        let mut document = json!({
            "schema": 1,
            "service": name,
            "proofs": proofs,
            "failed": failed,
            "elapsed_ms": milliseconds(time),
            "steps": tell.told(),
        });
        if let (Some(all), Some(more)) = (document.as_object_mut(), ending.document().as_object()) {
            all.extend(more.clone());
        }
        print_json(&document)?;
    } else {
        tell.table();
    }
    if failed > 0 {
        return Err(Failure::refused(format!(
            "{failed} of {proofs} proofs do not hold (marked NOT SO above)\n  next: this is a bug; please report what is printed above"
        )));
    }
    tell.say(&format!(
        "All {proofs} proofs hold. It took {}; everything that was started has ended, and networks and files \
         are gone.",
        seconds(time)
    ));
    DONE
}
