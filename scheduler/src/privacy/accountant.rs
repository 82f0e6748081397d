//! Rényi differential privacy of the subsampled Gaussian mechanism, at integer orders.
//!
//! One step of DP-SGD (Abadi et al. 2016) draws each subject with probability q (Poisson sampling),
//! clips each one's gradient to norm C, and adds noise N(0, σ²C²) to the sum. Neighbouring datasets
//! differ by one subject. Mironov, Talwar, Zhang, "Rényi Differential Privacy of the Sampled Gaussian
//! Mechanism" (arXiv:1908.10530), §3.3, for integer α:
//!
//! ```text
//! RDP(α) = ln A / (α − 1),   A = Σ_{k=0}^{α} C(α,k) (1−q)^{α−k} q^k exp((k² − k) / 2σ²)
//! ```
//!
//! The terms without the exponential add up to one, and the exponential of the first two terms is
//! one, so what is computed is
//!
//! ```text
//! A − 1 = Σ_{k=2}^{α} C(α,k) (1−q)^{α−k} q^k (exp((k² − k) / 2σ²) − 1)
//! ```
//!
//! a sum of positive terms in which nothing cancels. Summing A itself would leave nothing of a small
//! q, where A is one plus 10⁻¹⁵.

use allmend_protocol::units::Decimal;

use super::orders::{ORDERS, ORDERS_LEN};
use super::rdp::{Delta, RdpVector};

/// The smallest sampling rate but 0: below it the stated bound of rounding no longer holds.
pub const SAMPLING_RATE_MIN: f64 = 1e-9;
/// The largest noise multiplier: more noise than any use of a gradient survives.
pub const NOISE_MULTIPLIER_MAX: f64 = 1e6;
/// The smallest noise multiplier but 0: with less, what is revealed is as good as infinite.
pub const NOISE_MULTIPLIER_MIN: f64 = 1e-3;

/// Why numbers are not the parameters of a private run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// q.
    #[error("the sampling rate must be 0 or from {SAMPLING_RATE_MIN:e} to 1")]
    SamplingRate,
    /// σ.
    #[error(
        "the noise multiplier must be 0 or from {NOISE_MULTIPLIER_MIN} to {NOISE_MULTIPLIER_MAX:e}"
    )]
    NoiseMultiplier,
    /// δ.
    #[error("delta must be from 1e-18 to below 1")]
    Delta,
}

/// One step of a private run: the subsampled Gaussian with checked parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mechanism {
    sampling_rate: f64,
    noise_multiplier: f64,
}

impl Mechanism {
    /// A step that draws each subject with probability `sampling_rate` and adds noise of
    /// `noise_multiplier` times the clipping norm.
    ///
    /// # Errors
    /// [`ParameterError`] for what is out of range, infinite, or not a number.
    pub fn new(sampling_rate: f64, noise_multiplier: f64) -> Result<Mechanism, ParameterError> {
        // Written so that NaN fails.
        let rate = sampling_rate == 0.0 || (SAMPLING_RATE_MIN..=1.0).contains(&sampling_rate);
        if !rate {
            return Err(ParameterError::SamplingRate);
        }
        let noise = noise_multiplier == 0.0
            || (NOISE_MULTIPLIER_MIN..=NOISE_MULTIPLIER_MAX).contains(&noise_multiplier);
        if !noise {
            return Err(ParameterError::NoiseMultiplier);
        }
        Ok(Mechanism { sampling_rate, noise_multiplier })
    }

    /// The same from the numbers of a signed job.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_decimals(
        sampling_rate: Decimal,
        noise_multiplier: Decimal,
    ) -> Result<Mechanism, ParameterError> {
        Mechanism::new(
            nearest(sampling_rate).ok_or(ParameterError::SamplingRate)?,
            nearest(noise_multiplier).ok_or(ParameterError::NoiseMultiplier)?,
        )
    }

    /// What one step reveals, at each of [`ORDERS`], in nats; infinite without noise.
    ///
    /// The relative error is below [`RdpVector::ROUNDING`].
    pub fn rdp(&self) -> [f64; ORDERS_LEN] {
        let (q, sigma) = (self.sampling_rate, self.noise_multiplier);
        if q == 0.0 {
            return [0.0; ORDERS_LEN];
        }
        if sigma == 0.0 {
            return [f64::INFINITY; ORDERS_LEN];
        }
        if q == 1.0 {
            // Only k = α is left: the Gaussian mechanism itself (Mironov 2017, proposition 7).
            return ORDERS.map(|order| f64::from(order) / (2.0 * sigma * sigma));
        }
        let ln_factorials = ln_factorials();
        ORDERS.map(|order| {
            let ln_excess = ln_excess(order, q, sigma, &ln_factorials);
            softplus(ln_excess) / (f64::from(order) - 1.0)
        })
    }

    /// What one step reveals, in integers, rounded up.
    pub fn vector(&self) -> RdpVector {
        RdpVector::rounded_up(&self.rdp())
    }
}

/// ε at `delta` of what reveals `rdp` at each of [`ORDERS`], and the order at which the least is
/// found; infinite, and no order, when it is infinite at every order.
///
/// ε = min over α of RDP(α) + ln((α−1)/α) − (ln δ + ln α)/(α−1), never below 0 (Canonne, Kamath,
/// Steinke 2020, proposition 12; Balle et al. 2020, theorem 21).
pub fn epsilon(rdp: &[f64; ORDERS_LEN], delta: Delta) -> (f64, Option<u16>) {
    if rdp.iter().all(|&rdp| rdp == 0.0) {
        // Nothing was computed. The conversion, good for any mechanism, would not see that.
        return (0.0, None);
    }
    let ln_delta = libm::log(delta.value());
    let mut least = (f64::INFINITY, None);
    for (&order, &rdp) in ORDERS.iter().zip(rdp) {
        let alpha = f64::from(order);
        let epsilon =
            rdp + libm::log1p(-1.0 / alpha) - (ln_delta + libm::log(alpha)) / (alpha - 1.0);
        if epsilon < least.0 {
            least = (epsilon.max(0.0), Some(order));
        }
    }
    least
}

/// The `f64` nearest to a decimal of at most 15 digits; within one unit in the last place for others.
/// `None` when its exponent is out of range.
///
/// Not [`Decimal::to_f64`], which multiplies by an inexact power for negative exponents: powers of ten
/// up to 10²² are exact, so one division rounds once.
pub(crate) fn nearest(number: Decimal) -> Option<f64> {
    if !number.exponent_fits() {
        return None;
    }
    let power = (0..number.exp10.unsigned_abs()).fold(1.0, |power, _| power * 10.0);
    let mantissa = number.mantissa as f64;
    Some(if number.exp10 < 0 { mantissa / power } else { mantissa * power })
}

/// ln(A − 1), see the module's formula, for 0 < q < 1 and σ > 0.
fn ln_excess(order: u16, q: f64, sigma: f64, ln_factorials: &[f64]) -> f64 {
    let (ln_q, ln_rest) = (libm::log(q), libm::log1p(-q));
    let n = usize::from(order);
    let term = |k: usize| {
        let ln_choose = ln_factorials[n] - ln_factorials[k] - ln_factorials[n - k];
        let (chosen, left) = (k as f64, (n - k) as f64);
        let exponent = chosen * (chosen - 1.0) / (2.0 * sigma * sigma);
        ln_choose + left * ln_rest + chosen * ln_q + ln_expm1(exponent)
    };
    let terms: Vec<f64> = (2..=n).map(term).collect();
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + libm::log(terms.iter().map(|term| libm::exp(term - largest)).sum())
}

/// ln(exp(x) − 1) for x > 0.
fn ln_expm1(x: f64) -> f64 {
    if x > 40.0 { x + libm::log1p(-libm::exp(-x)) } else { libm::log(libm::expm1(x)) }
}

/// ln(1 + exp(x)).
fn softplus(x: f64) -> f64 {
    if x > 40.0 { x + libm::log1p(libm::exp(-x)) } else { libm::log1p(libm::exp(x)) }
}

/// ln k! for k up to the largest order, summed with a compensation (Neumaier 1974), so that the error
/// of a thousand additions is that of a few.
fn ln_factorials() -> Vec<f64> {
    let largest = ORDERS.last().copied().unwrap_or(0);
    let (mut sum, mut lost) = (0.0f64, 0.0f64);
    let mut table = vec![0.0];
    for k in 1..=largest {
        let ln = libm::log(f64::from(k));
        let next = sum + ln;
        lost += if sum >= ln { (sum - next) + ln } else { (ln - next) + sum };
        sum = next;
        table.push(sum + lost);
    }
    table
}
