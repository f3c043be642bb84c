//! What is wrong with a cluster's configuration: where, what, and what would be right.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file, from 1; `None` where no line is to blame.
    pub line: Option<usize>,
    /// The table, as the file spells it: `group.pg.resource.address`.
    pub table: String,
    /// What is wrong, with the facts.
    pub what: String,
    /// What would be right.
    pub next: String,
}

/// Everything that is wrong with one file, in the order of its lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Which file.
    pub file: PathBuf,
    /// What is wrong.
    pub faults: Vec<Fault>,
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
            write!(f, ": ")?;
            if !fault.table.is_empty() {
                write!(f, "[{}] ", fault.table)?;
            }
            write!(f, "{}\n  next: {}", fault.what, fault.next)?;
        }
        Ok(())
    }
}

/// The known name that was probably meant.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= name.len().max(typed.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `did you mean …?`, or the names to choose from.
pub fn choose<'a>(typed: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(near) = nearest(typed, known.clone()) {
        return format!("did you mean \"{near}\"?");
    }
    let all: Vec<&str> = known.into_iter().collect();
    if all.is_empty() {
        "there is none yet: write one".to_owned()
    } else {
        format!("name one of \"{}\"", all.join("\", \""))
    }
}
