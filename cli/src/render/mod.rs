//! Text for people, made from reports by pure functions.
//!
//! Colours come last and carry nothing that the words don't say.

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;

pub mod cluster;
pub mod event;
pub mod status;
pub mod units;

/// How text is to look.
#[derive(Clone, Debug)]
pub struct Look {
    /// With colours.
    pub colour: bool,
    /// Whose time of day.
    pub zone: TimeZone,
}

impl Look {
    /// No colours, UTC.
    pub fn plain() -> Self {
        Self {
            colour: false,
            zone: TimeZone::UTC,
        }
    }

    /// As standard output wants it: colours on a terminal, local time.
    pub fn of_stdout() -> Self {
        let choice = anstream::AutoStream::choice(&std::io::stdout());
        Self {
            colour: choice != anstream::ColorChoice::Never,
            zone: TimeZone::system(),
        }
    }

    /// `text` in a style.
    pub fn paint(&self, style: Style, text: &str) -> String {
        if self.colour {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

/// All is well.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Work is going on, or redundancy is missing.
pub const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// A person must look.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// A name.
pub const NAME: Style = Style::new().bold();
/// Labels at the side.
pub const LABEL: Style = Style::new().dimmed();
