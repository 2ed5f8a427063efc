//! Rotary position embedding: its frequencies under every scaling, and the table of cosines and sines.
//!
//! Knows no model and no files. Arithmetic is f32 in transformers' order, with powers and circular functions rounded from f64.
//!
//! Source: Su et al., "RoFormer", 2021; `modeling_rope_utils.py` and `LlamaRotaryEmbedding` of transformers.

pub(super) mod read;
#[cfg(test)]
mod tests;

use std::f64::consts::PI;

pub use crate::ops::RopeLayout;

/// How positions turn q and k.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many dimensions of a head turn, from its first; even.
    pub rotary_dim: usize,
    /// Which dimensions form a pair.
    pub layout: RopeLayout,
    /// How the frequencies are stretched to longer contexts.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched to contexts longer than those of pretraining. Lengths are in tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// A base that grows with the length, past the original one.
    Dynamic {
        /// How fast it grows.
        factor: f64,
        /// Length up to which nothing changes.
        original: u32,
    },
    /// Long waves divided, short ones kept, a ramp between. Source: Llama 3.1.
    Llama3 {
        /// Divisor of the long waves.
        factor: f64,
        /// Waves longer than original / low are long.
        low: f64,
        /// Waves shorter than original / high are short.
        high: f64,
        /// Length of pretraining.
        original: u32,
    },
    /// Interpolated and kept frequencies, blended over a range of dimensions. Source: Peng et al., "YaRN", 2023.
    Yarn {
        /// Divisor of the interpolated frequencies.
        factor: f64,
        /// Length of pretraining.
        original: u32,
        /// Turns over the original length above which a frequency is kept.
        beta_fast: f64,
        /// Turns below which it is interpolated.
        beta_slow: f64,
        /// Whether the range is widened to whole dimensions.
        truncate: bool,
        /// Multiplies cosines and sines.
        attention_factor: f64,
    },
    /// A divisor for each frequency, one list for short and one for long contexts. Source: Ding et al., "LongRoPE", 2024.
    LongRope {
        /// Divisors up to the original length: [rotary_dim / 2].
        short: Vec<f32>,
        /// Divisors past it: [rotary_dim / 2].
        long: Vec<f32>,
        /// Length of pretraining.
        original: u32,
        /// Multiplies cosines and sines.
        attention_factor: f64,
    },
    /// A divisor for each frequency: GGUF's form of Llama 3.1's scaling.
    PerFrequency {
        /// The divisors: [rotary_dim / 2].
        factors: Vec<f32>,
    },
}

/// Cosines and sines of all positions.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeAngles {
    /// f32 [positions, rotary_dim / 2], row-major, attention factor multiplied in.
    pub cos: Vec<f32>,
    /// As `cos`.
    pub sin: Vec<f32>,
}

/// Cosines and sines for an engine whose context is `max_positions` tokens. Takes `max_positions * rotary_dim * 4` bytes.
///
/// Dynamic and LongRope scaling: transformers chooses frequencies by the longest sequence of each forward pass, so that its
/// results depend on how a prompt is cut up. Here every position takes the frequencies that transformers uses for one pass
/// over `max_positions` tokens: results depend neither on chunks nor on the batch, and cached keys stay valid.
pub fn table(spec: &RopeSpec, max_positions: usize) -> RopeAngles {
    let frequencies = inverse_frequencies(spec, max_positions);
    let factor = attention_factor(&spec.scaling) as f32;
    let mut cos = Vec::with_capacity(max_positions * frequencies.len());
    let mut sin = Vec::with_capacity(max_positions * frequencies.len());
    for position in 0..max_positions {
        for frequency in &frequencies {
            let angle = f64::from(position as f32 * frequency);
            cos.push(angle.cos() as f32 * factor);
            sin.push(angle.sin() as f32 * factor);
        }
    }
    RopeAngles { cos, sin }
}

/// What multiplies cosines and sines.
fn attention_factor(scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
            *attention_factor
        }
        _ => 1.0,
    }
}

/// Radians a position for each pair: f32 [rotary_dim / 2].
fn inverse_frequencies(spec: &RopeSpec, max_positions: usize) -> Vec<f32> {
    let (theta, dim) = (spec.theta as f32, spec.rotary_dim);
    let plain = || wavelengths(theta, dim).map(|wave| 1.0 / wave);
    let divided =
        |factors: &[f32]| wavelengths(theta, dim).zip(factors).map(|(wave, factor)| 1.0 / (factor * wave)).collect();
    match &spec.scaling {
        RopeScaling::None => plain().collect(),
        RopeScaling::Linear { factor } => plain().map(|frequency| frequency / *factor as f32).collect(),
        RopeScaling::Dynamic { factor, original } => {
            let theta = dynamic_theta(theta, dim, *factor as f32, *original as f32, max_positions as f32);
            wavelengths(theta, dim).map(|wave| 1.0 / wave).collect()
        }
        RopeScaling::Llama3 { factor, low, high, original } => plain()
            .map(|frequency| llama3(frequency, *factor as f32, *low as f32, *high as f32, *original as f32))
            .collect(),
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
            let at = |turns: f64| yarn_dimension(turns, dim, spec.theta, f64::from(*original));
            let (first, last) = (at(*beta_fast), at(*beta_slow));
            let (first, last) = if *truncate { (first.floor(), last.ceil()) } else { (first, last) };
            let (first, mut last) = (first.max(0.0), last.min(dim as f64 - 1.0));
            if first == last {
                last += 0.001;
            }
            let ramp = |index: usize| ((index as f32 - first as f32) / (last - first) as f32).clamp(0.0, 1.0);
            wavelengths(theta, dim).enumerate().map(|(index, wave)| yarn(wave, *factor as f32, ramp(index))).collect()
        }
        RopeScaling::LongRope { short, long, original, .. } => {
            divided(if max_positions > *original as usize { long } else { short })
        }
        RopeScaling::PerFrequency { factors } => {
            plain().zip(factors).map(|(frequency, factor)| frequency / factor).collect()
        }
    }
}

/// theta ^ (2i / dim) for each pair i.
fn wavelengths(theta: f32, dim: usize) -> impl Iterator<Item = f32> {
    (0..dim / 2).map(move |pair| power(theta, (2 * pair) as f32 / dim as f32))
}

/// base ^ exponent, rounded once.
fn power(base: f32, exponent: f32) -> f32 {
    f64::from(base).powf(f64::from(exponent)) as f32
}

/// The base that dynamic scaling takes for a length.
fn dynamic_theta(theta: f32, dim: usize, factor: f32, original: f32, length: f32) -> f32 {
    if length <= original {
        return theta;
    }
    let stretch = factor * length / original - (factor - 1.0);
    theta * power(stretch, (dim as f64 / (dim as f64 - 2.0)) as f32)
}

/// Llama 3.1's scaling of one frequency.
fn llama3(frequency: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wavelength = (2.0 * PI) as f32 / frequency;
    if wavelength > original / low {
        return frequency / factor;
    }
    if wavelength < original / high {
        return frequency;
    }
    let smooth = (original / wavelength - low) / (high - low);
    (1.0 - smooth) * frequency / factor + smooth * frequency
}

/// The (fractional) dimension pair that turns `turns` times over the original length.
fn yarn_dimension(turns: f64, dim: usize, theta: f64, original: f64) -> f64 {
    dim as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln())
}

/// YaRN's blend of one frequency; `ramp` is 0 where it is kept and 1 where it is interpolated.
fn yarn(wave: f32, factor: f32, ramp: f32) -> f32 {
    let (kept, interpolated) = (1.0 / wave, 1.0 / (factor * wave));
    let keep = 1.0 - ramp;
    interpolated * (1.0 - keep) + kept * keep
}
