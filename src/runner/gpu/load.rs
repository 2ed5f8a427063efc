//! From a model's files to a runner on a GPU: plan the memory, bring the weights over, record the graphs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{EngineConfig, StepSizes};
use crate::cuda::{
    AttentionPlan, AttentionScratch, AttentionShape, Blas, CudaError, DType, ExpertBuffers, Gemm, Gpu, HEAD_DIMS,
    LATENT_DIM, LATENT_ROTARY_DIM, MAX_EXPERTS, MAX_GROUP, MAX_TOP_K, Sampling, copy_rate,
};
use crate::models::{Decoder, DecoderSpec, ModelSource, Workspace};
use crate::ops::{Compute, Cpu, GpuCompute, KvCache, LatentShape};
use crate::runner::batch::InputBatch;
use crate::runner::load::{LoadedModel, ModelError, loaded};
use crate::runner::plan::{
    GpuMemory, GpuWeights, LayerPlan, MemoryPlan, Offload, PartWeights, StepLimits, plan_layers, usable_bytes,
};
use crate::runner::pooling::Pools;
use crate::runner::step::{RunnerError, StepRunner};

use super::buffers::StepBuffers;
use super::cpu_layers::CpuLayers;
use super::graphs::StepGraphs;
use super::sequences::Sequences;
use super::{GpuRunner, Packed};

/// The GPU that a model is to be loaded to.
#[derive(Clone, Debug)]
pub(crate) struct GpuTarget {
    /// The driver's number of it.
    pub(crate) ordinal: usize,
    /// Folders that may hold cuBLAS, besides those of the system.
    pub(crate) library_folders: Vec<PathBuf>,
    /// Main memory that is free for layers that the GPU has no room for.
    pub(crate) main_bytes: u64,
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
    check(&source.spec)?;
    load_on(Gpu::open(target.ordinal).map_err(RunnerError::from)?, source, config, target)
}

/// The same to a GPU that is open. A limit of its memory stays with it.
///
/// # Errors
/// As [`load`].
pub(super) fn load_on(
    gpu: Arc<Gpu>,
    source: ModelSource,
    config: &EngineConfig,
    target: &GpuTarget,
) -> Result<(Box<dyn StepRunner>, LoadedModel), ModelError> {
    let started = Instant::now();
    let (free_bytes, _) = gpu.memory().map_err(RunnerError::from)?;
    let free_bytes = usable_bytes(free_bytes as u64, config.gpu_memory_limit_bytes);
    let dtype = if source.weights.main_format() == "F16" { DType::F16 } else { DType::Bf16 };
    let memory = GpuMemory { free_bytes, is_f16: dtype == DType::F16 };
    let gemm = Gemm::load(&gpu, Blas::open(&gpu, &target.library_folders)).map_err(RunnerError::from)?;
    let takes_fp8 = gemm.fp8().is_some();
    let weights = |first| PartWeights::of(&source, first, takes_fp8);
    let layers = plan_layers(&source.spec, &weights, config, memory, target.main_bytes)?;
    let cpu = layers.cpu.as_ref().map(|_| Arc::new(Cpu::new(config.threads)));
    let offload = offload(&source.spec, &layers, &gpu, cpu.as_deref());
    let LayerPlan { first, cpu: cpu_plan, gpu: plan, sizes } = layers;
    if config.gpu_memory_limit_bytes.is_some() {
        gpu.limit_memory(free_bytes);
    }
    let products = gemm.description();
    tracing::info!(model = source.name, blocks = plan.blocks, ?dtype, products, "loading to the GPU");
    let layout = Layout::new(plan.context_length as usize, sizes);
    let compute = compute_for(gpu, dtype, gemm, &layout, &source).map_err(RunnerError::from)?;
    let handle = Compute::Gpu(compute.clone());
    let (spec, context) = (source.spec.clone(), plan.context_length);
    let model = Decoder::load_layers(&handle, spec, &source.weights, context, first..source.spec.layers)?;
    tracing::info!(seconds = started.elapsed().as_secs_f32(), "the weights are on the GPU");
    let mut runner = build(compute, handle, model, &plan, &layout)?;
    if let (Some(cpu), Some(plan)) = (cpu, &cpu_plan) {
        let tokens = sizes.max_step_tokens as usize;
        runner.cpu_layers = Some(CpuLayers::load(runner.gpu.gpu(), cpu, &source, first, plan, tokens)?);
    }
    runner.tune()?;
    let used_bytes = record(&mut runner)?;
    let (planned_bytes, seconds) = (plan.total_bytes(), started.elapsed().as_secs_f32());
    tracing::info!(seconds, planned_bytes, used_bytes, "the GPU is ready");
    let mut loaded = loaded(source, plan, sizes, None);
    loaded.products = Some(products);
    loaded.used_bytes = Some(used_bytes);
    loaded.offload = offload;
    Ok((Box::new(runner), loaded))
}

/// What is said of layers that stay on the CPU, said loudly.
fn offload(spec: &DecoderSpec, plan: &LayerPlan, gpu: &Gpu, cpu: Option<&Cpu>) -> Option<Offload> {
    let mut offload = Offload::new(spec, plan)?;
    offload.cpu_bytes_per_second = cpu.map(Cpu::read_bytes_per_second);
    offload.gpu_bytes_per_second =
        copy_rate(gpu).inspect_err(|error| tracing::warn!(%error, "the GPU's memory could not be timed")).ok();
    tracing::warn!(layers = %offload, "not all layers are on the GPU");
    Some(offload)
}

/// Records the graphs; the bytes that are taken then, of which those of the graphs are the driver's word.
pub(super) fn record(runner: &mut GpuRunner) -> Result<u64, RunnerError> {
    let (before, _) = runner.gpu.gpu().memory()?;
    runner.record_graphs()?;
    let (after, _) = runner.gpu.gpu().memory()?;
    let (allocated, uses) = runner.gpu.gpu().allocated();
    let graph_bytes = before.saturating_sub(after) as u64;
    tracing::debug!(?uses, graph_bytes, "memory");
    Ok(allocated + graph_bytes)
}

/// Whether the kernels are made for a model's shapes.
pub(super) fn check(spec: &DecoderSpec) -> Result<(), ModelError> {
    let refuse = |what: String| Err(ModelError::NotForGpus(what));
    if let Some(experts) = &spec.experts {
        let (count, top_k) = (experts.count, experts.routing.top_k);
        if count > MAX_EXPERTS || top_k > MAX_TOP_K {
            return refuse(format!("{top_k} of {count} experts: up to {MAX_TOP_K} of {MAX_EXPERTS} are"));
        }
        if !experts.ffn.is_multiple_of(8) || !experts.shared_ffn.unwrap_or(0).is_multiple_of(8) {
            return refuse(format!("experts of {} numbers: multiples of 8 are", experts.ffn));
        }
    }
    if let Some(latent) = &spec.latent {
        let LatentShape { rank, rope, nope, value, .. } = latent.shape;
        if (rank, rope) != (LATENT_DIM, LATENT_ROTARY_DIM) {
            return refuse(format!("latents of {rank} and {rope} numbers: {LATENT_DIM} and {LATENT_ROTARY_DIM} are"));
        }
        if [nope, value, latent.query_rank.unwrap_or(8)].iter().any(|size| !size.is_multiple_of(8)) {
            return refuse(format!("heads of {nope} and {value} numbers: multiples of 8 are"));
        }
    } else if !HEAD_DIMS.contains(&spec.head_dim) {
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

/// The shape of any layer's attention: they differ in their windows alone, and memory does not depend on those.
fn attention_shape(spec: &DecoderSpec) -> AttentionShape {
    let DecoderSpec { q_heads, kv_heads, head_dim, attention_scale: scale, .. } = *spec;
    if spec.latent.is_some() {
        // What its chunks hand to each other is as large as that of heads of a latent that share a key.
        return AttentionShape { q_heads, kv_heads: 1, head_dim: LATENT_DIM, scale, sliding_window: None };
    }
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
        Self { limits: StepLimits::new(sizes, context), context, sizes }
    }
}

/// A GPU with the memory that attention needs for steps of this layout, and products for these weights.
pub(super) fn compute_for(
    gpu: Arc<Gpu>,
    dtype: DType,
    gemm: Gemm,
    layout: &Layout,
    source: &ModelSource,
) -> Result<Arc<GpuCompute>, CudaError> {
    let StepLimits { items, sequences, .. } = layout.limits;
    let scratch = AttentionScratch::new(&gpu, items, sequences, &attention_shape(&source.spec))?;
    let experts = match &source.spec.experts {
        None => None,
        Some(experts) => {
            let pairs = layout.limits.tokens * experts.routing.top_k;
            Some(ExpertBuffers::new(&gpu, pairs, experts.count, source.spec.hidden, experts.ffn, dtype)?)
        }
    };
    let dense_bytes = GpuWeights::of(source, 0, gemm.fp8().is_some()).dense_bytes as usize;
    Ok(Arc::new(GpuCompute::new(gpu, dtype, gemm, scratch, dense_bytes, experts)?))
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
    let buffers = StepBuffers::new(gpu.gpu(), layout.limits, spec.hidden, spec.vocab)?;
    let (kv_layout, least) = (spec.kv_layout(plan.kv_dtype), plan.least_blocks() as usize);
    let kv = KvCache::shrinkable(&compute, model.layer_count(), kv_layout, plan.blocks as usize, least)?;
    let done = [gpu.gpu().event()?, gpu.gpu().event()?];
    let cache = kv.gpu().map_or(gpu.dtype(), |whole| whole.dtype());
    let splits = gpu.splits(&attention_shape(spec), cache, layout.limits.items);
    Ok(GpuRunner {
        workspace,
        logit_rows: rows,
        max_step_tokens: layout.sizes.max_step_tokens as usize,
        kv,
        sampling,
        buffers,
        graphs: StepGraphs::default(),
        pools: Pools::default(),
        sequences: Sequences::new(rows),
        batch: InputBatch::default(),
        plan: AttentionPlan::default(),
        splits,
        cpu_layers: None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::plan::kernel_bytes;
    use std::path::Path;

    #[test]
    fn the_plan_knows_which_heads_have_a_cache_of_fp8() {
        let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes");
        let spec = ModelSource::random(&shapes.join("llama-3.1-8b.json")).expect("a shape").spec;
        for head_dim in HEAD_DIMS {
            let spec = DecoderSpec { head_dim, ..spec.clone() };
            let planned = crate::runner::plan::kv_dtypes(&spec, false).contains(&crate::config::KvDType::Fp8);
            assert_eq!(planned, crate::cuda::FP8_HEAD_DIMS.contains(&head_dim), "{head_dim}");
        }
    }

    /// The plan counts in every build what these rooms allocate in this one.
    #[test]
    fn the_plan_counts_what_kernels_allocate() {
        let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes");
        for name in ["llama-3.1-8b", "qwen2.5-1.5b", "qwen3-30b-a3b", "deepseek-v2-lite"] {
            let spec = ModelSource::random(&shapes.join(format!("{name}.json"))).expect("a shape").spec;
            for (sizes, context) in
                [(StepSizes::GPU, 8192), (StepSizes::SMALL_GPU, 1000), (StepSizes::TINY_GPU, 40_000)]
            {
                let limits = Layout::new(context, sizes).limits;
                assert_eq!(limits.items, AttentionPlan::max_items(limits.sequences, context), "{name}");
                let attention = AttentionScratch::bytes(limits.items, limits.sequences, &attention_shape(&spec));
                let sampling = Sampling::bytes(limits.sequences, spec.vocab);
                let rope = 4 * context * spec.rope.rotary_dim;
                let experts = spec.experts.as_ref().map_or(0, |experts| {
                    let pairs = limits.tokens * experts.routing.top_k;
                    ExpertBuffers::bytes(pairs, experts.count, spec.hidden, experts.ffn)
                });
                assert_eq!(experts > 0, name.starts_with("qwen3") || name.starts_with("deepseek"), "{name}");
                let all = (attention + sampling + rope + experts + StepBuffers::bytes(limits)) as u64;
                assert_eq!(kernel_bytes(&spec, sizes, context), all, "{name} {sizes:?}");
            }
        }
    }
}
