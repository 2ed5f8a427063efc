//! [`Tokenizer`]: text to token ids and back, from a tokenizer.json or a GGUF vocabulary.
//!
//! It knows no chat format: a rendered prompt is text like any other.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::gguf_vocab::GgufVocab;
use super::pieces::{MAX_VOCAB_SIZE, Piece, PieceTable, spelling_of_decoder};
use super::pre_tokenizer::for_long_runs;
use super::{IncrementalDecoder, TokenizerError};

/// Text to token ids and back. Cheap to clone, and shared by any number of threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    encoder: tokenizers::Tokenizer,
    pieces: PieceTable,
    longest_token_bytes: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Ids that `add_special` puts before a text.
    prefix: Vec<u32>,
    /// Ids that `add_special` puts after a text.
    suffix: Vec<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, and the `tokenizer_config.json` beside it where there is one:
    /// it says which tokens begin and end a text.
    ///
    /// # Errors
    /// A file that cannot be read or parsed, or a decoder that Lantern does not know.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let bytes = read(path)?;
        let invalid = |reason: String| TokenizerError::Invalid { path: path.to_owned(), reason };
        // `tokenizers` 0.23 indexes out of bounds on merges that are longer than every token;
        // a hostile file must not take the process with it.
        let encoder = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|_| invalid("its merges contradict its vocabulary".into()))?
            .map_err(|error| invalid(error.to_string()))?;
        let config_path = path.with_file_name("tokenizer_config.json");
        let config = if config_path.exists() {
            serde_json::from_slice(&read(&config_path)?)
                .map_err(|error| TokenizerError::Invalid { path: config_path, reason: error.to_string() })?
        } else {
            Value::Null
        };
        Self::from_parts(encoder, &config)
    }

    /// Builds the tokenizer that a GGUF file holds.
    ///
    /// # Errors
    /// A vocabulary that contradicts itself, or a kind or pre-tokenizer that Lantern does not
    /// know; the error names it.
    pub fn from_gguf_vocab(vocab: GgufVocab) -> Result<Self, TokenizerError> {
        let built = vocab.build()?;
        let prefix = if built.adds_bos { vocab.bos } else { None };
        let suffix = if built.adds_eos { vocab.eos } else { None };
        Ok(Tokenizer {
            inner: Arc::new(Inner {
                encoder: built.encoder,
                longest_token_bytes: built.pieces.longest(),
                pieces: built.pieces,
                bos: vocab.bos,
                eos: vocab.eos,
                prefix: Vec::from_iter(prefix),
                suffix: Vec::from_iter(suffix),
            }),
        })
    }

    fn from_parts(mut encoder: tokenizers::Tokenizer, config: &Value) -> Result<Self, TokenizerError> {
        // Left over from training in many published files; here they would cut or pad prompts silently.
        encoder.with_padding(None);
        encoder.with_truncation(None).map_err(TokenizerError::Failed)?;
        if let Some(steps) = encoder.get_pre_tokenizer() {
            let steps = for_long_runs(steps)?;
            encoder.with_pre_tokenizer(Some(steps));
        }
        let pieces = pieces_of(&encoder)?;
        let id_of = |key: &str| encoder.token_to_id(token_text(&config[key])?);
        let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
        let (mut prefix, mut suffix) = frame_of(&encoder)?;
        apply_switch(&mut prefix, bos, config["add_bos_token"].as_bool());
        apply_switch(&mut suffix, eos, config["add_eos_token"].as_bool());
        let longest_token_bytes = pieces.longest();
        let inner = Inner { encoder, pieces, longest_token_bytes, bos, eos, prefix, suffix };
        Ok(Tokenizer { inner: Arc::new(inner) })
    }

    /// Bytes of the longest token: a text has at least its own length divided by this many tokens, but for what
    /// normalisation takes away.
    pub fn longest_token_bytes(&self) -> usize {
        self.inner.longest_token_bytes
    }

    /// The token ids of `text`. Special tokens written in it (`<|im_end|>`) become their ids, as
    /// in Hugging Face's default. `add_special` puts the model's beginning and end of text around
    /// it: true for plain text, false for a rendered chat template, which writes its own.
    ///
    /// # Errors
    /// The tokenizer's own failures; none is known for a vocabulary that could be loaded.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encoder.encode_fast(text, false).map_err(TokenizerError::Failed)?;
        if !add_special || (self.inner.prefix.is_empty() && self.inner.suffix.is_empty()) {
            return Ok(encoding.get_ids().to_vec());
        }
        Ok([&self.inner.prefix, encoding.get_ids(), &self.inner.suffix].concat())
    }

    /// The text of `ids`. Bytes that are not UTF-8 become U+FFFD; ids that no token has become
    /// nothing; `skip_special` leaves out control tokens.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut decoder = IncrementalDecoder::new(self, skip_special);
        let mut text = String::new();
        for &id in ids {
            decoder.push_onto(id, &mut text);
        }
        text.push_str(&decoder.finish());
        text
    }

    /// Number of ids, `max id + 1`. A model's logits may have more rows, which no token uses.
    pub fn vocab_size(&self) -> usize {
        self.inner.pieces.len()
    }

    /// The id of a token, written as in the vocabulary.
    pub fn token_to_id(&self, piece: &str) -> Option<u32> {
        self.inner.encoder.token_to_id(piece)
    }

    /// A token as the vocabulary writes it (`Ġthe`, `▁the`, `<|im_end|>`).
    pub fn id_to_piece(&self, id: u32) -> Option<String> {
        self.inner.encoder.id_to_token(id)
    }

    /// The bytes that a token stands for (` the`), perhaps a part of a character; empty for an
    /// id that no token has.
    pub fn id_to_bytes(&self, id: u32) -> &[u8] {
        self.inner.pieces.bytes(id)
    }

    /// Whether a token is a control token, which `skip_special` leaves out of text.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.pieces.is_special(id)
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// The token that ends a text or a turn.
    pub fn eos(&self) -> Option<u32> {
        self.inner.eos
    }

    /// Whether a text's first space belongs to the spelling of its first token.
    pub(super) fn strips_leading_space(&self) -> bool {
        self.inner.pieces.strips_leading_space
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos())
            .field("eos", &self.eos())
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|source| TokenizerError::Read { path: path.to_owned(), source })
}

/// tokenizer_config.json writes a token as text or as an object that holds it.
fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// The table of what each id of a tokenizer.json stands for.
fn pieces_of(encoder: &tokenizers::Tokenizer) -> Result<PieceTable, TokenizerError> {
    let decoder = serde_json::to_value(encoder.get_decoder()).map_err(|error| TokenizerError::Failed(error.into()))?;
    let (spelling, strips_leading_space) = spelling_of_decoder(&decoder)?;
    let vocabulary = encoder.get_vocab(true);
    let count = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
    if count == 0 || count > MAX_VOCAB_SIZE {
        return Err(TokenizerError::Vocabulary(format!("{count} ids; 1 to {MAX_VOCAB_SIZE} are supported")));
    }
    let mut texts: Vec<Option<&str>> = vec![None; count];
    for (text, &id) in &vocabulary {
        texts[id as usize] = Some(text);
    }
    let added = encoder.get_added_tokens_decoder();
    let pieces = (0u32..).zip(&texts).map(|(id, text)| {
        let added = added.get(&id);
        let text = added.map(|token| token.content.as_str()).or(*text)?;
        let special = added.is_some_and(|token| token.special);
        Some(Piece { text, literal: added.is_some(), special })
    });
    PieceTable::new(pieces.collect::<Vec<_>>().into_iter(), spelling, strips_leading_space)
}

/// What the tokenizer's post-processor puts before and after a text.
fn frame_of(encoder: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let ids = |add_special| -> Result<Vec<u32>, TokenizerError> {
        let encoding = encoder.encode_fast("a", add_special).map_err(TokenizerError::Failed)?;
        Ok(encoding.get_ids().to_vec())
    };
    let (bare, framed) = (ids(false)?, ids(true)?);
    let at = (0..framed.len()).find(|&at| !bare.is_empty() && framed[at..].starts_with(&bare));
    Ok(match at {
        Some(at) => (framed[..at].to_vec(), framed[at + bare.len()..].to_vec()),
        None => (framed, Vec::new()),
    })
}

/// tokenizer_config.json's `add_bos_token` or `add_eos_token` overrules the post-processor.
fn apply_switch(ids: &mut Vec<u32>, token: Option<u32>, adds: Option<bool>) {
    match (token, adds) {
        (Some(token), Some(true)) if !ids.contains(&token) => ids.push(token),
        (Some(token), Some(false)) => ids.retain(|&id| id != token),
        _ => {}
    }
}

#[cfg(test)]
mod real;
#[cfg(test)]
pub(in crate::tokenizer) mod tests;
