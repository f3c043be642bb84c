//! `kagami`, the one binary: the daemon and its commands (docs/guide.md).
//!
//! | module | |
//! |---|---|
//! | [`args`], [`commands`] | the command line, and what it does |
//! | [`config`] | the configuration file |
//! | [`control`] | how commands reach the daemon, and the state as JSON |
//! | [`up`], [`unit`], [`daemon`] | how the daemon is started; by whom, systemd or a person; the daemon |
//! | [`failover`] | the failover manager as a process |
//! | [`clp`] | the binary under the names of another product's commands |
//! | [`render`], [`exit`] | text for people; how a command ends |
//! | `panics` | how a failed assertion ends the process |
//! | `documents` | documents that are made from tables are in step with them |

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
pub mod unit;
pub mod up;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;

/// This program's file, by the name that it has had: the kernel says of one that was replaced that it is deleted.
///
/// # Errors
/// The kernel does not say.
fn program() -> Result<PathBuf, exit::Failure> {
    let found = std::env::current_exe().map_err(|error| {
        exit::Failure::system(format!(
            "this program's own path is not known: {error}\n  next: mount /proc"
        ))
    })?;
    let text = found.as_os_str().as_bytes();
    Ok(match text.strip_suffix(b" (deleted)") {
        Some(name) if !found.exists() => OsStr::from_bytes(name).into(),
        _ => found,
    })
}

/// What the binary does.
pub fn main() -> ExitCode {
    panics::abort();
    if let Some(name) = clp::called(std::env::args_os().next()) {
        return exit::end(clp::main(name));
    }
    exit::end(commands::run(args::Cli::parse()))
}
