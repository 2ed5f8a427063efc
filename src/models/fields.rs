//! Reads fields of a JSON object with a range for each, so that every error names the file and the key.
//!
//! Knows no keys. `null` counts as absent, as it does for Python's readers of these files.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::weights::LoadError;

/// An object of a JSON file.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    file: &'a Path,
    /// Key of this object in the file, with a dot behind it; empty at the root.
    prefix: &'a str,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The root object of `file`.
    ///
    /// # Errors
    /// The root is no object.
    pub fn root(file: &'a Path, json: &'a Value) -> Result<Self, LoadError> {
        let object =
            json.as_object().ok_or_else(|| LoadError::unexpected(file, "the root", "an object", kind(json)))?;
        Ok(Self { file, prefix: "", object })
    }

    /// The file these fields are from.
    pub fn file(&self) -> &'a Path {
        self.file
    }

    /// The value of `key`, unless it is absent or null.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether `key` is written, null or not.
    pub fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// An error about `key`.
    pub fn unexpected(&self, key: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> LoadError {
        LoadError::unexpected(self.file, format_args!("{}{key}", self.prefix), expected, found)
    }

    /// `found`, or an error that says that `key` is missing.
    pub fn require<T>(&self, key: &str, expected: &str, found: Option<T>) -> Result<T, LoadError> {
        found.ok_or_else(|| LoadError::missing_key(self.file, format_args!("{}{key}", self.prefix), expected))
    }

    /// A whole number in `range`.
    pub fn integer(&self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, LoadError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        // Python writes some whole numbers as 4096.0.
        let number = value.as_u64().or_else(|| {
            let float = value.as_f64().filter(|float| float.fract() == 0.0 && (0.0..=9e15).contains(float))?;
            Some(float as u64)
        });
        match number {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.unexpected(
                key,
                format_args!("a whole number from {} to {}", range.start(), range.end()),
                kind(value),
            )),
        }
    }

    /// A size in `range`, which must be there.
    pub fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, LoadError> {
        let found = self.integer(key, *range.start() as u64..=*range.end() as u64)?;
        self.require(key, "a whole number", found).map(|number| number as usize)
    }

    /// A number in `range`.
    pub fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.unexpected(
                key,
                format_args!("a number from {} to {}", range.start(), range.end()),
                kind(value),
            )),
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        let read = |value: &Value| value.as_bool().ok_or_else(|| self.unexpected(key, "true or false", kind(value)));
        self.value(key).map(read).transpose()
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        let read = |value: &'a Value| value.as_str().ok_or_else(|| self.unexpected(key, "a text", kind(value)));
        self.value(key).map(read).transpose()
    }

    /// An object.
    pub fn object(&self, key: &str, prefix: &'a str) -> Result<Option<Fields<'a>>, LoadError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let object = value.as_object().ok_or_else(|| self.unexpected(key, "an object", kind(value)))?;
        Ok(Some(Self { file: self.file, prefix, object }))
    }

    /// A list.
    pub fn list(&self, key: &str) -> Result<Option<&'a [Value]>, LoadError> {
        let read = |value: &'a Value| match value.as_array() {
            Some(list) => Ok(list.as_slice()),
            None => Err(self.unexpected(key, "a list", kind(value))),
        };
        self.value(key).map(read).transpose()
    }
}

/// A value in a few words, however long it is.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("the text \"{}\"", text.chars().take(80).collect::<String>().escape_debug()),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}
