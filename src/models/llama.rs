//! Llama 2 to 3.2, SmolLM2 and Mistral: configuration to spec.
//!
//! Knows no weights beyond whether a GGUF file has biases.
//!
//! Source: `modeling_llama.py`, `configuration_llama.py`, `configuration_mistral.py` of transformers.

use super::dimensions;
use super::fields::Fields;
use super::rope::RopeLayout;
use super::spec::{DecoderSpec, MAX_CONTEXT};
use crate::weights::{LoadError, Metadata, Weights};

/// `LlamaForCausalLM`.
pub fn from_hf_config(config: Fields) -> Result<DecoderSpec, LoadError> {
    let attention_bias = config.flag("attention_bias")?.unwrap_or(false);
    Ok(DecoderSpec {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: config.flag("mlp_bias")?.unwrap_or(false),
        ..dimensions::from_config(config, "LlamaForCausalLM", None)?
    })
}

/// `MistralForCausalLM`: every layer has the window, which is 4096 where the file does not write the key at all.
pub fn mistral_from_hf_config(config: Fields) -> Result<DecoderSpec, LoadError> {
    let spec = dimensions::from_config(config, "MistralForCausalLM", None)?;
    let window = match config.integer("sliding_window", 1..=u64::from(MAX_CONTEXT))? {
        None if !config.has("sliding_window") => Some(4096),
        window => window.map(|window| window as u32),
    };
    Ok(DecoderSpec { sliding_window: vec![window; spec.layers], ..spec })
}

/// GGUF architecture `llama`: the rows of q and k come in the order of interleaved pairs.
pub fn from_gguf(weights: &Weights, metadata: &Metadata) -> Result<DecoderSpec, LoadError> {
    dimensions::from_gguf(weights, metadata, "llama", RopeLayout::Interleaved)
}
