//! What matrices of one stack become in GPU memory, and the bytes that takes: pure numbers, in every build.
//!
//! Matrices in block formats stay in them, in tiles of sixteen rows and units of 64 columns (`kernels/include/quant.cuh`).

use super::Format;

/// Rows and columns of the smallest piece of a matrix in a block format.
const TILE: (usize, usize) = (16, 64);

/// Matrices of one format and so many rows in all, as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) format: Format,
    /// How many of the stack's matrices.
    pub(super) count: usize,
    /// Rows of all of them.
    pub(super) rows: usize,
}

/// Neighbours of one block format are one matrix, if whole tiles come before each. `None`: all become one dense matrix, for
/// one of them is dense.
pub(super) fn block_runs(parts: &[(Format, usize)]) -> Option<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for &(format, rows) in parts {
        if format.block_len() == 1 {
            return None;
        }
        match runs.last_mut() {
            Some(last) if last.format == format && last.rows.is_multiple_of(TILE.0) => {
                (last.count, last.rows) = (last.count + 1, last.rows + rows);
            }
            _ => runs.push(Run { format, count: 1, rows }),
        }
    }
    Some(runs)
}

/// Bytes of GPU memory that matrices `(format, rows)` of `columns` take, stacked, in a model whose dense weights take two
/// bytes each.
pub fn gpu_weight_bytes(parts: &[(Format, usize)], columns: usize) -> u64 {
    let bytes = match block_runs(parts) {
        Some(runs) => runs.iter().map(|run| block_bytes(run.format, run.rows, columns)).sum::<usize>(),
        None => parts.iter().map(|(_, rows)| 2 * rows * columns).sum(),
    };
    bytes as u64
}

/// Bytes of a matrix in a block format.
pub(super) fn block_bytes(format: Format, rows: usize, columns: usize) -> usize {
    let tile_bytes = TILE.0 * TILE.1 * format.block_bytes() / format.block_len();
    rows.div_ceil(TILE.0) * columns.div_ceil(TILE.1) * tile_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_format_are_one_matrix() {
        use Format::{Bf16, Q4_0, Q4K, Q6K};
        let runs = |parts: &[(Format, usize)]| {
            let found = block_runs(parts)?;
            Some(found.iter().map(|run| (run.format, run.count, run.rows)).collect::<Vec<_>>())
        };
        assert_eq!(runs(&[(Q4K, 64), (Q4K, 16), (Q4K, 16)]), Some(vec![(Q4K, 3, 96)]));
        assert_eq!(runs(&[(Q4K, 64), (Q4K, 16), (Q6K, 16)]), Some(vec![(Q4K, 2, 80), (Q6K, 1, 16)]));
        assert_eq!(runs(&[(Q4K, 63), (Q4K, 63)]), Some(vec![(Q4K, 1, 63), (Q4K, 1, 63)]), "tiles are whole");
        assert_eq!(runs(&[(Q4K, 64), (Bf16, 16)]), None);
        assert_eq!(gpu_weight_bytes(&[(Q4K, 64), (Q6K, 16)], 512), (64 * 2 * 144 + 16 * 2 * 210) as u64);
        assert_eq!(gpu_weight_bytes(&[(Q4K, 64), (Bf16, 16)], 512), 80 * 512 * 2);
        assert_eq!(gpu_weight_bytes(&[(Q4_0, 3)], 96), 16 * 4 * 18, "rows and columns are filled up");
    }
}
