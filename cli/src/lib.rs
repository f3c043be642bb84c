//! `kagami`, the one binary: the daemon and its commands (docs/guide.md).
//!
//! [`config`] is the configuration file.

pub mod config;
#[cfg(test)]
mod documents;

use std::process::ExitCode;

/// What the binary does.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
