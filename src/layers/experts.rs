//! The feed-forward block of many experts, of which each token goes to a few, and one that all share.
//!
//! Source: `Qwen2MoeSparseMoeBlock`, `DeepseekV2Moe`, `DeepseekV3MoE` of transformers.

use candle_core::Result;

use crate::ops::{self, Compute, ExpertTensors, Experts, RouteParams, Routes, Tensor};

use super::{GatedMlp, Linear};

/// y = shared(x) + the sum over the chosen experts of weight * expert(x).
pub(crate) struct MixtureOfExperts {
    /// `[E, H]`.
    pub(crate) router: Linear,
    /// `[E]`, f32: added to scores for the choice alone.
    pub(crate) correction: Option<Tensor>,
    /// How experts are chosen.
    pub(crate) routing: RouteParams,
    /// The experts.
    pub(crate) experts: Experts,
    /// The block that every token goes through.
    pub(crate) shared: Option<GatedMlp>,
    /// `[1, H]`: its output counts as often as the sigmoid of this says.
    pub(crate) shared_gate: Option<Linear>,
}

/// Where a mixture of experts computes, for a step of `T` tokens.
pub(crate) struct ExpertStepBuffers {
    /// `[T, E]`, f32.
    pub(crate) logits: Tensor,
    /// Who goes where.
    pub(crate) routes: Routes,
    /// `[T, 1]`.
    pub(crate) gate: Tensor,
    /// Of the experts.
    pub(crate) experts: ExpertTensors,
}

impl MixtureOfExperts {
    /// `x [T, H]` -> `out [T, H]`, by way of `gate_up [T, 2 F]` and `product [T, F]` of the shared block.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn forward(
        &self,
        compute: &Compute,
        x: &Tensor,
        buffers: &ExpertStepBuffers,
        gate_up: &Tensor,
        product: &Tensor,
        out: &Tensor,
    ) -> Result<()> {
        self.router.forward(compute, x, &buffers.logits)?;
        ops::route(compute, &buffers.logits, self.correction.as_ref(), &self.routing, &buffers.routes)?;
        match &self.shared {
            Some(shared) => shared.forward(compute, x, gate_up, product, out)?,
            None => ops::clear(compute, out)?,
        }
        if let Some(gate) = &self.shared_gate {
            gate.forward(compute, x, &buffers.gate)?;
            ops::scale_by_sigmoid(compute, out, &buffers.gate)?;
        }
        ops::experts(compute, x, &self.experts, &buffers.routes, &buffers.experts, out)
    }
}
