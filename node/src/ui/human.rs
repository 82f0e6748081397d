//! Quantities and foreign text in a form that people read at a glance.

use std::borrow::Cow;

/// `bytes` with a binary unit and three significant figures at most: `93.8 MiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of the unit, rounded; u128 so that u64::MAX does not overflow.
    let mut unit = 0;
    let mut divisor: u128 = 1024;
    let tenths_in = |divisor: u128| (u128::from(bytes) * 10 + divisor / 2) / divisor;
    while tenths_in(divisor) >= 10_240 && unit + 1 < UNITS.len() {
        divisor *= 1024;
        unit += 1;
    }
    let tenths = tenths_in(divisor);
    if tenths >= 1000 {
        format!("{} {}", (tenths + 5) / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// `mib` mebibytes like [`bytes`].
#[must_use]
pub fn mib(mib: u64) -> String {
    bytes(mib.saturating_mul(1024 * 1024))
}

/// A duration of `ms` milliseconds with its two largest units: `450 ms`, `3.2 s`, `4 min 05 s`.
#[must_use]
pub fn duration_ms(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..=59 => format!("{}.{} s", seconds, ms % 1000 / 100),
        60..=3599 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// How long before `now_ms` the instant `then_ms` was, roughly: `just now`, `3 min ago`.
///
/// An instant in the future reads `just now`, since clocks differ.
#[must_use]
pub fn ago(then_ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(then_ms) / 1000;
    match seconds {
        0..=4 => "just now".to_owned(),
        5..=59 => format!("{seconds} s ago"),
        60..=3599 => format!("{} min ago", seconds / 60),
        3600..=86_399 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// Micro-credits as credits, without trailing zeros: `1.25 credits`.
#[must_use]
pub fn credits(micro: i128) -> String {
    let sign = if micro < 0 { "-" } else { "" };
    let whole = micro.unsigned_abs() / 1_000_000;
    let fraction = format!("{:06}", micro.unsigned_abs() % 1_000_000);
    let fraction = fraction.trim_end_matches('0');
    let unit = if micro == 1_000_000 { "credit" } else { "credits" };
    if fraction.is_empty() {
        format!("{sign}{whole} {unit}")
    } else {
        format!("{sign}{whole}.{fraction} {unit}")
    }
}

/// `number` with thousands separated: `12,345`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Milliseconds since the Unix epoch as `2026-11-23T08:30:00Z` (RFC 3339, UTC).
///
/// Years after 9999 print with more digits.
#[must_use]
pub fn rfc3339(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from a day number; Howard Hinnant, "chrono-compatible low-level date algorithms".
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second % 3600 / 60,
        second % 60
    )
}

/// The first twelve characters of a hexadecimal id: enough to name it in practice.
#[must_use]
pub fn short_id(hex: &str) -> &str {
    hex.get(..12).unwrap_or(hex)
}

/// `text` without anything that could steer a terminal or reorder what is read.
///
/// Names and reasons come from other institutions; an escape sequence or a bidirectional override
/// in them must not repaint somebody's screen. Newlines and tabs stay.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !steers(c);
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if harmless(c) { c } else { '\u{fffd}' }).collect())
}

fn steers(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (98_362_432, "93.8 MiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (150 * 1024 * 1024, "150 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (value, text) in cases {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(mib(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn durations_and_ages() {
        assert_eq!(duration_ms(450), "450 ms");
        assert_eq!(duration_ms(3_249), "3.2 s");
        assert_eq!(duration_ms(245_000), "4 min 05 s");
        assert_eq!(duration_ms(3_720_000), "1 h 02 min");
        assert_eq!(duration_ms(90_000_000), "1 d 01 h");
        assert_eq!(ago(10_000, 9_000), "just now");
        assert_eq!(ago(0, 3 * 60_000), "3 min ago");
    }

    #[test]
    fn money_and_counts() {
        assert_eq!(credits(1_250_000), "1.25 credits");
        assert_eq!(credits(1_000_000), "1 credit");
        assert_eq!(credits(-1), "-0.000001 credits");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(123), "123");
    }

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_422_600_123), "2026-11-23T08:30:00Z");
    }

    #[test]
    fn foreign_text_cannot_steer() {
        assert_eq!(printable("Universität Zürich"), "Universität Zürich");
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}c"), "a\u{fffd}[2Jb\u{fffd}c");
    }

    proptest! {
        #[test]
        fn never_panics(number: u64, micro: i128, text: String) {
            let _ = (bytes(number), mib(number), duration_ms(number), rfc3339(number));
            let _ = (ago(number, 7), credits(micro), count(number), short_id(&text).len());
            prop_assert!(!printable(&text).chars().any(steers));
        }
    }
}
