//! Amounts with their units in the type.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Money of the federation, in micro-credits.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Credits(u64);

impl Credits {
    /// Nothing.
    pub const ZERO: Credits = Credits(0);

    /// From micro-credits.
    pub const fn from_micro(micro: u64) -> Credits {
        Credits(micro)
    }

    /// In micro-credits.
    pub const fn as_micro(self) -> u64 {
        self.0
    }

    /// Sum, or `None` when it does not fit.
    pub const fn checked_add(self, other: Credits) -> Option<Credits> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Credits(sum)),
            None => None,
        }
    }

    /// What is left after `other`; nothing when `other` is more.
    #[must_use]
    pub const fn less(self, other: Credits) -> Credits {
        Credits(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// What a node asks for its work.
///
/// # Units
/// Micro-credits per 1,000 tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// For each 1,000 tokens of prompt that the engine reads.
    pub prompt: u64,
    /// For each 1,000 tokens that the engine writes.
    pub completion: u64,
}

impl Rates {
    /// The cost of reading and writing so many tokens, rounded up to whole micro-credits
    /// once for the sum; `None` when it does not fit.
    pub fn cost(&self, prompt_tokens: u64, completion_tokens: u64) -> Option<Credits> {
        let prompt = u128::from(self.prompt) * u128::from(prompt_tokens);
        let completion = u128::from(self.completion) * u128::from(completion_tokens);
        let micro = prompt.checked_add(completion)?.div_ceil(1_000);
        u64::try_from(micro).ok().map(Credits)
    }
}

/// A number that need not be whole, without floating point: `mantissa × 10^exp10`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decimal {
    /// Significant digits.
    pub mantissa: i64,
    /// Power of ten, −18 … 18.
    pub exp10: i8,
}

impl Decimal {
    /// The largest magnitude of `exp10` that a receiver accepts.
    pub const EXP10_MAX: i8 = 18;

    /// Whether the exponent is one that a receiver accepts.
    pub const fn exponent_fits(self) -> bool {
        // Not `abs`: it has no answer for −128, which a stranger may well send.
        self.exp10.unsigned_abs() <= Self::EXP10_MAX.unsigned_abs()
    }

    /// `thousandths / 1000`.
    pub const fn from_milli(thousandths: i64) -> Decimal {
        Decimal { mantissa: thousandths, exp10: -3 }
    }

    /// A decimal.
    pub const fn new(mantissa: i64, exp10: i8) -> Decimal {
        Decimal { mantissa, exp10 }
    }

    /// Compares two numbers exactly, whichever way they are written; rules of messages are checked with
    /// this, for in floating point 95 × 10⁻² is more than 0.95.
    pub fn compare(self, other: Decimal) -> Ordering {
        if self.exp10 < other.exp10 {
            return other.compare(self).reverse();
        }
        let apart = self.exp10.abs_diff(other.exp10);
        if apart >= 20 {
            // Anything but zero, times 10²⁰, is beyond every mantissa.
            return match self.mantissa.cmp(&0) {
                Ordering::Equal => 0.cmp(&other.mantissa),
                sign => sign,
            };
        }
        // |mantissa| < 10¹⁹, so the product is below 10³⁸ and fits.
        let scaled = i128::from(self.mantissa) * 10_i128.pow(u32::from(apart));
        scaled.cmp(&i128::from(other.mantissa))
    }

    /// The nearest `f64`; for computing with, never for signing or deciding.
    pub fn to_f64(self) -> f64 {
        // Reading decimal text rounds once and the same on every machine; a power of ten would round twice.
        format!("{}e{}", self.mantissa, self.exp10).parse().unwrap_or(f64::NAN)
    }
}

/// A country, as two upper-case letters of ISO 3166-1 alpha-2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Jurisdiction([u8; 2]);

impl Jurisdiction {
    /// Parses two upper-case ASCII letters.
    pub fn new(code: &str) -> Option<Jurisdiction> {
        match *code.as_bytes() {
            [a @ b'A'..=b'Z', b @ b'A'..=b'Z'] => Some(Jurisdiction([a, b])),
            _ => None,
        }
    }

    /// The two letters.
    pub fn as_str(&self) -> &str {
        // Only ASCII letters are ever stored.
        std::str::from_utf8(&self.0).unwrap_or("??")
    }
}

impl fmt::Display for Jurisdiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Jurisdiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Jurisdiction {
    type Err = &'static str;

    fn from_str(code: &str) -> Result<Self, Self::Err> {
        Jurisdiction::new(code).ok_or("expected two upper-case letters, e.g. CH")
    }
}

impl Serialize for Jurisdiction {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Jurisdiction {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = String::deserialize(deserializer)?;
        Jurisdiction::new(&code)
            .ok_or_else(|| serde::de::Error::custom("expected two upper-case letters, e.g. CH"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_rounds_up_once_and_never_wraps() {
        let rates = Rates { prompt: 1, completion: 3 };
        assert_eq!(rates.cost(1, 1), Some(Credits::from_micro(1)));
        assert_eq!(rates.cost(1_000, 1_000), Some(Credits::from_micro(4)));
        let dear = Rates { prompt: u64::MAX, completion: u64::MAX };
        assert_eq!(dear.cost(u64::MAX, u64::MAX), None);
    }

    #[test]
    fn decimals_compare_by_what_they_say() {
        use Ordering::{Equal, Greater, Less};
        let of = Decimal::new;
        for (a, b, order) in [
            (of(95, -2), of(950, -3), Equal),
            (of(951, -3), of(95, -2), Greater),
            (of(1, 18), of(i64::MAX, 0), Less),
            (of(1, 18), of(i64::MAX, -18), Greater),
            (of(-1, 18), of(i64::MIN, -18), Less),
            (of(0, 18), of(1, -18), Less),
            (of(0, 18), of(0, -18), Equal),
            (of(0, 18), of(-1, -18), Greater),
            (of(1, i8::MIN), of(1, i8::MAX), Less),
            (of(i64::MIN, 19), of(i64::MAX, 0), Less),
        ] {
            assert_eq!((a.compare(b), b.compare(a)), (order, order.reverse()), "{a:?} {b:?}");
        }
    }

    #[test]
    fn decimals_become_the_nearest_float() {
        let of = |mantissa, exp10| Decimal::new(mantissa, exp10).to_f64();
        let found = (of(95, -2), of(700, -3), of(1, -8), of(-25, 1), of(0, -18));
        assert_eq!(found, (0.95, 0.7, 1e-8, -250.0, 0.0));
        assert_eq!((of(i64::MAX, 18), of(1, i8::MIN)), (9.223_372_036_854_776e36, 1e-128));
    }

    #[test]
    fn jurisdictions_are_two_capitals() {
        assert_eq!(Jurisdiction::new("CH").map(|j| j.to_string()), Some("CH".into()));
        for bad in ["ch", "C", "CHE", "C1", ""] {
            assert_eq!(Jurisdiction::new(bad), None, "{bad}");
        }
    }
}
