//! What is said of a mirror that the running daemon does not have.

use std::path::Path;

use super::{Config, keys};

/// What is wrong with naming mirror `name`, and what to do. `known` are the daemon's mirrors; `file` is the
/// configuration, which may have it since the daemon began.
pub fn mirror(name: &str, known: &[&str], file: &Path) -> (String, String) {
    if Config::load(file).is_ok_and(|config| config.mirror(name).is_some()) {
        return (
            format!(
                "{} has it, and the daemon that runs does not know it: a new mirror is taken up when the daemon starts",
                file.display()
            ),
            "`kagami down && kagami up` (or `systemctl restart kagami`) when it suits".to_owned(),
        );
    }
    let next = match keys::nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => "make one with `kagami init`".to_owned(),
        None => format!("name one of {}", known.join(", ")),
    };
    ("there is no such mirror".to_owned(), next)
}
