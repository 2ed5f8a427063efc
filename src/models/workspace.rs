//! The tensors that a step writes into, allocated once for the largest step.
//!
//! Their addresses never change; a smaller step uses a prefix of each.

use candle_core::{DType, Device, Result, Tensor};

use super::spec::DecoderSpec;

/// Buffers of one model; all f32, on one device.
pub(crate) struct Workspace {
    residual: Tensor,
    update: Tensor,
    normed: Tensor,
    qkv: Tensor,
    heads: Tensor,
    gate_up: Tensor,
    product: Tensor,
    row_residual: Tensor,
    row_update: Tensor,
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
    pub(super) residual: Tensor,
    /// `[R, H]`.
    pub(super) update: Tensor,
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
    pub(crate) fn new(spec: &DecoderSpec, max_tokens: usize, logit_rows: usize, device: &Device) -> Result<Self> {
        let zeros = |rows: usize, columns: usize| Tensor::zeros((rows, columns), DType::F32, device);
        let q = spec.q_heads * spec.head_dim;
        Ok(Self {
            residual: zeros(max_tokens, spec.hidden)?,
            update: zeros(max_tokens, spec.hidden)?,
            normed: zeros(max_tokens, spec.hidden)?,
            qkv: zeros(max_tokens, q + 2 * spec.kv_heads * spec.head_dim)?,
            heads: zeros(max_tokens, q)?,
            gate_up: zeros(max_tokens, 2 * spec.ffn)?,
            product: zeros(max_tokens, spec.ffn)?,
            row_residual: zeros(logit_rows, spec.hidden)?,
            row_update: zeros(logit_rows, spec.hidden)?,
            row_normed: zeros(logit_rows, spec.hidden)?,
            logits: zeros(logit_rows, spec.vocab)?,
        })
    }

    /// Bytes that [`Self::new`] allocates.
    pub(crate) fn bytes(spec: &DecoderSpec, max_tokens: usize, logit_rows: usize) -> u64 {
        let q = spec.q_heads * spec.head_dim;
        let per_token = 3 * spec.hidden + 2 * q + 2 * spec.kv_heads * spec.head_dim + 3 * spec.ffn;
        let per_row = 3 * spec.hidden + spec.vocab;
        4 * (max_tokens as u64 * per_token as u64 + logit_rows as u64 * per_row as u64)
    }

    /// The residual stream `[max_tokens, H]`.
    pub(super) fn residual(&self) -> &Tensor {
        &self.residual
    }

    /// The last block's output `[max_tokens, H]`, not yet added to the residual stream.
    pub(super) fn update(&self) -> &Tensor {
        &self.update
    }

    /// Buffers for a step of `count` tokens.
    pub(super) fn tokens(&self, count: usize) -> Result<TokenBuffers> {
        let first = |buffer: &Tensor| buffer.narrow(0, 0, count);
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
        let first = |buffer: &Tensor| buffer.narrow(0, 0, count);
        Ok(RowBuffers {
            residual: first(&self.row_residual)?,
            update: first(&self.row_update)?,
            normed: first(&self.row_normed)?,
            logits: first(&self.logits)?,
        })
    }
}
