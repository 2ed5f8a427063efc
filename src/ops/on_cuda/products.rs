//! Products with weights in GPU memory, whatever they are held as.
//!
//! Where columns were sorted, blocks are multiplied with inputs in that order; made dense, their columns are put back.

use candle_core::{Error, Result, bail};

use super::weights::{Fp8Matrix, OrderedBlocks};
use super::{GpuCompute, GpuWeight};
use crate::cuda::{BlockMatrix, ColumnKernels, DType, DeviceTensor, GEMV_FP8_ROWS, GEMV_ROWS, TILE_ROWS};
use crate::ops::stack::{self, FP8_ALIGNMENT, MOST_BLOCK_ROWS};
use crate::ops::{Tensor, Weight};

/// Rows up to which the gated product of blocks is one kernel.
const MOST_SILU_ROWS: usize = 8;

impl GpuCompute {
    /// y = x · w^T.
    pub(super) fn product(&self, x: &DeviceTensor, weight: &GpuWeight, y: &DeviceTensor) -> Result<()> {
        match weight {
            GpuWeight::Dense(w) => self.gemm.linear(&self.gpu, x, w, y).map_err(Error::wrap),
            GpuWeight::Fp8(w) => self.product_of_fp8(x, w, y),
            GpuWeight::Blocks(parts) => match self.dense_of(parts) {
                Some(dense) if x.rows() > MOST_BLOCK_ROWS => self.product_made_dense(x, parts, &dense, y),
                _ => self.product_of_blocks(x, parts, y),
            },
        }
    }

    /// The same with blocks that are made dense in `dense`, their columns in the order of the inputs.
    fn product_made_dense(
        &self,
        x: &DeviceTensor,
        parts: &[OrderedBlocks],
        dense: &DeviceTensor,
        y: &DeviceTensor,
    ) -> Result<()> {
        let mut from = 0;
        for OrderedBlocks { blocks, order } in parts {
            let rows = dense.slice(from, blocks.rows());
            self.quant.unpack(&self.gpu, blocks, &rows).map_err(Error::wrap)?;
            if let Some(order) = order {
                self.columns.scatter(&self.gpu, &rows, order).map_err(Error::wrap)?;
            }
            from += blocks.rows();
        }
        self.gemm.linear(&self.gpu, x, dense, y).map_err(Error::wrap)
    }

    /// The same with blocks as they are: where their columns were sorted, with inputs in that order, as many rows at a time as
    /// have room.
    fn product_of_blocks(&self, x: &DeviceTensor, parts: &[OrderedBlocks], y: &DeviceTensor) -> Result<()> {
        let is_ordered = parts.iter().any(|part| part.order.is_some());
        let at_once = if is_ordered { self.rows_in_order(x.columns()) } else { x.rows() }.max(1);
        for first in (0..x.rows()).step_by(at_once) {
            let count = at_once.min(x.rows() - first);
            let (x, y) = (x.slice(first, count), y.slice(first, count));
            let mut from = 0;
            for parts in parts.chunk_by(OrderedBlocks::has_order_of) {
                let x = self.in_order(&x, &parts[0])?;
                for OrderedBlocks { blocks, .. } in parts {
                    self.quant.multiply(&self.gpu, &x, blocks, &y, from).map_err(Error::wrap)?;
                    from += blocks.rows();
                }
            }
        }
        Ok(())
    }

    /// Rows of inputs that have room in another order: [`MOST_BLOCK_ROWS`] at least where weights need it.
    pub(super) fn rows_in_order(&self, columns: usize) -> usize {
        self.dense.bytes() / (self.dtype.size() * columns)
    }

    /// `x`, of no more rows than [`Self::rows_in_order`], as `weight` reads it: in the order of its columns where they were
    /// sorted, which has its room where dense weights have theirs.
    fn in_order(&self, x: &DeviceTensor, weight: &OrderedBlocks) -> Result<DeviceTensor> {
        let Some(order) = &weight.order else { return Ok(x.clone()) };
        if x.rows() > self.rows_in_order(x.columns()) {
            bail!("no room for {x:?} in the order of its weights");
        }
        let ordered = self.dense.view(0, x.rows(), x.columns(), self.dtype);
        self.columns.gather(&self.gpu, x, order, &ordered).map_err(Error::wrap)?;
        Ok(ordered)
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

    /// Memory for matrices made dense; `None` if they are larger than that memory, or their columns could not be put back.
    fn dense_of(&self, parts: &[OrderedBlocks]) -> Option<DeviceTensor> {
        let rows = parts.iter().map(|part| part.blocks.rows()).sum::<usize>();
        let columns = parts[0].blocks.columns();
        let fits = rows * columns * self.dtype.size() <= self.dense.bytes();
        let in_order = parts.iter().all(|part| part.order.is_none());
        (fits && (in_order || ColumnKernels::scatters(columns))).then(|| self.dense.reshape(rows, columns, self.dtype))
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
                    let x = self.in_order(x.gpu()?, &parts[0])?;
                    return self.quant.silu(&self.gpu, &x, &gate, &up, dst.gpu()?).map_err(Error::wrap);
                }
            }
            _ => {}
        }
        self.linear(x, weight, bias, gate_up)?;
        self.elementwise.silu_mul(&self.gpu, gate_up.gpu()?, dst.gpu()?).map_err(Error::wrap)
    }
}

/// The two halves of a stack, if they have one format and one order, and each begins with a tile.
fn gate_and_up(parts: &[OrderedBlocks]) -> Option<(BlockMatrix, BlockMatrix)> {
    match parts {
        [OrderedBlocks { blocks: whole, .. }] => {
            let half = whole.rows() / 2;
            (whole.rows().is_multiple_of(2) && half.is_multiple_of(TILE_ROWS))
                .then(|| (whole.slice(0, half), whole.slice(half, half)))
        }
        [first, second] if first.has_order_of(second) => {
            let (gate, up) = (&first.blocks, &second.blocks);
            ((gate.format(), gate.rows()) == (up.format(), up.rows())).then(|| (gate.clone(), up.clone()))
        }
        _ => None,
    }
}
