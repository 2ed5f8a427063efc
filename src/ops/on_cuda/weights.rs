//! Weights in GPU memory: how matrices of any format get there, and products with them.
//!
//! Matrices in block formats stay in them; each is put into the order that the kernels read. Dense ones become one matrix
//! of the model's type.

use candle_core::{Error, Result, bail};
use half::{bf16, f16};

use super::GpuCompute;
use crate::cuda::{BlockFormat, BlockMatrix, DType, DeviceTensor, DrawnBlocks, GEMV_FP8_ROWS, GEMV_ROWS, TILE_ROWS};
use crate::ops::stack::{self, FP8_ALIGNMENT, LEAST_FP8_ROWS, block_runs};
use crate::ops::{Format, Matrix, Tensor, Weight};

/// Bytes of weights that are converted or brought over at a time.
const CONVERT_BYTES: usize = 64 << 20;

/// Rows up to which products read blocks: for more, weights are made dense first.
const MOST_BLOCK_ROWS: usize = 96;

/// Rows up to which the gated product of blocks is one kernel.
const MOST_SILU_ROWS: usize = 8;

/// Weights in GPU memory.
#[derive(Clone, Debug)]
pub enum GpuWeight {
    /// One dense matrix of the model's type.
    Dense(DeviceTensor),
    /// Matrices in block formats, stacked along their rows.
    Blocks(Vec<BlockMatrix>),
    /// One matrix of e4m3.
    Fp8(Fp8Matrix),
}

/// Weights of e4m3 with one scale in each row: what cuBLASLt multiplies with rows of the same kind.
#[derive(Clone, Debug)]
pub struct Fp8Matrix {
    /// fp8 `[rows, columns]`.
    pub(super) quants: DeviceTensor,
    /// f32 `[1, rows]`.
    pub(super) scales: DeviceTensor,
}

impl GpuWeight {
    /// `[rows, columns]`.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Dense(w) => (w.rows(), w.columns()),
            Self::Fp8(w) => (w.quants.rows(), w.quants.columns()),
            Self::Blocks(parts) => (parts.iter().map(BlockMatrix::rows).sum(), parts[0].columns()),
        }
    }
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

impl GpuCompute {
    /// The matrices, stacked.
    pub(in crate::ops) fn upload_weights(&self, parts: &[Matrix]) -> Result<GpuWeight> {
        let columns = parts.first().map_or(0, Matrix::columns);
        let shapes: Vec<_> = parts.iter().map(|part| (part.format(), part.rows())).collect();
        // Kernels read inputs as they lie: where columns were sorted, weights are made dense.
        let runs = if parts.iter().any(|part| part.input_order().is_some()) { None } else { block_runs(&shapes) };
        let Some(runs) = runs else { return self.upload_dense(parts).map(GpuWeight::Dense) };
        if let Some(matrix) = self.upload_fp8(parts)? {
            return Ok(GpuWeight::Fp8(matrix));
        }
        let staging = self.staging(parts)?;
        let (mut matrices, mut rest) = (Vec::new(), parts);
        for run in runs {
            let whole = self.empty_blocks(run.format, run.rows, columns)?;
            let (own, others) = rest.split_at(run.count);
            rest = others;
            let mut from = 0;
            for part in own {
                self.upload_blocks(part, &whole.slice(from, part.rows()), &staging)?;
                from += part.rows();
            }
            matrices.push(whole);
        }
        // The staging goes.
        self.gpu.synchronize().map_err(Error::wrap)?;
        Ok(GpuWeight::Blocks(matrices))
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

    /// y = x · w^T.
    pub(super) fn product(&self, x: &DeviceTensor, weight: &GpuWeight, y: &DeviceTensor) -> Result<()> {
        let parts = match weight {
            GpuWeight::Dense(w) => return self.gemm.linear(&self.gpu, x, w, y).map_err(Error::wrap),
            GpuWeight::Fp8(w) => return self.product_of_fp8(x, w, y),
            GpuWeight::Blocks(parts) => parts,
        };
        if x.rows() > MOST_BLOCK_ROWS
            && let Some(dense) = self.dense_of(weight)
        {
            let mut from = 0;
            for part in parts {
                self.quant.unpack(&self.gpu, part, &dense.slice(from, part.rows())).map_err(Error::wrap)?;
                from += part.rows();
            }
            return self.gemm.linear(&self.gpu, x, &dense, y).map_err(Error::wrap);
        }
        let mut from = 0;
        for part in parts {
            self.quant.multiply(&self.gpu, x, part, y, from).map_err(Error::wrap)?;
            from += part.rows();
        }
        Ok(())
    }

    /// y = x · w^T. But for a few rows both are fp8: x is rounded to e4m3 with a scale a row, as many rows at a time as have
    /// room.
    fn product_of_fp8(&self, x: &DeviceTensor, weight: &Fp8Matrix, y: &DeviceTensor) -> Result<()> {
        if x.rows() <= GEMV_FP8_ROWS {
            return self.gemv_fp8.multiply(&self.gpu, x, (&weight.quants, &weight.scales), y).map_err(Error::wrap);
        }
        let Some(blas) = self.gemm.fp8() else { bail!("weights of fp8, and nothing that multiplies them") };
        let at_once = self.fp8_rows_at_once(x.columns());
        for from in (0..x.rows()).step_by(at_once) {
            let count = at_once.min(x.rows() - from);
            let (quants, scales) = self.fp8_rows(count, x.columns());
            self.elementwise.quantize_rows(&self.gpu, &x.slice(from, count), &quants, &scales).map_err(Error::wrap)?;
            let (w, y) = ((&weight.quants, &weight.scales), y.slice(from, count));
            blas.multiply_fp8(&self.gpu, (&quants, &scales), w, &y).map_err(Error::wrap)?;
        }
        Ok(())
    }

    /// Rows of inputs of a product that have room as e4m3: [`LEAST_FP8_ROWS`] at least where weights are of fp8.
    pub(super) fn fp8_rows_at_once(&self, columns: usize) -> usize {
        stack::fp8_rows_at_once(self.dense.bytes(), columns)
    }

    /// Memory for rows of e4m3 and their scales, no more than [`Self::fp8_rows_at_once`], where dense weights have their room.
    pub(super) fn fp8_rows(&self, rows: usize, columns: usize) -> (DeviceTensor, DeviceTensor) {
        let scales = self.dense.view(0, 1, rows, DType::F32);
        let quants = self.dense.view((4 * rows).next_multiple_of(FP8_ALIGNMENT), rows, columns, DType::Fp8);
        (quants, scales)
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

    /// Memory for a matrix made dense; `None` if it is larger than that memory.
    fn dense_of(&self, weight: &GpuWeight) -> Option<DeviceTensor> {
        let (rows, columns) = weight.shape();
        let fits = rows * columns * self.dtype.size() <= self.dense.bytes();
        fits.then(|| self.dense.reshape(rows, columns, self.dtype))
    }

    pub(in crate::ops) fn linear_silu(
        &self,
        x: &Tensor,
        weight: &Weight,
        bias: Option<&Tensor>,
        gate_up: &Tensor,
        dst: &Tensor,
    ) -> Result<()> {
        let (rows, weights) = (x.gpu()?.rows(), weight.gpu()?);
        match weights {
            GpuWeight::Dense(w) if bias.is_none() && rows <= GEMV_ROWS => {
                return self.gemm.linear_silu(&self.gpu, x.gpu()?, w, dst.gpu()?).map_err(Error::wrap);
            }
            GpuWeight::Fp8(w) if bias.is_none() && rows <= GEMV_FP8_ROWS => {
                let w = (&w.quants, &w.scales);
                return self.gemv_fp8.silu(&self.gpu, x.gpu()?, w, dst.gpu()?).map_err(Error::wrap);
            }
            GpuWeight::Blocks(parts) if bias.is_none() && rows <= MOST_SILU_ROWS => {
                if let Some((gate, up)) = gate_and_up(parts) {
                    return self.quant.silu(&self.gpu, x.gpu()?, &gate, &up, dst.gpu()?).map_err(Error::wrap);
                }
            }
            _ => {}
        }
        self.linear(x, weight, bias, gate_up)?;
        self.elementwise.silu_mul(&self.gpu, gate_up.gpu()?, dst.gpu()?).map_err(Error::wrap)
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

/// The two halves of a stack, if they have one format and each begins with a tile.
fn gate_and_up(parts: &[BlockMatrix]) -> Option<(BlockMatrix, BlockMatrix)> {
    match parts {
        [whole] => {
            let half = whole.rows() / 2;
            (whole.rows().is_multiple_of(2) && half.is_multiple_of(TILE_ROWS))
                .then(|| (whole.slice(0, half), whole.slice(half, half)))
        }
        [gate, up] if (gate.format(), gate.rows()) == (up.format(), up.rows()) => Some((gate.clone(), up.clone())),
        _ => None,
    }
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
