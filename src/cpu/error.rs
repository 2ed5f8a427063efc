//! What a caller can get wrong with data that came from outside.
//!
//! Slices of the wrong length are faults of our own code and panic instead.

use super::Format;

/// Why a kernel's input was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// The bytes of a matrix do not fit its shape.
    #[error("a matrix of {rows} x {columns} in {format} takes {expected} bytes, but {found} were given")]
    MatrixBytes {
        /// Element format.
        format: Format,
        /// Rows (outputs).
        rows: usize,
        /// Columns (inputs).
        columns: usize,
        /// Bytes that the shape takes.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The rows of a matrix cannot be cut into whole blocks, or its size overflows.
    #[error("a matrix of {rows} x {columns} cannot be held in {format}: blocks of {} weights", format.block_len())]
    MatrixShape {
        /// Element format.
        format: Format,
        /// Rows (outputs).
        rows: usize,
        /// Columns (inputs).
        columns: usize,
    },
    /// A token id has no row in the embedding table.
    #[error("token id {id} is outside the vocabulary of {rows}")]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the table.
        rows: usize,
    },
    /// The rotary tables do not fit together.
    #[error("rotary tables of {cos} cosines and {sin} sines do not fit {rotary_dim} rotated dimensions")]
    RopeTable {
        /// Rotated dimensions of a head.
        rotary_dim: usize,
        /// Values in the cosine table.
        cos: usize,
        /// Values in the sine table.
        sin: usize,
    },
}
