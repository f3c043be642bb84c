//! What can keep a measurement from being made.

use std::io;
use std::path::PathBuf;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A program of another project.
    #[error("{program} is not installed\n  next: apt-get install {package}")]
    MissingProgram {
        /// What was looked for on PATH.
        program: &'static str,
        /// What has it.
        package: &'static str,
    },
    /// The daemon's own program.
    #[error(
        "there is no kagami at {}\n  next: cargo build --release -p kagami, or name it with --kagami", path.display()
    )]
    MissingKagami {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A program ended, or did not do what it was started for.
    #[error("{program}: {what}\n{words}")]
    Program {
        /// Which.
        program: String,
        /// What happened.
        what: String,
        /// The end of its output.
        words: String,
    },
    /// Something did not come in time.
    #[error("waited {seconds} s in vain for {what}")]
    TimedOut {
        /// For what.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// An NBD server broke the protocol or refused.
    #[error("NBD: {0}")]
    Nbd(String),
    /// A program's JSON is not what it used to be.
    #[error("{program} printed JSON without {what}")]
    Json {
        /// Which.
        program: &'static str,
        /// What was looked for.
        what: String,
    },
    /// A count has grown.
    #[error(
        "more than it was:\n{words}\n  next: find out why; if it has to be so, raise the bound in bench/src/costs.rs"
    )]
    Grown {
        /// Which, and by how much.
        words: String,
    },
    /// A file that is no file of measurements.
    #[error("{file}: not what kagami-bench keeps ({words})\n  next: measure again with --json")]
    NotKept {
        /// Which.
        file: String,
        /// What was wrong.
        words: String,
    },
    /// The page has no such section.
    #[error(
        "{}: no place for the section '{section}'\n  next: put `<!-- kagami-bench report: {section} -->` and \
         `<!-- end of report -->` on lines of their own where it belongs",
        page.display()
    )]
    NoPlace {
        /// Which page.
        page: PathBuf,
        /// Which section.
        section: String,
    },
    /// Too little room.
    #[error(
        "{}: {free} bytes free, and the test files need {wanted}\n  next: name another folder with --dir, or make --region smaller",
        dir.display()
    )]
    NoRoom {
        /// Where.
        dir: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes wanted.
        wanted: u64,
    },
    /// A part of kagami under test failed.
    #[error("{part}: {words}")]
    Part {
        /// Which.
        part: &'static str,
        /// Its words.
        words: String,
    },
    /// The system.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        #[source]
        error: io::Error,
    },
}

impl BenchError {
    /// For `map_err`: what was tried, and the system's answer.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }

    /// For `map_err`: a part of kagami, and its words.
    pub fn part<E: std::fmt::Display>(part: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Part {
            part,
            words: error.to_string(),
        }
    }
}
