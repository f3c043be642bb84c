//! What is said of a mirror that the running daemon does not have.

use std::path::Path;

use super::{Config, keys};
use crate::unit::Starter;

/// What is wrong with naming mirror `name`, and what to do. `known` are the daemon's mirrors; `file` is the
/// configuration, which may have it since the daemon began; `starter` is who starts that one.
pub fn mirror(name: &str, known: &[&str], file: &Path, starter: Starter) -> (String, String) {
    if Config::load(file).is_ok_and(|config| config.mirror(name).is_some()) {
        return (
            format!(
                "{} has it, and the daemon that runs does not know it: a new mirror is taken up when the daemon starts",
                file.display()
            ),
            format!("`{}` when it suits", starter.restart()),
        );
    }
    let next = match keys::nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => "make one with `kagami init`".to_owned(),
        None => format!("name one of {}", known.join(", ")),
    };
    ("there is no such mirror".to_owned(), next)
}
