//! The failover manager as a process: what ties [`kagami_failover`] to this machine, to the mirrors'
//! daemon and to people.
//!
//! [`mirrors`] asks the daemon, [`desk`] answers commands and the other node's manager, [`life`] runs a
//! manager after the other for as long as one begins with the groups as they are, [`guard`] is the
//! guard's process, [`registers`] asks the arbiter for groups without a mirror, [`settings`] is what each manager begins with,
//! [`programs`] looks after what scripts have loaded.

mod attempts;
pub mod desk;
pub mod guard;
pub mod life;
pub mod mirrors;
pub mod programs;
pub mod registers;
pub mod settings;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use kagami_failover::heartbeat::key::Key;

use crate::args::{FailoverArgs, FailoverVerb};
use crate::commands::{Context, block_on};
use crate::config::Config;
use crate::daemon::log;
use crate::exit::{DONE, Failure, Outcome};

/// Runs the failover manager, or makes its key.
///
/// # Errors
/// It can't begin, or go on.
pub fn run(context: &Context, args: FailoverArgs) -> Outcome {
    let config = Config::load(&context.file)?;
    match args.verb {
        Some(FailoverVerb::InitKey) => init_key(&config),
        None => {
            let levels = log::begin(&config.node.log_level, config.node.log_json);
            let ended = block_on(life::run(context, &config, &args));
            drop(levels);
            log::write_repeats();
            ended
        }
    }
}

/// Where the manager keeps what outlives a reboot.
pub fn state(config: &Config) -> PathBuf {
    config.node.state_dir.join("failover")
}

/// Where it keeps what a reboot clears.
pub fn run_folder(config: &Config) -> PathBuf {
    config.node.run_dir.join("failover")
}

/// The cluster's key.
pub fn key_file(config: &Config) -> PathBuf {
    state(config).join("cluster.key")
}

fn make_folder(folder: &std::path::Path, mode: u32) -> Result<(), Failure> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(folder);
    made.map_err(|error| {
        Failure::system(format!(
            "{}: {error}\n  next: run the command as a user who may write there",
            folder.display()
        ))
    })
}

fn init_key(config: &Config) -> Outcome {
    make_folder(&state(config), 0o700)?;
    let file = key_file(config);
    Key::create(&file).map_err(|error| Failure::refused(error.to_string()))?;
    anstream::println!(
        "{} is the cluster's key\nnext: copy it to the same place of the other node, readable by root alone",
        file.display()
    );
    DONE
}
