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

/// Gives back the memory of `part`, if that lies in `mapping`: its pages are read again when they are next touched.
pub fn release(mapping: &Mmap, part: &[u8]) {
    #[cfg(unix)]
    if let Some(offset) = (part.as_ptr() as usize).checked_sub(mapping.as_ptr() as usize)
        && offset + part.len() <= mapping.len()
    {
        // SAFETY: the mapping is a file's and nobody writes to it, so that a page that goes comes back with the same bytes.
        // The range was checked against the mapping.
        let released =
            unsafe { mapping.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, part.len()) };
        if let Err(error) = released {
            tracing::debug!(%error, "memory of weights that were read is not given back");
        }
    }
    #[cfg(not(unix))]
    let _ = (mapping, part);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_reads_the_same_and_other_memory_is_left_alone() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let bytes: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8).collect();
        std::fs::write(file.path(), &bytes).expect("it can be written");
        let mapping = map(file.path()).expect("it can be mapped");
        assert_eq!(mapping[..], bytes[..]);
        release(&mapping, &mapping[5000..90_000]);
        release(&mapping, &bytes);
        assert_eq!(mapping[..], bytes[..]);
    }
}
