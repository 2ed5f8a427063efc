//! Runs steps on a GPU: the host packs a step and queues it, and packs the next while that runs.
//!
//! Sampled tokens stay on the GPU for the step after; they reach the host when a step is collected. Nothing is allocated
//! after start, and nothing waits for the GPU but `collect`. Where the first layers are on the CPU, they are computed before
//! the GPU's part is queued, and one step is in flight at most: they need the tokens of the step before.

mod buffers;
mod cpu_layers;
#[cfg(test)]
mod form_tests;
#[cfg(test)]
mod golden_tests;
mod graphs;
#[cfg(test)]
mod kv_tests;
mod load;
#[cfg(test)]
mod memory_tests;
mod record;
mod sequences;
#[cfg(test)]
mod step_tests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cuda::{
    AttentionPlan, DType, Event, SampleOutput, SampleRow, Sampling, SamplingNeeds, Splits, tile_queries,
};
use crate::models::{Decoder, Workspace};
use crate::ops::{Compute, GpuCompute, GpuInputs, KvCache, KvLayout, RowIndices, StepInputs};
use crate::request::{Request, SeqId, TokenLogprobs};
use crate::sampling::{SampleError, Sampled};
use crate::scheduler::SchedulerOutput;

use super::batch::InputBatch;
use super::plan::room;
use super::pooling::{PoolPart, Pools};
use super::step::{KvSize, RunnerError, StepOutput, StepRunner};
use buffers::{HostInputs, Padding, StepArrays, StepBuffers};
use cpu_layers::CpuLayers;
use graphs::{Recorded, StepGraphs, mixed_tiles};
pub(crate) use load::GpuTarget;
pub(super) use load::load;
use sequences::Sequences;
#[cfg(test)]
pub(super) use sequences::sample_row;

/// Steps that may be in flight.
const SIDES: usize = 2;

/// A loaded model on a GPU.
pub(crate) struct GpuRunner {
    gpu: Arc<GpuCompute>,
    compute: Compute,
    model: Decoder,
    workspace: Workspace,
    /// Rows of logits computed at once, which is also the most rows of a step.
    logit_rows: usize,
    max_step_tokens: usize,
    kv: KvCache,
    sampling: Sampling,
    buffers: StepBuffers,
    graphs: StepGraphs,
    sequences: Sequences,
    pools: Pools,
    batch: InputBatch,
    plan: AttentionPlan,
    splits: Splits,
    /// The layers before the GPU's, if it has not all.
    cpu_layers: Option<CpuLayers>,
    query_lens: Vec<u32>,
    /// Most tokens of a sequence.
    context: usize,
    packed: Packed,
    done: [Event; SIDES],
    in_flight: VecDeque<InFlight>,
    side: usize,
}

/// Lists of one step, kept so that a step allocates nothing.
#[derive(Default)]
struct Packed {
    fresh: Vec<(SeqId, u32)>,
    copies: Vec<(u32, u32)>,
    sample_tokens: Vec<u32>,
    sample_rows: Vec<SampleRow>,
    /// Those with a target, then those that are pooled.
    prompt_tokens: Vec<u32>,
    prompt_targets: Vec<u32>,
    pool_parts: Vec<PoolPart>,
    /// The most alternatives that any of them asks for.
    prompt_alternatives: usize,
}

/// How a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By the graph of rows of one token, which holds the logits too.
    Decode,
    /// By the graph of so many tokens.
    Mixed,
    /// Kernel by kernel.
    Eager,
}

/// A step that was begun and not collected.
struct InFlight {
    side: usize,
    /// What its layers on the CPU took.
    cpu_time: Duration,
    samples: Vec<SeqId>,
    prompts: Vec<PromptRow>,
    pool_parts: Vec<PoolPart>,
    /// Its draws are not queued yet: they are when the step before is collected.
    draws_later: bool,
}

/// Prompt tokens of one row whose log-probabilities are asked for.
struct PromptRow {
    seq: SeqId,
    start: u32,
    count: usize,
}

impl StepRunner for GpuRunner {
    fn start(&mut self, seq: SeqId, request: Arc<Request>, choice: u32, seed: u64) {
        self.sequences.start(seq, request, choice, seed);
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.release(seq);
        self.pools.release(seq);
    }

    fn begin(&mut self, planned: &SchedulerOutput) -> Result<(), RunnerError> {
        let most = if self.cpu_layers.is_some() { 1 } else { SIDES };
        assert!(self.in_flight.len() < most, "a step was begun while {most} are in flight");
        let side = self.side;
        self.side = (side + 1) % SIDES;
        self.assign_slots(planned)?;
        let prompts = self.pack(planned);
        self.plan_attention();
        let way = self.choose(planned.samples.len());
        self.upload(side, self.padding(way))?;
        if !self.packed.copies.is_empty() {
            let (pairs, device_pairs) = (&self.packed.copies, self.buffers.copies(self.packed.copies.len()));
            self.gpu.copy_blocks(&self.kv, pairs, &device_pairs)?;
        }
        let cpu_time = self.run_cpu_layers()?;
        self.run(way, planned.samples.len())?;
        let (samples, pool_parts) = (planned.samples.clone(), self.packed.pool_parts.clone());
        // Rules for the next token want the last one: what draws by them is queued once it is known, while the model runs.
        let draws_later = !self.in_flight.is_empty() && self.sequences.have_masks(&samples);
        self.in_flight.push_back(InFlight { side, cpu_time, samples, prompts, pool_parts, draws_later });
        if draws_later { Ok(()) } else { self.draw() }
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        let step = self.in_flight.pop_front().ok_or(RunnerError::NothingBegun)?;
        let waiting = Instant::now();
        self.done[step.side].wait()?;
        let output = StepOutput { model_time: step.cpu_time + waiting.elapsed(), ..StepOutput::default() };
        let output = self.results(step, output);
        if self.in_flight.front().is_some_and(|next| next.draws_later) {
            self.draw()?;
        }
        Ok(output)
    }

    fn resize_kv(&mut self, blocks: u32, _main_bytes: u64) -> Result<KvSize, RunnerError> {
        assert!(self.in_flight.is_empty(), "the KV cache is resized while a step is in flight");
        // That of layers on the CPU stays as it is: main memory is not what the next model wants.
        let now = self.kv.blocks();
        if blocks as usize <= now {
            self.kv.resize(&self.compute, blocks as usize)?;
        } else {
            let (free_bytes, _) = self.gpu.gpu().memory()?;
            let most = now + room(free_bytes as u64, self.kv.block_bytes());
            if let Err(error) = self.kv.resize(&self.compute, most.min(blocks as usize)) {
                tracing::warn!(%error, "the KV cache stays as small as it is");
            }
        }
        Ok(KvSize { blocks: self.kv.blocks() as u32, given_back_bytes: self.kv.given_back_bytes() })
    }
}

impl GpuRunner {
    /// Reads what a step has given, whose work is done.
    fn results(&mut self, step: InFlight, mut output: StepOutput) -> StepOutput {
        let prompt_tokens = step.prompts.iter().map(|prompt| prompt.count).sum();
        let [samples, mut prompts] = self.buffers.results(step.side, step.samples.len(), prompt_tokens);
        for (seq, drawn) in step.samples.iter().zip(samples) {
            take_sample(&mut self.sequences, *seq, &drawn, &mut output);
        }
        for prompt in step.prompts {
            let count = self.sequences.get(prompt.seq).and_then(|state| state.request.sampling.prompt_logprobs);
            let own = prompts.by_ref().take(prompt.count);
            let logprobs = own.map(|output| logprobs(&output, count.unwrap_or(0))).collect();
            output.prompt_logprobs.push((prompt.seq, prompt.start, logprobs));
        }
        for (index, part) in step.pool_parts.iter().enumerate() {
            self.pools.begin(part);
            self.pools.add(part, std::iter::once(self.buffers.pooled(step.side, index).as_slice()));
            output.pooled.extend(self.pools.end(part));
        }
        output
    }

    /// Gives every sequence of the step a slot, and what a new slot must know.
    fn assign_slots(&mut self, planned: &SchedulerOutput) -> Result<(), RunnerError> {
        let late = planned.rows.iter().filter(|row| row.follows_sample).map(|row| row.seq);
        let seqs = late.chain(planned.samples.iter().copied());
        self.sequences.assign(seqs, &mut self.packed.fresh);
        for &(seq, slot) in &self.packed.fresh {
            let Some(state) = self.sequences.get(seq) else { continue };
            let (prompt, answered) = state.request.prompt_and_answered();
            let generated = state.counts_history().then(|| [answered, &state.generated].concat());
            let history = generated.as_ref().map(|generated| (prompt, generated.as_slice()));
            let bias = &state.request.sampling.logit_bias;
            let banned: Vec<u32> = state.banned().collect();
            self.sampling.begin_slot(self.gpu.gpu(), slot, state.generated.last().copied(), history, bias, &banned)?;
        }
        Ok(())
    }

    /// Packs a step into host arrays; the prompt tokens whose log-probabilities it is asked for.
    fn pack(&mut self, planned: &SchedulerOutput) -> Vec<PromptRow> {
        let sequences = &mut self.sequences;
        self.batch.fill(planned, KvLayout::BLOCK_SIZE as u32, |seq| sequences.late_token(seq));
        let packed = &mut self.packed;
        packed.copies.clear();
        packed.copies.extend(planned.copies.iter().map(|copy| (copy.source.0, copy.target.0)));
        packed.sample_rows.clear();
        packed.sample_rows.extend(planned.samples.iter().map(|seq| sequences.next_draw(*seq)));
        packed.sample_tokens.clear();
        packed.prompt_tokens.clear();
        packed.prompt_targets.clear();
        packed.pool_parts.clear();
        packed.prompt_alternatives = 0;
        let mut prompts = Vec::new();
        for row in &planned.rows {
            packed.sample_tokens.extend(row.samples.clone().map(|_| row.tokens.end as u32 - 1));
            if row.prompt_logprobs
                && let Some(state) = sequences.get(row.seq)
            {
                let next = state.request.prompt.iter().skip(row.start as usize + 1).take(row.tokens.len());
                packed.prompt_targets.extend(next);
                let alternatives = state.request.sampling.prompt_logprobs.unwrap_or(0) as usize;
                packed.prompt_alternatives = packed.prompt_alternatives.max(alternatives);
                let count = packed.prompt_targets.len() - packed.prompt_tokens.len();
                packed.prompt_tokens.extend((row.tokens.start as u32..).take(count));
                prompts.push(PromptRow { seq: row.seq, start: row.start, count });
            }
        }
        for row in &planned.rows {
            let request = sequences.get(row.seq).map(|state| &state.request);
            packed.pool_parts.extend(request.and_then(|request| Pools::part(row, request)));
        }
        packed.prompt_tokens.extend(packed.pool_parts.iter().flat_map(|part| part.tokens.clone()));
        prompts
    }

    /// Lists what attention works through in the packed step.
    fn plan_attention(&mut self) {
        let attention = &self.batch.attention;
        self.query_lens.clear();
        self.query_lens.extend(attention.cu_seqlens_q.windows(2).map(|ends| ends[1] - ends[0]));
        let tile = tile_queries(self.model.spec().head_dim, self.batch.tokens.len());
        let splits = Splits { max_tiles: mixed_tiles(self.batch.tokens.len()), ..self.splits };
        self.plan.fill(&attention.context_lens, &self.query_lens, tile, splits);
    }

    fn upload(&mut self, side: usize, padding: Padding) -> Result<(), RunnerError> {
        let (batch, packed) = (&self.batch, &self.packed);
        let inputs = HostInputs {
            ids: &batch.tokens,
            positions: &batch.positions,
            slots: &batch.attention.slot_mapping,
            cu_seqlens_q: &batch.attention.cu_seqlens_q,
            context_lens: &batch.attention.context_lens,
            table_offsets: &batch.attention.table_offsets,
            block_tables: &batch.attention.block_tables,
            first_item: &self.plan.first_item,
            items: &self.plan.items,
            tiles: &self.plan.tiles,
            copies: &packed.copies,
            sample_tokens: &packed.sample_tokens,
            sample_rows: &packed.sample_rows,
            prompt_tokens: &packed.prompt_tokens,
            prompt_targets: &packed.prompt_targets,
        };
        Ok(self.buffers.upload(self.gpu.gpu(), side, &inputs, padding)?)
    }

    /// How the packed step runs: by which graph, and so how it is padded.
    fn choose(&self, samples: usize) -> Way {
        let (tokens, tiles) = (self.batch.tokens.len(), self.plan.tiles.len());
        let prompt_logprobs = !self.packed.prompt_targets.is_empty();
        if tiles == 0 && samples <= tokens && !prompt_logprobs && self.graphs.for_decodes(tokens).is_some() {
            return Way::Decode;
        }
        if self.graphs.for_mixed(tokens, tiles).is_some() { Way::Mixed } else { Way::Eager }
    }

    /// The graph that the packed step runs by.
    fn recorded(&self, way: Way) -> Option<&Recorded> {
        let (tokens, tiles) = (self.batch.tokens.len(), self.plan.tiles.len());
        match way {
            Way::Decode => self.graphs.for_decodes(tokens),
            Way::Mixed => self.graphs.for_mixed(tokens, tiles),
            Way::Eager => None,
        }
    }

    /// What the packed step is filled up to.
    fn padding(&self, way: Way) -> Padding {
        let own = Padding { tokens: self.batch.tokens.len(), tiles: self.plan.tiles.len() };
        self.recorded(way).map_or(own, |recorded| recorded.padding)
    }

    /// Computes the packed step's layers on the CPU, if there are some, and queues the copy of what they leave; the time
    /// that took.
    fn run_cpu_layers(&mut self) -> Result<Duration, RunnerError> {
        let started = Instant::now();
        let Some(layers) = &mut self.cpu_layers else { return Ok(Duration::ZERO) };
        let stream = self.workspace.stream(self.batch.tokens.len())?;
        layers.run(self.gpu.gpu(), &self.batch, &self.packed.copies, stream.gpu()?)?;
        Ok(started.elapsed())
    }

    /// Queues the model and the logits.
    fn run(&mut self, way: Way, samples: usize) -> Result<(), RunnerError> {
        match self.recorded(way) {
            Some(recorded) => self.gpu.gpu().launch_graph(&recorded.graph)?,
            None => {
                let inputs = self.inputs(self.padding(way), self.plan.items.len());
                let inputs = GpuInputs { prompt_blocks: self.prompt_blocks(), ..inputs };
                self.model.forward(&self.compute, StepInputs::Gpu(&inputs), &self.kv, &self.workspace)?;
            }
        }
        if way != Way::Decode {
            self.queue_logits(samples)?;
        }
        Ok(())
    }

    /// Queues the draws of the step that was begun last, and the copy of its results.
    fn draw(&mut self) -> Result<(), RunnerError> {
        let Some(step) = self.in_flight.back_mut() else { return Err(RunnerError::NothingBegun) };
        step.draws_later = false;
        let (side, samples) = (step.side, step.samples.len());
        if self.sequences.have_masks(&step.samples) {
            self.sequences.compute_masks();
            for (row, seq) in self.packed.sample_rows.iter_mut().zip(&step.samples) {
                if let Some((slot, allowed)) = self.sequences.mask(*seq) {
                    row.flags |= SampleRow::MASK;
                    self.buffers.upload_mask(self.gpu.gpu(), &self.sampling.mask(slot), slot, allowed)?;
                }
            }
            self.buffers.upload_sample_rows(self.gpu.gpu(), side, &self.packed.sample_rows)?;
        }
        let needs = SamplingNeeds::of(&self.packed.sample_rows);
        let logits = self.workspace.logits(samples)?;
        let rows = self.buffers.sample_rows(samples);
        self.sampling.sample(self.gpu.gpu(), logits.gpu()?, &rows, needs, &self.buffers.outputs(samples))?;
        self.buffers.download(self.gpu.gpu(), side, samples, self.packed.prompt_targets.len())?;
        self.queue_pooling(side)?;
        Ok(self.gpu.gpu().mark(&self.done[side])?)
    }

    /// Queues the log-probabilities of prompt tokens, then the logits of the samples.
    fn queue_logits(&self, samples: usize) -> Result<(), RunnerError> {
        let prompt_tokens = self.packed.prompt_targets.len();
        for from in (0..prompt_tokens).step_by(self.logit_rows) {
            let count = self.logit_rows.min(prompt_tokens - from);
            let (rows, targets) = self.buffers.prompt_tokens(from, count);
            let logits = self.model.logits(&self.compute, RowIndices::Gpu(&rows), &self.workspace)?;
            let outputs = self.buffers.prompt_outputs(from, count);
            let alternatives = self.packed.prompt_alternatives;
            self.sampling.prompt_logprobs(self.gpu.gpu(), logits.gpu()?, &targets, alternatives, &outputs)?;
        }
        if samples > 0 {
            let rows = self.buffers.sample_tokens(samples);
            self.model.logits(&self.compute, RowIndices::Gpu(&rows), &self.workspace)?;
        }
        Ok(())
    }

    /// Queues the sums of the hidden states that are pooled, and the copy of them to results memory `side`. They lie where
    /// the step's logits were, which nothing reads any more.
    fn queue_pooling(&mut self, side: usize) -> Result<(), RunnerError> {
        let parts = self.packed.pool_parts.len();
        if parts == 0 {
            return Ok(());
        }
        let sums = self.workspace.logits(parts)?.gpu()?.view(0, parts, self.model.spec().hidden, DType::F32);
        let mut from = self.packed.prompt_targets.len();
        for (index, part) in self.packed.pool_parts.iter().enumerate() {
            let sum = sums.slice(index, 1);
            for start in (0..part.tokens.len()).step_by(self.logit_rows) {
                let count = self.logit_rows.min(part.tokens.len() - start);
                let (rows, _) = self.buffers.prompt_tokens(from + start, count);
                let states = self.model.hidden(&self.compute, RowIndices::Gpu(&rows), &self.workspace)?;
                self.gpu.sum_rows(states.gpu()?, &sum, start > 0)?;
            }
            from += part.tokens.len();
        }
        Ok(self.buffers.download_pooled(self.gpu.gpu(), side, &sums)?)
    }

    /// A step of this size, where [`Self::upload`] puts it, with at most `items` work items of rows of one token.
    fn inputs(&self, padding: Padding, items: usize) -> GpuInputs {
        let Padding { tokens, tiles } = padding;
        let StepArrays { ids, positions, slots, attention } = self.buffers.arrays(tokens);
        let last_tokens = self.sampling.last_tokens().clone();
        GpuInputs { tokens, ids, last_tokens, positions, slots, attention, items, tiles, prompt_blocks: 0..0 }
    }

    /// Entries of the packed step's block tables from the first row of several tokens to the last.
    fn prompt_blocks(&self) -> Range<usize> {
        let offsets = &self.batch.attention.table_offsets;
        let is_prompt = |row: &usize| self.query_lens[*row] > 1;
        let rows = 0..self.query_lens.len();
        match (rows.clone().find(is_prompt), rows.rev().find(is_prompt)) {
            (Some(first), Some(last)) => offsets[first] as usize..offsets[last + 1] as usize,
            _ => 0..0,
        }
    }
}

/// What was drawn for `seq`, told to who counts it and to who asked.
fn take_sample(sequences: &mut Sequences, seq: SeqId, drawn: &SampleOutput, output: &mut StepOutput) {
    if drawn.status != 0 {
        output.failed.push((seq, SampleError::NotFinite));
    }
    let mut wanted = None;
    if let Some((state, broken)) = sequences.collected(seq, drawn.token) {
        wanted = state.logprobs();
        output.failed.extend(broken.map(|reason| (seq, SampleError::Grammar(reason))));
    }
    let logprobs = wanted.map(|count| logprobs(drawn, count));
    output.sampled.push(Sampled { seq, token: drawn.token, logprobs });
}

fn logprobs(output: &SampleOutput, count: u32) -> TokenLogprobs {
    let top = output.top_ids.iter().copied().zip(output.top_logprobs).take(count as usize).collect();
    TokenLogprobs { logprob: output.logprob, rank: output.rank, top }
}
