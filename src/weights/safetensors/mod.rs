//! Reads the headers of safetensors files: one file, or the shards that an index names.
//!
//! Knows no model. The crate `safetensors` parses a header and checks that its tensors fill the file without gap or overlap.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::json::read_json;
use super::{LoadError, StoredFormat, Tensor};
use crate::ops::{Bytes, Format};

/// Longest header, bytes: 100,000 tensors need about a tenth of it.
const MAX_HEADER_BYTES: u64 = 64 << 20;
/// What stands before the header: its length, in bytes.
const HEADER_LENGTH_BYTES: u64 = 8;
/// Longest index, bytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Most shards; the largest public models have some hundred.
const MAX_SHARDS: usize = 4096;

/// Reads the header of `file`, whose content is `data`. Tensors say `file_index` as their file.
///
/// # Errors
/// The header is not valid.
pub fn read(file: &Path, data: &Bytes, file_index: usize) -> Result<HashMap<String, Tensor>, LoadError> {
    let bytes: &[u8] = (**data).as_ref();
    let header_bytes = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    if header_bytes.is_some_and(|length| length > MAX_HEADER_BYTES) {
        let expected = format!("at most {MAX_HEADER_BYTES} bytes");
        return Err(LoadError::unexpected(file, "header length", expected, header_bytes.unwrap_or_default()));
    }
    let (header_bytes, metadata) = SafeTensors::read_metadata(bytes).map_err(|source| match needed_bytes(bytes) {
        Some(needs_bytes) if needs_bytes > bytes.len() as u64 => {
            LoadError::EndsEarly { file: file.to_owned(), has_bytes: bytes.len() as u64, needs_bytes }
        }
        _ => LoadError::Safetensors { file: file.to_owned(), source },
    })?;
    let data_start = HEADER_LENGTH_BYTES as usize + header_bytes;
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let range = data_start + start..data_start + end;
        (name, Tensor { file: file_index, format: format(info.dtype), shape: info.shape.clone(), range })
    });
    Ok(tensors.collect())
}

/// Bytes that a file has if it is whole, as far as its header can be read; `None`: it makes no sense.
fn needed_bytes(bytes: &[u8]) -> Option<u64> {
    let Some(length) = bytes.first_chunk().map(|length| u64::from_le_bytes(*length)) else {
        return Some(HEADER_LENGTH_BYTES);
    };
    let data_start = HEADER_LENGTH_BYTES.checked_add(length)?;
    let Some(header) = bytes.get(HEADER_LENGTH_BYTES as usize..usize::try_from(data_start).ok()?) else {
        return Some(data_start);
    };
    let header: HashMap<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    let ends = header.values().filter_map(|tensor| tensor.pointer("/data_offsets/1")?.as_u64());
    data_start.checked_add(ends.max()?)
}

/// The format of a safetensors type.
fn format(dtype: Dtype) -> StoredFormat {
    match dtype {
        Dtype::F32 => StoredFormat::Known(Format::F32),
        Dtype::F16 => StoredFormat::Known(Format::F16),
        Dtype::BF16 => StoredFormat::Known(Format::Bf16),
        other => StoredFormat::Other(format!("{other:?}")),
    }
}

/// An index of shards: which tensor is in which file.
pub struct Index {
    file: PathBuf,
    /// Shard by shard, the tensors that it must hold.
    shards: BTreeMap<PathBuf, Vec<String>>,
}

impl Index {
    /// Reads `model.safetensors.index.json`.
    ///
    /// # Errors
    /// It is no index, or names a shard outside its folder.
    pub fn read(file: &Path) -> Result<Self, LoadError> {
        let json = read_json(file, MAX_INDEX_BYTES)?;
        let Some(map) = json.get("weight_map").and_then(|map| map.as_object()) else {
            return Err(LoadError::missing_key(file, "weight_map", "an object from tensor to file name"));
        };
        let folder = file.parent().unwrap_or(Path::new(""));
        let mut shards: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
        for (tensor, shard) in map {
            let item = || format!("weight_map entry {tensor:.200}");
            let Some(name) = shard.as_str().filter(|name| stays_inside(name)) else {
                let expected = "the name of a file in the same folder";
                return Err(LoadError::unexpected(file, item(), expected, shard));
            };
            shards.entry(folder.join(name)).or_default().push(tensor.clone());
            if shards.len() > MAX_SHARDS {
                return Err(LoadError::unexpected(
                    file,
                    "weight_map",
                    format_args!("at most {MAX_SHARDS} files"),
                    "more",
                ));
            }
        }
        if shards.is_empty() {
            return Err(LoadError::unexpected(file, "weight_map", "at least one tensor", "none"));
        }
        Ok(Self { file: file.to_owned(), shards })
    }

    /// The shards' paths, in order of their names.
    pub fn shards(&self) -> impl Iterator<Item = &Path> {
        self.shards.keys().map(PathBuf::as_path)
    }

    /// Checks that `shard` holds, in `tensors`, what the index says of it.
    ///
    /// # Errors
    /// A tensor is not there.
    pub fn check(&self, shard: &Path, tensors: &HashMap<String, Tensor>) -> Result<(), LoadError> {
        let promised = self.shards.get(shard).into_iter().flatten();
        match promised.into_iter().find(|name| !tensors.contains_key(*name)) {
            None => Ok(()),
            Some(name) => Err(LoadError::MissingTensor {
                file: shard.to_owned(),
                tensor: name.clone(),
                expected: format!("it here, as {} says", self.file.display()),
            }),
        }
    }
}

/// Whether `name` leads to a file below the folder it is resolved in, by its words alone.
fn stays_inside(name: &str) -> bool {
    let mut components = Path::new(name).components().peekable();
    components.peek().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
        && !name.contains('\\')
}
