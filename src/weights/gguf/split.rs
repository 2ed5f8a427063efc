//! A model cut into several GGUF files: `NAME-00001-of-00003.gguf` and so on, whose first holds the metadata.
//!
//! Knows names and the keys `split.*`, no tensors. Source: llama.cpp, `llama_split_path` and `gguf-split`.

use std::path::{Path, PathBuf};

use crate::weights::{LoadError, Metadata};

/// Most files of one model.
const MAX_PARTS: u32 = 1000;

/// The files of the model that `path` is a part of, in order; `None`: it is the whole model.
///
/// # Errors
/// The metadata says that there are several, and the name does not say where.
pub fn parts(path: &Path, metadata: &Metadata) -> Result<Option<Vec<PathBuf>>, LoadError> {
    let Some(count) = metadata.get::<u32>("split.count")?.filter(|count| *count > 1) else { return Ok(None) };
    if count > MAX_PARTS {
        return Err(LoadError::unexpected(path, "split.count", format_args!("at most {MAX_PARTS}"), count));
    }
    match stem(path) {
        Some((stem, of)) if of == count => {
            let name = |number: u32| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
            Ok(Some((1..=count).map(name).collect()))
        }
        _ => {
            let expected = format!("a name that ends in -00001-of-{count:05}.gguf, for a model in {count} files");
            Err(LoadError::unexpected(path, "the file's name", expected, "another"))
        }
    }
}

/// What comes before `-00001-of-00003.gguf`, and how many parts that says.
pub fn stem(path: &Path) -> Option<(&str, u32)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits(number) && digits(count) { Some((stem, count.parse().ok()?)) } else { None }
}

/// Checks that `metadata`, of the part `index` (from 0) of `count`, says so.
///
/// # Errors
/// It says something else.
pub fn check(metadata: &Metadata, index: usize, count: usize) -> Result<(), LoadError> {
    for (key, expected) in [("split.count", count), ("split.no", index)] {
        let found = metadata.require::<u32>(key)?;
        if found as usize != expected {
            return Err(LoadError::unexpected(metadata.file(), key, expected, found));
        }
    }
    Ok(())
}
