//! Products with weights: by which of the ways there are.

use std::time::Duration;

use super::blas::{Blas, BlasMissing, Tuned};
use super::{CudaError, DType, DeviceTensor, Gpu};

/// A way to compute a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// cuBLASLt.
    Blas,
}

/// y = x · w^T, by the fastest way there is for its shape.
pub struct Gemm {
    blas: Result<Blas, BlasMissing>,
}

impl Gemm {
    /// Looks up the kernels; `blas` is what [`Blas::open`] gave.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`].
    pub fn load(_gpu: &Gpu, blas: Result<Blas, BlasMissing>) -> Result<Self, CudaError> {
        Ok(Self { blas })
    }

    /// What computes products, for the line at start.
    pub fn description(&self) -> String {
        match &self.blas {
            Ok(blas) => blas.description(),
            Err(missing) => missing.to_string(),
        }
    }

    /// The ways there are for y `[rows, _]`.
    pub fn products(&self, _rows: usize) -> Vec<Product> {
        self.blas.iter().map(|_| Product::Blas).collect()
    }

    /// The way that [`Gemm::linear`] takes for y `[rows, outputs]` and x `[rows, inputs]`.
    pub fn choose(&self, _rows: usize, _outputs: usize, _inputs: usize) -> Product {
        Product::Blas
    }

    /// Queues y `[M, N]` = x `[M, K]` · w `[N, K]`^T: x and w bf16 or f16, y of their type or f32, sums in f32. K is a
    /// multiple of 8; x and w begin at multiples of 16 bytes. May be captured into a CUDA graph.
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
        match (product, &self.blas) {
            (Product::Blas, Ok(blas)) => blas.multiply(gpu, x, w, y),
            (Product::Blas, Err(missing)) => Err(CudaError::argument("linear", missing.to_string())),
        }
    }

    /// Times cuBLASLt's algorithms for these matrices and keeps the fastest: see [`Blas::tune`]. `None` without it.
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
        self.blas.as_ref().ok().map(|blas| blas.tune(gpu, x, weights, y, budget)).transpose()
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
