//! `kagami cluster demo`: a failover cluster at work on this machine, shown and proved (docs/demo.md).
//!
//! [`story`] is what is shown; it drives a cluster ([`making`], [`machine`], [`network`]) that keeps a
//! [`service`] up, while a [`client`] uses it and remembers what it was promised. Where this machine can't
//! ([`here`]), all of it goes to a virtual one ([`vm`]). What shows a mirror alone is
//! [`crate::commands::demo`], with which it shares nodes, processes and the voice.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueHint};
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

use crate::commands::demo::failure;
use crate::commands::demo::fault::DemoError;
use crate::commands::demo::signals;
use crate::commands::demo::tell::{Teller, milliseconds, seconds};
use crate::commands::print_json;
use crate::exit::{DONE, Failure, Outcome};
use crate::render::Look;
use service::{Service, Wanted};

/// `kagami cluster demo`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami cluster demo\n\
    \x20 kagami cluster demo --json | jq '.without_service'\n\
    \x20 kagami cluster demo --vm ~/src/kagami/tests/vm")]
pub struct ClusterDemoArgs {
    /// Where its files go: an empty folder, or one to be made [default: a new one in /var/tmp]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// What is kept up
    #[arg(long, value_enum, default_value_t)]
    pub service: Wanted,
    /// The folder tests/vm of kagami's source tree, for a machine that can't itself [default: that of
    /// the tree around this folder, or around this program]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub vm: Option<PathBuf>,
    /// In no virtual machine: refuse where this machine can't
    #[arg(long, conflicts_with = "vm")]
    pub here: bool,
    /// Say nothing but how it went, as an object
    #[arg(long)]
    pub json: bool,
}

/// `kagami cluster demo-service`
#[derive(Args, Debug)]
pub struct DemoServiceArgs {
    /// Where records are kept
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Where it listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
}

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
