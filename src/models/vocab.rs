//! The parts of a tokenizer that a model's own files hold outside tokenizer.json: plain data, handed on as it is.
//!
//! Knows no encoding.
//!
//! Source: the GGUF specification, "tokenizer.ggml"; `tokenizer_config.json` of transformers.

use serde_json::Value;

use super::fields::Fields;
use crate::request::TokenId;
use crate::weights::{LoadError, Metadata};

/// The vocabulary in a GGUF file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocab {
    /// Kind of tokenizer: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// Name of the rule that splits text before BPE, such as `smollm`.
    pub pre: Option<String>,
    /// Text of each token, by id.
    pub tokens: Vec<String>,
    /// Type of each token (1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte); empty where not stated.
    pub token_types: Vec<i32>,
    /// Merges, best first, each two parts with a space between; empty where not stated.
    pub merges: Vec<String>,
    /// Score of each token; empty where not stated.
    pub scores: Vec<f32>,
    /// Starts a text.
    pub bos_id: Option<TokenId>,
    /// Ends a text.
    pub eos_id: Option<TokenId>,
    /// Stands for what cannot be encoded.
    pub unk_id: Option<TokenId>,
    /// Fills.
    pub pad_id: Option<TokenId>,
    /// Whether `bos_id` is put before a text.
    pub add_bos: Option<bool>,
    /// Whether `eos_id` is put behind a text.
    pub add_eos: Option<bool>,
    /// Whether a space is put before a text.
    pub add_space_prefix: Option<bool>,
}

impl GgufVocab {
    /// A vocabulary of numbers, for a model that has none: token 17 reads ` 17`.
    pub(super) fn numbers(count: usize) -> Self {
        Self {
            model: "gpt2".to_owned(),
            pre: None,
            tokens: (0..count).map(|id| format!("\u{120}{id}")).collect(),
            token_types: vec![1; count],
            merges: Vec::new(),
            scores: Vec::new(),
            bos_id: None,
            eos_id: None,
            unk_id: None,
            pad_id: None,
            add_bos: Some(false),
            add_eos: Some(false),
            add_space_prefix: Some(false),
        }
    }

    /// Reads the keys that start with `tokenizer.ggml`.
    pub(super) fn read(metadata: &Metadata) -> Result<Self, LoadError> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let tokens: Vec<String> = metadata.require(&key("tokens"))?;
        let token_types: Vec<i32> = metadata.get(&key("token_type"))?.unwrap_or_default();
        let scores: Vec<f32> = metadata.get(&key("scores"))?.unwrap_or_default();
        for (name, found) in [("token_type", token_types.len()), ("scores", scores.len())] {
            if found != 0 && found != tokens.len() {
                let expected = format!("one for each of the {} tokens", tokens.len());
                return Err(LoadError::unexpected(metadata.file(), key(name), expected, found));
            }
        }
        let id = |name: &str| -> Result<Option<TokenId>, LoadError> {
            let key = key(&format!("{name}_token_id"));
            match metadata.get::<u32>(&key)? {
                Some(id) if id as usize >= tokens.len() => {
                    Err(LoadError::unexpected(metadata.file(), key, format_args!("an id below {}", tokens.len()), id))
                }
                id => Ok(id),
            }
        };
        // Padding is never generated nor put in; some files state an id for it that they do not have.
        let pad_id = metadata.get::<u32>(&key("padding_token_id"))?.filter(|id| (*id as usize) < tokens.len());
        let (bos_id, eos_id, unk_id) = (id("bos")?, id("eos")?, id("unknown")?);
        Ok(Self {
            model: metadata.require(&key("model"))?,
            pre: metadata.get(&key("pre"))?,
            tokens,
            token_types,
            merges: metadata.get(&key("merges"))?.unwrap_or_default(),
            scores,
            bos_id,
            eos_id,
            unk_id,
            pad_id,
            add_bos: metadata.get(&key("add_bos_token"))?,
            add_eos: metadata.get(&key("add_eos_token"))?,
            add_space_prefix: metadata.get(&key("add_space_prefix"))?,
        })
    }

    /// The texts of its special tokens.
    pub(super) fn special_tokens(&self) -> SpecialTokens {
        let text = |id: Option<TokenId>| id.and_then(|id| self.tokens.get(id as usize).cloned());
        SpecialTokens { bos: text(self.bos_id), eos: text(self.eos_id), unk: text(self.unk_id), pad: text(self.pad_id) }
    }
}

/// Texts of special tokens, as chat templates name them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpecialTokens {
    /// Starts a text.
    pub bos: Option<String>,
    /// Ends a text.
    pub eos: Option<String>,
    /// Stands for what cannot be encoded.
    pub unk: Option<String>,
    /// Fills.
    pub pad: Option<String>,
}

impl SpecialTokens {
    /// Reads a tokenizer_config.json, where each is a text or an object with `content`.
    pub(super) fn read(config: Fields) -> Result<Self, LoadError> {
        let text = |key: &str| -> Result<Option<String>, LoadError> {
            let Some(value) = config.value(key) else { return Ok(None) };
            let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
            match text {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(config.unexpected(key, "a text, or an object with content", "something else")),
            }
        };
        Ok(Self { bos: text("bos_token")?, eos: text("eos_token")?, unk: text("unk_token")?, pad: text("pad_token")? })
    }
}
