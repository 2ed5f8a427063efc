//! Reads a JSON file of bounded size.
//!
//! Knows no keys.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::LoadError;

/// The text of `file`.
///
/// # Errors
/// It cannot be read, is longer than `limit_bytes`, or is not UTF-8.
pub fn read_text(file: &Path, limit_bytes: u64) -> Result<String, LoadError> {
    let read_error = |source| LoadError::Read { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(file).map_err(read_error)?.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(LoadError::unexpected(file, "its length", format_args!("at most {limit_bytes} bytes"), "more"));
    }
    String::from_utf8(bytes).map_err(|error| LoadError::unexpected(file, "its text", "UTF-8", error.utf8_error()))
}

/// The JSON value in `file`.
///
/// # Errors
/// As [`read_text`], or it is not JSON. Nesting is limited to 128 by the parser.
pub fn read_json(file: &Path, limit_bytes: u64) -> Result<Value, LoadError> {
    let text = read_text(file, limit_bytes)?;
    serde_json::from_str(&text).map_err(|source| LoadError::Json { file: file.to_owned(), source })
}
