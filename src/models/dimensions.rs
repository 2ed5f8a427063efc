//! The numbers that every family's configuration states alike, read from config.json or GGUF metadata.
//!
//! Knows no family: biases, head norms and windows are left off for the family's own file to set.

use super::fields::Fields;
use super::keys::Keys;
use super::rope::{self, RopeLayout};
use super::spec::{self, DecoderSpec};
use crate::weights::{LoadError, Metadata, WeightName, Weights};

/// Norms add at most this much.
const NORM_EPS: std::ops::RangeInclusive<f64> = 1e-12..=1.0;

/// A decoder as config.json describes it; `head_dim` is the family's default where it has one.
pub fn from_config(config: Fields, architecture: &str, head_dim: Option<usize>) -> Result<DecoderSpec, LoadError> {
    check_activation(config)?;
    let hidden = config.size("hidden_size", 1..=spec::MAX_HIDDEN)?;
    let q_heads = config.size("num_attention_heads", 1..=spec::MAX_HEADS)?;
    let kv_heads =
        config.integer("num_key_value_heads", 1..=spec::MAX_HEADS as u64)?.map_or(q_heads, |heads| heads as usize);
    let head_dim = match config.integer("head_dim", 1..=spec::MAX_HEAD_DIM as u64)?.map(|dim| dim as usize).or(head_dim)
    {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(q_heads) => hidden / q_heads,
        None => {
            let expected = format!("a divisor of hidden_size {hidden}, or head_dim beside it");
            return Err(config.unexpected("num_attention_heads", expected, q_heads));
        }
    };
    build(config, architecture, Heads { q_heads, kv_heads, head_dim, rotary_dim: head_dim })
}

/// A decoder whose heads have no size of their own: q's are of `head_dim`, of which `rotary_dim` are rotated.
pub fn latent_from_config(
    config: Fields,
    architecture: &str,
    head_dim: usize,
    rotary_dim: usize,
) -> Result<DecoderSpec, LoadError> {
    check_activation(config)?;
    let q_heads = config.size("num_attention_heads", 1..=spec::MAX_HEADS)?;
    build(config, architecture, Heads { q_heads, kv_heads: q_heads, head_dim, rotary_dim })
}

/// Refuses what no family has.
fn check_activation(config: Fields) -> Result<(), LoadError> {
    match config.text("hidden_act")? {
        None | Some("silu") => {}
        Some(other) => return Err(config.unexpected("hidden_act", "silu", other)),
    }
    Ok(())
}

/// Heads of an attention layer.
struct Heads {
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
}

fn build(config: Fields, architecture: &str, heads: Heads) -> Result<DecoderSpec, LoadError> {
    let Heads { q_heads, kv_heads, head_dim, rotary_dim } = heads;
    let hidden = config.size("hidden_size", 1..=spec::MAX_HIDDEN)?;
    let layers = config.size("num_hidden_layers", 1..=spec::MAX_LAYERS)?;
    let max_positions = config.size("max_position_embeddings", 1..=spec::MAX_CONTEXT as usize)? as u32;
    let rope = rope::read::from_config(config, rotary_dim, max_positions)?;
    let spec = DecoderSpec {
        architecture: architecture.to_owned(),
        hidden,
        layers,
        q_heads,
        kv_heads,
        head_dim,
        ffn: config.size("intermediate_size", 1..=spec::MAX_FFN)?,
        vocab: config.size("vocab_size", 1..=spec::MAX_VOCAB)?,
        max_context: rope::read::max_context(&rope.scaling, max_positions),
        norm_eps: config.number("rms_norm_eps", NORM_EPS)?.unwrap_or(1e-6) as f32,
        rope,
        qk_norm: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        tied_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(false),
        sliding_window: vec![None; layers],
        attention_scale: spec::attention_scale(head_dim),
        experts: None,
        latent: None,
    };
    spec.check(config.file())
}

/// A decoder as GGUF metadata describes it; its keys start with `arch`.
pub fn from_gguf(
    weights: &Weights,
    metadata: &Metadata,
    arch: &str,
    layout: RopeLayout,
) -> Result<DecoderSpec, LoadError> {
    let keys = Keys { metadata, arch };
    match keys.count("expert_count", usize::MAX)? {
        0 => heads_from_gguf(weights, keys, layout),
        experts => Err(keys.unexpected("expert_count", "a dense model", experts)),
    }
}

/// As [`from_gguf`]; whether there are experts is left to the family.
pub fn heads_from_gguf(weights: &Weights, keys: Keys, layout: RopeLayout) -> Result<DecoderSpec, LoadError> {
    let hidden = keys.size("embedding_length", spec::MAX_HIDDEN)?;
    let q_heads = keys.size("attention.head_count", spec::MAX_HEADS)?;
    let kv_heads = keys.optional_size("attention.head_count_kv", spec::MAX_HEADS)?.unwrap_or(q_heads);
    let head_dim = match keys.optional_size("attention.key_length", spec::MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(q_heads) => hidden / q_heads,
        None => {
            let expected = format!("a divisor of {} {hidden}", keys.name("embedding_length"));
            return Err(keys.unexpected("attention.head_count", expected, q_heads));
        }
    };
    if let Some(other) =
        keys.optional_size("attention.value_length", spec::MAX_HEAD_DIM)?.filter(|length| *length != head_dim)
    {
        return Err(keys.unexpected("attention.value_length", head_dim, other));
    }
    build_from_gguf(weights, keys, layout, Heads { q_heads, kv_heads, head_dim, rotary_dim: head_dim })
}

/// As [`latent_from_config`].
pub fn latent_from_gguf(
    weights: &Weights,
    keys: Keys,
    head_dim: usize,
    rotary_dim: usize,
) -> Result<DecoderSpec, LoadError> {
    let q_heads = keys.size("attention.head_count", spec::MAX_HEADS)?;
    let heads = Heads { q_heads, kv_heads: q_heads, head_dim, rotary_dim };
    build_from_gguf(weights, keys, RopeLayout::Interleaved, heads)
}

fn build_from_gguf(weights: &Weights, keys: Keys, layout: RopeLayout, heads: Heads) -> Result<DecoderSpec, LoadError> {
    let Heads { q_heads, kv_heads, head_dim, rotary_dim } = heads;
    let Keys { metadata, arch } = keys;
    let max_positions = keys.size("context_length", spec::MAX_CONTEXT as usize)? as u32;
    let rope = rope::read::from_gguf(weights, metadata, arch, layout, rotary_dim, max_positions)?;
    let eps_key = "attention.layer_norm_rms_epsilon";
    let norm_eps = keys.number(eps_key, NORM_EPS)?;
    let norm_eps =
        norm_eps.ok_or_else(|| LoadError::missing_key(metadata.file(), keys.name(eps_key), "a finite number"))?;
    let blocks = keys.size("block_count", spec::MAX_LAYERS)?;
    // Layers that predict further tokens stand behind the others and are counted with them.
    let layers = blocks - keys.count("nextn_predict_layers", blocks - 1)?;
    let window = metadata.get(&keys.name("attention.sliding_window"))?.filter(|window| *window > 0);
    // Layer 0 speaks for all: a file in which layers differ fails when its weights are asked for.
    let spec = DecoderSpec {
        architecture: arch.to_owned(),
        hidden: keys.size("embedding_length", spec::MAX_HIDDEN)?,
        layers,
        q_heads,
        kv_heads,
        head_dim,
        ffn: keys.size("feed_forward_length", spec::MAX_FFN)?,
        vocab: vocab_size(metadata, arch)?,
        max_context: rope::read::max_context(&rope.scaling, max_positions),
        norm_eps: norm_eps as f32,
        rope,
        qk_norm: false,
        qkv_bias: weights.has(WeightName::QBias(0)),
        o_bias: weights.has(WeightName::OBias(0)),
        mlp_bias: weights.has(WeightName::GateBias(0)),
        tied_embeddings: !weights.has(WeightName::Output),
        sliding_window: vec![window; layers],
        attention_scale: spec::attention_scale(head_dim),
        experts: None,
        latent: None,
    };
    spec.check(metadata.file())
}

/// Size of the vocabulary: as many as there are tokens, or the number stated.
fn vocab_size(metadata: &Metadata, arch: &str) -> Result<usize, LoadError> {
    match metadata.array_length("tokenizer.ggml.tokens") {
        Some(tokens) => Ok(tokens),
        None => Ok(metadata.require::<u32>(&format!("{arch}.vocab_size"))? as usize),
    }
}
