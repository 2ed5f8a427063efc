//! Text in, stream of text out: what embedders and the server use.
//!
//! Knows no HTTP and no tensors: it encodes, submits to the engine, and decodes what comes back.

mod builder;
mod embed;
mod generate;
mod generation;
mod grammar;
mod handle;
mod info;
mod kv;
mod library;
mod load;
mod perplexity;
mod rules;
mod script;
mod shift;
#[cfg(test)]
mod tests;

pub use builder::{DEFAULT_MODEL, LlmBuilder};
pub use embed::{EmbedRequest, Embedding};
pub use generate::{
    Answer, Chat, GenerateError, GenerateRequest, GeneratedToken, GenerationEvent, Message, Prompt, SamplingOptions,
};
pub use generation::Generation;
pub use grammar::{Calls, Grammar};
pub use handle::Llm;
#[cfg(test)]
pub(crate) use handle::LlmParts;
pub use info::{ModelInfo, TokenCost};
pub use library::{Beside, LocalModel, ModelDescription, ModelLibrary};
pub use load::{LoadError, plan_preview};
pub use perplexity::Perplexity;
pub use script::ScriptError;

#[cfg(feature = "server")]
pub(crate) use library::configured;
#[cfg(feature = "server")]
pub(crate) use load::describe_path;

#[cfg(feature = "server")]
pub(crate) use crate::hub::{HubError, NameError, Progress, Service};
#[cfg(feature = "server")]
pub(crate) use crate::tokenizer::{AnswerParser, Part, ToolCall};
