//! Answers that are written beforehand: what tests of clients need from a model that says nothing sensible.
//!
//! Knows no engine: a written answer is a mask that lets nothing else come, so scheduler, cache, sampler and detokeniser
//! work as ever.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::request::{TokenId, TokenMask, TokenMasks};

use super::handle::Llm;

/// One line of a script.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Text of a prompt that this answers.
    after: String,
    /// The answer, as text ...
    say: Option<String>,
    /// ... or as tokens.
    tokens: Option<Vec<TokenId>>,
}

/// Written answers. A prompt gets the one whose `after` stands nearest to its end; one in which none stands is answered by
/// the model itself.
#[derive(Debug)]
pub(super) struct Script {
    /// Text of a prompt, and the answer to it, its end included.
    answers: Vec<(String, Arc<[TokenId]>)>,
    vocab_size: u32,
}

impl Script {
    /// What stands in for an answer to `prompt`.
    pub(super) fn masks(&self, prompt: &str) -> Option<Arc<dyn TokenMasks>> {
        let found =
            self.answers.iter().filter_map(|(after, tokens)| Some((prompt.rfind(after)? + after.len(), tokens)));
        let (_, tokens) = found.max_by_key(|(end, _)| *end)?;
        Some(Arc::new(Written { tokens: tokens.clone(), vocab_size: self.vocab_size }))
    }
}

/// Why a script cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It cannot be read.
    #[error("{}: {source}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no list of answers.
    #[error("{}: {problem}; a JSON list of {{after, say}} or {{after, tokens}} is needed", file.display())]
    Answers {
        /// Which file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Llm {
    /// This model with answers written beforehand, for tests of what talks to it. `file` is a JSON list of
    /// `{"after": TEXT, "say": TEXT}` or `{"after": TEXT, "tokens": [ID, ...]}`: a prompt gets the answer whose `after`
    /// stands nearest to its end, in place of a grammar that the request brings.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub fn with_script(&self, file: &Path) -> Result<Self, ScriptError> {
        let json =
            std::fs::read_to_string(file).map_err(|source| ScriptError::File { file: file.to_owned(), source })?;
        let script = self.read_script(&json);
        script
            .map(|script| self.scripted(script))
            .map_err(|problem| ScriptError::Answers { file: file.to_owned(), problem })
    }

    fn read_script(&self, json: &str) -> Result<Script, String> {
        let entries: Vec<Entry> = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let vocab_size = self.engine().limits().vocab_size;
        let answer = |entry: Entry| {
            let mut tokens = match (entry.say, entry.tokens) {
                (Some(text), None) => self.encode_plain(&text).map_err(|error| error.to_string())?,
                (None, Some(tokens)) => tokens,
                _ => return Err(format!("`{}` has both or neither of `say` and `tokens`", entry.after)),
            };
            if let Some(token) = tokens.iter().find(|token| **token >= vocab_size) {
                return Err(format!("token id {token} is outside the vocabulary of {vocab_size}"));
            }
            tokens.extend(self.eos_token_ids().first());
            Ok((entry.after, tokens.into()))
        };
        Ok(Script { answers: entries.into_iter().map(answer).collect::<Result<_, _>>()?, vocab_size })
    }
}

/// One written answer.
#[derive(Debug)]
struct Written {
    tokens: Arc<[TokenId]>,
    vocab_size: u32,
}

impl TokenMasks for Written {
    fn start(&self) -> Box<dyn TokenMask> {
        let mask = vec![0; self.vocab_size.div_ceil(32) as usize];
        Box::new(Reading { tokens: self.tokens.clone(), at: 0, mask })
    }
}

/// How far an answer has come.
struct Reading {
    tokens: Arc<[TokenId]>,
    at: usize,
    mask: Vec<u32>,
}

impl TokenMask for Reading {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        // Behind its end, where the end itself ends nothing, anything may come.
        let Some(token) = self.tokens.get(self.at) else { return Ok(None) };
        self.mask.fill(0);
        self.mask[*token as usize / 32] = 1 << (token % 32);
        Ok(Some(&self.mask))
    }

    fn commit(&mut self, _token: TokenId) -> Result<(), String> {
        self.at += 1;
        Ok(())
    }
}
