//! A file as bytes, mapped read-only: pages come in when they are touched and may leave under memory pressure.
//!
//! Knows nothing of what the bytes mean.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::LoadError;

/// Maps the whole of `path`.
///
/// # Errors
/// The file cannot be opened, is not a plain file, or is empty.
pub fn map(path: &Path) -> Result<Arc<Mmap>, LoadError> {
    let read_error = |source| LoadError::Read { file: path.to_owned(), source };
    let file = File::open(path).map_err(read_error)?;
    let metadata = file.metadata().map_err(read_error)?;
    if !metadata.is_file() {
        return Err(LoadError::unexpected(path, "the path", "a plain file", "something else"));
    }
    if metadata.len() == 0 {
        return Err(LoadError::unexpected(path, "the file", "weights", "0 bytes"));
    }
    // SAFETY: the mapping is read-only and private to this process. What Rust cannot promise is that no other process
    // cuts or rewrites the file while we serve from it; the store replaces files by renaming and never writes in place,
    // and every offset is checked against the mapped length.
    let mapping = unsafe { Mmap::map(&file) }.map_err(read_error)?;
    Ok(Arc::new(mapping))
}
