//! Latent attention where the step computes: the cache holds what all heads share of a token, once.
//!
//! Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1 and appendix C.

use candle_core::Result;

use super::{Compute, KvLayer, LatentShape, Rope, StepInputs, Tensor, Weight, on_cpu};

/// How q and the latent of a layer are made ready.
#[derive(Clone, Copy)]
pub struct LatentParams<'a> {
    /// Heads and widths.
    pub shape: LatentShape,
    /// Weights of the RMS norm of the latent, `[rank]`, f32.
    pub norm: &'a Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Rotates the last elements of each head of q, and of the latent.
    pub rope: &'a Rope,
}

/// Rotates the last `rope` elements of each head of `q [t, heads * (nope + rope)]`, norms the first `rank` elements of
/// `latent [t, rank + rope]` and rotates the others, in place, then writes the latent into the cache.
///
/// # Errors
/// If shapes do not fit, a position is outside the table, or a slot outside the cache.
pub fn latent_cache(
    compute: &Compute,
    q: &Tensor,
    latent: &Tensor,
    inputs: StepInputs<'_>,
    params: LatentParams<'_>,
    kv: &KvLayer,
) -> Result<()> {
    match (compute, inputs, kv) {
        (Compute::Cpu(cpu), StepInputs::Cpu { positions, slots, .. }, KvLayer::Cpu(kv)) => {
            let tokens = on_cpu::TokenSlots { positions, slots };
            let LatentParams { shape, norm, eps, rope } = params;
            on_cpu::latent_cache(cpu, q.cpu()?, latent.cpu()?, shape, norm.cpu()?, eps, tokens, rope.table()?, kv)
        }
        #[cfg(feature = "cuda")]
        (Compute::Gpu(gpu), StepInputs::Gpu(inputs), KvLayer::Gpu(kv)) => {
            gpu.latent_cache(q, latent, inputs, params, kv)
        }
        #[cfg(feature = "cuda")]
        _ => super::tensor::elsewhere("latent_cache"),
    }
}

/// Absorbs the up-projection of keys into q: `dst[t, head] = [weight[head] q_nope[t, head], q_rope[t, head]]`:
/// `q [t, heads * (nope + rope)]`, `weight` `heads` matrices `[rank, nope]`, `dst [t, heads * (rank + rope)]`.
///
/// # Errors
/// If shapes do not fit.
pub fn absorb_queries(compute: &Compute, q: &Tensor, weight: &Weight, shape: LatentShape, dst: &Tensor) -> Result<()> {
    match compute {
        Compute::Cpu(cpu) => on_cpu::absorb_queries(cpu, q.cpu()?, weight.parts()?, shape, dst.cpu()?),
        #[cfg(feature = "cuda")]
        Compute::Gpu(gpu) => gpu.absorb_queries(q, weight, shape, dst),
    }
}

/// Attention of absorbed queries over their sequences' latents up to themselves: `q [t, heads * (rank + rope)]`,
/// `dst [t, heads * rank]`; scores are multiplied by `scale`.
///
/// # Errors
/// If shapes do not fit.
///
/// # Panics
/// If `inputs` does not fit itself or the cache: a wrong block table would show one user another's text.
pub fn latent_attention(
    compute: &Compute,
    q: &Tensor,
    inputs: StepInputs<'_>,
    shape: LatentShape,
    scale: f32,
    kv: &KvLayer,
    dst: &Tensor,
) -> Result<()> {
    match (compute, inputs, kv) {
        (Compute::Cpu(cpu), StepInputs::Cpu { attention, .. }, KvLayer::Cpu(kv)) => {
            on_cpu::latent_attention(cpu, q.cpu()?, shape, kv, attention, scale, dst.cpu()?)
        }
        #[cfg(feature = "cuda")]
        (Compute::Gpu(gpu), StepInputs::Gpu(inputs), KvLayer::Gpu(kv)) => {
            gpu.latent_attention(q, inputs, shape, scale, kv, dst)
        }
        #[cfg(feature = "cuda")]
        _ => super::tensor::elsewhere("latent_attention"),
    }
}

/// Expands what attention gave to values: `dst[t, head] = weight[head] latents[t, head]`: `latents [t, heads * rank]`,
/// `weight` `heads` matrices `[value, rank]`, `dst [t, heads * value]`.
///
/// # Errors
/// If shapes do not fit.
pub fn expand_values(
    compute: &Compute,
    latents: &Tensor,
    weight: &Weight,
    shape: LatentShape,
    dst: &Tensor,
) -> Result<()> {
    match compute {
        Compute::Cpu(cpu) => on_cpu::expand_values(cpu, latents.cpu()?, weight.parts()?, shape, dst.cpu()?),
        #[cfg(feature = "cuda")]
        Compute::Gpu(gpu) => gpu.expand_values(latents, weight, shape, dst),
    }
}
