//! Reads rotary parameters out of config.json, in both of its forms, and out of GGUF metadata.
//!
//! Knows no formula of frequencies; defaults that a file leaves out are resolved here.
//!
//! Source: `RotaryEmbeddingConfigMixin` and `modeling_rope_utils.py` of transformers; the GGUF specification, "rope.scaling".

use super::{RopeLayout, RopeScaling, RopeSpec};
use crate::models::fields::Fields;
use crate::models::spec::MAX_CONTEXT;
use crate::weights::{LoadError, Metadata, WeightName, Weights};

/// Bases from those of short contexts to some ten millions.
const THETA: std::ops::RangeInclusive<f64> = 2.0..=1e12;
/// Factors of scaling.
const FACTOR: std::ops::RangeInclusive<f64> = 0.01..=1e5;
/// The scalings of config.json, for errors.
const KNOWN: &str = "default, linear, dynamic, llama3, yarn or longrope";

/// Rotary embedding of a config.json whose heads have `head_dim` dimensions and which states `max_positions`.
pub fn from_config(config: Fields, head_dim: usize, max_positions: u32) -> Result<RopeSpec, LoadError> {
    // The classic form's `rope_scaling` goes before transformers 5's `rope_parameters`, as it does there.
    let scaling = config.object("rope_scaling", "rope_scaling.")?;
    let parameters = match scaling {
        Some(scaling) => Some(scaling),
        None => config.object("rope_parameters", "rope_parameters.")?,
    };
    let inner_theta = parameters.map(|parameters| parameters.number("rope_theta", THETA)).transpose()?.flatten();
    let theta = inner_theta.map_or_else(|| config.number("rope_theta", THETA), |theta| Ok(Some(theta)))?;
    for fields in [Some(config), parameters].into_iter().flatten() {
        fields.number("partial_rotary_factor", 1.0..=1.0)?;
    }
    let scaling = match parameters {
        Some(parameters) => scaling_from_config(config, parameters, head_dim, max_positions)?,
        None => RopeScaling::None,
    };
    Ok(RopeSpec { theta: theta.unwrap_or(10_000.0), rotary_dim: head_dim, layout: RopeLayout::Halves, scaling })
}

fn scaling_from_config(
    config: Fields,
    rope: Fields,
    head_dim: usize,
    max_positions: u32,
) -> Result<RopeScaling, LoadError> {
    let (key, kind) = match rope.text("rope_type")? {
        Some(kind) => ("rope_type", Some(kind)),
        None => ("type", rope.text("type")?),
    };
    let factor = || rope.number("factor", FACTOR);
    let required_factor = || rope.require("factor", "a number", factor()?);
    let original = || -> Result<u32, LoadError> {
        let key = "original_max_position_embeddings";
        let range = 1..=u64::from(MAX_CONTEXT);
        let stated = match config.integer(key, range.clone())? {
            Some(stated) => Some(stated),
            None => rope.integer(key, range)?,
        };
        Ok(stated.map_or(max_positions, |stated| stated as u32))
    };
    match kind.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: required_factor()? }),
        "dynamic" if head_dim <= 2 => Err(rope.unexpected(key, "a scaling for heads of 2 dimensions", "dynamic")),
        "dynamic" => Ok(RopeScaling::Dynamic { factor: required_factor()?, original: max_positions }),
        "llama3" => {
            let low = rope.require("low_freq_factor", "a number", rope.number("low_freq_factor", FACTOR)?)?;
            let high = rope.require("high_freq_factor", "a number", rope.number("high_freq_factor", FACTOR)?)?;
            if high <= low {
                return Err(rope.unexpected(
                    "high_freq_factor",
                    format_args!("more than low_freq_factor, {low}"),
                    high,
                ));
            }
            Ok(RopeScaling::Llama3 { factor: required_factor()?, low, high, original: original()? })
        }
        "yarn" => yarn_from_config(rope, factor()?, original()?, max_positions),
        "longrope" => long_rope_from_config(rope, factor()?, original()?, head_dim, max_positions),
        other => Err(rope.unexpected(key, KNOWN, other)),
    }
}

fn yarn_from_config(
    rope: Fields,
    factor: Option<f64>,
    original: u32,
    max_positions: u32,
) -> Result<RopeScaling, LoadError> {
    let factor = factor.unwrap_or(f64::from(max_positions) / f64::from(original));
    // Zero counts as absent, as it does in Python.
    let nonzero =
        |key| -> Result<Option<f64>, LoadError> { Ok(rope.number(key, 0.0..=1e6)?.filter(|number| *number != 0.0)) };
    let attention_factor =
        match (rope.number("attention_factor", FACTOR)?, nonzero("mscale")?, nonzero("mscale_all_dim")?) {
            (Some(stated), _, _) => stated,
            (None, Some(mscale), Some(all_dim)) => yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all_dim),
            (None, _, _) => yarn_magnitude(factor, 1.0),
        };
    Ok(RopeScaling::Yarn {
        factor,
        original,
        beta_fast: nonzero("beta_fast")?.unwrap_or(32.0),
        beta_slow: nonzero("beta_slow")?.unwrap_or(1.0),
        truncate: rope.flag("truncate")?.unwrap_or(true),
        attention_factor,
    })
}

/// How much YaRN magnifies attention.
fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

fn long_rope_from_config(
    rope: Fields,
    factor: Option<f64>,
    original: u32,
    head_dim: usize,
    max_positions: u32,
) -> Result<RopeScaling, LoadError> {
    let factor = factor.unwrap_or(f64::from(max_positions) / f64::from(original));
    let attention_factor = match rope.number("attention_factor", FACTOR)? {
        Some(stated) => stated,
        None if factor <= 1.0 || original < 2 => 1.0,
        None => (1.0 + factor.ln() / f64::from(original).ln()).sqrt(),
    };
    let factors = |key: &str| -> Result<Vec<f32>, LoadError> {
        let expected = format!("{} numbers above 0", head_dim / 2);
        let list = rope.require(key, &expected, rope.list(key)?)?;
        let numbers: Option<Vec<f32>> = list
            .iter()
            .map(|number| {
                number.as_f64().map(|number| number as f32).filter(|number| *number > 0.0 && number.is_finite())
            })
            .collect();
        numbers.filter(|numbers| numbers.len() == head_dim / 2).ok_or_else(|| {
            rope.unexpected(key, &expected, format_args!("a list of {} that does not hold them", list.len()))
        })
    };
    Ok(RopeScaling::LongRope {
        short: factors("short_factor")?,
        long: factors("long_factor")?,
        original,
        attention_factor,
    })
}

/// Rotary embedding of a GGUF file; `arch` is its architecture, which starts the names of its keys.
pub fn from_gguf(
    weights: &Weights,
    metadata: &Metadata,
    arch: &str,
    layout: RopeLayout,
    head_dim: usize,
    max_positions: u32,
) -> Result<RopeSpec, LoadError> {
    let key = |name: &str| format!("{arch}.rope.{name}");
    let number = |name: &str, range: std::ops::RangeInclusive<f64>| -> Result<Option<f64>, LoadError> {
        let key = key(name);
        match metadata.get::<f64>(&key)? {
            Some(number) if !range.contains(&number) => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(LoadError::unexpected(metadata.file(), key, expected, number))
            }
            found => Ok(found),
        }
    };
    let theta = number("freq_base", THETA)?.unwrap_or(10_000.0);
    let rotary_dim = metadata.get::<u32>(&key("dimension_count"))?.map_or(head_dim, |dim| dim as usize);
    let factor_key = key("scaling.factor");
    // A factor of 0 is how some converters write none.
    let factor = number("scaling.factor", 0.0..=*FACTOR.end())?.filter(|factor| *factor != 0.0);
    let required_factor =
        || factor.ok_or_else(|| LoadError::missing_key(metadata.file(), &factor_key, "a number above 0"));
    let kind = metadata.get::<String>(&key("scaling.type"))?;
    let scaling = match kind.as_deref().unwrap_or("none") {
        "none" if weights.has(WeightName::RopeFactors) => {
            RopeScaling::PerFrequency { factors: frequency_factors(weights, metadata, rotary_dim)? }
        }
        "none" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: required_factor()? },
        "yarn" => {
            let factor = required_factor()?;
            let original = metadata.get::<u32>(&key("scaling.original_context_length"))?.unwrap_or(max_positions);
            RopeScaling::Yarn {
                factor,
                original: original.clamp(1, MAX_CONTEXT),
                beta_fast: number("scaling.yarn_beta_fast", 1e-3..=1e6)?.unwrap_or(32.0),
                beta_slow: number("scaling.yarn_beta_slow", 1e-3..=1e6)?.unwrap_or(1.0),
                truncate: true,
                attention_factor: number("scaling.attn_factor", FACTOR)?.unwrap_or(1.0) * yarn_magnitude(factor, 1.0),
            }
        }
        other => {
            return Err(LoadError::unexpected(metadata.file(), key("scaling.type"), "none, linear or yarn", other));
        }
    };
    Ok(RopeSpec { theta, rotary_dim, layout, scaling })
}

/// The divisors that GGUF writes as a tensor for Llama 3.1's scaling.
fn frequency_factors(weights: &Weights, metadata: &Metadata, rotary_dim: usize) -> Result<Vec<f32>, LoadError> {
    let factors = weights.vector(WeightName::RopeFactors, rotary_dim / 2)?;
    match factors.iter().find(|factor| !(**factor > 0.0 && factor.is_finite())) {
        None => Ok(factors),
        Some(found) => {
            Err(LoadError::unexpected(metadata.file(), "tensor rope_freqs.weight", "numbers above 0", found))
        }
    }
}

/// Longest sequence that a model is made for, where its file states `max_positions`.
///
/// YaRN files state the length of pretraining, the stretched one, or either. Dynamic scaling states the former by its formula.
/// For linear scaling files disagree, so the number stated is taken as it is.
pub fn max_context(scaling: &RopeScaling, max_positions: u32) -> u32 {
    let stretched = |length: u32, factor: f64| (f64::from(length) * factor).min(f64::from(MAX_CONTEXT)) as u32;
    match scaling {
        RopeScaling::Yarn { factor, original, .. } => max_positions.max(stretched(*original, *factor)),
        RopeScaling::Dynamic { factor, original } => max_positions.max(stretched(*original, *factor)),
        _ => max_positions,
    }
}
