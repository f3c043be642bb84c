//! Completions and man pages, from the same source as the help.

use std::fs;

use clap::CommandFactory as _;

use super::print_out;
use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::exit::{DONE, Failure, Outcome};

/// Prints a shell's completions.
///
/// # Errors
/// Standard output is gone.
pub fn completions(args: &CompletionsArgs) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "kagami", &mut text);
    print_out(&String::from_utf8_lossy(&text))?;
    DONE
}

/// Writes a man page for each command.
///
/// # Errors
/// A file can't be written.
pub fn man(args: &ManArgs) -> Outcome {
    let fault = |what: &dyn std::fmt::Display, error: &std::io::Error| {
        Failure::system(format!(
            "man pages not written: {what}: {error}\n  next: name a folder that this user may write"
        ))
    };
    fs::create_dir_all(&args.folder).map_err(|error| fault(&args.folder.display(), &error))?;
    clap_mangen::generate_to(Cli::command(), &args.folder)
        .map_err(|error| fault(&args.folder.display(), &error))?;
    DONE
}
