//! The configuration file.

use std::fmt::Write as _;
use std::path::Path;

use kagami::config::places::Places;
use kagami::config::read::read;
use kagami::config::show::shown;
use kagami::config::{Config, ConfigError};

/// A text: an error that names lines, or a configuration that can be written down again.
pub fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let file = Path::new("kagami.toml");
    let places = Places::of_root();
    if text.parse::<toml_edit::DocumentMut>().is_err() {
        assert!(
            read(file, text).is_err(),
            "what can't be edited is not read"
        );
    }
    let config = match Config::parse(file, text, &places) {
        Ok(config) => config,
        Err(error) => return explain(&error),
    };
    let mut again = String::new();
    let mut section = String::new();
    let rows = shown(&config, false);
    for row in &rows {
        if row.section != section {
            section.clone_from(&row.section);
            let _ = writeln!(again, "{section}");
        }
        if let Some(value) = &row.value {
            let _ = writeln!(again, "{} = {value}", row.key);
        }
    }
    // A section without a key is not shown, and may be the one that others name.
    if let Ok(back) = Config::parse(file, &again, &places) {
        let values = |config: &Config| -> Vec<_> {
            let rows = shown(config, false);
            rows.into_iter()
                .map(|row| (row.section, row.key, row.value))
                .collect()
        };
        assert_eq!(values(&config), values(&back));
    }
    let _ = shown(&config, true);
}

fn explain(error: &ConfigError) {
    assert!(!error.faults.is_empty(), "an error without a fault");
    assert!(!error.to_string().is_empty());
}
