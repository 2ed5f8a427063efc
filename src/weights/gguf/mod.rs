//! Reads the header of a GGUF file: metadata, and where each tensor lies.
//!
//! Knows no model. Trusts nothing: every count and length is checked against the bytes that are left before it is used,
//! every tensor against the file and against the others.
//!
//! Source: the GGUF specification, versions 2 and 3, little-endian.

#[cfg(test)]
pub mod builder;
mod cursor;
mod kind;
mod metadata;
pub mod split;
#[cfg(test)]
pub(in crate::weights) mod tests;
mod value;

use std::collections::HashMap;
use std::path::Path;

use cursor::Cursor;
pub use metadata::Metadata;

use super::{LoadError, StoredFormat, Tensor};
use crate::ops::{Bytes, Format};

/// Most metadata pairs; real files have some tens.
const MAX_KEYS: usize = 1 << 16;
/// Most tensors; real files have up to some thousand.
const MAX_TENSORS: usize = 1 << 16;
/// Longest tensor name, bytes; the specification says 64.
const MAX_NAME_BYTES: usize = 256;
/// Largest alignment of tensor data, bytes; real files have 32.
const MAX_ALIGNMENT: u64 = 1 << 16;
/// Fewest bytes of a pair: key length, type, value.
const LEAST_KEY_BYTES: usize = 8 + 4 + 1;
/// Fewest bytes of a tensor's entry: name length, rank, one dimension, type, offset.
const LEAST_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;

/// A tensor's entry as the file has it.
struct Entry {
    name: String,
    shape: Vec<usize>,
    format: StoredFormat,
    /// From the start of tensor data.
    offset: u64,
    /// `None` for a format whose size we do not know.
    length: Option<u64>,
}

/// Reads the header of `file`, whose content is `data`. Tensors say `file_index` as their file.
///
/// # Errors
/// Anything that is not as the specification says, with the key or tensor and the place in the file.
pub fn read(file: &Path, data: &Bytes, file_index: usize) -> Result<(Metadata, HashMap<String, Tensor>), LoadError> {
    let bytes: &[u8] = (**data).as_ref();
    let mut cursor = Cursor::new(file, bytes);
    read_version(&mut cursor)?;
    cursor.enter("the number of tensors");
    let tensor_count = cursor.count(LEAST_TENSOR_BYTES, MAX_TENSORS)?;
    cursor.enter("the number of metadata keys");
    let key_count = cursor.count(LEAST_KEY_BYTES, MAX_KEYS)?;
    let metadata = Metadata::read(&mut cursor, key_count, file, data)?;
    let alignment = alignment(&metadata)?;

    let mut entries = Vec::new();
    for index in 0..tensor_count {
        cursor.enter(format!("tensor {index} of {tensor_count}"));
        entries.push(read_entry(&mut cursor, alignment)?);
    }
    // At most MAX_ALIGNMENT is added to a length that fits in memory.
    let data_start = (cursor.position() as u64).next_multiple_of(alignment);
    let tensors = place(file, entries, data_start, bytes.len() as u64, file_index)?;
    Ok((metadata, tensors))
}

/// Checks magic and version.
fn read_version(cursor: &mut Cursor) -> Result<(), LoadError> {
    let magic = cursor.array::<4>()?;
    if &magic != b"GGUF" {
        return Err(
            cursor.unexpected("a GGUF file, which starts with GGUF", format_args!("\"{}\"", magic.escape_ascii()))
        );
    }
    match cursor.u32()? {
        2 | 3 => Ok(()),
        version if matches!(version.swap_bytes(), 1..=3) => Err(cursor.unexpected("little-endian GGUF", "big-endian")),
        version => Err(cursor.unexpected("GGUF version 2 or 3", version)),
    }
}

/// Alignment of tensor data, bytes.
fn alignment(metadata: &Metadata) -> Result<u64, LoadError> {
    let key = "general.alignment";
    let alignment: u64 = metadata.get::<u32>(key)?.unwrap_or(32).into();
    if !alignment.is_power_of_two() || !(8..=MAX_ALIGNMENT).contains(&alignment) {
        let expected = format!("a power of two from 8 to {MAX_ALIGNMENT}");
        return Err(LoadError::unexpected(metadata.file(), key, expected, alignment));
    }
    Ok(alignment)
}

/// Reads one tensor's entry and computes its length.
fn read_entry(cursor: &mut Cursor, alignment: u64) -> Result<Entry, LoadError> {
    let name = cursor.text(MAX_NAME_BYTES)?.to_owned();
    cursor.enter(format!("tensor {name}"));
    let rank = cursor.u32()?;
    if !(1..=4).contains(&rank) {
        return Err(cursor.unexpected("1 to 4 dimensions", rank));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        let dimension = cursor.u64()?;
        match usize::try_from(dimension) {
            Ok(dimension) if dimension > 0 => shape.push(dimension),
            _ => return Err(cursor.unexpected("a dimension above 0 that fits in memory", dimension)),
        }
    }
    shape.reverse();
    if shape.iter().try_fold(1usize, |elements, dimension| elements.checked_mul(*dimension)).is_none() {
        return Err(cursor.unexpected("as many elements as fit in memory", format_args!("shape {shape:?}")));
    }
    let format = kind::format(cursor.u32()?);
    let length = match &format {
        StoredFormat::Other(_) => None,
        StoredFormat::Known(format) => Some(stored_bytes(*format, &shape).ok_or_else(|| {
            let expected = format!(
                "rows of whole blocks of {} elements ({format}), of a size that fits in memory",
                format.block_len()
            );
            cursor.unexpected(expected, format_args!("shape {shape:?}"))
        })?),
    };
    let offset = cursor.u64()?;
    if !offset.is_multiple_of(alignment) {
        return Err(cursor.unexpected(format_args!("an offset that is a multiple of {alignment}"), offset));
    }
    Ok(Entry { name, shape, format, offset, length })
}

/// Bytes of a tensor; `None` where rows are no whole blocks or the size overflows.
fn stored_bytes(format: Format, shape: &[usize]) -> Option<u64> {
    let (columns, rows) = shape.split_last()?;
    let bytes = rows.iter().try_fold(format.row_bytes(*columns)?, |bytes, rows| bytes.checked_mul(*rows))?;
    u64::try_from(bytes).ok()
}

/// Turns offsets into ranges of the file: inside it, apart from each other, each name once.
fn place(
    file: &Path,
    mut entries: Vec<Entry>,
    data_start: u64,
    file_length: u64,
    file_index: usize,
) -> Result<HashMap<String, Tensor>, LoadError> {
    // A tensor of unknown size takes at least one byte.
    let end = |entry: &Entry| {
        let start = data_start.checked_add(entry.offset)?;
        start.checked_add(entry.length.unwrap_or(1))
    };
    let needs_bytes = entries.iter().filter_map(end).max().unwrap_or(0);
    if needs_bytes > file_length {
        return Err(LoadError::EndsEarly { file: file.to_owned(), has_bytes: file_length, needs_bytes });
    }
    entries.sort_by_key(|entry| entry.offset);
    let mut tensors = HashMap::new();
    let mut previous_end = data_start;
    let mut previous_name = String::new();
    for entry in entries {
        let refuse = |expected: String, found: String| {
            LoadError::unexpected(file, format_args!("tensor {}", entry.name), expected, found)
        };
        let Some(end) = end(&entry) else {
            let found = format!("{} bytes at {} of tensor data", entry.length.unwrap_or(1), entry.offset);
            return Err(refuse(format!("data inside the file of {file_length} bytes"), found));
        };
        let start = data_start + entry.offset;
        if start < previous_end {
            return Err(refuse("data of its own".to_owned(), format!("data that overlaps tensor {previous_name}")));
        }
        previous_end = end;
        previous_name.clone_from(&entry.name);
        // Both fit: the file of this length is in memory.
        let range = start as usize..if entry.length.is_some() { end as usize } else { start as usize };
        let tensor = Tensor { file: file_index, format: entry.format, shape: entry.shape, range };
        if tensors.insert(entry.name, tensor).is_some() {
            let expected = "each tensor once";
            return Err(LoadError::unexpected(file, format_args!("tensor {previous_name}"), expected, "it twice"));
        }
    }
    Ok(tensors)
}
