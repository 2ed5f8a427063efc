//! Self-attention whose keys and values are made of a latent that all heads share, and that alone is cached.
//!
//! Whether keys and values are ever written out is `ops::latent_attention`'s to choose.
//!
//! Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1 and appendix C; `modeling_deepseek_v2.py` of transformers.

use candle_core::Result;

use crate::ops::{
    self, Compute, KvLayer, LatentParams, LatentScratch, LatentShape, LatentUp, Rope, StepInputs, Tensor,
};

use super::{Linear, RmsNorm};

/// What q is made of.
pub(crate) enum LatentQuery {
    /// `[heads * (nope + rope), H]`: the layer's input.
    Direct(Linear),
    /// A latent of its own.
    LowRank {
        /// `[query_rank, H]`.
        down: Linear,
        /// Norms the latent.
        norm: RmsNorm,
        /// `[heads * (nope + rope), query_rank]`.
        up: Linear,
    },
}

/// Weights and constants of one layer's attention.
pub(crate) struct LatentAttention {
    /// Makes q.
    pub(crate) query: LatentQuery,
    /// `[rank + rope, H]`: makes the latent, and the rotated part of keys.
    pub(crate) down: Linear,
    /// `[rank]`, f32: norms the latent.
    pub(crate) norm: Tensor,
    /// Added to the mean of squares.
    pub(crate) eps: f32,
    /// The up-projections to each head's keys and values.
    pub(crate) up: LatentUp,
    /// `[H, heads * value]`.
    pub(crate) output: Linear,
    /// Heads and widths.
    pub(crate) shape: LatentShape,
    /// Multiplies the scores.
    pub(crate) scale: f32,
}

/// Where latent attention writes, for a step of `T` tokens.
pub(crate) struct LatentBuffers {
    /// `[T, query_rank]`, and the same normed; of one column where q has no latent.
    pub(crate) query_latent: Tensor,
    /// `[T, query_rank]`.
    pub(crate) query_normed: Tensor,
    /// `[T, heads * (nope + rope)]`.
    pub(crate) q: Tensor,
    /// `[T, rank + rope]`.
    pub(crate) latent: Tensor,
    /// `[T, heads * (rank + rope)]`.
    pub(crate) absorbed: Tensor,
    /// `[T, heads * rank]`.
    pub(crate) attended: Tensor,
    /// `[T, heads * value]`.
    pub(crate) heads: Tensor,
}

impl LatentAttention {
    /// `x [T, H]` -> `out [T, H]`; writes the tokens' latents to `kv` at their slots.
    ///
    /// # Errors
    /// If shapes do not fit.
    #[allow(clippy::too_many_arguments)] // as those of `SelfAttention`, and where it writes
    pub(crate) fn forward(
        &self,
        compute: &Compute,
        x: &Tensor,
        inputs: StepInputs<'_>,
        rope: &Rope,
        kv: &KvLayer,
        buffers: &LatentBuffers,
        out: &Tensor,
    ) -> Result<()> {
        match &self.query {
            LatentQuery::Direct(linear) => linear.forward(compute, x, &buffers.q)?,
            LatentQuery::LowRank { down, norm, up } => {
                down.forward(compute, x, &buffers.query_latent)?;
                norm.forward(compute, &buffers.query_latent, &buffers.query_normed)?;
                up.forward(compute, &buffers.query_normed, &buffers.q)?;
            }
        }
        self.down.forward(compute, x, &buffers.latent)?;
        let params = LatentParams { shape: self.shape, norm: &self.norm, eps: self.eps, rope };
        ops::latent_cache(compute, &buffers.q, &buffers.latent, inputs, params, kv)?;
        let scratch = LatentScratch { absorbed: &buffers.absorbed, attended: &buffers.attended };
        let (shape, scale) = (self.shape, self.scale);
        ops::latent_attention(compute, &buffers.q, inputs, &self.up, shape, scale, kv, scratch, &buffers.heads)?;
        self.output.forward(compute, &buffers.heads, out)
    }
}
