//! Weights in GPU memory: how matrices of any format get there.
//!
//! Matrices in block formats stay in them; each is put into the order that the kernels read. Dense ones become one matrix
//! of the model's type.

use candle_core::{Error, Result, bail};
use half::{bf16, f16};

use super::GpuCompute;
use crate::cuda::{BlockFormat, BlockMatrix, DType, DeviceTensor, DrawnBlocks, TILE_ROWS};
use crate::ops::stack::{self, LEAST_FP8_ROWS, MOST_BLOCK_ROWS, Run, StackPart, block_runs};
use crate::ops::{Format, Matrix};

/// Bytes of weights that are converted or brought over at a time.
const CONVERT_BYTES: usize = 64 << 20;

/// Weights in GPU memory.
#[derive(Clone, Debug)]
pub enum GpuWeight {
    /// One dense matrix of the model's type.
    Dense(DeviceTensor),
    /// Matrices in block formats, stacked along their rows.
    Blocks(Vec<OrderedBlocks>),
    /// One matrix of e4m3.
    Fp8(Fp8Matrix),
}

/// A matrix in a block format and the order of its columns.
#[derive(Clone, Debug)]
pub struct OrderedBlocks {
    pub(super) blocks: BlockMatrix,
    /// u32 `[1, columns]`: the input that each column is multiplied with; `None`: its own.
    pub(super) order: Option<DeviceTensor>,
}

impl OrderedBlocks {
    /// Whether both have the same order, which neighbours share.
    pub(super) fn has_order_of(&self, other: &Self) -> bool {
        let [own, others] = [self, other].map(|part| part.order.as_ref().map(DeviceTensor::pointer));
        own == others
    }
}

/// Weights of e4m3 with one scale in each row: what cuBLASLt multiplies with rows of the same kind.
#[derive(Clone, Debug)]
pub struct Fp8Matrix {
    /// fp8 `[rows, columns]`.
    pub(super) quants: DeviceTensor,
    /// f32 `[1, rows]`.
    pub(super) scales: DeviceTensor,
}

/// The format of the GPU's kernels for a file's.
fn block_format(format: Format) -> Option<BlockFormat> {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => None,
        Format::Q4_0 => Some(BlockFormat::Q4_0),
        Format::Q4_1 => Some(BlockFormat::Q4_1),
        Format::Q5_0 => Some(BlockFormat::Q5_0),
        Format::Q5_1 => Some(BlockFormat::Q5_1),
        Format::Q8_0 => Some(BlockFormat::Q8_0),
        Format::Q2K => Some(BlockFormat::Q2K),
        Format::Q3K => Some(BlockFormat::Q3K),
        Format::Q4K => Some(BlockFormat::Q4K),
        Format::Q5K => Some(BlockFormat::Q5K),
        Format::Q6K => Some(BlockFormat::Q6K),
        Format::Int4x32 | Format::Int4x64 | Format::Int4x128 => Some(BlockFormat::Int4(format.block_len())),
        Format::Int8x32 | Format::Int8x64 | Format::Int8x128 => Some(BlockFormat::Int8(format.block_len())),
        Format::Fp8x32 | Format::Fp8x64 | Format::Fp8x128 => Some(BlockFormat::Fp8(format.block_len())),
    }
}

/// A matrix as a part of a stack.
fn stack_part(matrix: &Matrix) -> StackPart<&[u32]> {
    StackPart { format: matrix.format(), rows: matrix.rows(), order: matrix.input_order() }
}

impl GpuCompute {
    /// The matrices, stacked.
    pub(in crate::ops) fn upload_weights(&self, parts: &[Matrix]) -> Result<GpuWeight> {
        let columns = parts.first().map_or(0, Matrix::columns);
        let is_ordered = parts.iter().any(|part| part.input_order().is_some());
        if is_ordered && self.rows_in_order(columns) < MOST_BLOCK_ROWS {
            return self.upload_dense(parts).map(GpuWeight::Dense);
        }
        let parts_of_stack: Vec<_> = parts.iter().map(stack_part).collect();
        let Some(runs) = block_runs(&parts_of_stack) else {
            return self.upload_dense(parts).map(GpuWeight::Dense);
        };
        let fp8 = if is_ordered { None } else { self.upload_fp8(parts)? };
        match fp8 {
            Some(matrix) => Ok(GpuWeight::Fp8(matrix)),
            None => self.upload_runs(parts, &runs, columns),
        }
    }

    /// An embedding table. Rows are looked up in blocks as they lie, and not in numbers of e4m3 beside their scales: such
    /// stay in blocks, and where columns were sorted they are made dense.
    pub(in crate::ops) fn upload_table(&self, table: &Matrix) -> Result<GpuWeight> {
        let parts = std::slice::from_ref(table);
        match block_runs(&[stack_part(table)]).filter(|_| table.input_order().is_none()) {
            Some(runs) => self.upload_runs(parts, &runs, table.columns()),
            None => self.upload_dense(parts).map(GpuWeight::Dense),
        }
    }

    /// Matrices in block formats, as these runs of them. Neighbours of one order share it.
    fn upload_runs(&self, parts: &[Matrix], runs: &[Run<&[u32]>], columns: usize) -> Result<GpuWeight> {
        let staging = self.staging(parts)?;
        let (mut matrices, mut rest): (Vec<OrderedBlocks>, _) = (Vec::new(), parts);
        for (index, run) in runs.iter().enumerate() {
            let blocks = self.empty_blocks(run.format, run.rows, columns)?;
            let (own, others) = rest.split_at(run.count);
            rest = others;
            let mut from = 0;
            for part in own {
                self.upload_blocks(part, &blocks.slice(from, part.rows()), &staging)?;
                from += part.rows();
            }
            let order = match run.order {
                Some(order) if index > 0 && runs[index - 1].order == Some(order) => matrices[index - 1].order.clone(),
                Some(order) => Some(self.upload_order(order)?),
                None => None,
            };
            matrices.push(OrderedBlocks { blocks, order });
        }
        // The staging goes.
        self.gpu.synchronize().map_err(Error::wrap)?;
        Ok(GpuWeight::Blocks(matrices))
    }

    /// Which input each column is multiplied with, u32 `[1, columns]`.
    fn upload_order(&self, order: &[u32]) -> Result<DeviceTensor> {
        let tensor = self.gpu.empty(1, order.len(), DType::U32, "the weights").map_err(Error::wrap)?;
        let bytes: Vec<u8> = order.iter().flat_map(|input| input.to_ne_bytes()).collect();
        self.gpu.upload(&tensor, &bytes).map_err(Error::wrap)?;
        Ok(tensor)
    }

    /// A matrix in a block format, to be filled.
    pub(super) fn empty_blocks(&self, format: Format, rows: usize, columns: usize) -> Result<BlockMatrix> {
        let Some(kernels) = block_format(format) else { bail!("the GPU has no kernels for {format}") };
        BlockMatrix::empty(&self.gpu, kernels, rows, columns).map_err(Error::wrap)
    }

    /// The matrices, stacked and dense.
    pub(in crate::ops) fn upload_dense(&self, parts: &[Matrix]) -> Result<DeviceTensor> {
        let columns = parts.first().map_or(0, Matrix::columns);
        let rows = parts.iter().map(Matrix::rows).sum();
        let whole = self.gpu.empty(rows, columns, self.dtype, "the weights").map_err(Error::wrap)?;
        let mut from = 0;
        for part in parts {
            self.upload_matrix(part, &whole.slice(from, part.rows()))?;
            from += part.rows();
        }
        Ok(whole)
    }

    pub(super) fn upload_matrix(&self, matrix: &Matrix, target: &DeviceTensor) -> Result<()> {
        if let Some(random) = matrix.drawn_from() {
            return self.elementwise.fill_random(&self.gpu, target, random.seed, random.deviation).map_err(Error::wrap);
        }
        let stored = match matrix.format() {
            Format::Bf16 => Some(DType::Bf16),
            Format::F16 => Some(DType::F16),
            _ => None,
        };
        if stored == Some(self.dtype) {
            return self.gpu.upload(target, matrix.bytes()).map_err(Error::wrap);
        }
        let rows_at_once = (CONVERT_BYTES / (4 * matrix.columns())).max(1);
        for from in (0..matrix.rows()).step_by(rows_at_once) {
            let count = rows_at_once.min(matrix.rows() - from);
            let values = matrix.dequantize_rows(from, count);
            let bytes: Vec<u8> = match self.dtype {
                DType::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_ne_bytes()).collect(),
                DType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_ne_bytes()).collect(),
                other => bail!("weights of {other:?}"),
            };
            self.gpu.upload(&target.slice(from, count), &bytes).map_err(Error::wrap)?;
        }
        Ok(())
    }

    /// Room for the blocks of any of `matrices` on their way.
    pub(super) fn staging<'m>(&self, matrices: impl IntoIterator<Item = &'m Matrix>) -> Result<DeviceTensor> {
        let mut bytes = 0;
        for matrix in matrices {
            let (row_bytes, rows) = rows_at_once(matrix)?;
            bytes = bytes.max(row_bytes * rows);
        }
        self.gpu.empty(1, bytes, DType::U8, "weights on their way").map_err(Error::wrap)
    }

    /// Brings blocks over as they are, some rows at a time by way of `staging`, and puts them in order there. The last of
    /// them may still be on their way.
    pub(super) fn upload_blocks(&self, matrix: &Matrix, target: &BlockMatrix, staging: &DeviceTensor) -> Result<()> {
        let format = matrix.format();
        let (row_bytes, rows_at_once) = rows_at_once(matrix)?;
        for from in (0..matrix.rows()).step_by(rows_at_once) {
            let count = rows_at_once.min(matrix.rows() - from);
            let staging = staging.reshape(count, row_bytes, DType::U8);
            match matrix.drawn_from() {
                Some(random) => {
                    let per_row = matrix.columns() / format.block_len();
                    let drawn = DrawnBlocks { seed: random.seed, scales: random.scales, mask: random.mask };
                    let (begin, blocks) = (from * per_row, count * per_row);
                    self.quant.draw(&self.gpu, &staging, target.format(), begin, blocks, drawn)
                }
                None => self.gpu.upload(&staging, &matrix.bytes()[from * row_bytes..(from + count) * row_bytes]),
            }
            .map_err(Error::wrap)?;
            self.quant.repack(&self.gpu, &staging, target, from, count).map_err(Error::wrap)?;
        }
        Ok(())
    }

    /// Matrices of fp8 with one scale in each row as one, where cuBLASLt multiplies such and inputs have room; else `None`.
    fn upload_fp8(&self, parts: &[Matrix]) -> Result<Option<Fp8Matrix>> {
        let (rows, columns) = (parts.iter().map(Matrix::rows).sum::<usize>(), parts[0].columns());
        let fits = stack::fits_fp8(rows, columns) && parts.iter().all(has_row_scales);
        let has_room = self.fp8_rows_at_once(columns) >= LEAST_FP8_ROWS;
        if self.gemm.fp8().is_none() || !has_room || !fits {
            return Ok(None);
        }
        let empty = |rows, columns, dtype| self.gpu.empty(rows, columns, dtype, "the weights").map_err(Error::wrap);
        let (quants, scales) = (empty(rows, columns, DType::Fp8)?, empty(1, rows, DType::F32)?);
        let staging = self.staging(parts)?;
        let mut from = 0;
        for part in parts {
            let blocks = self.empty_blocks(part.format(), part.rows(), columns)?;
            self.upload_blocks(part, &blocks, &staging)?;
            let (quants, scales) = (quants.slice(from, part.rows()), scales.view(4 * from, 1, part.rows(), DType::F32));
            self.quant.unpack_fp8(&self.gpu, &blocks, &quants, &scales).map_err(Error::wrap)?;
            // The blocks go.
            self.gpu.synchronize().map_err(Error::wrap)?;
            from += part.rows();
        }
        Ok(Some(Fp8Matrix { quants, scales }))
    }
}

/// Whether a matrix is of fp8 with one scale in each row, as files have it that scale matrices or rows as wholes.
fn has_row_scales(matrix: &Matrix) -> bool {
    if !matrix.format().is_fp8() {
        return false;
    }
    let is_one = |row: &[u8]| row.chunks_exact(matrix.format().block_bytes()).all(|block| block[..4] == row[..4]);
    matrix.drawn_from().is_some() || matrix.bytes().chunks_exact(matrix.bytes().len() / matrix.rows()).all(is_one)
}

/// Bytes of a row of blocks, and how many rows are brought over at a time.
fn rows_at_once(matrix: &Matrix) -> Result<(usize, usize)> {
    let Some(row_bytes) = matrix.format().row_bytes(matrix.columns()) else { bail!("{matrix:?} has no whole blocks") };
    let rows = (CONVERT_BYTES / row_bytes / TILE_ROWS).max(1) * TILE_ROWS;
    Ok((row_bytes, rows.min(matrix.rows())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_counts_the_bytes_that_kernels_read() {
        for format in Format::ALL {
            let Some(block_format) = block_format(format) else { continue };
            for (rows, count) in [(1, 1), (40, 3), (4096, 16)] {
                let columns = count * format.block_len();
                let found = crate::ops::stack::block_bytes(format, rows, columns);
                assert_eq!(found, block_format.bytes(rows, columns), "{format} [{rows}, {columns}]");
            }
        }
    }
}
