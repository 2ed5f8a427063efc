//! What is done once at start: time the ways to multiply, then record the graphs.
//!
//! What a graph holds is what an eager step queues; only the numbers of rows and of work items are the largest there may be.

use std::time::{Duration, Instant};

use crate::cuda::{AttentionPlan, Graph};
use crate::ops::{RowIndices, StepInputs};
use crate::runner::step::RunnerError;

use super::GpuRunner;
use super::buffers::Padding;
use super::graphs::{StepGraphs, mixed_padding};
use crate::runner::plan::{decode_sizes, mixed_sizes};

/// Rows for which the ways to multiply are timed; others take what is best for the next of these.
const TIMED_ROWS: [usize; 6] = [8, 16, 32, 64, 128, 256];

/// Steps that run once before anything is recorded, of those that are too long to be: the longest, and one of half as many
/// tokens. Libraries choose and load their kernels for such sizes then, and not for somebody's first prompt.
fn warmed_sizes(most: usize) -> impl Iterator<Item = usize> {
    let recorded = mixed_sizes(most).last().copied().unwrap_or(0);
    [most, most / 2].into_iter().filter(move |tokens| *tokens > recorded)
}

/// Longest time for one product.
const TIMING_BUDGET: Duration = Duration::from_millis(40);

impl GpuRunner {
    /// Finds the fastest way to multiply for each weight and some numbers of rows.
    ///
    /// # Errors
    /// What the GPU says.
    pub(super) fn tune(&mut self) -> Result<(), RunnerError> {
        let started = Instant::now();
        for rows in TIMED_ROWS.into_iter().filter(|rows| *rows <= self.logit_rows) {
            for product in self.model.products(rows, &self.workspace)? {
                self.gpu.tune(&product.x, &product.weights, &product.y, TIMING_BUDGET)?;
            }
        }
        tracing::info!(seconds = started.elapsed().as_secs_f32(), "timed the matrix products");
        Ok(())
    }

    /// Records a graph for each size. Each is run once before, as are longer steps, so that whatever is set up at first use is
    /// there.
    ///
    /// # Errors
    /// What the GPU says.
    pub(super) fn record_graphs(&mut self) -> Result<(), RunnerError> {
        let started = Instant::now();
        let decodes = decode_sizes(self.logit_rows).into_iter().map(|tokens| Padding { tokens, tiles: 0 });
        let decodes: Vec<_> = decodes.collect();
        let mixed: Vec<_> = mixed_sizes(self.max_step_tokens).into_iter().map(mixed_padding).collect();
        self.batch.clear();
        self.plan_attention();
        let long = |tokens: usize| Padding { tokens, tiles: tokens.div_ceil(64) };
        let warmed: Vec<_> = warmed_sizes(self.max_step_tokens).map(long).collect();
        for padding in warmed.iter().chain(&mixed) {
            self.upload(0, *padding)?;
            self.run_padded(*padding)?;
            self.gpu.gpu().synchronize()?;
        }
        for padding in &decodes {
            self.upload(0, *padding)?;
            self.run_padded(*padding)?;
            self.padded_logits(*padding)?;
            self.gpu.gpu().synchronize()?;
        }
        let record_decode =
            |padding| self.record(|| self.run_padded(padding).and_then(|()| self.padded_logits(padding)));
        let record_mixed = |padding| self.record(|| self.run_padded(padding));
        self.graphs = StepGraphs::record(&decodes, &mixed, record_decode, record_mixed)?;
        self.gpu.gpu().synchronize()?;
        let seconds = started.elapsed().as_secs_f32();
        tracing::info!(graphs = self.graphs.count(), seconds, "recorded the graphs");
        Ok(())
    }

    fn record(&self, queue: impl FnOnce() -> Result<(), RunnerError>) -> Result<Graph, RunnerError> {
        self.gpu.gpu().record_graph(queue)
    }

    /// Queues the forward pass of a padded step: with as many work items as it may ever have.
    pub(super) fn run_padded(&self, padding: Padding) -> Result<(), RunnerError> {
        let rows = padding.tokens.min(self.logit_rows);
        let inputs = self.inputs(padding, AttentionPlan::max_items(rows, self.context));
        Ok(self.model.forward(&self.compute, StepInputs::Gpu(&inputs), &self.kv, &self.workspace)?)
    }

    /// Queues the logits of a padded step's samples, of which there are at most as many as tokens.
    fn padded_logits(&self, padding: Padding) -> Result<(), RunnerError> {
        let samples = self.buffers.sample_tokens(padding.tokens);
        self.model.logits(&self.compute, RowIndices::Gpu(&samples), &self.workspace)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_steps_and_those_of_half_run_once_where_they_are_not_recorded() {
        let sizes = |most| warmed_sizes(most).collect::<Vec<_>>();
        assert_eq!(sizes(8192), [8192, 4096]);
        assert_eq!(sizes(3000), [3000]);
        assert_eq!(sizes(1100), [1100]);
        assert_eq!(sizes(2048), [0; 0]);
        assert_eq!(sizes(100), [100]);
        assert_eq!(sizes(16), [0; 0]);
    }
}
