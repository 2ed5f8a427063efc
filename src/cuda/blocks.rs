//! Block formats and the matrices in them, as `kernels/include/quant.cuh` lays them out.

use super::{CudaError, DType, DeviceTensor, Gpu};

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;

/// Values of k of a unit, the smallest piece of a record.
const UNIT: usize = 64;

/// A format of weights that the kernels read: what a file's blocks mean is told by the CPU's decoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // ggml's names
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    /// Nibbles with an f16 scale and an f16 zero a group of 32, 64 or 128.
    Int4(usize),
    /// Bytes, likewise.
    Int8(usize),
    /// e4m3 with an f32 scale a group.
    Fp8(usize),
}

/// What follows the quants of a plain format: the numbers of `quant.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scales {
    Alone = 0,
    Offset = 1,
    Zero = 2,
    Float = 3,
}

/// What the kernels are told of a format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// How the kernel that repacks it ends.
    pub(super) name: &'static str,
    /// How the quants lie afterwards.
    pub(super) code: Code,
    /// Weights and bytes of a block of the file.
    pub(super) block: (usize, usize),
    pub(super) scales: Scales,
}

/// How quants lie in GPU memory: the types of `quant.cuh`, for each of which there are kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Code {
    Plain4,
    Plain5,
    Plain8,
    Float8,
    K2,
    K3,
    K4,
    K5,
    K6,
}

impl Code {
    pub(super) const ALL: [Self; 9] =
        [Self::Plain4, Self::Plain5, Self::Plain8, Self::Float8, Self::K2, Self::K3, Self::K4, Self::K5, Self::K6];

    /// Whether it is of the plain formats, not the K formats.
    pub(super) fn is_plain(self) -> bool {
        matches!(self, Self::Plain4 | Self::Plain5 | Self::Plain8 | Self::Float8)
    }

    /// Units of a whole record.
    fn units(self) -> usize {
        if matches!(self, Self::Plain8 | Self::Float8) { 2 } else { 4 }
    }

    /// Bytes of a whole record's scales, once they are floats.
    pub(super) fn table_bytes(self) -> usize {
        let halves = if matches!(self, Self::K2 | Self::K3 | Self::K6) { 2 } else { 1 };
        2 * self.units() * halves * TILE_ROWS * 8
    }
}

impl BlockFormat {
    #[rustfmt::skip]
    pub(super) fn row(self) -> Row {
        use Scales::{Alone, Float, Offset, Zero};
        let (name, code, block, scales) = match self {
            Self::Q4_0 => ("Q4_0", Code::Plain4, (32, 18), Alone),
            Self::Q4_1 => ("Q4_1", Code::Plain4, (32, 20), Offset),
            Self::Q5_0 => ("Q5_0", Code::Plain5, (32, 22), Alone),
            Self::Q5_1 => ("Q5_1", Code::Plain5, (32, 24), Offset),
            Self::Q8_0 => ("Q8_0", Code::Plain8, (32, 34), Alone),
            Self::Q2K => ("Q2_K", Code::K2, (256, 84), Alone),
            Self::Q3K => ("Q3_K", Code::K3, (256, 110), Alone),
            Self::Q4K => ("Q4_K", Code::K4, (256, 144), Alone),
            Self::Q5K => ("Q5_K", Code::K5, (256, 176), Alone),
            Self::Q6K => ("Q6_K", Code::K6, (256, 210), Alone),
            Self::Int4(group) => ("Int4", Code::Plain4, (group, 4 + group / 2), Zero),
            Self::Int8(group) => ("Int8", Code::Plain8, (group, 4 + group), Zero),
            Self::Fp8(group) => ("Fp8", Code::Float8, (group, 4 + group), Float),
        };
        Row { name, code, block, scales }
    }

    /// Weights of a block of the file.
    pub fn block_len(self) -> usize {
        self.row().block.0
    }

    /// Bytes of `columns` weights of a row in the file.
    pub(super) fn row_bytes(self, columns: usize) -> usize {
        let (weights, bytes) = self.row().block;
        columns / weights * bytes
    }

    /// Bytes of sixteen rows of a unit: as many as in the file.
    fn unit_bytes(self) -> usize {
        let (weights, bytes) = self.row().block;
        TILE_ROWS * UNIT * bytes / weights
    }

    /// Bytes of a whole record.
    pub(super) fn record_bytes(self) -> usize {
        self.row().code.units() * self.unit_bytes()
    }

    /// Records of a tile of `columns`.
    pub(super) fn records(self, columns: usize) -> usize {
        columns.div_ceil(UNIT).div_ceil(self.row().code.units())
    }

    /// Bytes of a tile of `columns`.
    fn tile_bytes(self, columns: usize) -> usize {
        columns.div_ceil(UNIT) * self.unit_bytes()
    }

    /// Bytes of GPU memory that a matrix `[rows, columns]` takes.
    #[cfg(test)]
    pub fn bytes(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(TILE_ROWS) * self.tile_bytes(columns)
    }
}

/// Weights `[rows, columns]` in a block format, in GPU memory. Cloning shares the memory.
#[derive(Clone)]
pub struct BlockMatrix {
    format: BlockFormat,
    rows: usize,
    columns: usize,
    /// `[tiles, bytes of a tile]`.
    tiles: DeviceTensor,
}

impl BlockMatrix {
    /// An uninitialised matrix.
    ///
    /// # Errors
    /// If the columns are not whole blocks; [`CudaError::OutOfMemory`].
    pub fn empty(gpu: &Gpu, format: BlockFormat, rows: usize, columns: usize) -> Result<Self, CudaError> {
        if columns == 0 || !columns.is_multiple_of(format.block_len()) || rows == 0 {
            return Err(CudaError::argument(
                "weights",
                format!("[{rows}, {columns}] are no whole blocks of {format:?}"),
            ));
        }
        let (tiles, bytes) = (rows.div_ceil(TILE_ROWS), format.tile_bytes(columns));
        let tiles = gpu.empty(tiles, bytes, DType::U8, "the weights")?;
        Ok(Self { format, rows, columns, tiles })
    }

    /// Its format.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn tiles(&self) -> &DeviceTensor {
        &self.tiles
    }

    /// Rows `from .. from + count`, over the same memory; `from` is a multiple of [`TILE_ROWS`].
    ///
    /// # Panics
    /// If it is not, or there are not as many.
    pub fn slice(&self, from: usize, count: usize) -> Self {
        assert!(from.is_multiple_of(TILE_ROWS) && from + count <= self.rows, "rows {from} .. + {count} of {self:?}");
        let tiles = self.tiles.slice(from / TILE_ROWS, count.div_ceil(TILE_ROWS));
        Self { rows: count, tiles, ..self.clone() }
    }
}

impl std::fmt::Debug for BlockMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockMatrix({:?} [{}, {}])", self.format, self.rows, self.columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_take_the_bytes_of_their_file() {
        use BlockFormat::{Fp8, Int4, Int8, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        let all = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Int4(64), Int4(128), Int8(32), Fp8(128)];
        for format in all {
            for columns in [256, 1536, 4096, 11_008] {
                assert_eq!(format.bytes(4096, columns), 4096 * format.row_bytes(columns), "{format:?} of {columns}");
                // What the kernels copy by sixteen bytes.
                assert!(format.unit_bytes().is_multiple_of(8) && format.tile_bytes(columns).is_multiple_of(16));
            }
            assert!(format.bytes(17, 256) == 2 * format.bytes(16, 256), "{format:?}: rows are filled up");
        }
        assert_eq!(Q4_0.bytes(16, 32), Q4_0.bytes(16, 64), "units are whole");
    }
}
