//! The loop that turns requests into tokens, on one OS thread of its own. Knows no HTTP and no text.

mod delivery;
mod handle;
mod load;
mod metrics;
mod run;
#[cfg(test)]
pub(crate) mod tests;

#[cfg(feature = "cuda")]
pub(crate) use crate::runner::GpuTarget;
#[cfg(test)]
pub(crate) use crate::runner::ModelSource;
pub(crate) use crate::runner::{
    GenerationDefaults, GgufVocab as VocabFields, LoadedModel, ModelFiles, Target, TokenizerSource, describe, preview,
};
pub use crate::runner::{MemoryToPlan, ModelFacts, Offload, PlanPreview};
pub(crate) use crate::scheduler::blocks_for;
#[cfg(test)]
pub(crate) use handle::{Command, KvResize, Submission, channel};
pub use handle::{EVENT_CAPACITY, EngineHandle, EngineLimits, EngineStatus, RequestStream, SubmitError};
pub use load::StartError;
pub(crate) use load::{BLOCK_TOKENS, start};
pub use metrics::{EngineMetrics, MetricsSnapshot};
#[cfg(test)]
pub(crate) use run::spawn;
