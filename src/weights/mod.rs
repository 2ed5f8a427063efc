//! Weights as files hold them: safetensors and GGUF, memory-mapped, behind one table of names.
//!
//! Knows shapes and formats, no model: who asks for a tensor says how large it must be.

mod error;
mod gguf;
mod json;
mod mix;
mod mmap;
mod names;
mod quantize;
mod quantized;
mod random;
mod safetensors;
mod source;

use std::ops::Range;

pub use error::LoadError;
pub use gguf::Metadata;
#[cfg(test)]
pub use gguf::builder::GgufBuilder;
pub use json::{read_json, read_text};
pub use names::WeightName;
pub use source::Weights;
#[cfg(test)]
pub use source::fuzz;

use crate::ops::Format;

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq)]
struct Tensor {
    /// Which of the open files.
    file: usize,
    /// How its elements are stored.
    format: StoredFormat,
    /// Rows first.
    shape: Vec<usize>,
    /// Bytes of that file; empty where the format's size is not known.
    range: Range<usize>,
}

/// How a tensor's elements are stored.
#[derive(Clone, Debug, PartialEq)]
enum StoredFormat {
    /// A format that we compute with.
    Known(Format),
    /// Another one, by name.
    Other(String),
}
