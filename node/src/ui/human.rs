//! Quantities and foreign text in a form that people read at a glance.

use std::borrow::Cow;

use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::Credits;

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

/// `mib` mebibytes like [`bytes()`].
#[must_use]
pub fn mib(mib: u64) -> String {
    bytes(mib.saturating_mul(1024 * 1024))
}

/// A duration with its two largest units: `450 ms`, `3.2 s`, `4 min 05 s`.
#[must_use]
pub fn duration(duration: DurationMs) -> String {
    let ms = duration.as_ms();
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..=59 => format!("{}.{} s", seconds, ms % 1000 / 100),
        60..=3599 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// How long before `now` the instant `then` was, roughly: `just now`, `3 min ago`.
///
/// An instant in the future reads `just now`, since clocks differ.
#[must_use]
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.since(then).as_ms() / 1000;
    match seconds {
        0..=4 => "just now".to_owned(),
        5..=59 => format!("{seconds} s ago"),
        60..=3599 => format!("{} min ago", seconds / 60),
        3600..=86_399 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// Credits without trailing zeros: `1.25 credits`.
#[must_use]
pub fn credits(amount: Credits) -> String {
    let exact = amount.to_string();
    let short = exact.trim_end_matches('0').trim_end_matches('.');
    let unit = if short == "1" { "credit" } else { "credits" };
    format!("{short} {unit}")
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
        let shown = |ms| duration(DurationMs::from_ms(ms));
        assert_eq!(shown(450), "450 ms");
        assert_eq!(shown(3_249), "3.2 s");
        assert_eq!(shown(245_000), "4 min 05 s");
        assert_eq!(shown(3_720_000), "1 h 02 min");
        assert_eq!(shown(90_000_000), "1 d 01 h");
        let at = Timestamp::from_ms;
        assert_eq!(ago(at(10_000), at(9_000)), "just now");
        assert_eq!(ago(at(0), at(3 * 60_000)), "3 min ago");
    }

    #[test]
    fn money_and_counts() {
        let shown = |micro| credits(Credits::from_micro(micro));
        assert_eq!(shown(1_250_000), "1.25 credits");
        assert_eq!(shown(1_000_000), "1 credit");
        assert_eq!(shown(0), "0 credits");
        assert_eq!(shown(10_000_001), "10.000001 credits");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(123), "123");
    }

    #[test]
    fn foreign_text_cannot_steer() {
        assert_eq!(printable("Universität Zürich"), "Universität Zürich");
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}c"), "a\u{fffd}[2Jb\u{fffd}c");
    }

    proptest! {
        #[test]
        fn never_panics(number: u64, text: String) {
            let _ = (bytes(number), mib(number), duration(DurationMs::from_ms(number)));
            let _ = (credits(Credits::from_micro(number)), count(number), short_id(&text).len());
            prop_assert!(!printable(&text).chars().any(steers));
        }
    }
}
