//! A linear layer over weights of any format; several matrices that read the same input are one layer.
//!
//! Knows no model: the decoder says what is stacked.

use candle_core::{Result, Tensor};

use crate::ops::{self, Compute, Matrix};

/// y = x W^T + b, with W `[out, in]` as one or more matrices stacked along `out`, whose formats may differ.
pub(crate) struct Linear {
    parts: Vec<Matrix>,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer over `parts` (each `[out_i, in]`) and a bias `[sum of out_i]`, f32.
    pub(crate) fn new(parts: Vec<Matrix>, bias: Option<Tensor>) -> Self {
        Self { parts, bias }
    }

    /// `x [T, in]` f32 -> `out [T, out]` f32.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn forward(&self, compute: &Compute, x: &Tensor, out: &Tensor) -> Result<()> {
        ops::linear(compute, x, &self.parts, self.bias.as_ref(), out)
    }
}
