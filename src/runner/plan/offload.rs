//! Which layers stay on the CPU where a GPU has no room for all of them, what both take, and how fast that can be.
//!
//! The first layers and the embedding stay; the last ones and the output are on the GPU. Both keep keys and values of
//! their own layers, in blocks of the same numbers.

use std::fmt;

use serde::Serialize;

use super::gpu::{GpuMemory, GpuWeights, plan_for_gpu};
use super::{MemoryPlan, Placement, PlanError, block_bytes, plan};
use crate::config::{ByteSize, EngineConfig, GpuLayers, KvDType, Lag, StepSizes};
use crate::models::{DecoderSpec, ModelSource};

/// Tokens of context that a user gets at least before layers go to the GPU, where none is asked for.
const LEAST_CONTEXT: u32 = 4096;

/// What the weights take where the layers from one on are on a GPU, and the others on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartWeights {
    /// Of the GPU.
    pub(crate) gpu: GpuWeights,
    /// Of main memory, in bytes; the embedding counted.
    pub(crate) cpu_bytes: u64,
}

impl PartWeights {
    /// With the layers from `first` on a GPU; see [`GpuWeights::of`].
    pub(crate) fn of(source: &ModelSource, first: usize, takes_fp8: bool) -> Self {
        let cpu_bytes = source.weight_bytes_before(first) + source.transposed_bytes(0..first);
        Self { gpu: GpuWeights::of(source, first, takes_fp8), cpu_bytes }
    }
}

/// Elements of the weights of the layers before `first`, and of the embedding.
pub(super) fn cpu_parameters(spec: &DecoderSpec, first: usize) -> u64 {
    spec.vocabulary_parameters() + spec.layer_parameters(0..first)
}

/// Where each layer of a model runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerPlan {
    /// The first layer on the GPU.
    pub(crate) first: usize,
    /// What the layers before it take of main memory, where there are some.
    pub(crate) cpu: Option<MemoryPlan>,
    /// What the others take of the GPU.
    pub(crate) gpu: MemoryPlan,
    /// How large steps are.
    pub(crate) sizes: StepSizes,
}

/// Plans as many layers onto a GPU as `config` asks for, the others into `main_bytes` of main memory. `weights` gives what
/// the weights take where the layers from one on are on the GPU.
///
/// # Errors
/// [`PlanError`].
pub(crate) fn plan_layers(
    spec: &DecoderSpec,
    weights: &dyn Fn(usize) -> PartWeights,
    config: &EngineConfig,
    memory: GpuMemory,
    main_bytes: u64,
) -> Result<LayerPlan, PlanError> {
    let divided = |count: usize| {
        let first = spec.layers - count;
        divide(spec, first, weights(first), config, memory, main_bytes)
    };
    if let GpuLayers::Count(count) = config.gpu_layers
        && (count as usize) < spec.layers
    {
        return divided(count.max(1) as usize);
    }
    let error = match plan_for_gpu(spec, weights(0).gpu, config, memory) {
        Ok((gpu, sizes)) => return Ok(LayerPlan { first: 0, cpu: None, gpu, sizes }),
        Err(error) if error.is_for_want_of_memory() => error,
        Err(error) => return Err(error),
    };
    let most = (1..spec.layers).rev().find_map(|count| divided(count).ok().map(|plan| (count, plan)));
    match (most, config.gpu_layers) {
        (Some((_, plan)), GpuLayers::Auto) => Ok(plan),
        (Some((fit, _)), _) => Err(PlanError::Layers { error: Box::new(error), fit, layers: spec.layers }),
        (None, _) => Err(error),
    }
}

/// Plans the layers from `first` on onto a GPU, the others into main memory.
fn divide(
    spec: &DecoderSpec,
    first: usize,
    weights: PartWeights,
    config: &EngineConfig,
    memory: GpuMemory,
    main_bytes: u64,
) -> Result<LayerPlan, PlanError> {
    let of_layers = |layers: usize| DecoderSpec { layers, ..spec.clone() };
    // The CPU decides how long a step takes: it has the CPU's sizes.
    let cpu = StepSizes::CPU;
    let config = EngineConfig {
        max_step_tokens: config.max_step_tokens.or(Some(cpu.max_step_tokens.max(config.max_sequences.unwrap_or(0)))),
        max_prompt_chunk_while_decoding: config
            .max_prompt_chunk_while_decoding
            .or(Some(cpu.max_prompt_chunk_while_decoding)),
        // The CPU needs the tokens of the step before.
        lag: Some(Lag::Zero),
        ..config.clone()
    };
    let (mut gpu, sizes) = plan_for_gpu(&of_layers(spec.layers - first), weights.gpu, &config, memory)?;
    let spec = of_layers(first);
    let kv_dtype = match config.kv_dtype {
        // The CPU's type of a byte.
        Some(KvDType::Fp8) => Some(KvDType::Int8),
        dtype => dtype,
    };
    let layer_bytes = block_bytes(&spec, kv_dtype.unwrap_or(Placement::CPU.kv_dtypes[0]));
    let asked_bytes = config.kv_cache_bytes;
    let most_bytes = u64::from(gpu.blocks).saturating_mul(layer_bytes);
    let config = EngineConfig { kv_dtype, kv_cache_bytes: None, kv_cache_most_bytes: Some(most_bytes), ..config };
    let placement = Placement { logit_rows: 1, ..Placement::CPU };
    let mut cpu = plan(&spec, weights.cpu_bytes, &config, sizes, placement, main_bytes)?;
    let blocks = gpu.blocks.min(cpu.blocks);
    if let Some(asked_bytes) = asked_bytes.filter(|_| blocks < gpu.blocks) {
        return Err(PlanError::KvCacheTooLarge { asked_bytes, fit_bytes: u64::from(blocks) * gpu.block_bytes });
    }
    let context = gpu.context_length.min(cpu.context_length);
    let asked = config.context_length.unwrap_or(LEAST_CONTEXT.min(spec.max_context));
    if context < asked {
        return Err(PlanError::ContextTooLong { asked, fits: context.into() });
    }
    for plan in [&mut gpu, &mut cpu] {
        (plan.blocks, plan.context_length) = (blocks, context);
    }
    Ok(LayerPlan { first, cpu: Some(cpu), gpu, sizes })
}

/// A model some of whose layers run on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Offload {
    /// Layers on the GPU, the last ones.
    pub gpu_layers: u32,
    /// Layers on the CPU, the first ones.
    pub cpu_layers: u32,
    /// Bytes of main memory that they take, with their keys and values and the embedding.
    pub cpu_bytes: u64,
    /// Bytes of their weights and of the embedding.
    pub cpu_weight_bytes: u64,
    /// Bytes of weights that a token reads on the CPU.
    pub cpu_token_bytes: u64,
    /// Bytes of weights that a token reads on the GPU.
    pub gpu_token_bytes: u64,
    /// Bytes that the CPU reads each second, measured.
    pub cpu_bytes_per_second: Option<f64>,
    /// Bytes that the GPU reads each second, measured.
    pub gpu_bytes_per_second: Option<f64>,
}

impl Offload {
    /// What `plan` says of a model of `spec`; nothing where all layers are on the GPU. Rates are not known yet.
    pub(crate) fn new(spec: &DecoderSpec, plan: &LayerPlan) -> Option<Self> {
        let cpu = plan.cpu.as_ref()?;
        let (before, after) = (0..plan.first, plan.first..spec.layers);
        // Of each part as large a share of bytes as of elements: exact where there is but one format.
        let share = |bytes: u64, read: u64, all: u64| (bytes as f64 * read as f64 / all.max(1) as f64) as u64;
        let read =
            |layers: std::ops::Range<usize>| spec.layer_parameters(layers.clone()) - spec.idle_parameters(layers);
        let output = spec.vocabulary_parameters();
        Some(Self {
            gpu_layers: after.len() as u32,
            cpu_layers: before.len() as u32,
            cpu_bytes: cpu.total_bytes(),
            cpu_weight_bytes: cpu.weight_bytes,
            cpu_token_bytes: share(cpu.weight_bytes, read(before), cpu_parameters(spec, plan.first)),
            gpu_token_bytes: share(
                plan.gpu.weight_bytes,
                read(after.clone()) + output,
                spec.layer_parameters(after) + output,
            ),
            cpu_bytes_per_second: None,
            gpu_bytes_per_second: None,
        })
    }

    /// Tokens that one user gets each second: both read their weights for each, one after the other. Where the GPU's rate
    /// is not known it counts as no time; `None` where the CPU's is not.
    pub fn expected_tokens_per_second(&self) -> Option<f64> {
        let cpu_seconds = self.cpu_token_bytes as f64 / self.cpu_bytes_per_second?;
        let gpu_seconds = self.gpu_bytes_per_second.map_or(0.0, |rate| self.gpu_token_bytes as f64 / rate);
        Some(1.0 / (cpu_seconds + gpu_seconds))
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpu_layers, cpu_layers, cpu_bytes, .. } = *self;
        let (layers, size) = (gpu_layers + cpu_layers, ByteSize(cpu_bytes));
        write!(f, "{gpu_layers} of {layers} on the GPU, {cpu_layers} on the CPU in {size} of main memory")?;
        if let Some(tokens) = self.expected_tokens_per_second() {
            write!(f, ": slower, at most {tokens:.1} tokens a second for one user")?;
        }
        Ok(())
    }
}
