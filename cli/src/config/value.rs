//! Values with units, as the configuration file and the command line spell them.
//!
//! Sizes count in powers of 1024 (`20G` = `20GiB`), the way disks are partitioned and `qemu-img`
//! counts; `GB` and its kin are powers of 1000. Times always carry a unit.

use std::fmt::Write as _;
use std::time::Duration;

const SIZE_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("K", 1 << 10),
    ("KiB", 1 << 10),
    ("M", 1 << 20),
    ("MiB", 1 << 20),
    ("G", 1 << 30),
    ("GiB", 1 << 30),
    ("T", 1 << 40),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

const TIME_UNITS: &[(&str, u64)] = &[
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("min", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Splits `"1.5 GiB"` into the number and the unit.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'))
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// `number` (with an optional fraction) times `unit`, exactly; `None` on overflow, a fraction that
/// does not come out even, or something that is not a number.
fn multiply(number: &str, unit: u64) -> Option<u64> {
    let number: String = number.chars().filter(|c| *c != '_').collect();
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    let mut value = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    if !fraction.is_empty() {
        let digits = u32::try_from(fraction.len()).ok().filter(|n| *n <= 9)?;
        let scaled = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit);
        let divisor = 10_u128.pow(digits);
        if !scaled.is_multiple_of(divisor) {
            return None;
        }
        value = value.checked_add(u64::try_from(scaled / divisor).ok()?)?;
    }
    Some(value)
}

/// Bytes of `"20G"`, `"20GiB"`, `"512"`.
///
/// # Errors
/// What is wrong, and what would be right, in one line.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let right = "write a size like \"20G\", \"512MiB\" or a number of bytes";
    if number.is_empty() {
        return Err(format!("`{text}` is not a size: {right}"));
    }
    let Some((_, factor)) = SIZE_UNITS
        .iter()
        .find(|(u, _)| u.eq_ignore_ascii_case(unit))
    else {
        return Err(if is_time_unit(unit) {
            format!("`{text}` has a unit of time where a size belongs: {right}")
        } else {
            format!("`{unit}` is not a unit of size: {right}")
        });
    };
    multiply(number, *factor)
        .ok_or_else(|| format!("`{text}` is not a whole number of bytes below 16 EiB: {right}"))
}

/// A duration like `"2s"`, `"500ms"`, `"10m"`.
///
/// # Errors
/// What is wrong, and what would be right, in one line.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let right = "write a time like \"500ms\", \"2s\" or \"10m\"";
    if number.is_empty() {
        return Err(format!("`{text}` is not a time: {right}"));
    }
    if unit.is_empty() {
        return Err(format!("`{text}` has no unit: {right}"));
    }
    let Some((_, factor)) = TIME_UNITS.iter().find(|(u, _)| *u == unit) else {
        return Err(if is_size_unit(unit) {
            format!("`{text}` has a unit of size where a time belongs: {right}")
        } else {
            format!("`{unit}` is not a unit of time: {right}")
        });
    };
    multiply(number, *factor)
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("`{text}` is too long a time: {right}"))
}

fn is_time_unit(unit: &str) -> bool {
    TIME_UNITS.iter().any(|(u, _)| *u == unit)
}

fn is_size_unit(unit: &str) -> bool {
    !unit.is_empty() && SIZE_UNITS.iter().any(|(u, _)| u.eq_ignore_ascii_case(unit))
}

/// A rate: `"unlimited"` (`None`) or a size, with or without `/s`.
///
/// # Errors
/// What is wrong, and what would be right, in one line.
pub fn parse_rate(text: &str) -> Result<Option<u64>, String> {
    if text == "unlimited" {
        return Ok(None);
    }
    let size = text.strip_suffix("/s").unwrap_or(text);
    match parse_size(size) {
        Ok(0) => Err("a rate of 0 would never end: write \"unlimited\" or a rate like \"100MiB/s\"; `kagami pause-sync` holds a resynchronisation".to_owned()),
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) => Err(format!(
            "`{text}` is not a rate: write \"unlimited\" or a rate like \"100MiB/s\""
        )),
    }
}

/// How far a resynchronisation may raise the application's latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// A multiple of the latency without a resynchronisation, in percent.
    Percent(u32),
    /// A fixed time.
    Time(Duration),
}

/// `"2x"` or a time.
///
/// # Errors
/// What is wrong, and what would be right, in one line.
pub fn parse_latency(text: &str) -> Result<Latency, String> {
    let right = "write a multiple like \"2x\" (of the latency without a resynchronisation) or a time like \"5ms\"";
    if let Some(times) = text.trim().strip_suffix('x') {
        return match multiply(times.trim(), 100) {
            Some(percent @ 101..=10_000) => Ok(Latency::Percent(percent as u32)),
            Some(_) => Err(format!("`{text}` is not between 1.01x and 100x: {right}")),
            None => Err(format!("`{text}` is not a multiple: {right}")),
        };
    }
    match parse_time(text) {
        Ok(time) if time.is_zero() => Err(format!("`{text}` can't be held: {right}")),
        Ok(time) => Ok(Latency::Time(time)),
        Err(_) => Err(format!("`{text}` is not a latency: {right}")),
    }
}

/// The longest name of a node, mirror, peer or arbiter.
pub const NAME_MAX: usize = 64;

/// Whether `text` can name a node, mirror, peer or arbiter: it becomes part of file names, socket
/// names, NBD export names and `/dev/kagami/NAME`.
///
/// # Errors
/// What is wrong, and what would be right, in one line.
pub fn check_name(text: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.len() <= NAME_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(good)
    {
        return Ok(());
    }
    Err(format!(
        "`{text}` is not a name: use at most {NAME_MAX} letters, digits, `-` and `_`, beginning with a letter or digit"
    ))
}

/// The shortest spelling in which the size is a whole number: `20GiB`, `1536KiB`, `513`.
pub fn spell_size(bytes: u64) -> String {
    for (unit, factor) in [
        ("TiB", 1_u64 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ] {
        if bytes != 0 && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    bytes.to_string()
}

/// Bytes in hexadecimal, lower case.
pub fn spell_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Exactly `N` bytes of hexadecimal.
pub fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("20G", 20 << 30),
            ("20GiB", 20 << 30),
            ("20 gib", 20 << 30),
            ("1.5T", 3 << 39),
            ("4096", 4096),
            ("1_000", 1000),
            ("2GB", 2_000_000_000),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, fault) in [
            ("", "`` is not a size"),
            ("G", "`G` is not a size"),
            ("2s", "`2s` has a unit of time where a size belongs"),
            ("2X", "`X` is not a unit of size"),
            ("0.3", "`0.3` is not a whole number of bytes"),
            ("99999999T", "`99999999T` is not a whole number of bytes"),
            ("1.2.3G", "`1.2.3G` is not a whole number"),
        ] {
            let said = parse_size(text).expect_err(text);
            assert!(said.starts_with(fault), "{text}: {said}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(parse_time("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("10m"), Ok(Duration::from_mins(10)));
        for (text, fault) in [
            ("2", "`2` has no unit"),
            ("s", "`s` is not a time"),
            ("2G", "`2G` has a unit of size where a time belongs"),
            ("2 weeks", "`weeks` is not a unit of time"),
        ] {
            let said = parse_time(text).expect_err(text);
            assert!(said.starts_with(fault), "{text}: {said}");
        }
    }

    #[test]
    fn rates_and_latencies() {
        assert_eq!(parse_rate("unlimited"), Ok(None));
        assert_eq!(parse_rate("100MiB/s"), Ok(Some(100 << 20)));
        assert_eq!(parse_rate("100M"), Ok(Some(100 << 20)));
        assert!(parse_rate("0").is_err());
        assert!(parse_rate("fast").is_err());
        assert_eq!(parse_latency("2x"), Ok(Latency::Percent(200)));
        assert_eq!(parse_latency("1.5x"), Ok(Latency::Percent(150)));
        assert_eq!(
            parse_latency("5ms"),
            Ok(Latency::Time(Duration::from_millis(5)))
        );
        for text in ["1x", "x", "2", "0s", "-2x"] {
            assert!(parse_latency(text).is_err(), "{text}");
        }
    }

    #[test]
    fn spelled_sizes_read_back() {
        for bytes in [0, 1, 513, 4096, 1536 << 10, 20 << 30, 3 << 40] {
            assert_eq!(parse_size(&spell_size(bytes)), Ok(bytes));
        }
        assert_eq!(spell_size(20 << 30), "20GiB");
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(parse_hex::<2>("0aff"), Some([10, 255]));
        assert_eq!(spell_hex(&[10, 255]), "0aff");
        assert_eq!(parse_hex::<2>("0aéf"), None);
        assert_eq!(parse_hex::<2>("0a"), None);
    }
}
