//! The contract of a step: what the engine asks of whoever computes it.
//!
//! Knows no model; the engine's tests put arithmetic on block tables behind it.

use std::sync::Arc;
use std::time::Duration;

use crate::request::{Request, SeqId, TokenLogprobs};
use crate::sampling::Sampled;
use crate::scheduler::SchedulerOutput;

/// What a step has given.
#[derive(Debug, Default)]
pub(crate) struct StepOutput {
    /// One for each of [`SchedulerOutput::samples`], in that order. For a sequence in `failed` it means nothing.
    pub(crate) sampled: Vec<Sampled>,
    /// For rows that ask for it: the sequence, the position of the row's first token, and an entry for each of the
    /// row's tokens that has a next prompt token (its log-probability).
    pub(crate) prompt_logprobs: Vec<(SeqId, u32, Vec<TokenLogprobs>)>,
    /// Sequences that could not go on, and why; they alone end.
    pub(crate) failed: Vec<(SeqId, String)>,
    /// Time spent in the model's forward pass.
    pub(crate) model_time: Duration,
}

/// Why a step could not be computed. The engine does not survive it.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// An operation failed.
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
}

/// Computes steps; keeps what belongs to a sequence and is not a KV block (its place in the random stream, counts).
pub(crate) trait StepRunner: Send {
    /// A sequence begins: choice `choice` of `request`, with the random stream of `seed`.
    fn start(&mut self, seq: SeqId, request: Arc<Request>, choice: u32, seed: u64);

    /// A sequence has ended; its state can go.
    fn release(&mut self, seq: SeqId);

    /// Copies blocks, runs the model, draws tokens.
    ///
    /// # Errors
    /// [`RunnerError`]; the cache's content is then undefined.
    fn execute(&mut self, planned: &SchedulerOutput) -> Result<StepOutput, RunnerError>;
}
