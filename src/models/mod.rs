//! Model families: a configuration becomes a `DecoderSpec` and a table of tensor names; one decoder runs them all.
//!
//! Knows no engine: a model is opened, described and computed here, never scheduled.

mod decoder;
mod deepseek;
mod dimensions;
mod fields;
#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod fuzz;
mod generation;
mod keys;
mod llama;
mod load;
mod qwen;
mod registry;
pub mod rope;
mod source;
pub mod spec;
#[cfg(test)]
mod tests;
mod vocab;
mod workspace;

pub(crate) use decoder::Decoder;
pub use decoder::DecoderError;
pub use generation::GenerationDefaults;
#[cfg(test)]
pub use rope::{RopeLayout, RopeScaling, RopeSpec};
pub use source::{ModelSource, TokenizerSource};
pub use spec::DecoderSpec;
pub(crate) use spec::Stack;
pub use vocab::{GgufVocab, SpecialTokens};
pub(crate) use workspace::{StepPlace, Workspace};
