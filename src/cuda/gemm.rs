//! Products with weights: by which of the ways there are.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use super::blas::{Blas, BlasMissing, Tuned};
use super::gemv::{GEMV_ROWS, Gemv};
#[cfg(test)]
use super::tiled::Tile;
use super::tiled::TiledGemm;
use super::{CudaError, DType, DeviceTensor, Gpu};

/// A way to compute a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// Our own kernel for at most [`GEMV_ROWS`] rows.
    Gemv,
    /// cuBLASLt.
    Blas,
    /// Our own tiles, for any number of rows, the best for the shape.
    Own,
    /// Our own tiles of one kind, with K whole.
    #[cfg(test)]
    Tiled(Tile),
}

/// Rows up to which our own kernel is taken untimed although cuBLASLt is there.
const UNTIMED_GEMV_ROWS: usize = 8;

/// Products of few rows that were timed, by (rows are more than 8, outputs, inputs).
type Timed = HashMap<(bool, usize, usize), Product>;

/// y = x · w^T, by the fastest way there is for its shape.
pub struct Gemm {
    blas: Result<Blas, BlasMissing>,
    gemv: Gemv,
    tiled: TiledGemm,
    takes_fp8: bool,
    timed: RwLock<Timed>,
}

impl Gemm {
    /// Looks up the kernels; `blas` is what [`Blas::open`] gave.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`], [`CudaError::OutOfMemory`].
    pub fn load(gpu: &Gpu, blas: Result<Blas, BlasMissing>) -> Result<Self, CudaError> {
        let takes_fp8 = blas.as_ref().is_ok_and(Blas::takes_fp8);
        Ok(Self { blas, gemv: Gemv::load(gpu)?, tiled: TiledGemm::load(gpu)?, takes_fp8, timed: RwLock::default() })
    }

    /// What computes products, for the line at start.
    pub fn description(&self) -> String {
        match &self.blas {
            Ok(blas) => blas.description(),
            Err(missing) => format!("our own matrix products ({missing})"),
        }
    }

    /// The ways there are for y `[rows, _]`.
    #[cfg(test)]
    pub fn products(&self, rows: usize) -> Vec<Product> {
        let gemv = (rows <= GEMV_ROWS).then_some(Product::Gemv);
        gemv.into_iter().chain(self.blas.iter().map(|_| Product::Blas)).chain([Product::Own]).collect()
    }

    /// Our own tiles, each kind that this GPU has for so many outputs: for tests and benchmarks.
    #[cfg(test)]
    pub fn tiles(&self, outputs: usize) -> Vec<Product> {
        self.tiled.tiles(outputs).into_iter().map(Product::Tiled).collect()
    }

    /// The way that [`Gemm::linear`] takes for y `[rows, outputs]` and x `[rows, inputs]`.
    pub fn choose(&self, rows: usize, outputs: usize, inputs: usize) -> Product {
        let others = if self.blas.is_ok() { Product::Blas } else { Product::Own };
        if rows > GEMV_ROWS {
            return others;
        }
        let timed = self.timed.read().unwrap_or_else(PoisonError::into_inner);
        let untimed = if self.blas.is_err() || rows <= UNTIMED_GEMV_ROWS { Product::Gemv } else { others };
        timed.get(&(rows > 8, outputs, inputs)).copied().unwrap_or(untimed)
    }

    /// Queues y `[M, N]` = x `[M, K]` · w `[N, K]`^T: x and w bf16 or f16, y of their type or f32, sums in f32. K is a
    /// multiple of 8; x and w begin at multiples of 16 bytes. May be captured into a CUDA graph, once a product of
    /// this shape has run.
    ///
    /// # Errors
    /// If shapes or dtypes don't fit; what the driver or cuBLASLt says.
    pub fn linear(&self, gpu: &Gpu, x: &DeviceTensor, w: &DeviceTensor, y: &DeviceTensor) -> Result<(), CudaError> {
        self.linear_by(self.choose(x.rows(), w.rows(), w.columns()), gpu, x, w, y)
    }

    /// As [`Gemm::linear`], by the way `product`: for tests and benchmarks.
    ///
    /// # Errors
    /// As [`Gemm::linear`], and if there is no such way here.
    pub fn linear_by(
        &self,
        product: Product,
        gpu: &Gpu,
        x: &DeviceTensor,
        w: &DeviceTensor,
        y: &DeviceTensor,
    ) -> Result<(), CudaError> {
        if y.rows() == 0 || y.columns() == 0 {
            return check(x, w, y);
        }
        match (product, &self.blas) {
            (Product::Gemv, _) => self.gemv.multiply(gpu, x, w, y),
            (Product::Own, _) => self.tiled.multiply(gpu, None, x, w, y),
            #[cfg(test)]
            (Product::Tiled(tile), _) => self.tiled.multiply(gpu, Some(tile), x, w, y),
            (Product::Blas, Ok(blas)) => blas.multiply(gpu, x, w, y),
            (Product::Blas, Err(missing)) => Err(CudaError::argument("linear", missing.to_string())),
        }
    }

    /// cuBLASLt, if it multiplies fp8 with a scale a row here: [`Blas::multiply_fp8`].
    pub fn fp8(&self) -> Option<&Blas> {
        self.blas.as_ref().ok().filter(|_| self.takes_fp8)
    }

    /// Queues y `[M, F]` = silu(x · gate^T) · (x · up^T) for at most [`GEMV_ROWS`] rows: x `[M, K]`, w `[2 F, K]` with
    /// gate above up, all bf16 or all f16. What is between is never rounded.
    ///
    /// # Errors
    /// As [`Gemm::linear`], and for more rows.
    pub fn linear_silu(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        w: &DeviceTensor,
        y: &DeviceTensor,
    ) -> Result<(), CudaError> {
        self.gemv.silu(gpu, x, w, y)
    }

    /// Times cuBLASLt's algorithms for these matrices and keeps the fastest: see [`Blas::tune`]. With 8 or 16 rows,
    /// also times our own kernel, and takes the faster for as many rows (1 to 8, 9 to 16) of these shapes from then
    /// on. `None` without cuBLASLt. Overwrites y.
    ///
    /// # Errors
    /// As [`Gemm::linear`].
    pub fn tune(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        weights: &[DeviceTensor],
        y: &DeviceTensor,
        budget: Duration,
    ) -> Result<Option<Tuned>, CudaError> {
        let Ok(blas) = &self.blas else { return Ok(None) };
        let tuned = blas.tune(gpu, x, weights, y, budget)?;
        if x.rows() <= GEMV_ROWS {
            let mut turn = weights.iter().cycle();
            let calls = weights.len().clamp(8, 32);
            let own = gpu.time(calls, |gpu| self.gemv.multiply(gpu, x, turn.next().expect("endless"), y))?;
            let winner = if own <= tuned.microseconds { Product::Gemv } else { Product::Blas };
            let shape = (x.rows() > 8, y.columns(), x.columns());
            self.timed.write().unwrap_or_else(PoisonError::into_inner).insert(shape, winner);
        }
        Ok(Some(tuned))
    }
}

/// Checks the matrices of y `[M, N]` = x `[M, K]` · w `[N, K]`^T.
pub(super) fn check(x: &DeviceTensor, w: &DeviceTensor, y: &DeviceTensor) -> Result<(), CudaError> {
    let wrong = |message: &str| Err(CudaError::argument("linear", format!("{message}: {x:?}, {w:?} -> {y:?}")));
    if !matches!(x.dtype(), DType::Bf16 | DType::F16) || w.dtype() != x.dtype() {
        return wrong("x and the weights are both bf16 or both f16");
    }
    if y.dtype() != x.dtype() && y.dtype() != DType::F32 {
        return wrong("the product is of x's type or f32");
    }
    if x.columns() != w.columns() || y.rows() != x.rows() || y.columns() != w.rows() {
        return wrong("the shapes don't fit");
    }
    if x.columns() == 0 || !x.columns().is_multiple_of(8) {
        return wrong("the inputs are not a multiple of 8");
    }
    if !x.pointer().is_multiple_of(16) || !w.pointer().is_multiple_of(16) {
        return wrong("x or the weights don't begin at a multiple of 16 bytes");
    }
    Ok(())
}
