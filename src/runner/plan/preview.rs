//! A plan without the model: from headers alone, for a machine that may not be this one.
//!
//! Knows no terminal: plain data for whoever prints it.

use serde::Serialize;

use super::gpu::{DRIVER_BYTES, GpuMemory, GpuWeights, dense_room, pages};
use super::offload::{LayerPlan, Offload, PartWeights, cpu_parameters, plan_layers};
use super::{Placement, PlanError, USABLE_SHARE, plan};
use crate::config::{EngineConfig, GpuLayers, KvDType, StepSizes, WeightFormat};
use crate::models::{DecoderSpec, ModelSource};
use crate::ops::Cpu;
use crate::runner::load::{ModelError, ModelFiles, open};

/// Contexts that are tried where the one that is asked for does not fit, in tokens.
const SHORTER_CONTEXTS: [u32; 8] = [65_536, 32_768, 16_384, 8192, 4096, 2048, 1024, 512];

/// The memory that a model is planned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryToPlan {
    /// So many free bytes of main memory.
    Cpu(u64),
    /// A GPU that nobody else uses.
    Gpu {
        /// Its memory.
        bytes: u64,
        /// Bytes of main memory that are free for layers that it has no room for.
        main_bytes: u64,
    },
}

/// What a model would take, and how many users fit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanPreview {
    /// What the model calls itself.
    pub model: String,
    /// Its number of weights.
    pub parameters: u64,
    /// What they are planned as.
    pub format: String,
    /// Whether it is planned onto a GPU.
    pub on_gpu: bool,
    /// Bytes of the memory that it is planned into.
    pub memory_bytes: u64,
    /// Bytes of it that a GPU's driver takes.
    pub driver_bytes: u64,
    /// Bytes that the plan may use; the rest is for other programs.
    pub usable_bytes: u64,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Bytes of the activations and logits of the largest step.
    pub step_bytes: u64,
    /// Bytes of what kernels keep, libraries counted.
    pub kernel_bytes: u64,
    /// Bytes of recorded steps.
    pub graph_bytes: u64,
    /// What the KV cache stores its numbers as.
    pub kv_dtype: String,
    /// Bytes of the KV cache for a token.
    pub kv_token_bytes: u64,
    /// Tokens of prompt and answer together that one user gets.
    pub context_length: u32,
    /// Bytes of the KV cache for a user of so many tokens.
    pub kv_user_bytes: u64,
    /// Users of so many tokens that fit at once. 0: the model does not fit.
    pub users: u32,
    /// Bytes of the whole KV cache.
    pub kv_bytes: u64,
    /// Bytes that are usable and left over.
    pub left_bytes: u64,
    /// Where some layers run on the CPU: all numbers above are of the GPU.
    pub offload: Option<Offload>,
    /// Sequences in the largest step.
    pub max_sequences: u32,
    /// Tokens in the largest step.
    pub max_step_tokens: u32,
    /// Why it does not fit.
    pub reason: Option<String>,
    /// What would fit where it does not, or not as a whole.
    pub would_fit: Vec<String>,
}

/// A model as a preview sees it.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    source: &'a ModelSource,
    spec: &'a DecoderSpec,
    parameters: u64,
    /// Bytes of the weights on the CPU.
    weight_bytes: u64,
    /// What the weights are planned as, if not as they are stored.
    format: Option<WeightFormat>,
}

impl<'a> Candidate<'a> {
    fn new(source: &'a ModelSource) -> Self {
        let (spec, parameters) = (&source.spec, source.weights.parameters());
        Self { source, spec, parameters, weight_bytes: source.cpu_weight_bytes(), format: None }
    }

    /// The same with all weights in `format`.
    fn with_format(&self, format: WeightFormat) -> Self {
        let transposed = self.source.transposed_bytes(0..self.spec.layers);
        Self { weight_bytes: format.bytes(self.parameters) + transposed, format: Some(format), ..*self }
    }

    /// What the weights take with the layers from `first` on a GPU.
    fn weights_from(&self, first: usize) -> PartWeights {
        // Which cards multiply fp8 is known where one is opened.
        let Some(format) = self.format else { return PartWeights::of(self.source, first, false) };
        let on_cpu = cpu_parameters(self.spec, first);
        let elsewhere = match first {
            0 => 0,
            _ if self.spec.tied_embeddings => on_cpu - self.spec.vocabulary_parameters(),
            _ => on_cpu,
        };
        let dense_bytes = if format == WeightFormat::Bf16 { 0 } else { dense_room(self.spec) };
        let layers = DecoderSpec { layers: self.spec.layers - first, ..self.spec.clone() };
        let bytes = format.bytes(self.parameters.saturating_sub(elsewhere)) + pages(&layers);
        let cpu_bytes = format.bytes(on_cpu) + self.source.transposed_bytes(0..first);
        PartWeights { gpu: GpuWeights { bytes, dense_bytes }, cpu_bytes }
    }

    fn plan(&self, config: &EngineConfig, memory: MemoryToPlan) -> Result<LayerPlan, PlanError> {
        match memory {
            MemoryToPlan::Cpu(free_bytes) => {
                let sizes = config.step_sizes(StepSizes::CPU);
                let plan = plan(self.spec, self.weight_bytes, config, sizes, Placement::CPU, free_bytes)?;
                Ok(LayerPlan { first: 0, cpu: None, gpu: plan, sizes })
            }
            MemoryToPlan::Gpu { bytes, main_bytes } => {
                let is_f16 = self.source.weights.main_format() == "F16";
                let memory = GpuMemory { free_bytes: bytes.saturating_sub(DRIVER_BYTES), is_f16 };
                plan_layers(self.spec, &|first| self.weights_from(first), config, memory, main_bytes)
            }
        }
    }

    /// Whether one user gets the whole context.
    fn fits(&self, config: &EngineConfig, memory: MemoryToPlan) -> bool {
        let fits = |plan: LayerPlan| config.context_length.is_none_or(|context| context <= plan.gpu.context_length);
        self.plan(config, memory).is_ok_and(fits)
    }
}

/// Plans the model in `files` into `memory`, with its weights as they are stored or in `format`, without loading it.
///
/// # Errors
/// [`ModelError::Files`]: among others, where loading would refuse to turn these weights into `format`. A model that does not fit is no error: the preview says so.
pub(crate) fn preview(
    files: ModelFiles<'_>,
    config: &EngineConfig,
    memory: MemoryToPlan,
    format: Option<WeightFormat>,
) -> Result<PlanPreview, ModelError> {
    let (source, guessed) = turned(files, config, format)?;
    let stored = Candidate::new(&source);
    let candidate = guessed.map_or(stored, |format| stored.with_format(format));
    let turned_into = guessed.or(format.or(config.quantize).filter(|_| source.weights.is_turned()));
    let format_name = turned_into.map_or_else(|| source.weights.format_name(), |format| format.name().to_owned());
    let (memory_bytes, driver_bytes, on_gpu) = match memory {
        MemoryToPlan::Cpu(bytes) => (bytes, 0, false),
        MemoryToPlan::Gpu { bytes, .. } => (bytes, DRIVER_BYTES.min(bytes), true),
    };
    let usable_bytes = ((memory_bytes - driver_bytes) as f64 * USABLE_SHARE) as u64;
    let planned = candidate.plan(config, memory);
    let whole = EngineConfig { gpu_layers: GpuLayers::All, ..config.clone() };
    let would_fit = match &planned {
        Ok(plan) if plan.cpu.is_none() => Vec::new(),
        // As a whole, where it fits in parts alone.
        _ if candidate.fits(&whole, memory) => Vec::new(),
        _ => would_fit(&candidate, &whole, memory),
    };
    // What does not fit is shown as it would be where there is room without end.
    let (planned, reason) = match planned {
        Ok(planned) => (planned, None),
        Err(reason) => {
            let config = EngineConfig { max_sequences: config.max_sequences.or(Some(1)), ..config.clone() };
            let config = EngineConfig { kv_cache_bytes: None, ..config };
            (room_without_end(&candidate, &config, memory)?, Some(reason.to_string()))
        }
    };
    let offload = Offload::new(candidate.spec, &planned).map(|offload| Offload {
        cpu_bytes_per_second: Some(Cpu::new(config.threads).read_bytes_per_second()),
        ..offload
    });
    let LayerPlan { gpu: plan, sizes, .. } = planned;
    let kv_user_bytes = plan.kv_token_bytes() * u64::from(plan.context_length).next_multiple_of(16);
    let fits = reason.is_none();
    Ok(PlanPreview {
        model: source.name.clone(),
        parameters: candidate.parameters,
        format: format_name,
        on_gpu,
        memory_bytes,
        driver_bytes,
        usable_bytes,
        weight_bytes: plan.weight_bytes,
        step_bytes: plan.workspace_bytes,
        kernel_bytes: plan.kernel_bytes,
        graph_bytes: plan.graph_bytes,
        kv_dtype: plan.kv_dtype.to_string(),
        kv_token_bytes: plan.kv_token_bytes(),
        context_length: plan.context_length,
        kv_user_bytes,
        users: if fits { plan.full_contexts() } else { 0 },
        kv_bytes: if fits { plan.kv_bytes() } else { kv_user_bytes },
        left_bytes: if fits { usable_bytes.saturating_sub(plan.total_bytes()) } else { 0 },
        offload,
        max_sequences: sizes.max_sequences,
        max_step_tokens: sizes.max_step_tokens,
        reason,
        would_fit,
    })
}

/// The model as loading would have it, and the format that it is counted in where it cannot be had so.
fn turned(
    files: ModelFiles<'_>,
    config: &EngineConfig,
    format: Option<WeightFormat>,
) -> Result<(ModelSource, Option<WeightFormat>), ModelError> {
    // Weights that nobody has yet may be of any format.
    let is_made_on_loading = |format: &WeightFormat| format.mix().is_some();
    match (format, files) {
        (Some(format), ModelFiles::RandomWeights(..)) if !is_made_on_loading(&format) => {
            Ok((open(files, None)?, Some(format)))
        }
        (Some(format), _) => Ok((open(files, Some(format))?, None)),
        (None, _) => {
            let set = config.quantize.filter(is_made_on_loading);
            // A setting for all models leaves those as they are that are quantised already.
            let turned = set.and_then(|format| open(files, Some(format)).ok());
            Ok((turned.map_or_else(|| open(files, None), Ok)?, None))
        }
    }
}

/// The smallest steps, and one context, in more memory than there is.
fn room_without_end(
    candidate: &Candidate<'_>,
    config: &EngineConfig,
    memory: MemoryToPlan,
) -> Result<LayerPlan, PlanError> {
    const PLENTY: u64 = 1 << 50;
    let known = EngineConfig { kv_dtype: None, ..config.clone() };
    let context_length = config.context_length.map(|context| context.min(candidate.spec.max_context));
    let sizes = config.step_sizes(StepSizes::TINY_GPU);
    let known = EngineConfig { context_length, max_step_tokens: Some(sizes.max_step_tokens), ..known };
    match memory {
        MemoryToPlan::Cpu(_) => candidate.plan(&known, MemoryToPlan::Cpu(PLENTY)),
        MemoryToPlan::Gpu { .. } => candidate.plan(&known, MemoryToPlan::Gpu { bytes: PLENTY, main_bytes: PLENTY }),
    }
}

/// What would fit where `candidate` does not: one change each, the mildest first.
fn would_fit(candidate: &Candidate<'_>, config: &EngineConfig, memory: MemoryToPlan) -> Vec<String> {
    let mut found = Vec::new();
    let wanted = config.context_length.unwrap_or(candidate.spec.max_context);
    let shorter = |context: u32| EngineConfig { context_length: Some(context), ..config.clone() };
    let fitting = SHORTER_CONTEXTS.into_iter().filter(|context| *context < wanted);
    if let Some(context) = fitting.into_iter().find(|context| candidate.fits(&shorter(*context), memory)) {
        found.push(format!("a context of {context} tokens: --context {context}"));
    }
    for dtype in [KvDType::Bf16, KvDType::F16, KvDType::Fp8, KvDType::Int8] {
        let config = EngineConfig { kv_dtype: Some(dtype), ..config.clone() };
        if candidate.fits(&config, memory) {
            found.push(format!("a KV cache of {dtype}: --kv-cache-dtype {dtype}"));
            break;
        }
    }
    let smaller = WeightFormat::ALL.into_iter().filter(|format| {
        let smaller = candidate.with_format(*format);
        smaller.weight_bytes < candidate.weight_bytes && smaller.fits(config, memory)
    });
    let is_quantized = candidate.source.weights.quantized_as().is_some();
    let on_load = |format: WeightFormat| match !is_quantized && format.mix().is_some() {
        true => format!(": --quantize {}", format.name()),
        false => String::new(),
    };
    if let Some(format) = smaller.into_iter().next() {
        found.push(format!("a smaller format, {0} or a file of about its size{1}", format.name(), on_load(format)));
    }
    found
}
