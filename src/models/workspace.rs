//! The tensors that a step writes into, allocated once for the largest step.
//!
//! Their addresses never change; a smaller step uses a prefix of each.

use candle_core::Result;

use crate::layers::{ExpertStepBuffers, LatentBuffers};
use crate::ops::{Compute, ExpertTensors, Kind, Routes, Tensor};

use super::spec::{DecoderSpec, LatentSpec};

/// Buffers of one model, all where its steps are computed. The residual stream and the logits are f32.
pub(crate) struct Workspace {
    residual: Tensor,
    update: Tensor,
    normed: Tensor,
    attention: AttentionSpace,
    gate_up: Tensor,
    product: Tensor,
    experts: Option<ExpertStepBuffers>,
    row_normed: Tensor,
    logits: Tensor,
}

/// Where steps are computed, as far as the size of their buffers depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepPlace {
    /// Activations are f32.
    Cpu,
    /// Activations have two bytes, and what experts hand to each other lies elsewhere.
    Gpu,
}

impl StepPlace {
    /// Bytes of an activation.
    fn element_bytes(self) -> usize {
        match self {
            Self::Cpu => 4,
            Self::Gpu => 2,
        }
    }

    /// Elements of [`ExpertTensors`] for a token.
    fn expert_elements(self, hidden: usize, ffn: usize) -> usize {
        match self {
            Self::Cpu => 2 * hidden + 3 * ffn,
            Self::Gpu => 0,
        }
    }
}

/// What attention writes into.
enum AttentionSpace {
    Heads { qkv: Tensor, heads: Tensor },
    Latent(LatentBuffers),
}

/// Prefixes of the buffers for `T` tokens.
pub(super) struct TokenBuffers {
    /// `[T, H]`: the stream that layers add to.
    pub(super) residual: Tensor,
    /// `[T, H]`: what a block adds next.
    pub(super) update: Tensor,
    /// `[T, H]`: a block's input.
    pub(super) normed: Tensor,
    /// Of attention.
    pub(super) attention: TokenAttention,
    /// `[T, 2 F]` of the widest dense block.
    gate_up: Tensor,
    /// `[T, F]`.
    product: Tensor,
    /// Of mixtures of experts.
    pub(super) experts: Option<ExpertStepBuffers>,
}

/// Prefixes of attention's buffers for `T` tokens.
pub(super) enum TokenAttention {
    /// Keys and values of each head.
    Heads {
        /// `[T, (q_heads + 2 kv_heads) * head_dim]`.
        qkv: Tensor,
        /// `[T, q_heads * head_dim]`.
        heads: Tensor,
    },
    /// A latent that all heads share.
    Latent(LatentBuffers),
}

impl TokenBuffers {
    /// `[T, 2 width]` and `[T, width]` for a dense block of this width.
    ///
    /// # Errors
    /// If no block is so wide.
    pub(super) fn block(&self, width: usize) -> Result<(Tensor, Tensor)> {
        Ok((self.gate_up.first_columns(2 * width)?, self.product.first_columns(width)?))
    }
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
        let of_tokens = |columns| zeros(max_tokens, columns);
        let attention = match &spec.latent {
            None => AttentionSpace::Heads {
                qkv: of_tokens((spec.q_heads + 2 * spec.kv_heads) * spec.head_dim)?,
                heads: of_tokens(spec.q_heads * spec.head_dim)?,
            },
            Some(LatentSpec { shape, query_rank }) => AttentionSpace::Latent(LatentBuffers {
                query_latent: of_tokens(query_rank.unwrap_or(1))?,
                query_normed: of_tokens(query_rank.unwrap_or(1))?,
                q: of_tokens(shape.heads * shape.query())?,
                latent: of_tokens(shape.width())?,
                absorbed: of_tokens(shape.heads * shape.width())?,
                attended: of_tokens(shape.heads * shape.rank)?,
                heads: of_tokens(shape.heads * shape.value)?,
            }),
        };
        let experts = match &spec.experts {
            None => None,
            Some(experts) => Some(ExpertStepBuffers {
                logits: exact(max_tokens, experts.count)?,
                routes: Routes::new(compute, max_tokens, experts.routing.top_k)?,
                gate: of_tokens(1)?,
                experts: ExpertTensors::new(compute, max_tokens, spec.hidden, experts.ffn)?,
            }),
        };
        Ok(Self {
            residual: exact(max_tokens, spec.hidden)?,
            update: of_tokens(spec.hidden)?,
            normed: of_tokens(spec.hidden)?,
            attention,
            gate_up: of_tokens(2 * spec.widest_ffn())?,
            product: of_tokens(spec.widest_ffn())?,
            experts,
            row_normed: zeros(logit_rows, spec.hidden)?,
            logits: exact(logit_rows, spec.vocab)?,
        })
    }

    /// Bytes that [`Self::new`] allocates.
    pub(crate) fn bytes(spec: &DecoderSpec, max_tokens: usize, logit_rows: usize, place: StepPlace) -> u64 {
        let attention = match &spec.latent {
            None => (2 * spec.q_heads + 2 * spec.kv_heads) * spec.head_dim,
            Some(LatentSpec { shape, query_rank }) => {
                let heads = shape.heads * (shape.query() + shape.width() + shape.rank + shape.value);
                heads + shape.width() + 2 * query_rank.unwrap_or(1)
            }
        };
        // The routes have an id and a weight for each expert of a token.
        let (expert, exact) = spec.experts.as_ref().map_or((0, 0), |experts| {
            (1 + place.expert_elements(spec.hidden, experts.ffn), experts.count + 2 * experts.routing.top_k)
        });
        let element_bytes = place.element_bytes();
        let activations = 2 * spec.hidden + attention + 3 * spec.widest_ffn() + expert;
        let per_token = 4 * (spec.hidden + exact) + element_bytes * activations;
        let per_row = element_bytes * spec.hidden + 4 * spec.vocab;
        max_tokens as u64 * per_token as u64 + logit_rows as u64 * per_row as u64
    }

    /// The residual stream of a step of `count` tokens, `[count, H]` of f32: where a decoder without its first layer
    /// begins, and what one without its last layer leaves.
    ///
    /// # Errors
    /// If there is room for fewer.
    #[cfg(feature = "cuda")]
    pub(crate) fn stream(&self, count: usize) -> Result<Tensor> {
        self.residual.first_rows(count)
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
        let attention = match &self.attention {
            AttentionSpace::Heads { qkv, heads } => TokenAttention::Heads { qkv: first(qkv)?, heads: first(heads)? },
            AttentionSpace::Latent(buffers) => TokenAttention::Latent(LatentBuffers {
                query_latent: first(&buffers.query_latent)?,
                query_normed: first(&buffers.query_normed)?,
                q: first(&buffers.q)?,
                latent: first(&buffers.latent)?,
                absorbed: first(&buffers.absorbed)?,
                attended: first(&buffers.attended)?,
                heads: first(&buffers.heads)?,
            }),
        };
        let experts = match &self.experts {
            None => None,
            Some(buffers) => Some(ExpertStepBuffers {
                logits: first(&buffers.logits)?,
                routes: buffers.routes.clone(),
                gate: first(&buffers.gate)?,
                experts: buffers.experts.first_rows(count)?,
            }),
        };
        Ok(TokenBuffers {
            residual: first(&self.residual)?,
            update: first(&self.update)?,
            normed: first(&self.normed)?,
            attention,
            gate_up: first(&self.gate_up)?,
            product: first(&self.product)?,
            experts,
        })
    }

    /// Buffers for `count` rows of logits.
    pub(super) fn rows(&self, count: usize) -> Result<RowBuffers> {
        let first = |buffer: &Tensor| buffer.first_rows(count);
        Ok(RowBuffers { normed: first(&self.row_normed)?, logits: first(&self.logits)? })
    }
}
