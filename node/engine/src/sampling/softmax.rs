//! Passes over a whole row of logits, written so that the compiler vectorises them: a vocabulary has
//! some hundred thousand entries, and every sequence of a step needs one row.

/// Values handled side by side; a sum is the sum of this many partial sums.
const LANES: usize = 16;

/// Whether no value is NaN or infinite.
pub(super) fn all_finite(values: &[f32]) -> bool {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            // Finite numbers give zero, all others NaN, which sticks.
            *lane += value * 0.0;
        }
    }
    lanes.iter().chain(rest).all(|value| value.is_finite())
}

/// The largest of finite values.
pub(super) fn largest(values: &[f32]) -> f32 {
    let pick = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = pick(*lane, value);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, pick)
}

/// The first position that holds `value`, or 0.
pub(super) fn position_of(values: &[f32], value: f32) -> u32 {
    let at = values.iter().position(|&other| other == value).unwrap_or(0);
    u32::try_from(at).unwrap_or(0)
}

/// Sum of `exp((value - largest) * scale)`: sixteen partial sums in F64, by index, then added in order.
pub(super) fn total_weight(values: &[f32], largest: f32, scale: f32) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        let mut weights = [0.0f32; LANES];
        for (weight, value) in weights.iter_mut().zip(chunk) {
            *weight = exp((value - largest) * scale);
        }
        for (lane, weight) in lanes.iter_mut().zip(weights) {
            *lane += f64::from(weight);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(exp((value - largest) * scale));
    }
    lanes.iter().sum()
}

/// `e^x` for `x <= 0`; exactly 1 at 0, and 0 below -87, where F32 ends.
///
/// The polynomial of Cephes' `expf` (Moshier 1989), within 2 units in the last place. The platform's own
/// function would differ from machine to machine.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "constants as published")]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding this leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_375 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_15e-4;
    p = p * r + 1.398_199_950_7e-3;
    p = p * r + 8.333_451_907_3e-3;
    p = p * r + 4.166_579_589_4e-2;
    p = p * r + 1.666_666_545_9e-1;
    p = p * r + 5.000_000_120_1e-1;
    let y = p * (r * r) + r + 1.0;
    // 2^n, made of the low bits of `shifted`.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x > -87.0 { y * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        assert_eq!((exp(0.0), exp(-87.0), exp(f32::MIN)), (1.0, 0.0, 0.0));
        let worst = (0..870_000)
            .map(|step| -(step as f32) / 10_000.0)
            .map(|x| ((f64::from(exp(x)) - f64::from(x).exp()) / f64::from(x).exp()).abs())
            .fold(0.0, f64::max);
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
    }

    #[test]
    fn passes_agree_with_plain_ones() {
        for len in [1, 15, 16, 17, 100] {
            let values: Vec<f32> =
                (0..len).map(|i| ((i * 37) % 101) as f32 * 0.25 - 20.0).collect();
            let most = values.iter().copied().fold(f32::MIN, f32::max);
            assert_eq!(largest(&values), most);
            let at = values.iter().position(|&value| value == most).unwrap();
            assert_eq!(position_of(&values, most) as usize, at);
            let plain: f64 =
                values.iter().map(|&value| (f64::from(value - most) * 0.5).exp()).sum();
            assert!((total_weight(&values, most, 0.5) / plain - 1.0).abs() < 1e-6);
            assert!(all_finite(&values));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in 0..len {
                    let mut values = values.clone();
                    values[at] = bad;
                    assert!(!all_finite(&values));
                }
            }
        }
    }
}
