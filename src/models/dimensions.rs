//! The numbers that every family's configuration states alike, read from config.json or GGUF metadata.
//!
//! Knows no family: biases, head norms and windows are left off for the family's own file to set.

use super::fields::Fields;
use super::rope::{self, RopeLayout};
use super::spec::{self, DecoderSpec};
use crate::weights::{LoadError, Metadata, WeightName, Weights};

/// Norms add at most this much.
const NORM_EPS: std::ops::RangeInclusive<f64> = 1e-12..=1.0;

/// A decoder as config.json describes it; `head_dim` is the family's default where it has one.
pub fn from_config(config: Fields, architecture: &str, head_dim: Option<usize>) -> Result<DecoderSpec, LoadError> {
    check_weights_and_activation(config)?;
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
    check_weights_and_activation(config)?;
    let q_heads = config.size("num_attention_heads", 1..=spec::MAX_HEADS)?;
    build(config, architecture, Heads { q_heads, kv_heads: q_heads, head_dim, rotary_dim })
}

/// Refuses what no family has.
fn check_weights_and_activation(config: Fields) -> Result<(), LoadError> {
    if config.value("quantization_config").is_some() {
        let expected = "weights in F32, F16 or BF16 (quantised models come as GGUF)";
        return Err(config.unexpected("quantization_config", expected, "weights quantised by another program"));
    }
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
    let key = |name: &str| format!("{arch}.{name}");
    let size = |name: &str, most: usize| in_range(metadata, &key(name), metadata.require(&key(name))?, most);
    let optional_size = |name: &str, most: usize| -> Result<Option<usize>, LoadError> {
        metadata.get(&key(name))?.map(|number| in_range(metadata, &key(name), number, most)).transpose()
    };
    let dense = ["llama", "qwen2", "qwen3"].contains(&arch);
    if let Some(experts) = metadata.get::<u32>(&key("expert_count"))?.filter(|experts| dense && *experts > 0) {
        return Err(LoadError::unexpected(metadata.file(), key("expert_count"), "a dense model", experts));
    }
    let hidden = size("embedding_length", spec::MAX_HIDDEN)?;
    let layers = size("block_count", spec::MAX_LAYERS)?;
    let q_heads = size("attention.head_count", spec::MAX_HEADS)?;
    let kv_heads = optional_size("attention.head_count_kv", spec::MAX_HEADS)?.unwrap_or(q_heads);
    let head_dim = match optional_size("attention.key_length", spec::MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(q_heads) => hidden / q_heads,
        None => {
            let expected = format!("a divisor of {} {hidden}", key("embedding_length"));
            return Err(LoadError::unexpected(metadata.file(), key("attention.head_count"), expected, q_heads));
        }
    };
    if let Some(other) =
        optional_size("attention.value_length", spec::MAX_HEAD_DIM)?.filter(|length| *length != head_dim)
    {
        return Err(LoadError::unexpected(metadata.file(), key("attention.value_length"), head_dim, other));
    }
    let max_positions = size("context_length", spec::MAX_CONTEXT as usize)? as u32;
    let rope = rope::read::from_gguf(weights, metadata, arch, layout, head_dim, max_positions)?;
    let eps_key = key("attention.layer_norm_rms_epsilon");
    let norm_eps = metadata.require::<f64>(&eps_key)?;
    if !NORM_EPS.contains(&norm_eps) {
        let expected = format!("a number from {} to {}", NORM_EPS.start(), NORM_EPS.end());
        return Err(LoadError::unexpected(metadata.file(), eps_key, expected, norm_eps));
    }
    // Layer 0 speaks for all: a file in which layers differ fails when its weights are asked for.
    let spec = DecoderSpec {
        architecture: arch.to_owned(),
        hidden,
        layers,
        q_heads,
        kv_heads,
        head_dim,
        ffn: size("feed_forward_length", spec::MAX_FFN)?,
        vocab: vocab_size(metadata, arch)?,
        max_context: rope::read::max_context(&rope.scaling, max_positions),
        norm_eps: norm_eps as f32,
        rope,
        qk_norm: false,
        qkv_bias: weights.has(WeightName::QBias(0)),
        o_bias: weights.has(WeightName::OBias(0)),
        mlp_bias: weights.has(WeightName::GateBias(0)),
        tied_embeddings: !weights.has(WeightName::Output),
        sliding_window: vec![metadata.get(&key("attention.sliding_window"))?.filter(|window| *window > 0); layers],
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

/// `number`, the value of `key`, from 1 to `most`.
fn in_range(metadata: &Metadata, key: &str, number: u32, most: usize) -> Result<usize, LoadError> {
    match number as usize {
        number if (1..=most).contains(&number) => Ok(number),
        number => Err(LoadError::unexpected(metadata.file(), key, format_args!("1 to {most}"), number)),
    }
}
