//! Time as the protocol says it: whole milliseconds, given from outside.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, as some node's clock claims.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Timestamp(u64);

/// A length of time in milliseconds.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct DurationMs(u64);

impl Timestamp {
    /// The first instant there is; before every certificate.
    pub const ZERO: Timestamp = Timestamp(0);

    /// From milliseconds since the Unix epoch.
    pub const fn from_ms(ms: u64) -> Timestamp {
        Timestamp(ms)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// This instant plus `duration`, stopping at the end of time.
    #[must_use]
    pub const fn plus(self, duration: DurationMs) -> Timestamp {
        Timestamp(self.0.saturating_add(duration.0))
    }

    /// This instant minus `duration`, stopping at zero.
    #[must_use]
    pub const fn minus(self, duration: DurationMs) -> Timestamp {
        Timestamp(self.0.saturating_sub(duration.0))
    }

    /// Time from `earlier` to here; zero when `earlier` is later.
    pub const fn since(self, earlier: Timestamp) -> DurationMs {
        DurationMs(self.0.saturating_sub(earlier.0))
    }
}

impl DurationMs {
    /// From milliseconds.
    pub const fn from_ms(ms: u64) -> DurationMs {
        DurationMs(ms)
    }

    /// From whole seconds, stopping at the largest duration.
    pub const fn from_secs(seconds: u64) -> DurationMs {
        DurationMs(seconds.saturating_mul(1_000))
    }

    /// Milliseconds.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// This long, `times` times, stopping at the largest duration.
    #[must_use]
    pub const fn times(self, times: u64) -> DurationMs {
        DurationMs(self.0.saturating_mul(times))
    }

    /// This and `other` one after the other.
    #[must_use]
    pub const fn and(self, other: DurationMs) -> DurationMs {
        DurationMs(self.0.saturating_add(other.0))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds, e.g. `2026-11-23T08:20:00.000Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms_of_day) = (self.0 / 86_400_000, self.0 % 86_400_000);
        // Civil date from day number: H. Hinnant, "chrono-compatible low-level date algorithms".
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_index = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_index + 2) / 5 + 1;
        let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let seconds = ms_of_day / 1_000;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            seconds / 3_600,
            seconds / 60 % 60,
            seconds % 60,
            ms_of_day % 1_000
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_known_instants() {
        assert_eq!(Timestamp::ZERO.to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp::from_ms(951_827_696_789).to_string(), "2000-02-29T12:34:56.789Z");
        assert_eq!(Timestamp::from_ms(1_795_422_000_000).to_string(), "2026-11-23T08:20:00.000Z");
    }

    #[test]
    fn arithmetic_saturates() {
        let end = Timestamp::from_ms(u64::MAX);
        assert_eq!(end.plus(DurationMs::from_secs(u64::MAX)), end);
        assert_eq!(Timestamp::ZERO.minus(DurationMs::from_ms(1)), Timestamp::ZERO);
    }
}
