//! Recording the decode graphs at start.
//!
//! What a graph holds is what an eager step queues; only the numbers of rows and of work items are the largest there may be.

use std::time::Instant;

use crate::cuda::AttentionPlan;
use crate::ops::{RowIndices, StepInputs};
use crate::runner::step::RunnerError;

use super::GpuRunner;
use super::graphs::{DecodeGraphs, batch_sizes};

impl GpuRunner {
    /// Records a graph for each batch size. Each is run once before, so that whatever is set up at first use is there.
    ///
    /// # Errors
    /// What the GPU says.
    pub(super) fn record_graphs(&mut self) -> Result<(), RunnerError> {
        let started = Instant::now();
        let sizes = batch_sizes(self.logit_rows);
        self.batch.clear();
        self.plan_attention();
        self.upload(0)?;
        for rows in &sizes {
            self.run_padded(*rows)?;
        }
        self.gpu.gpu().synchronize()?;
        self.graphs = DecodeGraphs::record(&sizes, |rows| self.gpu.gpu().record_graph(|| self.run_padded(rows)))?;
        self.gpu.gpu().synchronize()?;
        tracing::info!(graphs = sizes.len(), seconds = started.elapsed().as_secs_f32(), "recorded the decode graphs");
        Ok(())
    }

    /// Queues a decode step of `rows` as it is recorded: with as many work items as it may ever have.
    fn run_padded(&self, rows: usize) -> Result<(), RunnerError> {
        let items = AttentionPlan::max_items(rows, self.context);
        let inputs = self.inputs(rows, items, 0);
        self.model.forward(&self.compute, StepInputs::Gpu(&inputs), &self.kv, &self.workspace)?;
        let samples = self.buffers.sample_tokens(rows);
        self.model.logits(&self.compute, RowIndices::Gpu(&samples), &self.workspace)?;
        Ok(())
    }
}
