//! Latent attention where the step computes: the cache holds what all heads share of a token, once.
//!
//! Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1 and appendix C.

use candle_core::Result;

use super::{Compute, KvLayer, LatentShape, Matrix, Rope, StepInputs, Tensor, Weight, on_cpu};

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

/// The up-projections of a layer's latents to the keys and values of each head.
pub struct LatentUp {
    /// `heads` matrices `[rank, nope]`: that of keys, transposed, which q absorbs.
    pub(super) keys: Weight,
    /// `heads` matrices `[value, rank]`; on a GPU `[nope + value, rank]`, keys above values, for those that are expanded.
    pub(super) values: Weight,
}

impl LatentUp {
    /// Of each head a matrix `[rank, nope]` and one `[value, rank]`.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load(compute: &Compute, keys: Vec<Matrix>, values: Vec<Matrix>) -> Result<Self> {
        let values = match compute {
            Compute::Cpu(_) => values,
            #[cfg(feature = "cuda")]
            Compute::Gpu(_) => keys.iter().zip(values).flat_map(|(keys, values)| [keys.transposed(), values]).collect(),
        };
        Ok(Self { keys: Weight::load_heads(compute, keys)?, values: Weight::load_heads(compute, values)? })
    }
}

/// Where latent attention leaves what is between its steps.
#[derive(Clone, Copy)]
pub struct LatentScratch<'a> {
    /// `[t, heads * (rank + rope)]`: queries that have absorbed the up-projection of keys.
    pub absorbed: &'a Tensor,
    /// `[t, heads * rank]`: what they attended to.
    pub attended: &'a Tensor,
}

/// Attention over latents: of each query `q [t, heads * (nope + rope)]`, ready and rotated, over its sequence up to itself, to
/// `dst [t, heads * value]`; scores are multiplied by `scale`. Queries absorb the up-projection of keys, and that of values
/// follows, so that no token's keys and values are written out; but a GPU expands them where that is faster: prompts.
///
/// # Errors
/// If shapes do not fit.
///
/// # Panics
/// If `inputs` does not fit itself or the cache: a wrong block table would show one user another's text.
#[allow(clippy::too_many_arguments)] // each is a different thing
pub fn latent_attention(
    compute: &Compute,
    q: &Tensor,
    inputs: StepInputs<'_>,
    up: &LatentUp,
    shape: LatentShape,
    scale: f32,
    kv: &KvLayer,
    scratch: LatentScratch<'_>,
    dst: &Tensor,
) -> Result<()> {
    match (compute, inputs, kv) {
        (Compute::Cpu(cpu), StepInputs::Cpu { attention, .. }, KvLayer::Cpu(kv)) => {
            let (absorbed, attended) = (scratch.absorbed.cpu()?, scratch.attended.cpu()?);
            on_cpu::absorb_queries(cpu, q.cpu()?, up.keys.parts()?, shape, absorbed)?;
            on_cpu::latent_attention(cpu, absorbed, shape, kv, attention, scale, attended)?;
            on_cpu::expand_values(cpu, attended, up.values.parts()?, shape, dst.cpu()?)
        }
        #[cfg(feature = "cuda")]
        (Compute::Gpu(gpu), StepInputs::Gpu(inputs), KvLayer::Gpu(kv)) => {
            gpu.latent_attention(q, inputs, up, shape, scale, kv, scratch, dst)
        }
        #[cfg(feature = "cuda")]
        _ => super::tensor::elsewhere("latent_attention"),
    }
}
