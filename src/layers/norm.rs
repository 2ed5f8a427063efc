//! RMSNorm, alone or with the residual addition before it.
//!
//! Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

use candle_core::Result;

use crate::ops::{self, Compute, RowIndices, Tensor};

/// y = x / sqrt(mean(x^2) + eps) * w.
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// A norm with `weight [H]`, f32.
    pub(crate) fn new(weight: Tensor, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// `x [T, H]` -> `out [T, H]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn forward(&self, compute: &Compute, x: &Tensor, out: &Tensor) -> Result<()> {
        ops::rms_norm(compute, x, &self.weight, self.eps, out)
    }

    /// `residual += x`, then its norm into `out`; all `[T, H]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn add_forward(&self, compute: &Compute, residual: &Tensor, x: &Tensor, out: &Tensor) -> Result<()> {
        ops::add_rms_norm(compute, residual, x, &self.weight, self.eps, out)
    }

    /// `residual + x` in `rows` alone, normed into `out [rows, H]`; `residual` and `x` are `[T, H]`.
    ///
    /// # Errors
    /// If shapes do not fit or a row is outside.
    pub(crate) fn add_forward_rows(
        &self,
        compute: &Compute,
        residual: &Tensor,
        x: &Tensor,
        rows: RowIndices<'_>,
        out: &Tensor,
    ) -> Result<()> {
        ops::add_rms_norm_rows(compute, residual, x, rows, &self.weight, self.eps, out)
    }
}
