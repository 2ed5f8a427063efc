//! Which architectures there are and who reads their configurations.
//!
//! Knows names only: adding a family is one line here and one file beside it.

use super::fields::Fields;
use super::spec::DecoderSpec;
use super::{deepseek, llama, qwen};
use crate::weights::{LoadError, Metadata, Weights};

type FromConfig = fn(Fields) -> Result<DecoderSpec, LoadError>;
type FromGguf = fn(&Weights, &Metadata) -> Result<DecoderSpec, LoadError>;

/// Names in config.json's `architectures`.
const CONFIG: [(&str, FromConfig); 8] = [
    ("LlamaForCausalLM", llama::from_hf_config),
    ("MistralForCausalLM", llama::mistral_from_hf_config),
    ("Qwen2ForCausalLM", qwen::qwen2_from_hf_config),
    ("Qwen3ForCausalLM", qwen::qwen3_from_hf_config),
    ("Qwen2MoeForCausalLM", qwen::qwen2_moe_from_hf_config),
    ("Qwen3MoeForCausalLM", qwen::qwen3_moe_from_hf_config),
    ("DeepseekV2ForCausalLM", deepseek::v2_from_hf_config),
    ("DeepseekV3ForCausalLM", deepseek::v3_from_hf_config),
];

/// Names in GGUF's `general.architecture`.
const GGUF: [(&str, FromGguf); 6] = [
    ("llama", llama::from_gguf),
    ("qwen2", qwen::qwen2_from_gguf),
    ("qwen3", qwen::qwen3_from_gguf),
    ("qwen2moe", qwen::qwen2_moe_from_gguf),
    ("qwen3moe", qwen::qwen3_moe_from_gguf),
    ("deepseek2", deepseek::from_gguf),
];

/// Architectures of either naming that are known and that this version does not run: newer models of these families, whose
/// attention is another, and their kin.
const PLANNED: [&str; 18] = [
    "DeepseekV32ForCausalLM",
    "DeepseekV4ForCausalLM",
    "Llama4ForCausalLM",
    "Llama4ForConditionalGeneration",
    "MixtralForCausalLM",
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen4ExpForCausalLM",
    "Qwen4ExpForConditionalGeneration",
    "deepseek",
    "deepseek32",
    "llama4",
    "qwen35",
    "qwen35moe",
    "qwen3next",
];

/// The spec of a config.json.
///
/// # Errors
/// The architecture is not known, or a number in the file is not one that a decoder can have.
pub fn from_config(config: Fields) -> Result<DecoderSpec, LoadError> {
    let expected = "a list of one architecture";
    let list = config.require("architectures", expected, config.list("architectures")?)?;
    let [architecture] = list else {
        return Err(config.unexpected("architectures", expected, format_args!("{} of them", list.len())));
    };
    let name = architecture.as_str().ok_or_else(|| config.unexpected("architectures", "a text", architecture))?;
    match CONFIG.iter().find(|(known, _)| *known == name) {
        Some((_, read)) => read(config),
        None => Err(unknown(config.file(), name, &CONFIG.map(|(known, _)| known))),
    }
}

/// The spec of a GGUF file.
///
/// # Errors
/// As [`from_config`].
pub fn from_gguf(weights: &Weights, metadata: &Metadata) -> Result<DecoderSpec, LoadError> {
    let name = metadata.require::<String>("general.architecture")?;
    match GGUF.iter().find(|(known, _)| *known == name) {
        Some((_, read)) => read(weights, metadata),
        None => Err(unknown(metadata.file(), &name, &GGUF.map(|(known, _)| known))),
    }
}

fn unknown(file: &std::path::Path, name: &str, known: &[&str]) -> LoadError {
    LoadError::Architecture {
        file: file.to_owned(),
        architecture: name.chars().take(100).collect(),
        planned: PLANNED.contains(&name),
        known: known.join(", "),
    }
}
