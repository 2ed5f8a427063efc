//! The contract of a step: what the engine asks of whoever computes it.
//!
//! Knows no model; the engine's tests put arithmetic on block tables behind it.

use std::sync::Arc;
use std::time::Duration;

use crate::ops::without_backtrace;
use crate::request::{Request, SeqId, TokenLogprobs};
use crate::sampling::{SampleError, Sampled};
use crate::scheduler::SchedulerOutput;

/// What a step has given.
#[derive(Debug, Default)]
pub(crate) struct StepOutput {
    /// One for each of [`SchedulerOutput::samples`], in that order. For a sequence in `failed` it means nothing.
    pub(crate) sampled: Vec<Sampled>,
    /// For rows that ask for it: the sequence, the position of the row's first token, and an entry for each of the
    /// row's tokens that has a next prompt token (its log-probability).
    pub(crate) prompt_logprobs: Vec<(SeqId, u32, Vec<TokenLogprobs>)>,
    /// Prompts that ended in this step and were to be pooled: `[hidden]` each.
    pub(crate) pooled: Vec<(SeqId, Vec<f32>)>,
    /// Sequences that could not go on, and why; they alone end.
    pub(crate) failed: Vec<(SeqId, SampleError)>,
    /// Time spent in the model's forward pass.
    pub(crate) model_time: Duration,
}

/// Why a step could not be computed. The engine does not survive it.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// An operation failed.
    #[error(transparent)]
    Compute(candle_core::Error),
    /// The GPU failed.
    #[cfg(feature = "cuda")]
    #[error("the GPU failed: {0}")]
    Gpu(#[from] crate::cuda::CudaError),
    /// A step was to be collected and none was begun.
    #[error("no step was begun")]
    NothingBegun,
}

impl From<candle_core::Error> for RunnerError {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(without_backtrace(error))
    }
}

/// How large a KV cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvSize {
    /// Blocks that it has.
    pub(crate) blocks: u32,
    /// Bytes of what was planned for it that it does not take.
    pub(crate) given_back_bytes: u64,
}

/// Computes steps; keeps what belongs to a sequence and is not a KV block (its place in the random stream, counts).
pub(crate) trait StepRunner: Send {
    /// A sequence begins: choice `choice` of `request`, with the random stream of `seed`.
    fn start(&mut self, seq: SeqId, request: Arc<Request>, choice: u32, seed: u64);

    /// A sequence has ended; its state can go.
    fn release(&mut self, seq: SeqId);

    /// Begins a step: copies blocks, runs the model, draws tokens. A GPU works on after this returns; one further step
    /// may be begun before this one is collected.
    ///
    /// # Errors
    /// [`RunnerError`]; the cache's content is then undefined.
    fn begin(&mut self, planned: &SchedulerOutput) -> Result<(), RunnerError>;

    /// Waits for the oldest step that was begun and not collected; what it has given.
    ///
    /// # Errors
    /// [`RunnerError`]; the cache's content is then undefined.
    fn collect(&mut self) -> Result<StepOutput, RunnerError>;

    /// Gives back the memory of the KV cache's blocks from `blocks` on, or takes it again, zeroed, as far as there is memory
    /// (of main memory `main_bytes` are free); what lies in the blocks before stays. No step is in flight. What it has then,
    /// which is more than `blocks` where it cannot shrink.
    ///
    /// # Errors
    /// [`RunnerError`]; the cache's content is then undefined.
    fn resize_kv(&mut self, blocks: u32, main_bytes: u64) -> Result<KvSize, RunnerError>;
}

impl<R: StepRunner + ?Sized> StepRunner for Box<R> {
    fn start(&mut self, seq: SeqId, request: Arc<Request>, choice: u32, seed: u64) {
        (**self).start(seq, request, choice, seed);
    }

    fn release(&mut self, seq: SeqId) {
        (**self).release(seq);
    }

    fn begin(&mut self, planned: &SchedulerOutput) -> Result<(), RunnerError> {
        (**self).begin(planned)
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        (**self).collect()
    }

    fn resize_kv(&mut self, blocks: u32, main_bytes: u64) -> Result<KvSize, RunnerError> {
        (**self).resize_kv(blocks, main_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::DecoderError;
    use candle_core::Error;
    use std::backtrace::Backtrace;

    #[test]
    fn errors_of_candles_are_told_without_their_backtraces() {
        let traced = || Error::WithBacktrace {
            inner: Box::new(Error::Msg("no room".into())),
            backtrace: Box::new(Backtrace::force_capture()),
        };
        assert_eq!(RunnerError::from(traced()).to_string(), "no room");
        assert_eq!(DecoderError::from(traced()).to_string(), "no room");
    }
}
