//! How the demo speaks: numbered steps, plain words, proofs with a mark, a table at the end.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::render::{Look, units};

const STEP: Style = AnsiColor::Cyan.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();
const WIDTH: usize = 84;

/// The voice. Whatever it can't say (a closed pipe) stays unsaid: the proofs count, not the words.
pub struct Teller {
    out: Box<dyn Write>,
    look: Look,
    began: Instant,
    steps: u32,
    proofs: u32,
    failed: u32,
    rows: Vec<[String; 3]>,
    told: Vec<Told>,
}

/// A step as a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    /// What happens in it.
    pub step: String,
    /// When it began, milliseconds after the first word.
    pub began_ms: u64,
    /// What must hold in it.
    pub proofs: Vec<Proof>,
}

/// Something that must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// In words.
    pub what: String,
    /// Whether it does.
    pub holds: bool,
}

impl Teller {
    /// Speaks to `out`, with colours where `look` has them.
    pub fn new(out: Box<dyn Write>, look: Look) -> Self {
        Self {
            out,
            look,
            began: Instant::now(),
            steps: 0,
            proofs: 0,
            failed: 0,
            rows: Vec::new(),
            told: Vec::new(),
        }
    }

    /// A title in bold, and a blank line.
    pub fn title(&mut self, text: &str) {
        let text = self.look.paint(Style::new().bold(), text);
        self.line(&text);
    }

    /// A new step with what is about to happen in it.
    pub fn step(&mut self, title: &str) {
        self.steps += 1;
        self.told.push(Told {
            step: title.to_owned(),
            began_ms: milliseconds(self.began.elapsed()),
            proofs: Vec::new(),
        });
        let at = format!("{:>5.1} s", self.began.elapsed().as_secs_f64());
        let head = format!("{}. {title}", self.steps);
        let gap = WIDTH.saturating_sub(head.chars().count() + at.len());
        let line = format!(
            "\n{}{}{}",
            self.look.paint(STEP, &head),
            " ".repeat(gap),
            self.look.paint(DIM, &at)
        );
        self.line(&line);
    }

    /// Plain words, wrapped.
    pub fn say(&mut self, text: &str) {
        for line in wrap(text, WIDTH - 3) {
            self.line(&format!("   {line}"));
        }
    }

    /// A command as a person would type it.
    pub fn command(&mut self, who: &str, command: &str) {
        let line = format!("   {} {command}", self.look.paint(DIM, &format!("{who}$")));
        self.line(&line);
    }

    /// What a program printed, indented and dim-barred.
    pub fn quote(&mut self, text: &str) {
        let bar = self.look.paint(DIM, "│");
        for line in text.trim_end().lines() {
            self.line(&format!("   {bar} {line}"));
        }
    }

    /// Something that must hold, and whether it does. The demo succeeds only if all do.
    pub fn prove(&mut self, holds: bool, what: &str) {
        self.proofs += 1;
        if let Some(step) = self.told.last_mut() {
            step.proofs.push(Proof {
                what: what.to_owned(),
                holds,
            });
        }
        let mark = if holds {
            self.look.paint(GOOD, "✓ proved:")
        } else {
            self.failed += 1;
            self.look.paint(BAD, "✗ NOT SO:")
        };
        let lines = wrap(what, WIDTH - 13);
        for (index, line) in lines.iter().enumerate() {
            let lead = if index == 0 {
                mark.as_str()
            } else {
                "         "
            };
            self.line(&format!("   {lead} {line}"));
        }
    }

    /// A line for the table at the end.
    pub fn remember(&mut self, what: &str, figure: impl Into<String>, remark: &str) {
        self.rows
            .push([what.to_owned(), figure.into(), remark.to_owned()]);
    }

    /// The table.
    pub fn table(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        let width = |column: usize| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let (what, figure) = (width(0), width(1));
        for row in &rows {
            let line = format!("   {:<what$}   {:>figure$}   {}", row[0], row[1], row[2]);
            self.line(line.trim_end());
        }
    }

    /// How long it has spoken.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Proofs, and how many of them do not hold.
    pub fn verdict(&self) -> (u32, u32) {
        (self.proofs, self.failed)
    }

    /// The steps so far, for a program.
    pub fn told(&self) -> &[Told] {
        &self.told
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{text}");
        let _ = self.out.flush();
    }
}

/// `0.31 s`, `4.2 s`.
pub fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 {
        format!("{seconds:.2} s")
    } else {
        format!("{seconds:.1} s")
    }
}

/// A time in whole milliseconds.
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `48.0 MiB (50,331,648 bytes)`.
pub fn bytes(bytes: u64) -> String {
    format!("{} ({} bytes)", units::size(bytes), units::count(bytes))
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("never empty");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            let gap = if last.is_empty() { "" } else { " " };
            let _ = write!(last, "{gap}{word}");
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_wrapped_and_none_is_lost() {
        let text = "the quick brown fox jumps over the lazy dog";
        let lines = wrap(text, 12);
        assert!(lines.iter().all(|line| line.len() <= 12), "{lines:?}");
        assert_eq!(lines.join(" "), text);
    }

    #[test]
    fn a_failed_proof_is_counted_and_told_with_its_step() {
        let mut teller = Teller::new(Box::new(Vec::new()), Look::plain());
        teller.step("truths");
        teller.prove(true, "water is wet");
        teller.prove(false, "two is three");
        assert_eq!(teller.verdict(), (2, 1));
        let told = &teller.told()[0];
        assert_eq!(told.step, "truths");
        let held: Vec<bool> = told.proofs.iter().map(|proof| proof.holds).collect();
        assert_eq!(held, [true, false]);
    }
}
