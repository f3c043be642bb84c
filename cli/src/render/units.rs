//! Quantities for people.

use jiff::Timestamp;
use jiff::tz::TimeZone;

const STEPS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// The number below 1024 and its unit.
fn scaled(bytes: f64) -> (f64, &'static str) {
    let mut value = bytes;
    let mut step = 0;
    // What would be shown as "1024" is shown as "1.0" of the next unit.
    while value >= 1023.95 && step + 1 < STEPS.len() {
        value /= 1024.0;
        step += 1;
    }
    (value, STEPS[step])
}

/// `20.0 GiB`, `212 MiB`, `512 B`.
pub fn size(bytes: u64) -> String {
    let (value, unit) = scaled(bytes as f64);
    if unit == "B" || value >= 99.95 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// `94 MiB/s`, `1.1 MiB/s`.
pub fn rate(bytes_per_second: f64) -> String {
    let (value, unit) = scaled(bytes_per_second);
    if unit == "B" || value >= 9.95 {
        format!("{value:.0} {unit}/s")
    } else {
        format!("{value:.1} {unit}/s")
    }
}

/// `38 %`, `1.0 %`; never `0.0 %` for something and never `100 %` for less than all.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "100 %".to_owned();
    }
    let value = part as f64 * 100.0 / whole as f64;
    if part == 0 {
        "0 %".to_owned()
    } else if value < 0.1 {
        "<0.1 %".to_owned()
    } else if value < 9.95 {
        format!("{value:.1} %")
    } else if part < whole {
        format!("{:.0} %", value.min(99.0))
    } else {
        format!("{value:.0} %")
    }
}

/// `2 s`, `12 min`, `3 h`, `3 d`: the largest unit, rounded down.
pub fn ago(seconds: u64) -> String {
    match seconds {
        0..=59 => format!("{seconds} s"),
        60..=3_599 => format!("{} min", seconds / 60),
        3_600..=86_399 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `2 s`, `1 min 5 s`, `3 h 10 min`: two units, for what is waited for.
pub fn left(seconds: u64) -> String {
    match seconds {
        0..=59 => format!("{seconds} s"),
        60..=3_599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// `0.21 ms`, `12.3 ms`, `1.20 s`.
pub fn latency(nanoseconds: u64) -> String {
    let ms = nanoseconds as f64 / 1e6;
    if ms < 10.0 {
        format!("{ms:.2} ms")
    } else if ms < 1000.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{:.2} s", ms / 1000.0)
    }
}

/// `4,120`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A moment for people: the time of day, with the date when it was not today.
pub fn moment(ms: u64, now_ms: u64, zone: &TimeZone) -> String {
    let at = |ms: u64| {
        i64::try_from(ms)
            .ok()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .map(|stamp| stamp.to_zoned(zone.clone()))
    };
    match (at(ms), at(now_ms)) {
        (Some(then), Some(now)) if then.date() == now.date() => {
            then.strftime("%H:%M:%S").to_string()
        }
        (Some(then), _) => then.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        (None, _) => "a time out of range".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        assert_eq!(size(20 << 30), "20.0 GiB");
        assert_eq!(size(212 << 20), "212 MiB");
        assert_eq!(size(1_153_434), "1.1 MiB");
        assert_eq!(size(512), "512 B");
        assert_eq!(size((1 << 20) - 1), "1.0 MiB");
        assert_eq!(rate(94.2 * 1024.0 * 1024.0), "94 MiB/s");
        assert_eq!(percent(38, 100), "38 %");
        assert_eq!(percent(1, 100), "1.0 %");
        assert_eq!(percent(1, 100_000), "<0.1 %");
        assert_eq!(percent(99_999, 100_000), "99 %");
        assert_eq!(percent(0, 0), "100 %");
        assert_eq!(ago(3 * 86_400 + 5), "3 d");
        assert_eq!(left(65), "1 min 5 s");
        assert_eq!(latency(210_000), "0.21 ms");
        assert_eq!(count(4_120), "4,120");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000_000), "1,000,000");
    }

    #[test]
    fn moments_carry_a_date_when_it_is_another_day() {
        let noon = 1_763_726_400_000;
        assert_eq!(moment(noon, noon + 1000, &TimeZone::UTC), "12:00:00");
        assert_eq!(
            moment(noon, noon + 86_400_000, &TimeZone::UTC),
            "2025-11-21 12:00:00"
        );
    }
}
