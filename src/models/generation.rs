//! What a model's makers recommend for sampling, and which tokens end its answers.
//!
//! Knows no text: tokens are ids.
//!
//! Source: `generation_config.json` as transformers' `GenerationConfig` reads it.

use serde_json::Value;

use super::fields::Fields;
use crate::request::TokenId;
use crate::weights::{LoadError, Metadata};

/// Sampling parameters that hold where a request does not say otherwise; `None` where the model does not say either.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Divides the logits; 0 chooses the likeliest token.
    pub temperature: Option<f32>,
    /// Share of probability that is kept.
    pub top_p: Option<f32>,
    /// How many of the likeliest tokens are kept.
    pub top_k: Option<u32>,
    /// Least share of the likeliest token's probability.
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens seen.
    pub repetition_penalty: Option<f32>,
}

impl GenerationDefaults {
    /// Reads a generation_config.json. `do_sample` is not heeded: servers sample as the parameters say.
    pub(super) fn read(config: Fields) -> Result<Self, LoadError> {
        let number = |key, range| -> Result<Option<f32>, LoadError> {
            Ok(config.number(key, range)?.map(|number| number as f32))
        };
        // 0 and -1 both stand for all tokens.
        let top_k = config.number("top_k", -1.0..=1e9)?.map(|top_k| top_k as i64);
        Ok(Self {
            temperature: number("temperature", 0.0..=100.0)?,
            top_p: number("top_p", 1e-6..=1.0)?,
            top_k: top_k.and_then(|top_k| u32::try_from(top_k).ok()).filter(|top_k| *top_k > 0),
            min_p: number("min_p", 0.0..=1.0)?,
            repetition_penalty: number("repetition_penalty", 1e-3..=1e3)?,
        })
    }
}

/// Tokens that start and end texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BoundaryTokens {
    /// Starts a text.
    pub bos: Option<TokenId>,
    /// Each ends an answer; all below the vocabulary's size.
    pub eos: Vec<TokenId>,
}

impl BoundaryTokens {
    /// From generation_config.json where it says, else from config.json. Ids that the vocabulary does not have are left out:
    /// they cannot be generated.
    pub(super) fn from_configs(config: Fields, generation: Option<Fields>, vocab: usize) -> Result<Self, LoadError> {
        let first = |key: &str| -> Result<Vec<TokenId>, LoadError> {
            for fields in [generation, Some(config)].into_iter().flatten() {
                if let Some(value) = fields.value(key) {
                    return token_ids(fields, key, value);
                }
            }
            Ok(Vec::new())
        };
        let known = |mut tokens: Vec<TokenId>| {
            tokens.retain(|token| (*token as usize) < vocab);
            tokens
        };
        Ok(Self { bos: known(first("bos_token_id")?).first().copied(), eos: known(first("eos_token_id")?) })
    }

    /// From GGUF metadata: the stated ends of text and of turn, and control tokens that are known to end a turn, since files
    /// often state only one of a model's ends.
    pub(super) fn from_gguf(metadata: &Metadata, tokens: &[String], token_types: &[i32]) -> Result<Self, LoadError> {
        let id = |name: &str| metadata.get::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
        let mut eos: Vec<TokenId> = [id("eos")?, id("eot")?, id("eom")?].into_iter().flatten().collect();
        let known = tokens
            .iter()
            .zip(token_types)
            .enumerate()
            .filter(|(_, (text, kind))| **kind == CONTROL && TURN_ENDS.contains(&text.as_str()));
        eos.extend(known.filter_map(|(index, _)| TokenId::try_from(index).ok()));
        eos.retain(|token| (*token as usize) < tokens.len());
        eos.sort_unstable();
        eos.dedup();
        Ok(Self { bos: id("bos")?, eos })
    }
}

/// GGUF's token type of control tokens.
const CONTROL: i32 = 3;
/// Ends of turns in the chat formats of Llama 3, Qwen and SmolLM2, and their kin.
const TURN_ENDS: [&str; 4] = ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>"];

/// One id or a list of them.
fn token_ids(fields: Fields, key: &str, value: &Value) -> Result<Vec<TokenId>, LoadError> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| TokenId::try_from(id).ok());
        id.ok_or_else(|| fields.unexpected(key, "a token id or a list of them", "something else"))
    };
    match value {
        Value::Array(list) if list.len() > MAX_END_TOKENS => {
            Err(fields.unexpected(key, format_args!("at most {MAX_END_TOKENS} token ids"), list.len()))
        }
        Value::Array(list) => list.iter().map(id).collect(),
        one => Ok(vec![id(one)?]),
    }
}

/// Most end tokens of a model.
const MAX_END_TOKENS: usize = 256;
