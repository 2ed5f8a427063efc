//! From files to a runner: read, plan the memory, map the weights, allocate.
//!
//! Knows no names of models and no text: the vocabulary is handed on as the files hold it.

use std::path::Path;

use crate::config::EngineConfig;
use crate::models::{Decoder, DecoderError, GenerationDefaults, ModelSource, SpecialTokens, TokenizerSource};
use crate::ops::Compute;
use crate::request::TokenId;
use crate::weights::LoadError as FileError;

use super::model_runner::ModelRunner;
use super::plan::{MemoryPlan, PlanError, plan};
use super::step::RunnerError;

/// What is known of a loaded model besides its weights.
pub(crate) struct LoadedModel {
    /// Architecture, as the files name it.
    pub(crate) architecture: String,
    /// Number of weights.
    pub(crate) parameters: u64,
    /// The format that most bytes of the weights are in.
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
    /// Sampling parameters that its makers recommend.
    pub(crate) defaults: GenerationDefaults,
    /// What it takes.
    pub(crate) plan: MemoryPlan,
    /// Threads that compute.
    pub(crate) threads: usize,
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
    /// Its buffers could not be set up.
    #[error(transparent)]
    Runner(#[from] RunnerError),
}

/// Loads the model in `path` (a folder or a GGUF file) into at most `free_bytes`.
///
/// # Errors
/// [`ModelError`].
pub(crate) fn load(
    path: &Path,
    config: &EngineConfig,
    free_bytes: u64,
) -> Result<(ModelRunner, LoadedModel), ModelError> {
    let source = ModelSource::open(path)?;
    let plan = plan(&source.spec, source.weights.total_bytes(), config, free_bytes)?;
    let compute = Compute::new(config.threads);
    let files: Vec<_> = source.weights.files().collect();
    tracing::info!(model = source.name, ?files, blocks = plan.blocks, simd = %compute.cpu().simd(), "loading");
    let loaded = LoadedModel {
        architecture: source.spec.architecture.clone(),
        parameters: source.weights.parameters(),
        format: source.weights.main_format().to_string(),
        vocab: u32::try_from(source.spec.vocab).unwrap_or(u32::MAX),
        tokenizer: source.tokenizer,
        chat_template: source.chat_template,
        special_tokens: source.special_tokens,
        eos_token_ids: source.eos_token_ids,
        defaults: source.defaults,
        threads: compute.cpu().threads(),
        plan,
    };
    let decoder = Decoder::load(source.spec, &source.weights, loaded.plan.context_length)?;
    let runner = ModelRunner::new(compute, decoder, &loaded.plan, config.max_step_tokens as usize)?;
    Ok((runner, loaded))
}
