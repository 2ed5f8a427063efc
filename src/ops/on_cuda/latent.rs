//! Latent attention on a GPU.

use candle_core::{Error, Result, bail};

use super::{GpuCompute, GpuInputs, GpuKvLayer, GpuWeight};
use crate::cuda::{DeviceTensor, HeadPart, LATENT_WIDTH, LatentHeads, LatentRope, tile_queries};
use crate::ops::{LatentParams, LatentShape, Rope, RopeLayout, Tensor, Weight};

/// A matrix for each head, one below the other.
fn dense(weight: &Weight) -> Result<&DeviceTensor> {
    match weight.gpu()? {
        GpuWeight::Dense(weight) => Ok(weight),
        GpuWeight::Blocks(_) | GpuWeight::Fp8(_) => bail!("matrices of heads that are not dense"),
    }
}

impl GpuCompute {
    /// As `ops::latent_cache`, but for `latent`, which stays as it was.
    pub(in crate::ops) fn latent_cache(
        &self,
        q: &Tensor,
        latent: &Tensor,
        inputs: &GpuInputs,
        params: LatentParams<'_>,
        kv: &GpuKvLayer,
    ) -> Result<()> {
        let Rope::Gpu { layout, cos, sin } = params.rope else { bail!("the rotary table is not on the GPU") };
        let LatentShape { heads, nope, .. } = params.shape;
        if params.shape.width() != LATENT_WIDTH || 2 * cos.columns() != params.shape.rope {
            bail!("latents of {:?}, not of {LATENT_WIDTH} elements", params.shape);
        }
        let interleaved = *layout == RopeLayout::Interleaved;
        let rope =
            LatentRope { heads, plain_dim: nope, norm: params.norm.gpu()?, eps: params.eps, cos, sin, interleaved };
        let (positions, slots) = (&inputs.positions, &inputs.slots);
        self.latent
            .rope_and_cache(&self.gpu, q.gpu()?, latent.gpu()?, rope, positions, slots, &kv.keys)
            .map_err(Error::wrap)
    }

    pub(in crate::ops) fn absorb_queries(
        &self,
        q: &Tensor,
        weight: &Weight,
        shape: LatentShape,
        dst: &Tensor,
    ) -> Result<()> {
        let from = HeadPart { rows: q.gpu()?, first: 0, stride: shape.query() };
        let to = HeadPart { rows: dst.gpu()?, first: 0, stride: shape.width() };
        self.heads.multiply(&self.gpu, shape.heads, from, dense(weight)?, to, shape.rope).map_err(Error::wrap)
    }

    pub(in crate::ops) fn expand_values(
        &self,
        latents: &Tensor,
        weight: &Weight,
        shape: LatentShape,
        dst: &Tensor,
    ) -> Result<()> {
        let from = HeadPart { rows: latents.gpu()?, first: 0, stride: shape.rank };
        let to = HeadPart { rows: dst.gpu()?, first: 0, stride: shape.value };
        self.heads.multiply(&self.gpu, shape.heads, from, dense(weight)?, to, 0).map_err(Error::wrap)
    }

    pub(in crate::ops) fn latent_attention(
        &self,
        q: &Tensor,
        inputs: &GpuInputs,
        shape: LatentShape,
        scale: f32,
        kv: &GpuKvLayer,
        dst: &Tensor,
    ) -> Result<()> {
        let heads = LatentHeads { heads: shape.heads, scale };
        let (gpu, q, dst, arrays) = (&self.gpu, q.gpu()?, dst.gpu()?, &inputs.attention);
        if inputs.items > 0 {
            let partials = &self.scratch.partials;
            let decode = self.latent.decode(gpu, heads, q, &kv.keys, arrays, partials, inputs.items, dst);
            decode.map_err(Error::wrap)?;
        }
        if inputs.tiles > 0 {
            // As the runner plans them, by the width of q's heads.
            let queries = tile_queries(shape.query(), inputs.tokens);
            let prefill = self.latent.prefill(gpu, heads, q, &kv.keys, arrays, inputs.tiles, queries, dst);
            prefill.map_err(Error::wrap)?;
        }
        Ok(())
    }
}
