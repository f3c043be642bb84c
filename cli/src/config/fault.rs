//! What is wrong with a configuration: where, what, and what would be right.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file, from 1; `None` where no line is to blame (the file is missing).
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub next: String,
}

impl Fault {
    /// A fault at a line.
    pub fn at(line: usize, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            line: Some(line),
            what: what.into(),
            next: next.into(),
        }
    }

    /// A fault of the whole file.
    pub fn of_file(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            line: None,
            what: what.into(),
            next: next.into(),
        }
    }
}

/// Everything that is wrong with one file, in the order of its lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Which file.
    pub file: PathBuf,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

impl ConfigError {
    /// One fault.
    pub fn one(file: impl Into<PathBuf>, fault: Fault) -> Self {
        Self {
            file: file.into(),
            faults: vec![fault],
        }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file.display())?;
            if let Some(line) = fault.line {
                write!(f, ":{line}")?;
            }
            write!(f, ": {}\n  next: {}", fault.what, fault.next)?;
        }
        Ok(())
    }
}
