//! Why a model cannot be loaded: always the file, the tensor or key in it, what was expected and what was found.
//!
//! Knows no format: readers say in words what they wanted.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The operating system refuses the file.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A folder or file that holds no model we read.
    #[error("{}: expected {expected}, found none", file.display())]
    MissingFile {
        /// The file, or the folder that should hold it.
        file: PathBuf,
        /// What should be there.
        expected: String,
    },
    /// A file that did not arrive whole.
    #[error(
        "{}: the file ends early: it has {has_bytes} bytes, and its header says at least {needs_bytes}; delete it, and pull or \
         copy it again", file.display()
    )]
    EndsEarly {
        /// Which file.
        file: PathBuf,
        /// Bytes that it has.
        has_bytes: u64,
        /// Bytes that it would have if it were whole, as far as its header could be read.
        needs_bytes: u64,
    },
    /// A key or field that must be there is not.
    #[error("{}: {key} is missing: expected {expected}", file.display())]
    MissingKey {
        /// Which file.
        file: PathBuf,
        /// The key in it.
        key: String,
        /// What it should hold.
        expected: String,
    },
    /// A key, field or structure holds something else than it must.
    #[error("{}: {item}: expected {expected}, found {found}", file.display())]
    Unexpected {
        /// Which file.
        file: PathBuf,
        /// The key, tensor or field in it.
        item: String,
        /// What was expected.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A tensor that the model needs is not there.
    #[error("{}: tensor {tensor} is missing: expected {expected}", file.display())]
    MissingTensor {
        /// The file, or the folder of several.
        file: PathBuf,
        /// The tensor's name in it.
        tensor: String,
        /// Its shape, rows first.
        expected: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor {tensor}: expected shape {expected:?}, found {found:?}", file.display())]
    Shape {
        /// Which file.
        file: PathBuf,
        /// The tensor's name in it.
        tensor: String,
        /// Expected shape, rows first.
        expected: Vec<usize>,
        /// Found shape, rows first.
        found: Vec<usize>,
    },
    /// A tensor is in a format that we do not compute with.
    #[error("{}: tensor {tensor}: expected one of {expected}, found {found}", file.display())]
    Format {
        /// Which file.
        file: PathBuf,
        /// The tensor's name in it.
        tensor: String,
        /// The formats that would do.
        expected: String,
        /// The format it is in.
        found: String,
    },
    /// Not JSON, where JSON must be.
    #[error("{}: expected JSON: {source}", file.display())]
    Json {
        /// Which file.
        file: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Not a valid safetensors header.
    #[error("{}: expected a safetensors header: {source}", file.display())]
    Safetensors {
        /// Which file.
        file: PathBuf,
        /// The reader's reason.
        source: safetensors::SafeTensorError,
    },
    /// A model of a kind that Lantern does not run.
    #[error("{}: architecture {architecture} is not supported{}: expected one of {known}", file.display(), if *planned { " yet" } else { "" })]
    Architecture {
        /// Which file.
        file: PathBuf,
        /// The architecture as the file names it.
        architecture: String,
        /// Whether a later version is meant to run it.
        planned: bool,
        /// The architectures that run.
        known: String,
    },
}

impl LoadError {
    /// `item` of `file` holds something else than it must.
    pub fn unexpected(file: &Path, item: impl Display, expected: impl Display, found: impl Display) -> Self {
        Self::Unexpected {
            file: file.to_owned(),
            item: item.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// `key` of `file` is not there.
    pub fn missing_key(file: &Path, key: impl Display, expected: impl Display) -> Self {
        Self::MissingKey { file: file.to_owned(), key: key.to_string(), expected: expected.to_string() }
    }
}
