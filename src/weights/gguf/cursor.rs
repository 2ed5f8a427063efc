//! Reads little-endian fields of a byte slice, each checked against the bytes that are left before anything is made of it.
//!
//! Knows no GGUF structure. Never allocates more than it has read: counts and lengths from the file size nothing.

use std::path::Path;

use crate::weights::LoadError;

/// A header that says it takes more, bytes, is wrong rather than cut off.
const MAX_MISSING_BYTES: u64 = 1 << 40;

/// A place in a file.
pub struct Cursor<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    position: usize,
    item: String,
}

impl<'a> Cursor<'a> {
    /// At the start of `bytes`, the content of `file`.
    pub fn new(file: &'a Path, bytes: &'a [u8]) -> Self {
        Self { file, bytes, position: 0, item: "the header".to_owned() }
    }

    /// Says what is read next, for errors.
    pub fn enter(&mut self, item: impl Into<String>) {
        self.item = item.into();
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes left.
    fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// An error at this place.
    pub fn unexpected(&self, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> LoadError {
        LoadError::unexpected(self.file, format_args!("{} at byte {}", self.item, self.position), expected, found)
    }

    /// An error of a file that lacks some of the next `length` bytes.
    fn ends_early(&self, length: u64) -> LoadError {
        LoadError::EndsEarly {
            file: self.file.to_owned(),
            has_bytes: self.bytes.len() as u64,
            needs_bytes: (self.position as u64).saturating_add(length),
        }
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], LoadError> {
        if length > self.left() {
            return Err(self.ends_early(length as u64));
        }
        let start = self.position;
        self.position += length;
        Ok(&self.bytes[start..self.position])
    }

    /// The next `N` bytes, by value.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let mut field = [0; N];
        field.copy_from_slice(self.take(N)?);
        Ok(field)
    }

    /// An unsigned number of 4 bytes.
    pub fn u32(&mut self) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// An unsigned number of 8 bytes.
    pub fn u64(&mut self) -> Result<u64, LoadError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that take at least `least_bytes` (above 0) each, so that no more than `limit` of them and no more
    /// than fit in the rest of the file are believed.
    pub fn count(&mut self, least_bytes: usize, limit: usize) -> Result<usize, LoadError> {
        let count = self.u64()?;
        let most = (self.left() / least_bytes).min(limit);
        let missing = count.checked_mul(least_bytes as u64).filter(|bytes| *bytes <= MAX_MISSING_BYTES);
        match (usize::try_from(count), missing) {
            (Ok(count), _) if count <= most => Ok(count),
            (Ok(count), Some(bytes)) if count <= limit => Err(self.ends_early(bytes)),
            _ => Err(self.unexpected(format_args!("a count of at most {most}"), count)),
        }
    }

    /// A text with its length before it, of at most `limit` bytes.
    pub fn text(&mut self, limit: usize) -> Result<&'a str, LoadError> {
        let length = self.count(1, limit)?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|error| self.unexpected("UTF-8 text", error))
    }
}
