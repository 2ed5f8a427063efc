//! The operations a step is made of, each writing into a tensor that the `Workspace` holds.
//!
//! Knows no models. Picks the CPU or the GPU by what [`Compute`] is; both check shapes and allocate no results. On the
//! CPU every tensor is f32; on a GPU activations are in the model's type and the residual stream, logits, norms and
//! biases in f32.

mod error;
mod experts;
mod kv_cache;
mod latent;
mod matrix;
mod on_cpu;
#[cfg(feature = "cuda")]
mod on_cuda;
mod stack;
mod tensor;
#[cfg(test)]
mod tests;
mod weight;

pub use crate::cpu::{
    AttentionRef, Cpu, CpuError, Format, HeadShape, KvLayout, KvPlanes, LatentShape, RopeLayout, RopeTable,
    RouteGroups, RouteParams, Scoring, give_back_freed,
};
pub use error::without_backtrace;
pub use experts::{ExpertTensors, Experts, Routes, clear, experts, route, scale_by_sigmoid};
pub use kv_cache::{KvCache, KvLayer};
pub use latent::{LatentParams, LatentScratch, LatentUp, latent_attention, latent_cache};
#[cfg(test)]
pub use matrix::MatrixError;
pub use matrix::{Bytes, Matrix, Random};
#[cfg(feature = "cuda")]
pub use on_cuda::{GpuCompute, GpuInputs};
pub use stack::{
    StackPart, gpu_expert_bytes, gpu_expert_room, gpu_fp8_bytes, gpu_fp8_room, gpu_order_room, gpu_weight_bytes,
};
pub use tensor::{Kind, Tensor};
pub use weight::{Rope, Weight};

use candle_core::Result;
#[cfg(test)]
use std::num::NonZeroUsize;
use std::sync::Arc;

/// What computes: handed down by reference, cheap to clone.
#[derive(Clone)]
pub enum Compute {
    /// This machine's processor.
    Cpu(Arc<Cpu>),
    /// A GPU.
    #[cfg(feature = "cuda")]
    Gpu(Arc<GpuCompute>),
}

impl Compute {
    /// The CPU with `threads` threads, all cores where `None`.
    #[cfg(test)]
    pub fn cpu(threads: Option<NonZeroUsize>) -> Self {
        Self::Cpu(Arc::new(Cpu::new(threads)))
    }
}

/// The tokens of a step and where they stand, as the kernels read them.
#[derive(Clone, Copy)]
pub enum StepInputs<'a> {
    /// In host memory.
    Cpu {
        /// `[T]`: vocabulary ids.
        ids: &'a [u32],
        /// `[T]`: position of each token in its sequence.
        positions: &'a [u32],
        /// `[T]`: place of each token in the cache, block * 16 + place in the block.
        slots: &'a [u32],
        /// The rows.
        attention: AttentionRef<'a>,
    },
    /// In GPU memory, put there by the runner.
    #[cfg(feature = "cuda")]
    Gpu(&'a GpuInputs),
}

impl StepInputs<'_> {
    /// Tokens of the step.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Cpu { ids, .. } => ids.len(),
            #[cfg(feature = "cuda")]
            Self::Gpu(inputs) => inputs.tokens,
        }
    }
}

/// Some rows of a step.
#[derive(Clone, Copy)]
pub enum RowIndices<'a> {
    /// In host memory.
    Cpu(&'a [u32]),
    /// `[1, rows]` of u32 in GPU memory.
    #[cfg(feature = "cuda")]
    Gpu(&'a crate::cuda::DeviceTensor),
}

impl RowIndices<'_> {
    /// How many.
    pub fn count(&self) -> usize {
        match self {
            Self::Cpu(rows) => rows.len(),
            #[cfg(feature = "cuda")]
            Self::Gpu(rows) => rows.columns(),
        }
    }
}

/// Weights of the RMS norms of q and k heads.
#[derive(Clone, Copy, Debug)]
pub struct QkNormTensors<'a> {
    /// `[head_dim]`, f32.
    pub q: &'a Tensor,
    /// `[head_dim]`, f32.
    pub k: &'a Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// How q, k and v of a layer are made ready.
#[derive(Clone, Copy)]
pub struct QkvParams<'a> {
    /// How many heads of what size.
    pub heads: HeadShape,
    /// Added first, `[(q_heads + 2 kv_heads) * head_dim]`, f32.
    pub bias: Option<&'a Tensor>,
    /// Norms of the heads of q and k.
    pub norms: Option<QkNormTensors<'a>>,
    /// Rotates them.
    pub rope: &'a Rope,
}

/// `dst[t] = table[ids[t]]`, as floats: `dst [t, columns of the table]`, the residual stream.
///
/// # Errors
/// If an id has no row, or shapes do not fit.
pub fn embed(compute: &Compute, table: &Weight, inputs: StepInputs<'_>, dst: &Tensor) -> Result<()> {
    match (compute, inputs) {
        (Compute::Cpu(cpu), StepInputs::Cpu { ids, .. }) => on_cpu::embed(cpu, table.matrix()?, ids, dst.cpu()?),
        #[cfg(feature = "cuda")]
        (Compute::Gpu(gpu), StepInputs::Gpu(inputs)) => gpu.embed(table, inputs, dst),
        #[cfg(feature = "cuda")]
        _ => tensor::elsewhere("embed"),
    }
}

/// `dst[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight`: `x [t, h]` of the residual stream or of the type of `dst`,
/// `dst [t, h]`, `weight [h]`.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn rms_norm(compute: &Compute, x: &Tensor, weight: &Tensor, eps: f32, dst: &Tensor) -> Result<()> {
    match compute {
        Compute::Cpu(cpu) => on_cpu::rms_norm(cpu, x.cpu()?, weight.cpu()?, eps, dst.cpu()?),
        #[cfg(feature = "cuda")]
        Compute::Gpu(gpu) => gpu.rms_norm(x, weight, eps, dst),
    }
}

/// `residual += x` in place, then `dst = rms_norm(residual)`: `residual`, `x`, `dst` `[t, h]`, `weight [h]`.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn add_rms_norm(
    compute: &Compute,
    residual: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dst: &Tensor,
) -> Result<()> {
    match compute {
        Compute::Cpu(cpu) => on_cpu::add_rms_norm(cpu, residual.cpu()?, x.cpu()?, weight.cpu()?, eps, dst.cpu()?),
        #[cfg(feature = "cuda")]
        Compute::Gpu(gpu) => gpu.add_rms_norm(residual, x, weight, eps, dst),
    }
}

/// `residual += x` in place: both `[t, h]`. On the CPU.
///
/// # Errors
/// If shapes do not fit.
pub fn add(compute: &Compute, residual: &Tensor, x: &Tensor) -> Result<()> {
    match compute {
        Compute::Cpu(_) => on_cpu::add(residual.cpu()?, x.cpu()?),
        #[cfg(feature = "cuda")]
        Compute::Gpu(_) => tensor::elsewhere("add"),
    }
}

/// `dst[i] = rms_norm(residual[rows[i]] + x[rows[i]])`: `residual`, `x` `[t, h]`, `weight [h]`, `dst [rows, h]`. What
/// `residual` holds in those rows afterwards is undefined; on the CPU a row comes once at most.
///
/// # Errors
/// If a row is outside `x`, or shapes or dtypes do not fit.
pub fn add_rms_norm_rows(
    compute: &Compute,
    residual: &Tensor,
    x: &Tensor,
    rows: RowIndices<'_>,
    weight: &Tensor,
    eps: f32,
    dst: &Tensor,
) -> Result<()> {
    match (compute, rows) {
        (Compute::Cpu(cpu), RowIndices::Cpu(rows)) => {
            on_cpu::add_rms_norm_rows(cpu, residual.cpu()?, x.cpu()?, rows, weight.cpu()?, eps, dst.cpu()?)
        }
        #[cfg(feature = "cuda")]
        (Compute::Gpu(gpu), RowIndices::Gpu(rows)) => gpu.add_rms_norm_rows(residual, x, rows, weight, eps, dst),
        #[cfg(feature = "cuda")]
        _ => tensor::elsewhere("add_rms_norm_rows"),
    }
}

/// `dst[t, n] = sum over k of x[t, k] * w[n, k] (+ bias[n])`: `x [t, k]`, `dst [t, n]`, `bias [n]`.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn linear(compute: &Compute, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, dst: &Tensor) -> Result<()> {
    match compute {
        Compute::Cpu(cpu) => {
            let bias = bias.map(Tensor::cpu).transpose()?;
            on_cpu::linear(cpu, x.cpu()?, weight.parts()?, bias, dst.cpu()?)
        }
        #[cfg(feature = "cuda")]
        Compute::Gpu(gpu) => gpu.linear(x, weight, bias, dst),
    }
}

/// `dst[t, i] = silu(gate[t, i]) * up[t, i]`, where a row of `x w^T (+ bias)` holds `f` gates, then `f` ups: `x [t, k]`,
/// `w [2 f, k]`, `dst [t, f]`, by way of `gate_up [t, 2 f]`, whose content afterwards is undefined.
///
/// # Errors
/// If shapes or dtypes do not fit.
pub fn linear_silu(
    compute: &Compute,
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    gate_up: &Tensor,
    dst: &Tensor,
) -> Result<()> {
    match compute {
        Compute::Cpu(cpu) => {
            linear(compute, x, weight, bias, gate_up)?;
            on_cpu::silu_mul(cpu, gate_up.cpu()?, dst.cpu()?)
        }
        #[cfg(feature = "cuda")]
        Compute::Gpu(gpu) => gpu.linear_silu(x, weight, bias, gate_up, dst),
    }
}

/// Adds the bias, norms and rotates the q and k heads of `qkv [t, (q_heads + 2 kv_heads) * head_dim]`, all in place,
/// then writes k and v into the cache.
///
/// # Errors
/// If shapes or dtypes do not fit, a position is outside the table, or a slot outside the cache.
pub fn rope_and_cache(
    compute: &Compute,
    qkv: &Tensor,
    inputs: StepInputs<'_>,
    params: QkvParams<'_>,
    kv: &KvLayer,
) -> Result<()> {
    match (compute, inputs, kv) {
        (Compute::Cpu(cpu), StepInputs::Cpu { positions, slots, .. }, KvLayer::Cpu(kv)) => {
            let tokens = on_cpu::TokenSlots { positions, slots };
            let bias = params.bias.map(Tensor::cpu).transpose()?;
            let norms = match params.norms {
                None => None,
                Some(norms) => Some(on_cpu::QkNormTensors { q: norms.q.cpu()?, k: norms.k.cpu()?, eps: norms.eps }),
            };
            on_cpu::rope_and_cache(cpu, qkv.cpu()?, bias, params.heads, tokens, params.rope.table()?, norms, kv)
        }
        #[cfg(feature = "cuda")]
        (Compute::Gpu(gpu), StepInputs::Gpu(inputs), KvLayer::Gpu(kv)) => gpu.rope_and_cache(qkv, inputs, params, kv),
        #[cfg(feature = "cuda")]
        _ => tensor::elsewhere("rope_and_cache"),
    }
}

/// What attention does with scores.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams {
    /// How many heads of what size.
    pub heads: HeadShape,
    /// Multiplies the scores.
    pub scale: f32,
    /// With a window of `w` the token at position `p` sees `p - w + 1 ..= p` only.
    pub sliding_window: Option<u32>,
}

/// Attention of each new token over its sequence's cache up to itself: q of `qkv [t, (q_heads + 2 kv_heads) * head_dim]`,
/// `dst [t, q_heads * head_dim]`.
///
/// # Errors
/// If shapes or dtypes do not fit.
///
/// # Panics
/// If `inputs` does not fit itself or the cache: a wrong block table would show one user another's text.
pub fn attention(
    compute: &Compute,
    qkv: &Tensor,
    inputs: StepInputs<'_>,
    params: AttentionParams,
    kv: &KvLayer,
    dst: &Tensor,
) -> Result<()> {
    match (compute, inputs, kv) {
        (Compute::Cpu(cpu), StepInputs::Cpu { attention, .. }, KvLayer::Cpu(kv)) => {
            let AttentionParams { heads, scale, sliding_window } = params;
            on_cpu::attention(cpu, qkv.cpu()?, heads, kv, attention, scale, sliding_window, dst.cpu()?)
        }
        #[cfg(feature = "cuda")]
        (Compute::Gpu(gpu), StepInputs::Gpu(inputs), KvLayer::Gpu(kv)) => gpu.attention(qkv, inputs, params, kv, dst),
        #[cfg(feature = "cuda")]
        _ => tensor::elsewhere("attention"),
    }
}
