//! The clocks that a manager reads: one that never goes back and counts while the machine sleeps,
//! and the wall's, for people.

use std::fs;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::core::Time;

/// Where the kernel tells this boot's id.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// This moment on `CLOCK_BOOTTIME`.
pub fn now() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    Time(now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000)
}

/// Milliseconds since 1970.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// The id of this boot of the machine.
///
/// # Errors
/// The kernel does not tell it.
pub fn boot() -> io::Result<u128> {
    let text = fs::read_to_string(BOOT_ID)?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).map_err(|error| {
        let what = format!("{BOOT_ID} holds no id: {text:?}: {error}");
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_a_boot_keeps_its_id() {
        let first = now();
        assert!(first > Time(0) && now() >= first);
        assert!(wall_ms() > 1_600_000_000_000);
        assert_eq!(boot().expect("an id"), boot().expect("an id"));
    }
}
