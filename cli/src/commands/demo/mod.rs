//! `kagami demo`: a mirror at work on this machine, shown and proved (docs/demo.md).
//!
//! [`story`] is what is shown; it drives a scratch pair ([`scratch`], [`node`], [`process`]) with the
//! product's own commands, puts real files ([`archive`]) and a write load that remembers what it was
//! promised ([`load`]) on it, and speaks through [`tell`]. [`serve`] leaves the pair up for other programs.

use std::path::PathBuf;
use std::time::Duration;

mod archive;
pub mod fault;
pub mod load;
pub mod node;
pub mod process;
pub mod scratch;
mod serve;
pub mod signals;
mod story;
pub mod tell;

pub use fault::DemoError;
pub use serve::make as make_pair;

use crate::args::DemoArgs;
use crate::exit::{DONE, Failure, Outcome, Status};
use crate::render::Look;
use scratch::Wanted;
use tell::Teller;

/// A folder of its own among the temporary files: short, since paths of sockets must be.
fn folder_of_our_own() -> PathBuf {
    std::env::temp_dir().join(format!("kagami-demo-{}", std::process::id()))
}

/// Shows, or serves.
///
/// # Errors
/// Something did not come to its end, or a proof does not hold.
pub fn run(args: &DemoArgs) -> Outcome {
    signals::watch().map_err(|error| {
        Failure::system(format!("not begun: signals can't be watched: {error}"))
    })?;
    let folder = match &args.dir {
        Some(folder) => std::path::absolute(folder).map_err(|error| {
            Failure::system(format!("not begun: {}: {error}", folder.display()))
        })?,
        None => folder_of_our_own(),
    };
    if args.serve {
        return serve::run(args, folder).map_err(|error| failure(&error));
    }
    let look = Look::of_stdout();
    let mut tell = Teller::new(Box::new(anstream::stdout()), look.clone());
    let wanted = Wanted {
        folder,
        size: format!("{}", story::SIZE),
        protocol: "C".to_owned(),
        solo: "arbiter".to_owned(),
    };
    story::Story::show(&mut tell, look, &wanted).map_err(|error| failure(&error))?;
    tell.table();
    let (proofs, failed) = tell.verdict();
    let time = tell.elapsed();
    if failed > 0 {
        return Err(Failure::refused(format!(
            "{failed} of {proofs} proofs do not hold (marked NOT SO above)\n  next: this is a bug; please report what is printed above"
        )));
    }
    tell.say(&format!(
        "All {proofs} proofs hold. It took {}; everything that was started has ended, and the scratch files \
         are gone. `kagami demo --serve` leaves such a pair up for your own tools.",
        shown(time)
    ));
    DONE
}

fn shown(time: Duration) -> String {
    tell::seconds(time)
}

/// A demonstration's end as a command's.
pub fn failure(error: &DemoError) -> Failure {
    let status = match error {
        DemoError::Interrupted => Status::Interrupted,
        DemoError::TooLong { .. } => Status::TimedOut,
        DemoError::System { .. } => Status::System,
        _ => Status::Refused,
    };
    Failure::new(status, error.to_string())
}
