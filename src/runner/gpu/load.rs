//! From a model's files to a runner on a GPU: plan the memory, bring the weights over, record the graphs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{EngineConfig, KvDType, StepSizes};
use crate::cuda::{
    AttentionPlan, AttentionScratch, AttentionShape, Blas, CudaError, DType, Gemm, Gpu, HEAD_DIMS, MAX_GROUP, Sampling,
};
use crate::models::{Decoder, DecoderSpec, ModelSource, Workspace};
use crate::ops::{Compute, GpuCompute, KvCache, KvLayout};
use crate::runner::batch::InputBatch;
use crate::runner::load::{LoadedModel, ModelError, loaded};
use crate::runner::plan::{MemoryPlan, Placement, plan};
use crate::runner::step::{RunnerError, StepRunner};

use super::buffers::{StepBuffers, StepLimits};
use super::graphs::StepGraphs;
use super::sequences::Sequences;
use super::{GpuRunner, Packed};

/// Bytes kept for the recorded graphs and what the driver allocates with them.
const GRAPH_BYTES: u64 = 256 << 20;

/// Free memory below which a GPU's steps are smaller.
const SMALL_GPU_BYTES: u64 = 20 << 30;

/// Tokens of a block of the KV cache.
const BLOCK: usize = KvLayout::BLOCK_SIZE;

/// The GPU that a model is to be loaded to.
#[derive(Clone, Debug)]
pub(crate) struct GpuTarget {
    /// The driver's number of it.
    pub(crate) ordinal: usize,
    /// Folders that may hold cuBLAS, besides those of the system.
    pub(crate) library_folders: Vec<PathBuf>,
}

/// Brings `source` to a GPU.
///
/// # Errors
/// [`ModelError`]: it does not fit, a tensor is missing, or the GPU fails.
pub(in crate::runner) fn load(
    source: ModelSource,
    config: &EngineConfig,
    target: &GpuTarget,
) -> Result<(Box<dyn StepRunner>, LoadedModel), ModelError> {
    let started = Instant::now();
    check(&source.spec)?;
    let gpu = Gpu::open(target.ordinal).map_err(RunnerError::from)?;
    let gemm = Gemm::load(&gpu, Blas::open(&gpu, &target.library_folders)).map_err(RunnerError::from)?;
    let dtype = if source.weights.main_format() == "F16" { DType::F16 } else { DType::Bf16 };
    let (free_bytes, _) = gpu.memory().map_err(RunnerError::from)?;
    let small = (free_bytes as u64) < SMALL_GPU_BYTES;
    let sizes = config.step_sizes(if small { StepSizes::SMALL_GPU } else { StepSizes::GPU });
    let plan = plan_for(&source, config, sizes, dtype, free_bytes as u64)?;
    let products = gemm.description();
    tracing::info!(model = source.name, blocks = plan.blocks, ?dtype, products, "loading to the GPU");
    let layout = Layout::new(plan.context_length as usize, sizes);
    let compute = compute_for(gpu, dtype, gemm, &layout, &source.spec).map_err(RunnerError::from)?;
    let handle = Compute::Gpu(compute.clone());
    let model = Decoder::load(&handle, source.spec.clone(), &source.weights, plan.context_length)?;
    tracing::info!(seconds = started.elapsed().as_secs_f32(), "the weights are on the GPU");
    let mut runner = build(compute, handle, model, &plan, &layout)?;
    runner.tune()?;
    runner.record_graphs()?;
    tracing::info!(seconds = started.elapsed().as_secs_f32(), "the GPU is ready");
    let mut loaded = loaded(source, plan, sizes, None);
    loaded.products = Some(products);
    Ok((Box::new(runner), loaded))
}

/// Whether the kernels are made for a model's shapes.
fn check(spec: &DecoderSpec) -> Result<(), ModelError> {
    let refuse = |what: String| Err(ModelError::NotForGpus(what));
    if !HEAD_DIMS.contains(&spec.head_dim) {
        return refuse(format!("heads of {} numbers: {HEAD_DIMS:?} are", spec.head_dim));
    }
    if spec.q_heads / spec.kv_heads > MAX_GROUP {
        return refuse(format!("{} query heads to a key head: up to {MAX_GROUP} are", spec.q_heads / spec.kv_heads));
    }
    // Matrix products read rows by 16 bytes.
    if !spec.hidden.is_multiple_of(8) || !spec.ffn.is_multiple_of(8) {
        return refuse(format!("layers of {} and {} numbers: multiples of 8 are", spec.hidden, spec.ffn));
    }
    Ok(())
}

fn plan_for(
    source: &ModelSource,
    config: &EngineConfig,
    sizes: StepSizes,
    dtype: DType,
    free_bytes: u64,
) -> Result<MemoryPlan, ModelError> {
    let spec = &source.spec;
    let weight_bytes = 2 * source.weights.parameters();
    // Before the plan is known, everything that grows with the context is counted for as much as may be asked for.
    let context = config.context_length.unwrap_or(spec.max_context).min(spec.max_context) as usize;
    let layout = Layout::new(context, sizes);
    let rope_bytes = 4 * context * spec.rope.rotary_dim;
    let attention = AttentionScratch::bytes(layout.limits.items, layout.limits.sequences, &attention_shape(spec));
    let sampling = Sampling::bytes(layout.limits.sequences, spec.vocab);
    let extra = rope_bytes + attention + sampling + StepBuffers::bytes(layout.limits);
    let placement = Placement {
        name: "on a GPU with a model of this type",
        activation_bytes: 2,
        kv_dtypes: if dtype == DType::F16 { &[KvDType::F16] } else { &[KvDType::Bf16] },
        logit_rows: layout.limits.sequences,
        extra_bytes: GRAPH_BYTES + extra as u64,
        kv_share: 1.0,
        max_full_contexts: u64::MAX,
    };
    Ok(plan(spec, weight_bytes, config, sizes, placement, free_bytes)?)
}

/// The shape of any layer's attention: they differ in their windows alone, and memory does not depend on those.
fn attention_shape(spec: &DecoderSpec) -> AttentionShape {
    let DecoderSpec { q_heads, kv_heads, head_dim, attention_scale: scale, .. } = *spec;
    AttentionShape { q_heads, kv_heads, head_dim, scale, sliding_window: None }
}

/// Sizes of what belongs to the largest step.
pub(super) struct Layout {
    pub(super) limits: StepLimits,
    pub(super) context: usize,
    pub(super) sizes: StepSizes,
}

impl Layout {
    pub(super) fn new(context: usize, sizes: StepSizes) -> Self {
        let (rows, tokens) = (sizes.max_sequences as usize, sizes.max_step_tokens as usize);
        let limits = StepLimits {
            sequences: rows,
            tokens,
            table_entries: rows * context.div_ceil(BLOCK),
            items: AttentionPlan::max_items(rows, context),
            // A row's last tile may be short, and none has fewer queries than the smallest kernel's tile.
            tiles: rows + tokens.div_ceil(64),
        };
        Self { limits, context, sizes }
    }
}

/// A GPU with the memory that attention needs for steps of this layout.
pub(super) fn compute_for(
    gpu: Arc<Gpu>,
    dtype: DType,
    gemm: Gemm,
    layout: &Layout,
    spec: &DecoderSpec,
) -> Result<Arc<GpuCompute>, CudaError> {
    let StepLimits { items, sequences, .. } = layout.limits;
    let scratch = AttentionScratch::new(&gpu, items, sequences, &attention_shape(spec))?;
    Ok(Arc::new(GpuCompute::new(gpu, dtype, gemm, scratch)?))
}

/// Allocates everything that a runner has besides the weights.
pub(super) fn build(
    gpu: Arc<GpuCompute>,
    compute: Compute,
    model: Decoder,
    plan: &MemoryPlan,
    layout: &Layout,
) -> Result<GpuRunner, RunnerError> {
    let (spec, rows) = (model.spec(), layout.limits.sequences);
    let workspace = Workspace::new(spec, layout.sizes.max_step_tokens as usize, rows, &compute)?;
    let sampling = Sampling::new(gpu.gpu(), rows, spec.vocab)?;
    let buffers = StepBuffers::new(gpu.gpu(), layout.limits)?;
    let kv = KvCache::zeros(&compute, spec.layers, spec.kv_layout(plan.kv_dtype), plan.blocks as usize)?;
    let done = [gpu.gpu().event()?, gpu.gpu().event()?];
    Ok(GpuRunner {
        workspace,
        logit_rows: rows,
        max_step_tokens: layout.sizes.max_step_tokens as usize,
        kv,
        sampling,
        buffers,
        graphs: StepGraphs::default(),
        sequences: Sequences::new(rows),
        batch: InputBatch::default(),
        plan: AttentionPlan::default(),
        query_lens: Vec::new(),
        context: layout.context,
        packed: Packed::default(),
        done,
        in_flight: Default::default(),
        side: 0,
        gpu,
        compute,
        model,
    })
}
