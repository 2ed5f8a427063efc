//! Runs steps on this machine's processor: packs the batch, runs it, draws tokens.
//!
//! Knows no requests beyond what sampling needs, and nothing of why a step was planned so.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::models::{Decoder, Workspace};
use crate::ops::{Compute, KvCache, KvLayout, RowIndices};
use crate::request::{Request, SeqId, TokenId, TokenLogprobs};
use crate::sampling::{Sampled, Sampler, token_logprobs};
use crate::scheduler::{ScheduledRow, SchedulerOutput};

use super::batch::InputBatch;
use super::plan::{LOGIT_ROWS, MemoryPlan, room};
use super::pooling::Pools;
use super::step::{KvSize, RunnerError, StepOutput, StepRunner};

/// A loaded model with its KV storage and its sampler.
pub(crate) struct ModelRunner {
    compute: Compute,
    model: Decoder,
    workspace: Workspace,
    kv: KvCache,
    sampler: Sampler,
    batch: InputBatch,
    last_sampled: HashMap<SeqId, TokenId>,
    pools: Pools,
    /// Steps that were begun, and so computed, and not collected.
    computed: VecDeque<StepOutput>,
}

/// What one row of logits is for.
struct LogitUse<'a> {
    row: &'a ScheduledRow,
    /// The token's place in its sequence.
    position: u32,
    /// Who draws from it.
    samples: Range<usize>,
}

impl ModelRunner {
    /// Allocates what `plan` says.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn new(
        compute: Compute,
        model: Decoder,
        plan: &MemoryPlan,
        max_step_tokens: usize,
    ) -> Result<Self, RunnerError> {
        let spec = model.spec();
        let (layout, least) = (spec.kv_layout(plan.kv_dtype), plan.least_blocks() as usize);
        let kv = KvCache::shrinkable(&compute, model.layer_count(), layout, plan.blocks as usize, least)?;
        let workspace = Workspace::new(spec, max_step_tokens, LOGIT_ROWS, &compute)?;
        Ok(Self {
            compute,
            model,
            workspace,
            kv,
            sampler: Sampler::default(),
            batch: InputBatch::default(),
            last_sampled: HashMap::new(),
            pools: Pools::default(),
            computed: VecDeque::new(),
        })
    }

    fn forward(&mut self, planned: &SchedulerOutput) -> candle_core::Result<()> {
        if !planned.copies.is_empty() {
            let copies: Vec<(u32, u32)> = planned.copies.iter().map(|copy| (copy.source.0, copy.target.0)).collect();
            self.kv.copy_blocks(&self.compute, &copies)?;
        }
        let last_sampled = &self.last_sampled;
        self.batch.fill(planned, KvLayout::BLOCK_SIZE as u32, |seq| last_sampled.get(&seq).copied());
        self.model.forward(&self.compute, self.batch.on_cpu(), &self.kv, &self.workspace)
    }

    /// Adds up the hidden states of the rows that are pooled.
    fn pool(&mut self, planned: &SchedulerOutput, output: &mut StepOutput) -> Result<(), RunnerError> {
        let hidden = self.model.spec().hidden;
        for row in &planned.rows {
            let Some(part) = self.sampler.request(row.seq).and_then(|request| Pools::part(row, request)) else {
                continue;
            };
            self.pools.begin(&part);
            let tokens: Vec<u32> = part.tokens.clone().collect();
            for tokens in tokens.chunks(LOGIT_ROWS) {
                let states = self.model.hidden(&self.compute, RowIndices::Cpu(tokens), &self.workspace)?;
                self.pools.add(&part, states.source("pool", "hidden states")?.chunks(hidden));
            }
            output.pooled.extend(self.pools.end(&part));
        }
        Ok(())
    }

    /// Draws from, and reports on, one row of logits [vocab].
    fn consume(&mut self, planned: &SchedulerOutput, purpose: &LogitUse<'_>, logits: &[f32], output: &mut StepOutput) {
        if purpose.row.prompt_logprobs
            && let Some(logprobs) = self.prompt_logprobs(purpose, logits)
        {
            match output.prompt_logprobs.last_mut() {
                Some((seq, _, found)) if *seq == purpose.row.seq => found.push(logprobs),
                _ => output.prompt_logprobs.push((purpose.row.seq, purpose.row.start, vec![logprobs])),
            }
        }
        for seq in &planned.samples[purpose.samples.clone()] {
            match self.sampler.sample(*seq, logits) {
                Ok(sampled) => {
                    self.last_sampled.insert(*seq, sampled.token);
                    output.sampled.push(sampled);
                }
                Err(error) => {
                    output.failed.push((*seq, error));
                    output.sampled.push(Sampled { seq: *seq, token: 0, logprobs: None });
                }
            }
        }
    }

    /// The log-probability of the prompt token after this one, if there is one and it is asked for.
    fn prompt_logprobs(&self, purpose: &LogitUse<'_>, logits: &[f32]) -> Option<TokenLogprobs> {
        let request = self.sampler.request(purpose.row.seq)?;
        let next = request.prompt.get(purpose.position as usize + 1)?;
        Some(token_logprobs(logits, *next, request.sampling.prompt_logprobs?))
    }
}

impl StepRunner for ModelRunner {
    fn start(&mut self, seq: SeqId, request: Arc<Request>, choice: u32, seed: u64) {
        self.sampler.start(seq, request, choice, seed);
    }

    fn release(&mut self, seq: SeqId) {
        self.sampler.release(seq);
        self.last_sampled.remove(&seq);
        self.pools.release(seq);
    }

    fn begin(&mut self, planned: &SchedulerOutput) -> Result<(), RunnerError> {
        let started = Instant::now();
        self.forward(planned)?;
        let mut output = StepOutput { model_time: started.elapsed(), ..StepOutput::default() };
        self.pool(planned, &mut output)?;
        let purposes = logit_uses(planned);
        let indices = std::mem::take(&mut self.batch.logit_tokens);
        for (indices, purposes) in indices.chunks(LOGIT_ROWS).zip(purposes.chunks(LOGIT_ROWS)) {
            let started = Instant::now();
            let logits = self.model.logits(&self.compute, RowIndices::Cpu(indices), &self.workspace)?;
            output.model_time += started.elapsed();
            let logits = logits.source("sample", "logits")?;
            let vocab = self.model.spec().vocab;
            for (row, purpose) in logits.chunks(vocab).zip(purposes) {
                self.consume(planned, purpose, row, &mut output);
            }
        }
        self.batch.logit_tokens = indices;
        self.computed.push_back(output);
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        self.computed.pop_front().ok_or(RunnerError::NothingBegun)
    }

    fn resize_kv(&mut self, blocks: u32, main_bytes: u64) -> Result<KvSize, RunnerError> {
        let most = self.kv.blocks() + room(main_bytes, self.kv.block_bytes());
        self.kv.resize(&self.compute, most.min(blocks as usize))?;
        Ok(KvSize { blocks: self.kv.blocks() as u32, given_back_bytes: self.kv.given_back_bytes() })
    }
}

/// What the logits that [`InputBatch::logit_tokens`] names are for, in that order.
fn logit_uses(planned: &SchedulerOutput) -> Vec<LogitUse<'_>> {
    let mut uses = Vec::with_capacity(planned.samples.len());
    for row in &planned.rows {
        let end = row.start + row.tokens.len() as u32;
        let first = if row.prompt_logprobs { row.start } else { end - 1 };
        if row.samples.is_empty() && !row.prompt_logprobs {
            continue;
        }
        for position in first..end {
            let samples = if position + 1 == end { row.samples.clone() } else { 0..0 };
            uses.push(LogitUse { row, position, samples });
        }
    }
    uses
}
