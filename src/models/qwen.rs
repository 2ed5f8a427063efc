//! Qwen2, Qwen2.5 and Qwen3, dense or of experts: configuration to spec.
//!
//! Knows no weights beyond whether a GGUF file has biases.
//!
//! Source: `modeling_qwen2.py`, `modeling_qwen3.py`, `modeling_qwen2_moe.py`, `modeling_qwen3_moe.py` and their configurations in transformers.

use super::dimensions;
use super::fields::Fields;
use super::keys::{ExpertDefaults, Keys};
use super::rope::RopeLayout;
use super::spec::{self, DecoderSpec, ExpertsSpec, MAX_CONTEXT};
use crate::ops::{RouteParams, Scoring};
use crate::weights::{LoadError, Metadata, Weights};

/// `Qwen2ForCausalLM`: biases on q, k and v.
pub fn qwen2_from_hf_config(config: Fields) -> Result<DecoderSpec, LoadError> {
    let spec = dimensions::from_config(config, "Qwen2ForCausalLM", None)?;
    Ok(DecoderSpec { qkv_bias: true, sliding_window: windows(config, spec.layers, from_max_window_layers)?, ..spec })
}

/// `Qwen3ForCausalLM`: norms over each head of q and k; heads of 128 where the file does not say.
pub fn qwen3_from_hf_config(config: Fields) -> Result<DecoderSpec, LoadError> {
    let spec = dimensions::from_config(config, "Qwen3ForCausalLM", Some(128))?;
    let attention_bias = config.flag("attention_bias")?.unwrap_or(false);
    Ok(DecoderSpec {
        qk_norm: true,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        sliding_window: windows(config, spec.layers, from_max_window_layers)?,
        ..spec
    })
}

/// `Qwen2MoeForCausalLM`: Qwen2 whose blocks are mixtures of experts, with one that all tokens go through.
pub fn qwen2_moe_from_hf_config(config: Fields) -> Result<DecoderSpec, LoadError> {
    let spec = dimensions::from_config(config, "Qwen2MoeForCausalLM", None)?;
    let shared = config.size("shared_expert_intermediate_size", 1..=spec::MAX_FFN)?;
    let experts = ExpertsSpec { shared_ffn: Some(shared), shared_gate: true, ..experts(config, spec.layers)? };
    let qkv_bias = config.flag("qkv_bias")?.unwrap_or(true);
    let sliding_window = windows(config, spec.layers, even_below_max_window_layers)?;
    let spec = DecoderSpec { qkv_bias, experts: Some(experts), sliding_window, ..spec };
    spec.check(config.file())
}

/// `Qwen3MoeForCausalLM`: Qwen3 whose blocks are mixtures of experts.
pub fn qwen3_moe_from_hf_config(config: Fields) -> Result<DecoderSpec, LoadError> {
    let spec = dimensions::from_config(config, "Qwen3MoeForCausalLM", None)?;
    let attention_bias = config.flag("attention_bias")?.unwrap_or(false);
    let window = match config.flag("use_sliding_window")?.unwrap_or(false) {
        true => config.integer("sliding_window", 1..=u64::from(MAX_CONTEXT))?.map(|window| window as u32),
        false => None,
    };
    let spec = DecoderSpec {
        qk_norm: true,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        sliding_window: vec![window; spec.layers],
        experts: Some(experts(config, spec.layers)?),
        ..spec
    };
    spec.check(config.file())
}

/// The experts of a Qwen. Layers in `mlp_only_layers` have none, and of the others each
/// `decoder_sparse_step`-th has.
fn experts(config: Fields, layers: usize) -> Result<ExpertsSpec, LoadError> {
    let step = config.integer("decoder_sparse_step", 1..=spec::MAX_LAYERS as u64)?.unwrap_or(1) as usize;
    // Transformers 5 writes the second name for Qwen3.
    let count_key = if config.has("num_experts") { "num_experts" } else { "num_local_experts" };
    let dense = config.list("mlp_only_layers")?.unwrap_or(&[]);
    let is_dense = |layer: usize| dense.iter().any(|number| number.as_u64() == Some(layer as u64));
    let routing = RouteParams {
        top_k: config.size("num_experts_per_tok", 1..=spec::MAX_EXPERTS)?,
        scoring: Scoring::Softmax,
        normalize: config.flag("norm_topk_prob")?.unwrap_or(false),
        scale: 1.0,
        groups: None,
        even: false,
    };
    Ok(ExpertsSpec {
        layers: (0..layers).map(|layer| (layer + 1).is_multiple_of(step) && !is_dense(layer)).collect(),
        count: config.size(count_key, 1..=spec::MAX_EXPERTS)?,
        ffn: config.size("moe_intermediate_size", 1..=spec::MAX_FFN)?,
        shared_ffn: None,
        shared_gate: false,
        correction: false,
        routing,
    })
}

/// GGUF architecture `qwen2`.
pub fn qwen2_from_gguf(weights: &Weights, metadata: &Metadata) -> Result<DecoderSpec, LoadError> {
    dimensions::from_gguf(weights, metadata, "qwen2", RopeLayout::Halves)
}

/// GGUF architecture `qwen3`.
pub fn qwen3_from_gguf(weights: &Weights, metadata: &Metadata) -> Result<DecoderSpec, LoadError> {
    Ok(DecoderSpec { qk_norm: true, ..dimensions::from_gguf(weights, metadata, "qwen3", RopeLayout::Halves)? })
}

/// GGUF architecture `qwen2moe`: experts in every layer, and a block behind a gate that all tokens go through.
pub fn qwen2_moe_from_gguf(weights: &Weights, metadata: &Metadata) -> Result<DecoderSpec, LoadError> {
    let keys = Keys { metadata, arch: "qwen2moe" };
    let spec = dimensions::heads_from_gguf(weights, keys, RopeLayout::Halves)?;
    let shared = keys.optional_size("expert_shared_feed_forward_length", spec::MAX_FFN)?.unwrap_or(spec.ffn);
    let defaults = ExpertDefaults { normalize: false, shared_ffn: Some(shared), shared_gate: true, correction: false };
    let experts = keys.experts(spec.layers, defaults)?;
    DecoderSpec { experts: Some(experts), ..spec }.check(metadata.file())
}

/// GGUF architecture `qwen3moe`: experts in every layer, whose weights add up to 1.
pub fn qwen3_moe_from_gguf(weights: &Weights, metadata: &Metadata) -> Result<DecoderSpec, LoadError> {
    let keys = Keys { metadata, arch: "qwen3moe" };
    let spec = dimensions::heads_from_gguf(weights, keys, RopeLayout::Halves)?;
    let defaults = ExpertDefaults { normalize: true, shared_ffn: None, shared_gate: false, correction: false };
    let experts = keys.experts(spec.layers, defaults)?;
    DecoderSpec { qk_norm: true, experts: Some(experts), ..spec }.check(metadata.file())
}

/// Whether a layer of Qwen2 or Qwen3 has a window: the first `max_window_layers` have none.
fn from_max_window_layers(layer: usize, max_window_layers: usize) -> bool {
    layer >= max_window_layers
}

/// Whether a layer of Qwen2-MoE has one: of the first `max_window_layers` every other has, the first of all among them.
///
/// Source: `configuration_qwen2_moe.py` of transformers.
fn even_below_max_window_layers(layer: usize, max_window_layers: usize) -> bool {
    layer < max_window_layers && layer.is_multiple_of(2)
}

/// The window of each layer. `use_sliding_window` switches all of them; which layers have one stands in `layer_types`, or
/// follows from `max_window_layers` as `has_window` says.
fn windows(config: Fields, layers: usize, has_window: fn(usize, usize) -> bool) -> Result<Vec<Option<u32>>, LoadError> {
    if !config.flag("use_sliding_window")?.unwrap_or(false) {
        return Ok(vec![None; layers]);
    }
    let window = match config.integer("sliding_window", 1..=u64::from(MAX_CONTEXT))? {
        None if !config.has("sliding_window") => Some(4096),
        window => window.map(|window| window as u32),
    };
    let Some(types) = config.list("layer_types")? else {
        let most = config.integer("max_window_layers", 0..=u64::from(u32::MAX))?.unwrap_or(28) as usize;
        return Ok((0..layers).map(|layer| window.filter(|_| has_window(layer, most))).collect());
    };
    if types.len() != layers {
        return Err(config.unexpected("layer_types", format_args!("{layers} entries"), types.len()));
    }
    let read = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") => Ok(window),
        _ => Err(config.unexpected("layer_types", "full_attention or sliding_attention", kind)),
    };
    types.iter().map(read).collect()
}
