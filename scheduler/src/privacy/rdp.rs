//! Rényi divergences as integers: exact to add, equal on every machine.

use std::fmt;

use allmend_protocol::units::Decimal;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::accountant::{self, ParameterError};
use super::orders::ORDERS_LEN;

/// The ε, in thousandths, of what has no bound. It fits a signed 64-bit integer, as policies have
/// them, and is more than any budget.
pub const MILLI_EPSILON_INFINITE: u64 = i64::MAX as u64;

const FEMTO: f64 = 1e15;

/// What something reveals: an upper bound of its Rényi divergence at each of [`super::ORDERS`].
///
/// Composition is addition, and addition saturates at a largest value that means *infinite*. It is
/// associative and commutative, so the order in which runs are entered does not matter.
///
/// # Units
/// Femto-nats (10⁻¹⁵), rounded up: the largest finite value is some 18,446 nats, where any budget has
/// long been spent; a million steps add at most 10⁻⁹ nats of rounding.
#[derive(Clone, PartialEq, Eq)]
pub struct RdpVector([u64; ORDERS_LEN]);

impl RdpVector {
    /// Of what reveals nothing.
    pub const ZERO: RdpVector = RdpVector([0; ORDERS_LEN]);

    /// By what part a computed divergence is made larger before it is rounded up, so that the
    /// integers bound the true value although floats made them.
    ///
    /// With u = 2⁻⁵³: each logarithm of a term adds up parts of magnitude at most M and errs by less
    /// than 8uM, and M is at most 50,000 + 2 ln A where q ≥ 10⁻⁹ and α ≤ 1,024. Relative to ln A
    /// that is below 5·10⁻¹¹ for ln A > 1, and as an error of ln(A − 1) below 5·10⁻¹¹ otherwise.
    pub const ROUNDING: f64 = 1e-10;

    /// Rounds divergences in nats up. A NaN, which the accountant never makes, is infinite.
    pub(crate) fn rounded_up(nats: &[f64; ORDERS_LEN]) -> RdpVector {
        RdpVector(nats.map(|nats| {
            if nats == 0.0 {
                return 0;
            }
            let femto = (nats * (1.0 + RdpVector::ROUNDING) * FEMTO).ceil();
            // The cast saturates at both ends and takes NaN to 0, hence the first arm.
            if femto.is_nan() { u64::MAX } else { (femto as u64).max(1) }
        }))
    }

    /// Of both.
    #[must_use]
    pub fn plus(&self, other: &RdpVector) -> RdpVector {
        let mut sum = self.clone();
        for (sum, other) in sum.0.iter_mut().zip(&other.0) {
            *sum = sum.saturating_add(*other);
        }
        sum
    }

    /// Of so many steps.
    #[must_use]
    pub fn times(&self, steps: u32) -> RdpVector {
        RdpVector(self.0.map(|one| one.saturating_mul(u64::from(steps))))
    }

    /// Whether it reveals nothing.
    pub fn is_zero(&self) -> bool {
        *self == RdpVector::ZERO
    }

    /// Whether it reveals at least as much as `other` at every order.
    pub fn covers(&self, other: &RdpVector) -> bool {
        self.0.iter().zip(&other.0).all(|(this, other)| this >= other)
    }

    /// The integers, in femto-nats, in the order of [`super::ORDERS`].
    pub fn femto_nats(&self) -> &[u64] {
        &self.0
    }

    /// ε at `delta`, in thousandths, rounded up; [`MILLI_EPSILON_INFINITE`] without a bound.
    pub fn milli_epsilon(&self, delta: Delta) -> u64 {
        let nats = self.0.map(|femto| match femto {
            u64::MAX => f64::INFINITY,
            femto => femto as f64 / FEMTO,
        });
        let (epsilon, _) = accountant::epsilon(&nats, delta);
        // A dozen roundings went into ε; this is more than they can have taken away.
        let milli = (epsilon * 1e3 * (1.0 + 1e-13) + 1e-10).ceil();
        match epsilon {
            0.0 => 0,
            _ => (milli as u64).min(MILLI_EPSILON_INFINITE),
        }
    }
}

impl fmt::Debug for RdpVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, .., last] = self.0;
        write!(f, "RdpVector({first} … {last} femto-nats)")
    }
}

impl Serialize for RdpVector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0)
    }
}

impl<'de> Deserialize<'de> for RdpVector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(VectorVisitor)
    }
}

struct VectorVisitor;

impl<'de> Visitor<'de> for VectorVisitor {
    type Value = RdpVector;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {ORDERS_LEN} integers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<RdpVector, A::Error> {
        let mut vector = RdpVector::ZERO;
        for (len, slot) in vector.0.iter_mut().enumerate() {
            *slot =
                elements.next_element()?.ok_or_else(|| de::Error::invalid_length(len, &self))?;
        }
        match elements.next_element::<u64>()? {
            None => Ok(vector),
            Some(_) => Err(de::Error::invalid_length(ORDERS_LEN + 1, &self)),
        }
    }
}

/// δ: the probability with which ε may be exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Decimal", into = "Decimal")]
pub struct Delta(Decimal);

impl Delta {
    /// From 10⁻¹⁸ to below 1.
    ///
    /// # Errors
    /// [`ParameterError::Delta`] for anything else.
    pub fn new(delta: Decimal) -> Result<Delta, ParameterError> {
        let value = accountant::nearest(delta).ok_or(ParameterError::Delta)?;
        if (1e-18..1.0).contains(&value) { Ok(Delta(delta)) } else { Err(ParameterError::Delta) }
    }

    /// 10 to the power of −`exp10`, of 1 to 18.
    ///
    /// # Errors
    /// [`ParameterError::Delta`].
    pub fn power_of_ten(exp10: u8) -> Result<Delta, ParameterError> {
        let exp10 = i8::try_from(exp10).map_err(|_| ParameterError::Delta)?;
        Delta::new(Decimal { mantissa: 1, exp10: -exp10 })
    }

    /// The number.
    pub fn decimal(self) -> Decimal {
        self.0
    }

    /// The nearest float.
    pub(crate) fn value(self) -> f64 {
        // `new` has seen that the exponent fits.
        accountant::nearest(self.0).unwrap_or(f64::NAN)
    }
}

impl TryFrom<Decimal> for Delta {
    type Error = ParameterError;

    fn try_from(delta: Decimal) -> Result<Delta, ParameterError> {
        Delta::new(delta)
    }
}

impl From<Delta> for Decimal {
    fn from(delta: Delta) -> Decimal {
        delta.0
    }
}
