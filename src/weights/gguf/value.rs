//! Metadata values of a GGUF file: scalars are decoded, arrays are walked once and stay bytes of the file until asked for.
//!
//! Knows no keys.
//!
//! Source: the GGUF specification, "gguf_metadata_value_type".

use std::ops::Range;

use super::cursor::Cursor;
use crate::weights::LoadError;

/// Longest text, bytes: the longest real ones are chat templates of some tens of kilobytes.
const MAX_TEXT_BYTES: usize = 4 << 20;
/// Most elements of an array: vocabularies and merges have some hundred thousand.
const MAX_ARRAY_ELEMENTS: usize = 1 << 22;
/// Arrays within arrays; no key that we know nests at all.
const MAX_NESTING: u32 = 4;

/// Type of a value, by its number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 8 bits, unsigned.
    U8,
    /// 8 bits, signed.
    I8,
    /// 16 bits, unsigned.
    U16,
    /// 16 bits, signed.
    I16,
    /// 32 bits, unsigned.
    U32,
    /// 32 bits, signed.
    I32,
    /// 32 bits, floating.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// UTF-8 with its length.
    Text,
    /// Element type, count, elements.
    Array,
    /// 64 bits, unsigned.
    U64,
    /// 64 bits, signed.
    I64,
    /// 64 bits, floating.
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Text,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// Reads a type's number.
    pub fn read(cursor: &mut Cursor) -> Result<Self, LoadError> {
        let number = cursor.u32()?;
        usize::try_from(number)
            .ok()
            .and_then(|index| Self::ALL.get(index).copied())
            .ok_or_else(|| cursor.unexpected("a value type from 0 to 12", number))
    }

    /// Fewest bytes that one value of this type takes.
    fn least_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Text => 8,
            Self::Array => 12,
        }
    }
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer of the file.
    Integer(i128),
    /// Any floating number of the file.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Elements that lie in the file.
    Array(Array),
}

/// An array that has been walked: its elements are known to lie in `range`.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Type of its elements.
    pub kind: Kind,
    /// How many.
    pub count: usize,
    /// Bytes of the file that hold them.
    pub range: Range<usize>,
}

impl Value {
    /// Reads a value of this kind.
    pub fn read(cursor: &mut Cursor, kind: Kind) -> Result<Self, LoadError> {
        Ok(match kind {
            Kind::U8 => Self::Integer(u8::from_le_bytes(cursor.array()?).into()),
            Kind::I8 => Self::Integer(i8::from_le_bytes(cursor.array()?).into()),
            Kind::U16 => Self::Integer(u16::from_le_bytes(cursor.array()?).into()),
            Kind::I16 => Self::Integer(i16::from_le_bytes(cursor.array()?).into()),
            Kind::U32 => Self::Integer(cursor.u32()?.into()),
            Kind::I32 => Self::Integer(i32::from_le_bytes(cursor.array()?).into()),
            Kind::U64 => Self::Integer(cursor.u64()?.into()),
            Kind::I64 => Self::Integer(i64::from_le_bytes(cursor.array()?).into()),
            Kind::F32 => Self::Float(f32::from_le_bytes(cursor.array()?).into()),
            Kind::F64 => Self::Float(f64::from_le_bytes(cursor.array()?)),
            Kind::Bool => match cursor.array()? {
                [0u8] => Self::Bool(false),
                [1] => Self::Bool(true),
                [other] => return Err(cursor.unexpected("0 or 1", other)),
            },
            Kind::Text => Self::Text(cursor.text(MAX_TEXT_BYTES)?.to_owned()),
            Kind::Array => Self::Array(walk_array(cursor, 0)?),
        })
    }

    /// What kind of value this is, in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Integer(value) => format!("{value}"),
            Self::Float(value) => format!("{value}"),
            Self::Bool(value) => format!("{value}"),
            Self::Text(text) => format!("a text of {} bytes", text.len()),
            Self::Array(array) => format!("{} values of type {:?}", array.count, array.kind),
        }
    }
}

/// Steps over an array, checking every length in it.
fn walk_array(cursor: &mut Cursor, nesting: u32) -> Result<Array, LoadError> {
    let kind = Kind::read(cursor)?;
    let count = cursor.count(kind.least_bytes(), MAX_ARRAY_ELEMENTS)?;
    let start = cursor.position();
    match kind {
        Kind::Text => {
            for _ in 0..count {
                cursor.text(MAX_TEXT_BYTES)?;
            }
        }
        Kind::Array if nesting + 1 == MAX_NESTING => {
            return Err(cursor.unexpected(format_args!("at most {MAX_NESTING} arrays within each other"), "more"));
        }
        Kind::Array => {
            for _ in 0..count {
                walk_array(cursor, nesting + 1)?;
            }
        }
        // `count` has seen that this many bytes are left.
        _ => {
            cursor.take(count * kind.least_bytes())?;
        }
    }
    Ok(Array { kind, count, range: start..cursor.position() })
}
