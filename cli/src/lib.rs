//! `kagami`, the one binary: the daemon and its commands (docs/guide.md).
//!
//! [`config`] is the configuration file, [`control`] how commands reach the daemon and the state as
//! JSON, [`daemon`] the daemon, [`render`] text for people.

pub mod config;
pub mod control;
pub mod daemon;
#[cfg(test)]
mod documents;
pub mod render;

use std::process::ExitCode;

/// What the binary does.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
