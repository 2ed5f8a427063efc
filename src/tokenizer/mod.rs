//! Text to token ids and back: encoding, chat templates, incremental detokenising, stop strings.
//!
//! It knows neither models nor requests: a token is a `u32`, a message is JSON as clients send it.

mod answer;
mod chat_messages;
mod detokenize;
mod encode;
mod gguf_vocab;
mod listed_tools;
mod pieces;
mod pre_tokenizer;
mod python_json;
mod stop;
mod strftime;
mod template;
mod template_environment;

use std::path::PathBuf;

pub use answer::{AnswerParser, CallFormat, Part, ToolCall, Unread};
pub use detokenize::IncrementalDecoder;
pub use encode::Tokenizer;
pub use gguf_vocab::{GgufVocab, MAX_PIECE_BYTES};
pub use pieces::MAX_VOCAB_SIZE;
pub use stop::{MAX_STOP_BYTES, MAX_STOP_STRINGS, StopError, StopMatcher, StopOutcome};
pub use template::{CHATML_TEMPLATE, ChatTemplate, MAX_RENDERED_BYTES, MAX_TEMPLATE_STEPS, TemplateError};

/// Why a tokenizer could not be built, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A tokenizer file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A tokenizer file is not what its name promises.
    #[error("{} is not a valid tokenizer file: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The kind of vocabulary (`tokenizer.ggml.model`) is one that Lantern does not know.
    #[error("unsupported tokenizer model `{0}` (supported: `gpt2`, `llama`)")]
    UnsupportedModel(String),
    /// The name of the pre-tokenizer (`tokenizer.ggml.pre`) is one that Lantern does not know.
    /// Guessing would split text in other places than the model learned, so it is refused.
    #[error("unsupported pre-tokenizer `{0}` in tokenizer.ggml.pre")]
    UnknownPreTokenizer(String),
    /// tokenizer.json names a decoder that has no form as bytes for each token.
    #[error("unsupported decoder `{0}` in tokenizer.json")]
    UnsupportedDecoder(String),
    /// The vocabulary contradicts itself.
    #[error("invalid vocabulary: {0}")]
    Vocabulary(String),
    /// The tokenizer refused its own parts, or a text.
    #[error("tokenizer failed: {0}")]
    Failed(#[source] tokenizers::Error),
}
