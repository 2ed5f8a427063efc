//! From files to a runner: read, plan the memory, map the weights, allocate.
//!
//! Knows no names of models and no text: the vocabulary is handed on as the files hold it.

use std::path::Path;
use std::sync::Arc;

use crate::config::{AlreadyQuantized, EngineConfig, RandomModel, StepSizes, WeightFormat};
use crate::models::{Decoder, DecoderError, GenerationDefaults, ModelSource, SpecialTokens, TokenizerSource};
use crate::ops::{Compute, Cpu};
use crate::request::{Pooling, TokenId};
use crate::weights::LoadError as FileError;

use super::model_runner::ModelRunner;
use super::plan::{MemoryPlan, Offload, Placement, PlanError, plan};
use super::step::{RunnerError, StepRunner};

/// What is known of a loaded model besides its weights.
pub(crate) struct LoadedModel {
    /// Architecture, as the files name it.
    pub(crate) architecture: String,
    /// Number of weights.
    pub(crate) parameters: u64,
    /// Number of weights that each token is multiplied with: an embedding table is only looked up in.
    pub(crate) token_parameters: u64,
    /// What its weights are: how another program has quantised them, else the format that most of their bytes are in.
    pub(crate) format: String,
    /// Tokens in the vocabulary.
    pub(crate) vocab: u32,
    /// Where its vocabulary is.
    pub(crate) tokenizer: TokenizerSource,
    /// Its chat template, if it brings one.
    pub(crate) chat_template: Option<String>,
    /// Special tokens as text.
    pub(crate) special_tokens: SpecialTokens,
    /// What ends an answer.
    pub(crate) eos_token_ids: Vec<TokenId>,
    /// How its makers pool prompts to vectors, if they say.
    pub(crate) pooling: Option<Pooling>,
    /// Values of a hidden state.
    pub(crate) embedding_length: usize,
    /// Sampling parameters that its makers recommend.
    pub(crate) defaults: GenerationDefaults,
    /// What it takes.
    pub(crate) plan: MemoryPlan,
    /// On a GPU, the bytes that were taken for it once it was ready.
    pub(crate) used_bytes: Option<u64>,
    /// On a GPU that has no room for all layers, how they are divided.
    pub(crate) offload: Option<Offload>,
    /// How large its steps are.
    pub(crate) sizes: StepSizes,
    /// Threads that compute; `None` on a GPU.
    pub(crate) threads: Option<usize>,
    /// On a GPU, what multiplies matrices.
    pub(crate) products: Option<String>,
}

/// Where a model is to be loaded.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Main memory and this machine's processor.
    Cpu {
        /// What it may take.
        free_bytes: u64,
    },
    /// A GPU and its memory.
    #[cfg(feature = "cuda")]
    Gpu(super::gpu::GpuTarget),
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing, broken, or of a kind that is not supported.
    #[error(transparent)]
    Files(#[from] FileError),
    /// It does not fit into memory.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Its weights do not make a decoder.
    #[error(transparent)]
    Decoder(#[from] DecoderError),
    /// No kernel is made for its shapes.
    #[error("the GPU's kernels are not made for {0}")]
    NotForGpus(String),
    /// Its buffers could not be set up.
    #[error(transparent)]
    Runner(#[from] RunnerError),
}

/// What a model is loaded from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ModelFiles<'a> {
    /// A folder or a GGUF file.
    Stored(&'a Path),
    /// A config.json alone: its weights are drawn at random.
    RandomWeights(&'a Path, RandomModel),
}

/// Loads a model.
///
/// # Errors
/// [`ModelError`].
pub(crate) fn load(
    files: ModelFiles<'_>,
    config: &EngineConfig,
    target: Target,
) -> Result<(Box<dyn StepRunner>, LoadedModel), ModelError> {
    let source = open_for(files, config)?;
    match target {
        Target::Cpu { free_bytes } => on_cpu(source, config, free_bytes),
        #[cfg(feature = "cuda")]
        Target::Gpu(target) => super::gpu::load(source, config, &target),
    }
}

/// What a model's headers say of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFacts {
    /// Architecture, as the files name it.
    pub architecture: String,
    /// Number of weights.
    pub parameters: u64,
    /// What its weights are: how another program has quantised them, else the format that most of their bytes are in.
    pub format: String,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Most tokens of prompt and answer together.
    pub context_length: u32,
    /// Its chat template, in Jinja, if it brings one.
    pub chat_template: Option<String>,
}

/// Reads the headers of `files`, and nothing else.
///
/// # Errors
/// [`ModelError::Files`].
pub(crate) fn describe(files: ModelFiles<'_>) -> Result<ModelFacts, ModelError> {
    let source = open(files, None)?;
    Ok(ModelFacts {
        architecture: source.spec.architecture.clone(),
        parameters: source.weights.parameters(),
        format: source.weights.format_name(),
        weight_bytes: source.weights.total_bytes(),
        context_length: source.spec.max_context,
        chat_template: source.chat_template,
    })
}

/// Reads the headers of `files`, whose weights become what `config` says when they are read.
fn open_for(files: ModelFiles<'_>, config: &EngineConfig) -> Result<ModelSource, ModelError> {
    let source = open(files, None)?;
    let Some(format) = config.quantize else { return Ok(source) };
    match source.weights.quantized_as() {
        Some(stored) if config.already_quantized == AlreadyQuantized::Keep => {
            let (model, wanted) = (&source.name, format.name());
            tracing::info!(model, stored, wanted, "the model is quantised already, and served as it is");
            Ok(source)
        }
        _ => Ok(source.quantized(format)?),
    }
}

/// Reads the headers of `files`, whose weights become `quantize` when they are read.
pub(super) fn open(files: ModelFiles<'_>, quantize: Option<WeightFormat>) -> Result<ModelSource, ModelError> {
    let source = match files {
        ModelFiles::Stored(path) => ModelSource::open(path)?,
        ModelFiles::RandomWeights(config, random) => {
            let mut source = ModelSource::random_in(config, random.format)?;
            if let Some(experts) = &mut source.spec.experts {
                experts.routing.even = random.even_routing;
            }
            source
        }
    };
    Ok(match quantize {
        Some(format) => source.quantized(format)?,
        None => source,
    })
}

fn on_cpu(
    source: ModelSource,
    config: &EngineConfig,
    free_bytes: u64,
) -> Result<(Box<dyn StepRunner>, LoadedModel), ModelError> {
    let sizes = config.step_sizes(StepSizes::CPU);
    let plan = plan(&source.spec, source.cpu_weight_bytes(), config, sizes, Placement::CPU, free_bytes)?;
    let cpu = Arc::new(Cpu::new(config.threads));
    let files: Vec<_> = source.weights.files().collect();
    tracing::info!(model = source.name, ?files, blocks = plan.blocks, simd = %cpu.simd(), "loading");
    let compute = Compute::Cpu(cpu.clone());
    let decoder = Decoder::load(&compute, source.spec.clone(), &source.weights, plan.context_length)?;
    let runner = ModelRunner::new(compute, decoder, &plan, sizes.max_step_tokens as usize)?;
    Ok((Box::new(runner), loaded(source, plan, sizes, Some(cpu.threads()))))
}

/// What is known of a model that was loaded.
pub(super) fn loaded(source: ModelSource, plan: MemoryPlan, sizes: StepSizes, threads: Option<usize>) -> LoadedModel {
    let looked_up = if source.spec.tied_embeddings { 0 } else { source.spec.vocab * source.spec.hidden };
    let parameters = source.weights.parameters();
    LoadedModel {
        architecture: source.spec.architecture.clone(),
        parameters,
        token_parameters: parameters
            .saturating_sub(looked_up as u64 + source.spec.idle_parameters(0..source.spec.layers)),
        format: source.weights.format_name(),
        vocab: u32::try_from(source.spec.vocab).unwrap_or(u32::MAX),
        tokenizer: source.tokenizer,
        chat_template: source.chat_template,
        special_tokens: source.special_tokens,
        eos_token_ids: source.eos_token_ids,
        pooling: source.pooling,
        embedding_length: source.spec.hidden,
        defaults: source.defaults,
        plan,
        used_bytes: None,
        offload: None,
        sizes,
        threads,
        products: None,
    }
}
