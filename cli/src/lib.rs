//! `kagami`, the one binary: the daemon and its commands (docs/guide.md).
//!
//! [`args`] is the command line and [`commands`] what it does, [`config`] the configuration file,
//! [`control`] how commands reach the daemon and the state as JSON, [`daemon`] the daemon, [`up`] how
//! it is started, [`render`] text for people, [`exit`] how a command ends, [`panics`] how a failed assertion does. [`clp`] is the binary under
//! the names of another product's commands.

// Text for people is put together once a command: what it says must be seen at a glance.
#![allow(clippy::format_push_string, clippy::format_collect)]

pub mod args;
pub mod clp;
pub mod commands;
pub mod config;
pub mod control;
pub mod daemon;
#[cfg(test)]
mod documents;
pub mod exit;
pub mod failover;
mod panics;
pub mod render;
pub mod up;

use std::process::ExitCode;

use clap::Parser as _;

/// What the binary does.
pub fn main() -> ExitCode {
    panics::abort();
    if let Some(name) = clp::called(std::env::args_os().next()) {
        return exit::end(clp::main(name));
    }
    exit::end(commands::run(args::Cli::parse()))
}
