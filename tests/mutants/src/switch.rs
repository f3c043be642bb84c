//! Added to the copy of kagami-bitmap: which mutant is on in this process.

use std::fs::File;
use std::io::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Which of them this process has met, and where it says so: a number on a line. At most as many as a list of them has.
struct Met {
    seen: Vec<AtomicBool>,
    file: File,
}

static SWITCH: LazyLock<(u32, Option<Met>)> = LazyLock::new(|| {
    let number = std::env::var("KAGAMI_MUTANT").unwrap_or_default();
    let met = std::env::var_os("KAGAMI_MUTANTS_MET").map(|path| Met {
        seen: (0..1 << 16).map(|_| AtomicBool::new(false)).collect(),
        file: File::create(path).expect("a file for what is met"),
    });
    (number.parse().unwrap_or(0), met)
});

/// Whether this mutant is.
#[inline]
pub fn on(number: u32) -> bool {
    let (on, met) = &*SWITCH;
    if let Some(met) = met {
        note(met, number);
    }
    *on == number
}

#[cold]
fn note(met: &Met, number: u32) {
    if !met.seen[number as usize].swap(true, Ordering::Relaxed) {
        writeln!(&met.file, "{number}").expect("room for what is met");
    }
}
