//! Runs one step of the model: input batch, KV storage, memory plan.
//!
//! Knows what a step is, not why it was planned so.

mod batch;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
#[cfg(test)]
mod golden;
#[cfg(feature = "cuda")]
mod gpu;
mod load;
mod model_runner;
mod plan;
mod pooling;
#[cfg(test)]
mod quantize_tests;
mod step;

#[cfg(test)]
pub(crate) use crate::models::ModelSource;
pub(crate) use crate::models::{GenerationDefaults, GgufVocab, TokenizerSource};
pub(crate) use crate::ops::{KvLayout, give_back_freed};
#[cfg(test)]
pub(crate) use crate::sampling::Sampled;
pub(crate) use crate::sampling::{SampleError, random_seed};
#[cfg(feature = "cuda")]
pub(crate) use gpu::GpuTarget;
pub(crate) use load::{LoadedModel, ModelFiles, Target, describe, load};
pub use load::{ModelError, ModelFacts};
pub(crate) use plan::preview;
pub use plan::{MemoryToPlan, Offload, PlanError, PlanPreview};
#[cfg(test)]
pub(crate) use step::KvSize;
pub use step::RunnerError;
pub(crate) use step::{StepOutput, StepRunner};
