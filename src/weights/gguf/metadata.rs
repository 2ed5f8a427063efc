//! The key-value part of a GGUF file, with getters whose errors name the file and the key.
//!
//! Knows which type a caller wants of a key, not what the key means.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::cursor::Cursor;
use super::value::{Array, Kind, Value};
use crate::ops::Bytes;
use crate::weights::LoadError;

/// Longest key, bytes. Source: the GGUF specification, "gguf_metadata_kv_t".
const MAX_KEY_BYTES: usize = 65535;

/// Keys and values of one GGUF file.
pub struct Metadata {
    file: PathBuf,
    data: Bytes,
    values: HashMap<String, Value>,
}

impl Metadata {
    /// Reads `count` pairs at the cursor; `data` is what the cursor reads.
    pub(super) fn read(cursor: &mut Cursor, count: usize, file: &Path, data: &Bytes) -> Result<Self, LoadError> {
        let mut values = HashMap::new();
        for index in 0..count {
            cursor.enter(format!("metadata key {index} of {count}"));
            let key = cursor.text(MAX_KEY_BYTES)?;
            cursor.enter(format!("metadata key {key:.200}"));
            let kind = Kind::read(cursor)?;
            let value = Value::read(cursor, kind)?;
            if values.insert(key.to_owned(), value).is_some() {
                return Err(cursor.unexpected("each key once", "it twice"));
            }
        }
        Ok(Self { file: file.to_owned(), data: data.clone(), values })
    }

    /// The file these are from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The value of `key`; `None` where the file does not have it.
    ///
    /// # Errors
    /// The value is of another type, or out of the type's range.
    pub fn get<T: FromValue>(&self, key: &str) -> Result<Option<T>, LoadError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match T::from_value(value, (*self.data).as_ref()) {
            Some(value) => Ok(Some(value)),
            None => Err(LoadError::unexpected(&self.file, key, T::EXPECTED, value.describe())),
        }
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// As [`Self::get`], or the file does not have it.
    pub fn require<T: FromValue>(&self, key: &str) -> Result<T, LoadError> {
        self.get(key)?.ok_or_else(|| LoadError::missing_key(&self.file, key, T::EXPECTED))
    }

    /// How many elements the array `key` has; `None` where the file does not have it or it is no array.
    pub fn array_length(&self, key: &str) -> Option<usize> {
        match self.values.get(key) {
            Some(Value::Array(array)) => Some(array.count),
            _ => None,
        }
    }
}

/// A type that metadata values can be read as.
pub trait FromValue: Sized {
    /// The type in words, for errors.
    const EXPECTED: &'static str;

    /// Reads `value`; `data` is the whole file. `None` where it is something else.
    fn from_value(value: &Value, data: &[u8]) -> Option<Self>;
}

impl FromValue for u32 {
    const EXPECTED: &'static str = "a number from 0 to 4294967295";

    fn from_value(value: &Value, _: &[u8]) -> Option<Self> {
        match value {
            Value::Integer(number) => Self::try_from(*number).ok(),
            _ => None,
        }
    }
}

impl FromValue for f64 {
    const EXPECTED: &'static str = "a finite number";

    fn from_value(value: &Value, _: &[u8]) -> Option<Self> {
        match value {
            Value::Float(number) if number.is_finite() => Some(*number),
            Value::Integer(number) => i32::try_from(*number).ok().map(Self::from),
            _ => None,
        }
    }
}

impl FromValue for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_value(value: &Value, _: &[u8]) -> Option<Self> {
        match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }
}

impl FromValue for String {
    const EXPECTED: &'static str = "a text";

    fn from_value(value: &Value, _: &[u8]) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl FromValue for Vec<String> {
    const EXPECTED: &'static str = "texts";

    fn from_value(value: &Value, data: &[u8]) -> Option<Self> {
        let Value::Array(Array { kind: Kind::Text, count, range }) = value else { return None };
        let mut rest = &data[range.clone()];
        let mut texts = Vec::new();
        for _ in 0..*count {
            let (length, after) = rest.split_first_chunk::<8>()?;
            let (text, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
            texts.push(std::str::from_utf8(text).ok()?.to_owned());
            rest = after;
        }
        Some(texts)
    }
}

impl FromValue for Vec<f32> {
    const EXPECTED: &'static str = "numbers of 32 bits, floating";

    fn from_value(value: &Value, data: &[u8]) -> Option<Self> {
        let Value::Array(Array { kind: Kind::F32, range, .. }) = value else { return None };
        Some(data[range.clone()].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

impl FromValue for Vec<i32> {
    const EXPECTED: &'static str = "numbers of 32 bits";

    fn from_value(value: &Value, data: &[u8]) -> Option<Self> {
        let Value::Array(Array { kind, range, .. }) = value else { return None };
        let words = data[range.clone()].as_chunks().0.iter();
        match kind {
            Kind::I32 => Some(words.map(|bytes| i32::from_le_bytes(*bytes)).collect()),
            Kind::U32 => words.map(|bytes| i32::try_from(u32::from_le_bytes(*bytes)).ok()).collect(),
            _ => None,
        }
    }
}
