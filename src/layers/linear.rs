//! A linear layer over weights of any format; several matrices that read the same input are one layer.
//!
//! Knows no model: the decoder says what is stacked.

use candle_core::Result;

use crate::ops::{self, Compute, Tensor, Weight};

/// y = x W^T + b, with W `[out, in]` as one or more matrices stacked along `out`, whose formats may differ.
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer over `weight [out, in]` and a bias `[out]`, f32.
    pub(crate) fn new(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// `x [T, in]` -> `out [T, out]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn forward(&self, compute: &Compute, x: &Tensor, out: &Tensor) -> Result<()> {
        ops::linear(compute, x, &self.weight, self.bias.as_ref(), out)
    }

    /// `x [T, in]` -> `out [T, F]`, for a layer of `2F` outputs whose first half are gates: silu(gate) * up, by way of
    /// `gate_up [T, 2F]`, whose content afterwards is undefined.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn forward_gated(&self, compute: &Compute, x: &Tensor, gate_up: &Tensor, out: &Tensor) -> Result<()> {
        ops::linear_silu(compute, x, &self.weight, self.bias.as_ref(), gate_up, out)
    }

    /// The weights.
    #[cfg(feature = "cuda")]
    pub(crate) fn weight(&self) -> &Weight {
        &self.weight
    }
}
