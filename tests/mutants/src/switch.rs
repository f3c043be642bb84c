//! Added to the copy of kagami-bitmap: which mutant is on in this process.

use std::sync::LazyLock;

static ON: LazyLock<u32> = LazyLock::new(|| {
    let number = std::env::var("KAGAMI_MUTANT").unwrap_or_default();
    number.parse().unwrap_or(0)
});

/// Whether this mutant is.
#[inline]
pub fn on(number: u32) -> bool {
    *ON == number
}
