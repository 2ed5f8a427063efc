//! Lantern serves Llama, Qwen and DeepSeek models to everyone on a network, and embeds them in Rust programs.
//!
//! ```no_run
//! use lantern::{GenerateRequest, Llm, Message};
//!
//! let llm = Llm::builder().model("smollm2:135m").load_blocking()?;
//! let answers = llm.generate(GenerateRequest::chat([Message::user("Why is the sky blue?")]))?.collect_blocking()?;
//! println!("{}", answers[0].text);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The house
//!
//! One room a noun, and imports go down only (`tests/tidy.rs` holds the list):
//!
//! | room | what it is for |
//! |---|---|
//! | `cli`, `server` | the command line; HTTP. Feature `server` |
//! | [`Llm`] | text in, stream of text out |
//! | [`hub`], [`tokenizer`] | names, downloads, the store; text to ids and back, templates |
//! | [`engine`] | the loop on one OS thread: schedule, execute, commit |
//! | [`scheduler`], [`kv_cache`] | what each step computes; blocks and the prefix index. No tensors |
//! | `runner`, `sampling` | one step on a model; logits to tokens |
//! | `models`, `layers`, `attention`, `weights` | a configuration becomes a decoder; files become matrices |
//! | `ops`, `cpu` | the operations a step is made of; kernels and threads |
//! | [`device`], [`config`], [`request`] | what is here; settings; plain data that every room may name |
//!
//! # What always holds
//!
//! - What a request gets does not depend on who else is in the batch: on the CPU every value is summed in one order,
//!   whatever the rows, the chunk or the threads, so alone = batched = chunked = cached = preempted, bitwise.
//! - Every limit has a name, a default and an error of its own; nothing is cut silently.
//! - One request's fault ends that request alone. A broken invariant ends the engine, and its status says so.

mod attention;
#[cfg(feature = "server")]
pub mod cli;
pub mod config;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod device;
pub mod engine;
pub mod hub;
pub mod kv_cache;
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
    Answer, Beside, Calls, Chat, DEFAULT_MODEL, EmbedRequest, Embedding, GenerateError, GenerateRequest,
    GeneratedToken, Generation, GenerationEvent, Grammar, Llm, LlmBuilder, LoadError, LocalModel, Message,
    ModelDescription, ModelInfo, ModelLibrary, Perplexity, Prompt, SamplingOptions, ScriptError, TokenCost,
    plan_preview,
};
pub use runner::{MemoryToPlan, ModelError, ModelFacts, Offload, PlanError, PlanPreview, RunnerError};
pub use weights::LoadError as FileError;
