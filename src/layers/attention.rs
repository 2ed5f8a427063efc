//! The self-attention block: fused QKV, optional head norms, rotary embedding, paged attention, output projection.
//!
//! Knows no model family: what differs between them is data.

use candle_core::Result;

use crate::ops::{
    self, AttentionParams, Compute, HeadShape, KvLayer, QkNormTensors, QkvParams, Rope, StepInputs, Tensor,
};

use super::Linear;

/// Weights of the norms over each head.
pub(crate) struct HeadNorms {
    /// `[head_dim]`, f32.
    pub(crate) q: Tensor,
    /// `[head_dim]`, f32.
    pub(crate) k: Tensor,
    /// Added to the mean of squares.
    pub(crate) eps: f32,
}

/// Weights and constants of one layer's attention.
pub(crate) struct SelfAttention {
    /// `[(q_heads + 2 kv_heads) * head_dim, H]`: q, then k, then v.
    pub(crate) qkv: Linear,
    /// `[(q_heads + 2 kv_heads) * head_dim]`, f32: added with the rotation, not with the product.
    pub(crate) qkv_bias: Option<Tensor>,
    /// `[H, q_heads * head_dim]`.
    pub(crate) output: Linear,
    /// RMSNorm over each head of q and of k, before the rotary embedding.
    pub(crate) head_norms: Option<HeadNorms>,
    /// How many heads of what size.
    pub(crate) heads: HeadShape,
    /// Multiplies the scores.
    pub(crate) scale: f32,
    /// A token sees this many tokens, itself included; `None`: all.
    pub(crate) sliding_window: Option<u32>,
}

/// Where a block of attention writes.
pub(crate) struct AttentionBuffers<'a> {
    /// `[T, (q_heads + 2 kv_heads) * head_dim]`.
    pub(crate) qkv: &'a Tensor,
    /// `[T, q_heads * head_dim]`.
    pub(crate) heads: &'a Tensor,
    /// `[T, H]`.
    pub(crate) out: &'a Tensor,
}

impl SelfAttention {
    /// `x [T, H]` -> `buffers.out [T, H]`; writes the tokens' keys and values to `kv` at their slots.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn forward(
        &self,
        compute: &Compute,
        x: &Tensor,
        inputs: StepInputs<'_>,
        rope: &Rope,
        kv: &KvLayer,
        buffers: &AttentionBuffers<'_>,
    ) -> Result<()> {
        self.qkv.forward(compute, x, buffers.qkv)?;
        let norms = self.head_norms.as_ref().map(|norms| QkNormTensors { q: &norms.q, k: &norms.k, eps: norms.eps });
        let params = QkvParams { heads: self.heads, bias: self.qkv_bias.as_ref(), norms, rope };
        ops::rope_and_cache(compute, buffers.qkv, inputs, params, kv)?;
        let params = AttentionParams { heads: self.heads, scale: self.scale, sliding_window: self.sliding_window };
        ops::attention(compute, buffers.qkv, inputs, params, kv, buffers.heads)?;
        self.output.forward(compute, buffers.heads, buffers.out)
    }
}
