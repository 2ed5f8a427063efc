//! The layers of a model that its GPU has no room for: computed on the CPU, before those of the GPU.
//!
//! Keys and values of these layers are in main memory, in blocks of the same numbers as the GPU's.

use std::sync::Arc;

use crate::cuda::{DeviceTensor, Gpu, PinnedMemory};
use crate::models::{Decoder, ModelSource, Workspace};
use crate::ops::{Compute, Cpu, KvCache};
use crate::runner::batch::InputBatch;
use crate::runner::load::ModelError;
use crate::runner::plan::MemoryPlan;
use crate::runner::step::RunnerError;

/// The first layers of a model, and its embedding.
pub(super) struct CpuLayers {
    compute: Compute,
    model: Decoder,
    workspace: Workspace,
    kv: KvCache,
    /// Where the residual stream waits for its copy to the GPU.
    staging: PinnedMemory,
}

impl CpuLayers {
    /// The first `layers` layers of `source`, with what `plan` says and room for steps of up to `max_tokens` tokens.
    ///
    /// # Errors
    /// [`ModelError`]: a tensor is missing, or there is no memory.
    pub(super) fn load(
        gpu: &Gpu,
        cpu: Arc<Cpu>,
        source: &ModelSource,
        layers: usize,
        plan: &MemoryPlan,
        max_tokens: usize,
    ) -> Result<Self, ModelError> {
        let (compute, spec) = (Compute::Cpu(cpu), &source.spec);
        let model = Decoder::load_layers(&compute, spec.clone(), &source.weights, plan.context_length, 0..layers)?;
        let layout = spec.kv_layout(plan.kv_dtype);
        let kv = KvCache::zeros(&compute, layers, layout, plan.blocks as usize).map_err(RunnerError::from)?;
        let workspace = Workspace::new(spec, max_tokens, 1, &compute).map_err(RunnerError::from)?;
        let staging = gpu.pinned(size_of::<f32>() * max_tokens * spec.hidden).map_err(RunnerError::from)?;
        Ok(Self { compute, model, workspace, kv, staging })
    }

    /// Computes a packed step, whose tokens are all known, and queues the copy of its residual stream to `target`,
    /// `[tokens, hidden]` of f32. No step is in flight.
    ///
    /// # Errors
    /// If a token is not known, or shapes do not fit; what the driver says.
    pub(super) fn run(
        &mut self,
        gpu: &Gpu,
        batch: &InputBatch,
        copies: &[(u32, u32)],
        target: &DeviceTensor,
    ) -> Result<(), RunnerError> {
        if !copies.is_empty() {
            self.kv.copy_blocks(&self.compute, copies)?;
        }
        self.model.forward(&self.compute, batch.on_cpu(), &self.kv, &self.workspace)?;
        let stream = self.workspace.stream(batch.tokens.len())?;
        let stream = stream.source("upload", "the residual stream")?;
        let bytes = self.staging.as_mut_slice();
        for (target, value) in bytes.chunks_exact_mut(size_of::<f32>()).zip(stream.iter()) {
            target.copy_from_slice(&value.to_ne_bytes());
        }
        Ok(gpu.queue_upload(target, &self.staging, 0, size_of_val(&*stream))?)
    }
}
