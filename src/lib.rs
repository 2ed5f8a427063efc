//! Lantern serves Llama, Qwen and DeepSeek models, and embeds them in Rust programs.

mod attention;
#[cfg(feature = "server")]
pub mod cli;
pub mod config;
mod cpu;
pub mod device;
pub mod engine;
pub mod hub;
mod kv_cache;
mod layers;
mod llm;
mod models;
mod ops;
pub mod request;
mod runner;
mod sampling;
pub mod scheduler;
#[cfg(feature = "server")]
pub mod server;
pub mod tokenizer;
mod weights;

pub use llm::{
    Answer, Chat, GenerateError, GenerateRequest, GeneratedToken, GenerationEvent, Message, ModelInfo, Prompt,
    SamplingOptions,
};
