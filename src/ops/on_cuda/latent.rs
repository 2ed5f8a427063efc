//! Latent attention on a GPU.

use candle_core::{Error, Result, bail};

use super::{GpuCompute, GpuInputs, GpuKvLayer, GpuWeight};
use crate::cuda::{
    DeviceTensor, ExpandedLatents, HeadMatrices, HeadPart, LATENT_DIM, LATENT_ROTARY_DIM, LATENT_WIDTH, LatentHeads,
    LatentRope, tile_queries,
};
use crate::ops::{KvLayout, LatentParams, LatentScratch, LatentShape, LatentUp, Rope, RopeLayout, Tensor, Weight};

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

    /// As `ops::latent_attention`.
    #[allow(clippy::too_many_arguments)] // as that
    pub(in crate::ops) fn latent_attention(
        &self,
        q: &Tensor,
        inputs: &GpuInputs,
        up: &LatentUp,
        shape: LatentShape,
        scale: f32,
        kv: &GpuKvLayer,
        scratch: LatentScratch<'_>,
        dst: &Tensor,
    ) -> Result<()> {
        let (keys, values) = (dense(&up.keys)?, dense(&up.values)?);
        let [q, dst, absorbed, attended] = [q.gpu()?, dst.gpu()?, scratch.absorbed.gpu()?, scratch.attended.gpu()?];
        let call = Call { shape, scale, inputs, latents: &kv.keys, absorbed, attended, dst };
        let at_once = self.heads_at_once(&call);
        let expands = at_once > 0;
        if inputs.items > 0 || (inputs.tiles > 0 && !expands) {
            let from = HeadPart { rows: q, first: 0, stride: shape.query() };
            let to = HeadPart { rows: absorbed, first: 0, stride: shape.width() };
            let absorbing = HeadMatrices::stacked(keys, shape.heads);
            self.heads.multiply(&self.gpu, shape.heads, from, absorbing, to, shape.rope).map_err(Error::wrap)?;
            self.attend_to_latents(&call, !expands)?;
            let from = HeadPart { rows: attended, first: 0, stride: shape.rank };
            let to = HeadPart { rows: dst, first: 0, stride: shape.value };
            let stride = shape.nope + shape.value;
            let values = HeadMatrices { rows: values, first: shape.nope, stride, outputs: shape.value };
            self.heads.multiply(&self.gpu, shape.heads, from, values, to, 0).map_err(Error::wrap)?;
        }
        // Of rows of several queries, over what was just written for them, if anything was.
        if expands { self.attend_to_expanded(&call, q, values, at_once) } else { Ok(()) }
    }

    /// Absorbed queries over latents: rows of one query, and of several where `has_tiles`.
    fn attend_to_latents(&self, call: &Call<'_>, has_tiles: bool) -> Result<()> {
        let Call { shape, inputs, latents, absorbed, attended, .. } = *call;
        let heads = LatentHeads { heads: shape.heads, scale: call.scale };
        let (gpu, arrays) = (&self.gpu, &inputs.attention);
        if inputs.items > 0 {
            let partials = &self.scratch.partials;
            let decode = self.latent.decode(gpu, heads, absorbed, latents, arrays, partials, inputs.items, attended);
            decode.map_err(Error::wrap)?;
        }
        if has_tiles && inputs.tiles > 0 {
            let (tiles, queries) = (inputs.tiles, call.tile_queries());
            let prefill = self.latent.prefill(gpu, heads, absorbed, latents, arrays, tiles, queries, attended);
            prefill.map_err(Error::wrap)?;
        }
        Ok(())
    }

    /// Heads whose keys and values have room for all blocks of rows of several queries, where `absorbed` is; 0 where latents
    /// are not expanded: there is no kernel for it, the step is short, it is recorded and its blocks are not known, or so few
    /// heads have room at a time that they would leave most of the card idle.
    fn heads_at_once(&self, call: &Call<'_>) -> usize {
        let LatentShape { heads, nope, value, .. } = call.shape;
        let tokens = call.inputs.prompt_blocks.len() * KvLayout::BLOCK_SIZE;
        if tokens == 0 || !self.latent.expands(nope, value, call.tile_queries()) {
            return 0;
        }
        let bytes = |columns: usize| tokens * columns * self.dtype.size();
        let has_room = bytes(LATENT_WIDTH) <= call.attended.bytes();
        let at_once = heads.min(call.absorbed.bytes() / bytes(nope + value));
        let fills = at_once == heads || call.inputs.tiles * at_once >= self.gpu.limits().multiprocessors;
        if has_room && fills { at_once } else { 0 }
    }

    /// Attention of rows of several queries over keys and values that their latents are expanded to, `at_once` heads at a
    /// time.
    fn attend_to_expanded(&self, call: &Call<'_>, q: &DeviceTensor, up: &DeviceTensor, at_once: usize) -> Result<()> {
        let Call { shape, inputs, latents, absorbed, attended, dst, scale } = *call;
        let (gpu, arrays, blocks) = (&self.gpu, &inputs.attention, &inputs.prompt_blocks);
        let tokens = blocks.len() * KvLayout::BLOCK_SIZE;
        let plain = attended.view(0, tokens, LATENT_DIM, self.dtype);
        let rotated = attended.view(plain.bytes(), tokens, LATENT_ROTARY_DIM, self.dtype);
        self.latent.gather(gpu, latents, arrays, blocks.start, [&plain, &rotated]).map_err(Error::wrap)?;
        let each = shape.nope + shape.value;
        for first_head in (0..shape.heads).step_by(at_once) {
            let count = at_once.min(shape.heads - first_head);
            let kv = absorbed.view(0, tokens, count * each, self.dtype);
            let up = up.slice(first_head * each, count * each);
            self.gemm.linear(gpu, &plain, &up, &kv).map_err(Error::wrap)?;
            let expanded = ExpandedLatents { kv: &kv, rotated: &rotated, first_block: blocks.start, first_head };
            let heads = LatentHeads { heads: shape.heads, scale };
            let attended = self.latent.prefill_expanded(gpu, heads, q, expanded, arrays, inputs.tiles, dst);
            attended.map_err(Error::wrap)?;
        }
        Ok(())
    }
}

/// What attention of a layer has besides q and its weights.
#[derive(Clone, Copy)]
struct Call<'a> {
    shape: LatentShape,
    scale: f32,
    inputs: &'a GpuInputs,
    latents: &'a DeviceTensor,
    absorbed: &'a DeviceTensor,
    attended: &'a DeviceTensor,
    dst: &'a DeviceTensor,
}

impl Call<'_> {
    /// Queries of a tile, as the runner plans them, by the width of q's heads.
    fn tile_queries(&self) -> usize {
        tile_queries(self.shape.query(), self.inputs.tokens)
    }
}
