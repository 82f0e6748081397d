//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) as data: the angular frequencies of a head.

use std::f64::consts::TAU;

use crate::error::EngineError;
use crate::spec::keys::Keys;

/// How the first dimensions of each head are rotated with the position.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    pub(crate) pairing: Pairing,
    /// Radians per position, one for each pair of dimensions. Twice as many dimensions, the first of the
    /// head, are rotated.
    pub(crate) frequencies: Vec<f32>,
    /// Factor of cosines and sines: 1, but for YaRN.
    pub(crate) amplitude: f32,
}

/// Which two of the rotated dimensions form pair `i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// `i` and `i + pairs`.
    Halves,
    /// `2i` and `2i + 1`.
    Adjacent,
}

/// Everything that decides about the frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RopeParameters {
    pub(crate) base: f64,
    /// Rotated dimensions of each head.
    pub(crate) dims: usize,
    pub(crate) scaling: Scaling,
}

/// How frequencies were changed to stretch a model over longer sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scaling {
    None,
    /// All divided by a factor (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        factor: f64,
    },
    /// Slow ones divided by a factor, fast ones kept, and a ramp between (Llama 3.1).
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        context: f64,
    },
    /// The same idea with a ramp over dimensions, and an amplitude (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        factor: f64,
        fast: f64,
        slow: f64,
        context: f64,
        amplitude: f64,
        truncate: bool,
    },
}

impl Rope {
    /// Computes the frequencies `base^(-2i / dims)`, scaled.
    pub(crate) fn new(parameters: &RopeParameters, pairing: Pairing) -> Self {
        let pairs = parameters.dims / 2;
        let plain = (0..pairs).map(|pair| {
            let exponent = -((2 * pair) as f64) / parameters.dims as f64;
            parameters.base.powf(exponent)
        });
        let frequencies = plain
            .enumerate()
            .map(|(pair, frequency)| parameters.scaled(pair, frequency) as f32)
            .collect();
        let amplitude = match parameters.scaling {
            Scaling::Yarn { amplitude, .. } => amplitude as f32,
            _ => 1.0,
        };
        Self { pairing, frequencies, amplitude }
    }

    /// Divides each frequency by its own number, as GGUF stores Llama 3 scaling.
    ///
    /// # Errors
    /// When there are too few or too many divisors, or one is zero, negative or not finite.
    pub(crate) fn divided_by(mut self, divisors: &[f32]) -> Result<Self, EngineError> {
        let name = "rope_freqs.weight";
        if divisors.len() != self.frequencies.len() {
            let problem =
                format!("has shape [{}], expected [{}]", divisors.len(), self.frequencies.len());
            return Err(EngineError::tensor(name, problem));
        }
        for (index, (frequency, divisor)) in self.frequencies.iter_mut().zip(divisors).enumerate() {
            if !divisor.is_finite() || *divisor <= 0.0 {
                return Err(EngineError::tensor(name, format!("divisor {index} is {divisor}")));
            }
            *frequency = (f64::from(*frequency) / f64::from(*divisor)) as f32;
        }
        Ok(self)
    }

    /// Cosine and sine of every pair at a position, amplitude included.
    pub(crate) fn angles(&self, position: usize) -> impl Iterator<Item = (f32, f32)> + '_ {
        self.frequencies.iter().map(move |frequency| {
            // The product is rounded to F32 as the models' reference code does it.
            let angle = f64::from(position as f32 * frequency);
            let amplitude = self.amplitude;
            (angle.cos() as f32 * amplitude, angle.sin() as f32 * amplitude)
        })
    }
}

impl RopeParameters {
    fn scaled(&self, pair: usize, frequency: f64) -> f64 {
        match self.scaling {
            Scaling::None => frequency,
            Scaling::Linear { factor } => frequency / factor,
            Scaling::Llama3 { factor, low, high, context } => {
                let turns = context * frequency / TAU;
                if turns > high {
                    frequency
                } else if turns < low {
                    frequency / factor
                } else {
                    let smooth = (turns - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
            Scaling::Yarn { factor, fast, slow, context, truncate, .. } => {
                // The dimension at which a pair turns `turns` times within the trained context.
                let dimension = |turns: f64| {
                    let dims = self.dims as f64;
                    dims * (context / (turns * TAU)).ln() / (2.0 * self.base.ln())
                };
                let (mut first, mut last) = (dimension(fast), dimension(slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let first = first.max(0.0);
                let last = last.min(self.dims as f64 - 1.0);
                // The reference avoids a division by zero like this.
                let span = if first == last { 0.001 } else { last - first };
                let stretched = ((pair as f64 - first) / span).clamp(0.0, 1.0);
                frequency / factor * stretched + frequency * (1.0 - stretched)
            }
        }
    }

    /// Reads one rotation from an object with `rope_type` (or, before, `type`) and what belongs to it.
    ///
    /// # Errors
    /// Names the kind of scaling or the key that is not understood.
    pub(crate) fn from_keys(keys: &Keys<'_>, defaults: &RopeDefaults) -> Result<Self, EngineError> {
        let base = keys.number("rope_theta", 1.0..=1e12)?.unwrap_or(defaults.base);
        let part = keys.number("partial_rotary_factor", 0.0..=1.0)?.unwrap_or(defaults.part);
        let dims = rotated(keys, part, defaults.head_dim)?;
        let old = keys.string("type")?;
        let kind = keys.string("rope_type")?.or(old).unwrap_or("default");
        let factor = || {
            let factor = keys.number("factor", 1.0..=1e6)?;
            factor.ok_or_else(|| keys.wrong("factor", "is missing"))
        };
        let context = || {
            let context = keys.size("original_max_position_embeddings", super::CONTEXT_MAX)?;
            Ok::<f64, EngineError>(context.unwrap_or(defaults.context) as f64)
        };
        let scaling = match kind {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: factor()? },
            "llama3" => {
                let bound = |key: &str| {
                    let bound = keys.number(key, 1e-3..=1e6)?;
                    bound.ok_or_else(|| keys.wrong(key, "is missing"))
                };
                let (low, high) = (bound("low_freq_factor")?, bound("high_freq_factor")?);
                if low >= high {
                    return Err(keys.wrong("low_freq_factor", "is not below high_freq_factor"));
                }
                Scaling::Llama3 { factor: factor()?, low, high, context: context()? }
            }
            "yarn" => yarn(keys, factor()?, context()?)?,
            _ => {
                let reason = "known are default, linear, llama3 and yarn";
                let key = if old.is_some() { "type" } else { "rope_type" };
                return Err(keys.unsupported(key, reason));
            }
        };
        keys.finish(&[])?;
        Ok(Self { base, dims, scaling })
    }
}

/// What absent keys mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeDefaults {
    pub(crate) base: f64,
    /// Part of each head that is rotated.
    pub(crate) part: f64,
    pub(crate) head_dim: usize,
    pub(crate) context: usize,
}

/// Rotated dimensions: the given part of the head, rounded down, which must be even.
fn rotated(keys: &Keys<'_>, part: f64, head_dim: usize) -> Result<usize, EngineError> {
    let dims = (head_dim as f64 * part) as usize;
    if dims == 0 || !dims.is_multiple_of(2) {
        let problem = format!("{dims} of {head_dim} dimensions cannot be rotated in pairs");
        return Err(keys.wrong("partial_rotary_factor", problem));
    }
    Ok(dims)
}

/// As `_compute_yarn_parameters` of transformers.
fn yarn(keys: &Keys<'_>, factor: f64, context: f64) -> Result<Scaling, EngineError> {
    let amplitude_of =
        |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let given = keys.number("attention_factor", 1e-3..=1e3)?;
    let one = keys.number("mscale", 0.0..=1e3)?.filter(|&mscale| mscale != 0.0);
    let all = keys.number("mscale_all_dim", 0.0..=1e3)?.filter(|&mscale| mscale != 0.0);
    let amplitude = match (given, one, all) {
        (Some(given), ..) => given,
        (None, Some(one), Some(all)) => amplitude_of(one) / amplitude_of(all),
        _ => amplitude_of(1.0),
    };
    let turns = |key: &str, default: f64| {
        let turns = keys.number(key, 0.0..=1e6)?.filter(|&turns| turns != 0.0);
        Ok::<f64, EngineError>(turns.unwrap_or(default))
    };
    Ok(Scaling::Yarn {
        factor,
        fast: turns("beta_fast", 32.0)?,
        slow: turns("beta_slow", 1.0)?,
        context,
        amplitude,
        truncate: keys.bool_or("truncate", true)?,
    })
}

#[cfg(test)]
mod tests;
