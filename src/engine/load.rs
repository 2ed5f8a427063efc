//! From files to a running engine: a runner for the model, a scheduler for its plan, a thread for both.
//!
//! Knows no names of models and no text.

use crate::config::EngineConfig;
use crate::runner::{self, KvLayout, LoadedModel, ModelError, ModelFiles, Target};
use crate::scheduler::{ConfigError, Scheduler, SchedulerConfig};

use super::handle::{EngineHandle, EngineLimits, channel};
use super::run::spawn;

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The model could not be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model's plan and the settings give no valid scheduler.
    #[error("the settings do not fit the model: {0}")]
    Scheduler(#[from] ConfigError),
    /// The operating system refuses a thread.
    #[error("the engine's thread could not be started")]
    Thread(#[source] std::io::Error),
}

impl StartError {
    /// Whether it would fit if there were more memory.
    pub(crate) fn does_not_fit(&self) -> bool {
        matches!(self, Self::Model(ModelError::Plan(error)) if error.is_for_want_of_memory())
    }

    /// Whether the GPU is in order and this model not for it, so that the CPU may serve.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_for_the_cpu(&self) -> bool {
        matches!(self, Self::Model(ModelError::Plan(_) | ModelError::NotForGpus(_)))
    }
}

/// Tokens of a block of the KV cache.
pub(crate) const BLOCK_TOKENS: u32 = KvLayout::BLOCK_SIZE as u32;

/// Loads the model in `files` to `target` and starts an engine on it.
///
/// # Errors
/// [`StartError`].
pub(crate) fn start(
    files: ModelFiles<'_>,
    config: &EngineConfig,
    target: Target,
) -> Result<(EngineHandle, LoadedModel), StartError> {
    let (runner, model) = runner::load(files, config, target)?;
    let sizes = model.sizes;
    let scheduler = SchedulerConfig {
        block_size: BLOCK_TOKENS,
        num_blocks: model.plan.blocks,
        max_sequences: sizes.max_sequences,
        max_step_tokens: sizes.max_step_tokens,
        max_prompt_chunk_while_decoding: sizes.max_prompt_chunk_while_decoding,
        prompt_tokens_per_decode: sizes.prompt_tokens_per_decode,
        prompt_tokens_per_waiting: sizes.prompt_tokens_per_waiting,
        step_multiple: sizes.step_multiple,
        max_model_len: model.plan.context_length,
        max_waiting: config.max_waiting + sizes.max_sequences,
        max_waiting_per_tenant: config.max_waiting + sizes.max_sequences,
        lag: sizes.lag,
        prefix_cache: config.prefix_cache,
    };
    let scheduler = Scheduler::new(scheduler, random_key())?;
    let (handle, inbox) = channel(EngineLimits {
        max_context: model.plan.context_length,
        max_sequences: sizes.max_sequences,
        max_waiting: config.max_waiting,
        vocab_size: model.vocab,
    });
    spawn(scheduler, runner, inbox).map_err(StartError::Thread)?;
    Ok((handle, model))
}

/// Key of the prefix index, so that nobody can make two prompts collide on purpose.
fn random_key() -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&runner::random_seed().to_le_bytes());
    key[8..].copy_from_slice(&runner::random_seed().to_le_bytes());
    key
}
