//! DeepSeek-V2, V2-Lite, V3, V3.1 and R1: configuration to spec.
//!
//! Layers for the prediction of further tokens (`num_nextn_predict_layers`) stand behind the others and are not read.
//!
//! Source: `modeling_deepseek_v2.py`, `modeling_deepseek_v3.py` and their configurations in transformers.

use super::dimensions;
use super::fields::Fields;
use super::keys::{ExpertDefaults, Keys};
use super::rope::{RopeLayout, RopeScaling};
use super::spec::{self, DecoderSpec, ExpertsSpec, LatentSpec};
use crate::ops::{LatentShape, RouteGroups, RouteParams, Scoring};
use crate::weights::{LoadError, Metadata, WeightName, Weights};

/// `DeepseekV2ForCausalLM`: softmax scores, and the best expert speaks for its group.
pub fn v2_from_hf_config(config: Fields) -> Result<DecoderSpec, LoadError> {
    let method = config.text("topk_method")?.unwrap_or("greedy");
    let groups = match method {
        "greedy" => None,
        "group_limited_greedy" => Some(groups(config, 1)?),
        other => return Err(config.unexpected("topk_method", "greedy or group_limited_greedy", other)),
    };
    let routing = RouteParams {
        top_k: top_k(config)?,
        scoring: Scoring::Softmax,
        normalize: false,
        scale: scale(config, 1.0)?,
        groups,
        even: false,
    };
    from_hf_config(config, "DeepseekV2ForCausalLM", routing, Family { correction: false, dense_layers: 0 })
}

/// `DeepseekV3ForCausalLM`: sigmoid scores, a correction of the choice, and the two best speak for a group.
pub fn v3_from_hf_config(config: Fields) -> Result<DecoderSpec, LoadError> {
    match config.text("topk_method")? {
        None | Some("noaux_tc") => {}
        Some(other) => return Err(config.unexpected("topk_method", "noaux_tc", other)),
    }
    let routing = RouteParams {
        top_k: top_k(config)?,
        scoring: Scoring::Sigmoid,
        normalize: config.flag("norm_topk_prob")?.unwrap_or(true),
        scale: scale(config, 2.5)?,
        groups: Some(groups(config, 2)?),
        even: false,
    };
    from_hf_config(config, "DeepseekV3ForCausalLM", routing, Family { correction: true, dense_layers: 3 })
}

/// What V2 and V3 differ in besides their routing.
struct Family {
    /// Whether the choice of experts is corrected.
    correction: bool,
    /// The first layers without experts, where the file does not say.
    dense_layers: usize,
}

fn from_hf_config(
    config: Fields,
    architecture: &str,
    routing: RouteParams,
    family: Family,
) -> Result<DecoderSpec, LoadError> {
    let size = |key: &str| config.size(key, 1..=spec::MAX_HIDDEN);
    let heads = config.size("num_attention_heads", 1..=spec::MAX_HEADS)?;
    let shape = LatentShape {
        heads,
        rank: size("kv_lora_rank")?,
        rope: size("qk_rope_head_dim")?,
        nope: size("qk_nope_head_dim")?,
        value: size("v_head_dim")?,
    };
    for key in ["attention_bias", "mlp_bias"] {
        if config.flag(key)?.unwrap_or(false) {
            return Err(config.unexpected(key, "false", "true"));
        }
    }
    let query_rank = config.integer("q_lora_rank", 1..=spec::MAX_HIDDEN as u64)?.map(|rank| rank as usize);
    let spec = dimensions::latent_from_config(config, architecture, shape.query(), shape.rope)?;
    let mut rope = spec.rope.clone();
    rope.layout = match config.flag("rope_interleave")?.unwrap_or(true) {
        true => RopeLayout::Interleaved,
        false => RopeLayout::Halves,
    };
    let attention_scale = attention_scale(config, shape.query(), &rope.scaling)?;
    let expert_layers = experts(config, spec.layers, routing, family)?;
    let latent = Some(LatentSpec { shape, query_rank });
    let spec = DecoderSpec { rope, attention_scale, experts: expert_layers, latent, kv_heads: heads, ..spec };
    spec.check(config.file())
}

/// The experts: all layers but the first `first_k_dense_replace` have them. Where `moe_layer_freq` is not 1, DeepSeek's own
/// code leaves some others out and transformers does not; no published model says so.
fn experts(
    config: Fields,
    layers: usize,
    routing: RouteParams,
    family: Family,
) -> Result<Option<ExpertsSpec>, LoadError> {
    let Some(count) = config.integer("n_routed_experts", 1..=spec::MAX_EXPERTS as u64)? else { return Ok(None) };
    let first = config.integer("first_k_dense_replace", 0..=spec::MAX_LAYERS as u64)?;
    let first = first.map_or(family.dense_layers, |first| first as usize);
    if let Some(other) = config.integer("moe_layer_freq", 0..=spec::MAX_LAYERS as u64)?.filter(|every| *every != 1) {
        return Err(config.unexpected("moe_layer_freq", 1, other));
    }
    let ffn = config.size("moe_intermediate_size", 1..=spec::MAX_FFN)?;
    let shared = config.integer("n_shared_experts", 0..=64)?.unwrap_or(0) as usize;
    Ok(Some(ExpertsSpec {
        layers: (0..layers).map(|layer| layer >= first).collect(),
        count: count as usize,
        ffn,
        shared_ffn: (shared > 0).then_some(shared * ffn),
        shared_gate: false,
        correction: family.correction,
        routing,
    }))
}

fn top_k(config: Fields) -> Result<usize, LoadError> {
    config.size("num_experts_per_tok", 1..=spec::MAX_EXPERTS)
}

fn scale(config: Fields, default: f64) -> Result<f32, LoadError> {
    Ok(config.number("routed_scaling_factor", 1e-3..=1e3)?.unwrap_or(default) as f32)
}

fn groups(config: Fields, best: usize) -> Result<RouteGroups, LoadError> {
    Ok(RouteGroups {
        groups: config.size("n_group", 1..=spec::MAX_EXPERTS)?,
        top_groups: config.size("topk_group", 1..=spec::MAX_EXPERTS)?,
        best,
    })
}

/// 1 / sqrt(size of a head of q), times the square of what YaRN's `mscale_all_dim` asks for.
fn attention_scale(config: Fields, head_dim: usize, scaling: &RopeScaling) -> Result<f32, LoadError> {
    let scale = (head_dim as f64).powf(-0.5);
    let RopeScaling::Yarn { factor, .. } = scaling else { return Ok(scale as f32) };
    let rope = match config.object("rope_parameters", "rope_parameters.")? {
        Some(rope) => Some(rope),
        None => config.object("rope_scaling", "rope_scaling.")?,
    };
    let all_dim = match rope {
        Some(rope) => rope.number("mscale_all_dim", 0.0..=1e6)?.unwrap_or(0.0),
        None => 0.0,
    };
    let magnitude = if all_dim == 0.0 || *factor <= 1.0 { 1.0 } else { 0.1 * all_dim * factor.ln() + 1.0 };
    Ok((scale * magnitude * magnitude) as f32)
}

/// GGUF architecture `deepseek2`: V2, V2-Lite, V3, V3.1 and R1.
///
/// Files of 2024 state the sizes of a head in `key_length` and `value_length`; later ones state those of the latent there,
/// and the head's in keys of their own that end in `_mla`.
pub fn from_gguf(weights: &Weights, metadata: &Metadata) -> Result<DecoderSpec, LoadError> {
    let keys = Keys { metadata, arch: "deepseek2" };
    let head = |name: &str| match keys.optional_size(&format!("attention.{name}_mla"), spec::MAX_HEAD_DIM)? {
        Some(size) => Ok(size),
        None => keys.size(&format!("attention.{name}"), spec::MAX_HEAD_DIM),
    };
    let (head_dim, value) = (head("key_length")?, head("value_length")?);
    let rotated = keys.size("rope.dimension_count", spec::MAX_HEAD_DIM)?;
    if rotated >= head_dim {
        return Err(keys.unexpected("rope.dimension_count", format_args!("less than the head's {head_dim}"), rotated));
    }
    let spec = dimensions::latent_from_gguf(weights, keys, head_dim, rotated)?;
    let rank = keys.size("attention.kv_lora_rank", spec::MAX_HIDDEN)?;
    let shape = LatentShape { heads: spec.q_heads, rank, rope: rotated, nope: head_dim - rotated, value };
    let query_rank = keys.optional_size("attention.q_lora_rank", spec::MAX_HIDDEN)?;
    let last = spec.layers as u32 - 1;
    let experts = match keys.count("expert_count", spec::MAX_EXPERTS)? {
        0 => None,
        _ => {
            let ffn = keys.size("expert_feed_forward_length", spec::MAX_FFN)?;
            let shared = keys.count("expert_shared_count", 64)?;
            let defaults = ExpertDefaults {
                normalize: false,
                shared_ffn: (shared > 0).then_some(shared * ffn),
                shared_gate: false,
                correction: weights.has(WeightName::RouterCorrection(last)),
            };
            if lacks_groups(keys, query_rank)? {
                tracing::warn!(
                    "{}: {} is missing, which V2 and V3 have: experts are chosen among all, where the model chooses groups \
                     of them first; a newer file of the model says how many",
                    metadata.file().display(),
                    keys.name(GROUP_COUNT),
                );
            }
            Some(keys.experts(spec.layers, defaults)?)
        }
    };
    let mut rope = spec.rope.clone();
    let mut attention_scale = (head_dim as f64).powf(-0.5);
    if let RopeScaling::Yarn { factor, attention_factor, .. } = &mut rope.scaling {
        // Scores are multiplied for all dimensions instead of cosines for the rotated ones; the multiplier is 0.1 times
        // `mscale_all_dim`, and `mscale` is taken to be the same.
        *attention_factor = 1.0;
        let multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0..=1e6)?.unwrap_or(0.0);
        attention_scale *= (1.0 + multiplier * factor.max(1.0).ln()).powi(2);
    }
    let latent = Some(LatentSpec { shape, query_rank });
    DecoderSpec { rope, attention_scale: attention_scale as f32, experts, latent, ..spec }.check(metadata.file())
}

/// Says into how many groups a layer's experts fall.
const GROUP_COUNT: &str = "expert_group_count";

/// Whether a file was made before converters wrote of groups. Those models have them whose q has a latent.
fn lacks_groups(keys: Keys, query_rank: Option<usize>) -> Result<bool, LoadError> {
    Ok(query_rank.is_some() && keys.metadata.get::<u32>(&keys.name(GROUP_COUNT))?.is_none())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::weights::GgufBuilder;

    #[test]
    fn a_file_that_says_nothing_of_groups_lacks_them_where_q_has_a_latent() {
        let lacks = |file: GgufBuilder, query_rank| {
            let weights = Weights::from_gguf(Path::new("m.gguf"), Arc::new(file.build())).expect("it is right");
            let metadata = weights.metadata().expect("GGUF has metadata");
            lacks_groups(Keys { metadata, arch: "deepseek2" }, query_rank).expect("it is a number")
        };
        let stated = |count| GgufBuilder::new(3).u32("deepseek2.expert_group_count", count);
        assert!(lacks(GgufBuilder::new(3), Some(1536)));
        // V2-Lite; and others that have one group, and say so.
        assert!(!lacks(GgufBuilder::new(3), None) && !lacks(stated(1), Some(1536)) && !lacks(stated(8), Some(1536)));
    }
}
