//! The gated feed-forward block.
//!
//! Source: Shazeer, "GLU Variants Improve Transformer", 2020 (SwiGLU).

use candle_core::Result;

use crate::ops::{Compute, Tensor};

use super::Linear;

/// y = W_down (silu(W_gate x) * (W_up x)).
pub(crate) struct GatedMlp {
    gate_up: Linear,
    down: Linear,
}

impl GatedMlp {
    /// A block from gate and up as one layer `[2F, H]`, gate first, and down `[H, F]`.
    pub(crate) fn new(gate_up: Linear, down: Linear) -> Self {
        Self { gate_up, down }
    }

    /// `x [T, H]` -> `out [T, H]` by way of `gate_up [T, 2F]` and `product [T, F]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn forward(
        &self,
        compute: &Compute,
        x: &Tensor,
        gate_up: &Tensor,
        product: &Tensor,
        out: &Tensor,
    ) -> Result<()> {
        self.gate_up.forward_gated(compute, x, gate_up, product)?;
        self.down.forward(compute, product, out)
    }

    /// Its layers: gate and up, and down.
    #[cfg(feature = "cuda")]
    pub(crate) fn linears(&self) -> [&Linear; 2] {
        [&self.gate_up, &self.down]
    }
}
