//! The tensors that a step writes into, allocated once for the largest step.
//!
//! Their addresses never change; a smaller step uses a prefix of each.

use candle_core::Result;

use crate::ops::{Compute, Kind, Tensor};

use super::spec::DecoderSpec;

/// Buffers of one model, all where its steps are computed. The residual stream and the logits are f32.
pub(crate) struct Workspace {
    residual: Tensor,
    update: Tensor,
    normed: Tensor,
    qkv: Tensor,
    heads: Tensor,
    gate_up: Tensor,
    product: Tensor,
    row_normed: Tensor,
    logits: Tensor,
}

/// Prefixes of the buffers for `T` tokens.
pub(super) struct TokenBuffers {
    /// `[T, H]`: the stream that layers add to.
    pub(super) residual: Tensor,
    /// `[T, H]`: what a block adds next.
    pub(super) update: Tensor,
    /// `[T, H]`: a block's input.
    pub(super) normed: Tensor,
    /// `[T, (q_heads + 2 kv_heads) * head_dim]`.
    pub(super) qkv: Tensor,
    /// `[T, q_heads * head_dim]`.
    pub(super) heads: Tensor,
    /// `[T, 2 F]`.
    pub(super) gate_up: Tensor,
    /// `[T, F]`.
    pub(super) product: Tensor,
}

/// Prefixes of the buffers for `R` tokens whose logits are wanted.
pub(super) struct RowBuffers {
    /// `[R, H]`.
    pub(super) normed: Tensor,
    /// `[R, V]`.
    pub(super) logits: Tensor,
}

impl Workspace {
    /// Buffers for steps of up to `max_tokens` tokens and slices of up to `logit_rows` rows of logits.
    ///
    /// # Errors
    /// If the device has no room.
    pub(crate) fn new(spec: &DecoderSpec, max_tokens: usize, logit_rows: usize, compute: &Compute) -> Result<Self> {
        let zeros = |rows, columns| Tensor::zeros(compute, rows, columns, Kind::Activation);
        let exact = |rows, columns| Tensor::zeros(compute, rows, columns, Kind::Exact);
        let q = spec.q_heads * spec.head_dim;
        Ok(Self {
            residual: exact(max_tokens, spec.hidden)?,
            update: zeros(max_tokens, spec.hidden)?,
            normed: zeros(max_tokens, spec.hidden)?,
            qkv: zeros(max_tokens, q + 2 * spec.kv_heads * spec.head_dim)?,
            heads: zeros(max_tokens, q)?,
            gate_up: zeros(max_tokens, 2 * spec.ffn)?,
            product: zeros(max_tokens, spec.ffn)?,
            row_normed: zeros(logit_rows, spec.hidden)?,
            logits: exact(logit_rows, spec.vocab)?,
        })
    }

    /// Bytes that [`Self::new`] allocates, with activations of `element_bytes`.
    pub(crate) fn bytes(spec: &DecoderSpec, max_tokens: usize, logit_rows: usize, element_bytes: usize) -> u64 {
        let q = spec.q_heads * spec.head_dim;
        let activations = 2 * spec.hidden + 2 * q + 2 * spec.kv_heads * spec.head_dim + 3 * spec.ffn;
        let per_token = 4 * spec.hidden + element_bytes * activations;
        let per_row = element_bytes * spec.hidden + 4 * spec.vocab;
        max_tokens as u64 * per_token as u64 + logit_rows as u64 * per_row as u64
    }

    /// The residual stream `[max_tokens, H]`.
    pub(super) fn residual(&self) -> &Tensor {
        &self.residual
    }

    /// The last block's output `[max_tokens, H]`, not yet added to the residual stream.
    pub(super) fn update(&self) -> &Tensor {
        &self.update
    }

    /// The first `count` rows of logits `[count, V]`.
    ///
    /// # Errors
    /// If there are fewer.
    #[cfg(feature = "cuda")]
    pub(crate) fn logits(&self, count: usize) -> Result<Tensor> {
        self.logits.first_rows(count)
    }

    /// Buffers for a step of `count` tokens.
    pub(super) fn tokens(&self, count: usize) -> Result<TokenBuffers> {
        let first = |buffer: &Tensor| buffer.first_rows(count);
        Ok(TokenBuffers {
            residual: first(&self.residual)?,
            update: first(&self.update)?,
            normed: first(&self.normed)?,
            qkv: first(&self.qkv)?,
            heads: first(&self.heads)?,
            gate_up: first(&self.gate_up)?,
            product: first(&self.product)?,
        })
    }

    /// Buffers for `count` rows of logits.
    pub(super) fn rows(&self, count: usize) -> Result<RowBuffers> {
        let first = |buffer: &Tensor| buffer.first_rows(count);
        Ok(RowBuffers { normed: first(&self.row_normed)?, logits: first(&self.logits)? })
    }
}
