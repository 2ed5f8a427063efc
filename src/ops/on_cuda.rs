//! The operations on a GPU: a kernel each, queued on its one stream.
//!
//! Knows what each tensor is for; the wrappers in `cuda` check what they are given.

mod experts;
mod latent;
mod products;
mod weights;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use candle_core::{Error, Result, bail};
pub use experts::{GpuExperts, GpuRoutes};
pub use weights::GpuWeight;
use weights::OrderedBlocks;

use super::{AttentionParams, HeadShape, KvCache, KvLayout, KvPlanes, QkvParams, Rope, RopeLayout, Tensor, Weight};
use crate::config::KvDType;
use crate::cuda::{
    AttentionArrays, AttentionKernels, AttentionScratch, AttentionShape, AttentionTensors, CachePlanes, ColumnKernels,
    CudaError, DType, DeviceTensor, ElementwiseKernels, ExpertBlockKernels, ExpertBuffers, ExpertKernels, Gemm,
    GemvFp8, Gpu, HeadKernels, KvMaps, LatentKernels, PartRows, QuantKernels, RopeKernels, RopeShape, RopeWeights,
    RouteKernels, Splits, tile_queries,
};

/// A GPU with its kernels, and the type that a model's weights and activations have on it.
pub struct GpuCompute {
    gpu: Arc<Gpu>,
    dtype: DType,
    elementwise: ElementwiseKernels,
    attention: AttentionKernels,
    scratch: AttentionScratch,
    rope: RopeKernels,
    gemm: Gemm,
    quant: QuantKernels,
    gemv_fp8: GemvFp8,
    columns: ColumnKernels,
    /// Room for weights in block formats made dense, for products of many rows; and for inputs of other products, as fp8 or
    /// in the order of sorted columns.
    dense: DeviceTensor,
    route: RouteKernels,
    experts: ExpertKernels,
    expert_blocks: ExpertBlockKernels,
    /// Where a model has experts.
    expert_buffers: Option<ExpertBuffers>,
    heads: HeadKernels,
    latent: LatentKernels,
}

/// The tokens of a step in GPU memory.
pub struct GpuInputs {
    /// How many.
    pub tokens: usize,
    /// `[1, T]`: vocabulary ids, or with the top bit set the slot whose last token it is.
    pub ids: DeviceTensor,
    /// `[1, slots]`: the last token of each slot.
    pub last_tokens: DeviceTensor,
    /// `[1, T]`: position of each token in its sequence.
    pub positions: DeviceTensor,
    /// `[1, T]`: place of each token in the cache; `u32::MAX`: nowhere.
    pub slots: DeviceTensor,
    /// The rows.
    pub attention: AttentionArrays,
    /// Most work items of rows of one token; 0: there is no such row.
    pub items: usize,
    /// Tiles of rows of several tokens, each of as many queries as [`tile_queries`] says for a step of `tokens`.
    pub tiles: usize,
    /// Entries of the block tables that hold those of all rows of several tokens; none where the step is recorded, for it
    /// stands for others too.
    pub prompt_blocks: Range<usize>,
}

/// K and V of one layer in GPU memory, each `[blocks * kv_heads * 16, head_dim]`; of latents, which are both, the same.
#[derive(Clone, Debug)]
pub struct GpuKvLayer {
    keys: DeviceTensor,
    values: DeviceTensor,
    /// What lets Hopper's own attention read them.
    maps: Option<Box<KvMaps>>,
}

impl GpuCompute {
    /// Kernels on `gpu` for a model of `dtype`, with room for `dense_bytes` of weights in block formats made dense (or of
    /// inputs of products with them), and for what experts hand to each other.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`], [`CudaError::OutOfMemory`].
    pub fn new(
        gpu: Arc<Gpu>,
        dtype: DType,
        gemm: Gemm,
        scratch: AttentionScratch,
        dense_bytes: usize,
        expert_buffers: Option<ExpertBuffers>,
    ) -> std::result::Result<Self, CudaError> {
        let (elementwise, attention) = (ElementwiseKernels::load(&gpu)?, AttentionKernels::load(&gpu)?);
        let (rope, quant) = (RopeKernels::load(&gpu)?, QuantKernels::load(&gpu)?);
        let dense = gpu.empty(1, dense_bytes / dtype.size(), dtype, "weights made dense")?;
        let (route, gemv_fp8, columns) = (RouteKernels::load(&gpu)?, GemvFp8::load(&gpu)?, ColumnKernels::load(&gpu)?);
        let (heads, latent) = (HeadKernels::load(&gpu)?, LatentKernels::load(&gpu)?);
        let experts = ExpertKernels::load(&gpu, route)?;
        let expert_blocks = ExpertBlockKernels::load(&gpu, experts.clone())?;
        Ok(Self {
            gpu,
            dtype,
            elementwise,
            attention,
            scratch,
            rope,
            gemm,
            quant,
            gemv_fp8,
            columns,
            dense,
            route,
            experts,
            expert_blocks,
            expert_buffers,
            heads,
            latent,
        })
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Type of weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// A tensor of f32 with these values.
    pub(super) fn upload_f32(&self, rows: usize, columns: usize, values: &[f32]) -> Result<DeviceTensor> {
        let tensor = self.gpu.empty(rows, columns, DType::F32, "norms, biases and tables").map_err(Error::wrap)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        self.gpu.upload(&tensor, &bytes).map_err(Error::wrap)?;
        Ok(tensor)
    }

    /// The whole cache `[layer][plane][block]`, one row a block, zeroed, and its layers. It may be made smaller down to
    /// `least` blocks.
    pub(super) fn kv_cache(
        &self,
        layers: usize,
        layout: KvLayout,
        blocks: usize,
        least: usize,
    ) -> Result<(DeviceTensor, Vec<GpuKvLayer>)> {
        let tokens = blocks * layout.kv_heads * KvLayout::BLOCK_SIZE;
        let block = layout.kv_heads * KvLayout::BLOCK_SIZE * layout.head_dim;
        let dtype = match layout.dtype {
            KvDType::Bf16 => DType::Bf16,
            KvDType::F16 => DType::F16,
            KvDType::Fp8 if layout.planes == KvPlanes::Latent => {
                bail!("a cache of fp8 is for keys and values; a latent is kept in its model's own type")
            }
            KvDType::Fp8 => DType::Fp8,
            other => bail!("a cache of {other} is for the CPU; on a GPU there are its model's own type and fp8"),
        };
        let planes = layout.planes.count();
        let parts = PartRows { parts: layers * planes, rows: blocks, least };
        let whole = self.gpu.zeros_in_parts(parts, block, dtype, "the KV cache").map_err(Error::wrap)?;
        let half = |index: usize| whole.slice(index * blocks, blocks).reshape(tokens, layout.head_dim, dtype);
        let layer = |layer: usize| {
            let (keys, values) = (half(planes * layer), half(planes * layer + planes - 1));
            let maps = self.attention.maps(&self.gpu, self.dtype, &keys, &values).map_err(Error::wrap)?;
            Ok(GpuKvLayer { keys, values, maps: maps.map(Box::new) })
        };
        let layers = (0..layers).map(layer).collect::<Result<_>>()?;
        Ok((whole, layers))
    }

    /// Queues the copies of whole blocks in every layer, (from, to), each as if those before it were done; `device_pairs`
    /// holds the same.
    pub fn copy_blocks(
        &self,
        kv: &KvCache,
        pairs: &[(u32, u32)],
        device_pairs: &DeviceTensor,
    ) -> std::result::Result<(), CudaError> {
        let Some(whole) = kv.gpu() else { return Ok(()) };
        let planes = kv.planes();
        let block_bytes = whole.columns() * whole.dtype().size();
        let planes = CachePlanes { planes, blocks: whole.rows() / planes, block_bytes };
        self.elementwise.copy_blocks_in_order(&self.gpu, whole, planes, pairs, device_pairs)
    }

    /// Queues the sum of the rows of `x [t, h]`, added to what `sum`, f32 `[1, h]`, holds where it `goes_on`.
    pub fn sum_rows(&self, x: &DeviceTensor, sum: &DeviceTensor, goes_on: bool) -> std::result::Result<(), CudaError> {
        self.elementwise.sum_rows(&self.gpu, x, sum, goes_on)
    }

    pub(super) fn embed(&self, table: &Weight, inputs: &GpuInputs, dst: &Tensor) -> Result<()> {
        let (gpu, ids, last_tokens, dst) = (&self.gpu, &inputs.ids, &inputs.last_tokens, dst.gpu()?);
        match table.gpu()? {
            GpuWeight::Dense(table) => self.elementwise.embed(gpu, table, ids, last_tokens, dst).map_err(Error::wrap),
            GpuWeight::Blocks(parts) => match parts.as_slice() {
                [OrderedBlocks { blocks, order: None }] => {
                    self.quant.embed(gpu, blocks, ids, last_tokens, dst).map_err(Error::wrap)
                }
                parts => bail!("an embedding table as {parts:?}"),
            },
            // `upload_table` makes none such.
            GpuWeight::Fp8(_) => bail!("an embedding table of fp8"),
        }
    }

    pub(super) fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32, dst: &Tensor) -> Result<()> {
        self.elementwise.rms_norm(&self.gpu, x.gpu()?, weight.gpu()?, eps, dst.gpu()?).map_err(Error::wrap)
    }

    pub(super) fn add_rms_norm(
        &self,
        residual: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        dst: &Tensor,
    ) -> Result<()> {
        self.elementwise
            .add_rms_norm(&self.gpu, residual.gpu()?, x.gpu()?, weight.gpu()?, eps, dst.gpu()?)
            .map_err(Error::wrap)
    }

    pub(super) fn add_rms_norm_rows(
        &self,
        residual: &Tensor,
        x: &Tensor,
        rows: &DeviceTensor,
        weight: &Tensor,
        eps: f32,
        dst: &Tensor,
    ) -> Result<()> {
        self.elementwise
            .gather_add_rms_norm(&self.gpu, residual.gpu()?, x.gpu()?, rows, weight.gpu()?, eps, dst.gpu()?)
            .map_err(Error::wrap)
    }

    pub(super) fn linear(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, dst: &Tensor) -> Result<()> {
        self.product(x.gpu()?, weight.gpu()?, dst.gpu()?)?;
        match bias {
            Some(bias) => self.elementwise.add_bias(&self.gpu, dst.gpu()?, bias.gpu()?).map_err(Error::wrap),
            None => Ok(()),
        }
    }

    /// Finds the fastest way to multiply `x` with such `weights`, which are of one shape; there is one alone for those in
    /// block formats. Overwrites `y`.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit; what the GPU says.
    pub fn tune(&self, x: &Tensor, weights: &[&Weight], y: &Tensor, budget: Duration) -> Result<()> {
        let (mut dense, mut fp8) = (Vec::new(), Vec::new());
        for weight in weights {
            match weight.gpu()? {
                GpuWeight::Dense(weight) => dense.push(weight.clone()),
                GpuWeight::Fp8(weight) => fp8.push((&weight.quants, &weight.scales)),
                GpuWeight::Blocks(_) => {}
            }
        }
        self.elementwise.fill_random(&self.gpu, x.gpu()?, 1, 1.0).map_err(Error::wrap)?;
        if let Some(blas) = self.gemm.fp8().filter(|_| !fp8.is_empty()) {
            let (quants, scales) = self.fp8_rows(x.gpu()?.rows(), x.gpu()?.columns());
            self.elementwise.quantize_rows(&self.gpu, x.gpu()?, &quants, &scales).map_err(Error::wrap)?;
            let tuned = blas.tune_fp8(&self.gpu, (&quants, &scales), &fp8, y.gpu()?, budget).map_err(Error::wrap)?;
            tracing::debug!(rows = quants.rows(), weight = ?fp8[0].0, ?tuned, "timed a matrix product");
        }
        if dense.is_empty() {
            return Ok(());
        }
        let tuned = self.gemm.tune(&self.gpu, x.gpu()?, &dense, y.gpu()?, budget).map_err(Error::wrap)?;
        tracing::debug!(rows = x.gpu()?.rows(), weight = ?dense[0], ?tuned, "timed a matrix product");
        Ok(())
    }

    pub(super) fn rope_and_cache(
        &self,
        qkv: &Tensor,
        inputs: &GpuInputs,
        params: QkvParams<'_>,
        kv: &GpuKvLayer,
    ) -> Result<()> {
        let Rope::Gpu { layout, cos, sin } = params.rope else { bail!("the rotary table is not on the GPU") };
        let HeadShape { q_heads, kv_heads, head_dim } = params.heads;
        let interleaved = *layout == RopeLayout::Interleaved;
        let shape = RopeShape { q_heads, kv_heads, head_dim, rotary_dim: 2 * cos.columns(), interleaved };
        let norms = match params.norms {
            Some(norms) => Some((norms.q.gpu()?, norms.k.gpu()?)),
            None => None,
        };
        let eps = params.norms.map_or(0.0, |norms| norms.eps);
        let bias = params.bias.map(Tensor::gpu).transpose()?;
        let weights = RopeWeights { cos, sin, bias, norms, eps };
        let (positions, slots) = (&inputs.positions, &inputs.slots);
        self.rope
            .rope_and_cache(&self.gpu, qkv.gpu()?, shape, weights, positions, slots, &kv.keys, &kv.values)
            .map_err(Error::wrap)
    }

    /// How a step may divide its tiles of attention over keys, of heads of this shape and a cache of `cache`, where its rows
    /// of one token have at most `max_items` work items.
    pub fn splits(&self, shape: &AttentionShape, cache: DType, max_items: usize) -> Splits {
        self.attention.splits(shape, [self.dtype, cache], max_items)
    }

    pub(super) fn attention(
        &self,
        qkv: &Tensor,
        inputs: &GpuInputs,
        params: AttentionParams,
        kv: &GpuKvLayer,
        dst: &Tensor,
    ) -> Result<()> {
        let shape = attention_shape(params);
        let GpuKvLayer { keys, values, maps } = kv;
        let tensors = AttentionTensors { qkv: qkv.gpu()?, keys, values, maps: maps.as_deref(), out: dst.gpu()? };
        let (gpu, arrays) = (&self.gpu, &inputs.attention);
        if inputs.items > 0 {
            let decode = self.attention.decode(gpu, &shape, tensors, arrays, &self.scratch, inputs.items);
            decode.map_err(Error::wrap)?;
        }
        if inputs.tiles > 0 {
            let queries = tile_queries(shape.head_dim, inputs.tokens);
            let tiles = [inputs.tiles, queries];
            self.attention.prefill(gpu, &shape, tensors, arrays, &self.scratch, tiles).map_err(Error::wrap)?;
        }
        Ok(())
    }
}

fn attention_shape(params: AttentionParams) -> AttentionShape {
    let HeadShape { q_heads, kv_heads, head_dim } = params.heads;
    AttentionShape { q_heads, kv_heads, head_dim, scale: params.scale, sliding_window: params.sliding_window }
}
