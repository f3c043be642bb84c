//! `kagami events` for people: a line for each event.

use super::units::moment;
use super::{BAD, Look, NAME, WARNING};
use crate::control::report::{EventReport, Severity};

/// One line, without its end.
pub fn event(event: &EventReport, look: &Look) -> String {
    let time = moment(event.time_ms, event.time_ms, &look.zone);
    let text = match event.severity {
        Severity::Info => event.text.clone(),
        Severity::Warn => look.paint(WARNING, &event.text),
        Severity::Error => look.paint(BAD, &event.text),
    };
    format!("{time}  {}  {text}", look.paint(NAME, &event.mirror))
}
