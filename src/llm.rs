//! Text in, stream of text out: what embedders and the server use.
//!
//! Knows no HTTP and no tensors: it encodes, submits to the engine, and decodes what comes back.

mod generate;
mod info;

pub use generate::{
    Answer, Chat, GenerateError, GenerateRequest, GeneratedToken, GenerationEvent, Message, Prompt, SamplingOptions,
};
pub use info::ModelInfo;
