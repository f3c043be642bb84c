//! Why a demonstration or a scratch pair did not come to its end.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::archive::ArchiveError;
use crate::commands::bench::client::ClientError;

/// Why it did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The user said stop.
    #[error("stopped, as you said")]
    Interrupted,
    /// The system would not.
    #[error("{doing}: {error}")]
    System {
        /// What was being done.
        doing: String,
        /// The system's word.
        error: io::Error,
    },
    /// A command of kagami failed.
    #[error("{who}$ kagami {command}: {end}\n{words}")]
    Command {
        /// On which node.
        who: String,
        /// Its arguments.
        command: String,
        /// Its exit status.
        end: String,
        /// What it printed.
        words: String,
    },
    /// This machine lacks what it takes.
    #[error("not begun: {why}\n  next: {next}")]
    Lacking {
        /// What.
        why: String,
        /// What to do.
        next: String,
    },
    /// A program of the system failed.
    #[error("`{command}`: {end}\n{words}")]
    Tool {
        /// With its arguments.
        command: String,
        /// Its exit status.
        end: String,
        /// What it printed.
        words: String,
    },
    /// Something that must come did not.
    #[error("{who}: waited {} s in vain for {what}\n{last}", after.as_secs())]
    TooLong {
        /// On which node.
        who: String,
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
        /// What was there instead.
        last: String,
    },
    /// A daemon ended by itself.
    #[error("{who}: the daemon ended by itself ({end}); the end of its log:\n{words}")]
    Died {
        /// On which node.
        who: String,
        /// Its exit status.
        end: String,
        /// Its log's end.
        words: String,
    },
    /// A store is not what it must be.
    #[error("{}: {what}", path.display())]
    Store {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The mirror failed a client.
    #[error("the mirror failed a client: {0}")]
    Client(#[from] ClientError),
    /// The files on the mirror.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl DemoError {
    /// An error of the system while `doing` something.
    pub fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |error| Self::System { doing, error }
    }
}
