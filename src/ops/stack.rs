//! What matrices of one stack become in GPU memory, and the bytes that takes: pure numbers, in every build.
//!
//! Matrices in block formats stay in them, in tiles of sixteen rows and units of 64 columns (`kernels/include/quant.cuh`).

use super::Format;

/// Rows and columns of the smallest piece of a matrix in a block format.
const TILE: (usize, usize) = (16, 64);

/// Rows of inputs up to which products read blocks: for more, weights are made dense first.
pub(super) const MOST_BLOCK_ROWS: usize = 96;

/// A matrix of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackPart<O> {
    /// Its format.
    pub format: Format,
    /// Its rows.
    pub rows: usize,
    /// What its columns were sorted by, where they were: equal where they have the same order.
    pub order: Option<O>,
}

/// Matrices of one format, one order of columns and so many rows in all, as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run<O> {
    pub(super) format: Format,
    /// How many of the stack's matrices.
    pub(super) count: usize,
    /// Rows of all of them.
    pub(super) rows: usize,
    /// As in their parts.
    pub(super) order: Option<O>,
}

/// Neighbours of one block format and one order are one matrix, if whole tiles come before each. `None`: all become one
/// dense matrix, for one of them is dense.
pub(super) fn block_runs<O: Copy + PartialEq>(parts: &[StackPart<O>]) -> Option<Vec<Run<O>>> {
    let mut runs: Vec<Run<O>> = Vec::new();
    for &StackPart { format, rows, order } in parts {
        if format.block_len() == 1 {
            return None;
        }
        match runs.last_mut() {
            Some(last) if (last.format, last.order) == (format, order) && last.rows.is_multiple_of(TILE.0) => {
                (last.count, last.rows) = (last.count + 1, last.rows + rows);
            }
            _ => runs.push(Run { format, count: 1, rows, order }),
        }
    }
    Some(runs)
}

/// Bytes of GPU memory that matrices of `columns` take, stacked, in a model whose dense weights take two bytes each: a number
/// for each matrix that they become, and for each order of columns, which neighbours share.
pub fn gpu_weight_bytes<O: Copy + PartialEq>(parts: &[StackPart<O>], columns: usize) -> Vec<u64> {
    let Some(runs) = block_runs(parts) else {
        return vec![parts.iter().map(|part| 2 * (part.rows * columns) as u64).sum()];
    };
    let matrices = runs.iter().map(|run| block_bytes(run.format, run.rows, columns));
    let orders = runs.chunk_by(|run, next| run.order == next.order).filter(|runs| runs[0].order.is_some());
    matrices.chain(orders.map(|_| 4 * columns)).map(|bytes| bytes as u64).collect()
}

/// Bytes of the room that products with blocks need for inputs in the order of sorted columns.
pub fn gpu_order_room(columns: usize) -> u64 {
    (2 * MOST_BLOCK_ROWS * columns) as u64
}

/// Rows of inputs that have room, rounded to fp8, wherever weights are held for products of fp8 by fp8.
pub(super) const LEAST_FP8_ROWS: usize = 256;

/// Bytes of so many rows of `columns` e4m3, behind their scales.
pub(super) fn fp8_rows_bytes(rows: usize, columns: usize) -> usize {
    (4 * rows).next_multiple_of(FP8_ALIGNMENT) + rows * columns
}

/// Rows of `columns` e4m3 and their scales that fit into so many bytes.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))] // a GPU multiplies them
pub(super) fn fp8_rows_at_once(bytes: usize, columns: usize) -> usize {
    bytes.saturating_sub(FP8_ALIGNMENT) / (columns + 4)
}

/// Where the numbers behind scales begin, in bytes.
pub(super) const FP8_ALIGNMENT: usize = 256;

/// Whether products of fp8 by fp8 take matrices of so many rows in all.
pub(super) fn fits_fp8(rows: usize, columns: usize) -> bool {
    rows.is_multiple_of(16) && columns.is_multiple_of(16)
}

/// Bytes of GPU memory of fp8 matrices with a scale a row, of so many rows in all, as products of fp8 by fp8 take them: of
/// the numbers, and of the scales. `None`: they do not take this shape.
pub fn gpu_fp8_bytes(rows: usize, columns: usize) -> Option<[u64; 2]> {
    fits_fp8(rows, columns).then_some([(rows * columns) as u64, 4 * rows as u64])
}

/// Bytes of the room that such products need for rows of inputs.
pub fn gpu_fp8_room(columns: usize) -> u64 {
    (fp8_rows_bytes(LEAST_FP8_ROWS, columns) + FP8_ALIGNMENT) as u64
}

/// How the experts of a layer are held: all of `[gate, up, down]` in blocks, one matrix below the other, if the experts are
/// stored alike, gate as up, and each begins with a tile; the formats of gate and of down then. `None`: dense.
pub(super) fn expert_blocks(experts: &[[Format; 3]], hidden: usize, ffn: usize) -> Option<[Format; 2]> {
    let [gate, up, down] = *experts.first()?;
    let alike = gate == up && experts.iter().all(|own| *own == [gate, up, down]);
    let is_whole = |size: usize| size.is_multiple_of(2 * TILE.0);
    let in_blocks = gate.block_len() > 1 && down.block_len() > 1;
    (alike && in_blocks && is_whole(hidden) && is_whole(ffn)).then_some([gate, down])
}

/// Bytes of GPU memory that the experts `[gate, up, down]` of a layer take, in a model whose dense weights take two bytes
/// each: a number for each matrix that they become.
pub fn gpu_expert_bytes(experts: &[[Format; 3]], hidden: usize, ffn: usize) -> Vec<u64> {
    let (rows, columns) = (experts.len() * ffn, experts.len() * hidden);
    let bytes = match expert_blocks(experts, hidden, ffn) {
        Some([gate, down]) => {
            vec![block_bytes(gate, rows, hidden), block_bytes(gate, rows, hidden), block_bytes(down, columns, ffn)]
        }
        None => vec![4 * rows * hidden, 2 * columns * ffn],
    };
    bytes.into_iter().map(|bytes| bytes as u64).collect()
}

/// Room for experts made dense that is enough to keep a GPU busy.
const EXPERT_ROOM_BYTES: usize = 128 << 20;

/// Bytes of the room where experts `[gate, up, down]` of a layer are made dense, some at a time, for prompts; 0 where they
/// are dense.
pub fn gpu_expert_room(experts: &[[Format; 3]], hidden: usize, ffn: usize) -> u64 {
    // Gate and up of an expert.
    let one = 4 * ffn * hidden;
    let room = EXPERT_ROOM_BYTES.clamp(one, one * experts.len().max(1));
    expert_blocks(experts, hidden, ffn).map_or(0, |_| room as u64)
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
    fn experts_stay_in_blocks_if_they_are_stored_alike() {
        use Format::{Bf16, Q4K, Q6K};
        let mixed = [[Q4K, Q4K, Q6K]; 4];
        assert_eq!(expert_blocks(&mixed, 512, 256), Some([Q4K, Q6K]));
        let gate = 4 * 256 * 2 * 144;
        assert_eq!(gpu_expert_bytes(&mixed, 512, 256), [gate, gate, 4 * 512 * 210]);
        let dense = [4 * 4 * 256 * 512, 2 * 4 * 256 * 512];
        for other in [[Q4K, Q6K, Q6K], [Q4K, Q4K, Bf16], [Bf16, Bf16, Bf16]] {
            assert_eq!(gpu_expert_bytes(&[other; 4], 512, 256), dense, "{other:?}");
            assert_eq!(expert_blocks(&[[Q4K; 3], other], 512, 256), None, "beside {other:?}");
        }
        assert_eq!(expert_blocks(&mixed, 512, 240), None, "tiles are whole");
        assert_eq!(gpu_expert_room(&[[Bf16; 3]; 4], 512, 256), 0);
        assert_eq!(gpu_expert_room(&mixed, 512, 256), 4 * 4 * 512 * 256, "all of them fit");
        assert_eq!(gpu_expert_room(&[[Q4K; 3]; 128], 2048, 768), 128 << 20);
        assert_eq!(gpu_expert_room(&[[Q4K; 3]; 8], 8192, 16384), 4 * 8192 * 16384, "one at least");
    }

    #[test]
    fn as_many_rows_of_fp8_as_have_room() {
        for columns in [16, 64, 576, 14_336] {
            for bytes in [0, 256, 1000, 1 << 14, 1 << 20, (1 << 26) + 3] {
                let rows = fp8_rows_at_once(bytes, columns);
                assert!(rows == 0 || fp8_rows_bytes(rows, columns) <= bytes, "{rows} of {columns} in {bytes}");
                // The scales are filled up by less than another 256 bytes.
                assert!(fp8_rows_bytes(rows + 1, columns) + FP8_ALIGNMENT > bytes, "{rows} of {columns} in {bytes}");
            }
            let least = fp8_rows_at_once(gpu_fp8_room(columns) as usize, columns);
            assert!(least >= LEAST_FP8_ROWS, "{columns}");
        }
    }

    #[test]
    fn neighbours_of_one_format_are_one_matrix() {
        use Format::{Bf16, Q4_0, Q4K, Q6K};
        let plain = |parts: &[(Format, usize)]| -> Vec<StackPart<u8>> {
            parts.iter().map(|(format, rows)| StackPart { format: *format, rows: *rows, order: None }).collect()
        };
        let runs = |parts: &[(Format, usize)]| {
            let found = block_runs(&plain(parts))?;
            Some(found.iter().map(|run| (run.format, run.count, run.rows)).collect::<Vec<_>>())
        };
        let bytes = |parts: &[(Format, usize)], columns| gpu_weight_bytes(&plain(parts), columns);
        assert_eq!(runs(&[(Q4K, 64), (Q4K, 16), (Q4K, 16)]), Some(vec![(Q4K, 3, 96)]));
        assert_eq!(runs(&[(Q4K, 64), (Q4K, 16), (Q6K, 16)]), Some(vec![(Q4K, 2, 80), (Q6K, 1, 16)]));
        assert_eq!(runs(&[(Q4K, 63), (Q4K, 63)]), Some(vec![(Q4K, 1, 63), (Q4K, 1, 63)]), "tiles are whole");
        assert_eq!(runs(&[(Q4K, 64), (Bf16, 16)]), None);
        assert_eq!(bytes(&[(Q4K, 64), (Q6K, 16)], 512), [64 * 2 * 144, 16 * 2 * 210]);
        assert_eq!(bytes(&[(Q4K, 64), (Bf16, 16)], 512), [80 * 512 * 2]);
        assert_eq!(bytes(&[(Q4_0, 3)], 96), [16 * 4 * 18], "rows and columns are filled up");
    }

    #[test]
    fn neighbours_of_one_order_are_one_matrix_and_share_it() {
        let part = |rows: usize, order: Option<u8>| StackPart { format: Format::Int4x32, rows, order };
        let runs = |parts: &[StackPart<u8>]| {
            let found = block_runs(parts).expect("blocks");
            found.iter().map(|run| (run.count, run.rows, run.order)).collect::<Vec<_>>()
        };
        let same = [part(64, Some(1)), part(16, Some(1)), part(16, Some(1))];
        assert_eq!(runs(&same), [(3, 96, Some(1))]);
        let matrix = |rows: u64| rows * 128 / 32 * 20;
        assert_eq!(gpu_weight_bytes(&same, 128), [matrix(96), 4 * 128]);
        let others = [part(64, Some(1)), part(16, Some(2)), part(16, None)];
        assert_eq!(runs(&others), [(1, 64, Some(1)), (1, 16, Some(2)), (1, 16, None)]);
        assert_eq!(gpu_weight_bytes(&others, 128), [matrix(64), matrix(16), matrix(16), 4 * 128, 4 * 128]);
        let uneven = [part(40, Some(1)), part(40, Some(1))];
        assert_eq!(runs(&uneven), [(1, 40, Some(1)), (1, 40, Some(1))]);
        assert_eq!(gpu_weight_bytes(&uneven, 128), [matrix(48), matrix(48), 4 * 128]);
    }
}
