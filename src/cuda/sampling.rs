//! From logits to tokens on the GPU: `kernels/sampling/`, and the state of each sequence that it needs there.
//!
//! Does what the sampler on the CPU does, row by row. A sequence that is drawn for has a slot, which holds its last
//! token, how often it has seen each token, and what changes its logits. Knows not whose slot it is.

mod row;

use std::mem::size_of;

pub use row::{MAX_TOP_LOGPROBS, SampleOutput, SampleRow, SamplingNeeds};

use super::check::{expect, expect_at_least, require};
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid, Kernel};

/// Entries of a slot's bias, and of its banned tokens.
pub const MAX_EDITS: usize = crate::request::MAX_LISTED_TOKENS;

/// Tokens of a history that go to the GPU at once.
const HISTORY_CHUNK: usize = 8192;

/// Threads of a block that looks after a whole row.
const ROW_THREADS: u32 = 1024;

/// Dynamic shared memory of `draw`: two histograms of 2048 sums and counts, 4096 weights, and a little.
const DRAW_SHARED_BYTES: usize = 2 * 2048 * 12 + 4096 * 4 + 512;

/// Dynamic shared memory of the kernels for log-probabilities: 2048 counts, 4096 candidates, and a little.
const LOGPROBS_SHARED_BYTES: usize = 2048 * 4 + 4096 * 8 + 1024;

/// Tokens of a slice of a row, few and many rows.
const SLICES: [usize; 2] = [4096, 8192];

/// Tokens of a slice that tells of itself, its threads, and how many of its tokens it lists at most: as in
/// `kernels/include/slices.cuh`.
const SLICE: usize = 4096;
const SLICE_THREADS: u32 = 256;
const LISTED: usize = 512;

/// Bytes of what such a slice tells.
const SLICE_BYTES: usize = 24;

/// Kernels that draw tokens, the sequences' state, and room for one step.
pub struct Sampling {
    kernels: Kernels,
    vocab: usize,
    slots: usize,
    multiprocessors: usize,
    /// u32 `[1, slots]`.
    last_tokens: DeviceTensor,
    /// u16 `[slots, vocab]`, as bytes: times generated; the top bit: in the prompt.
    counts: DeviceTensor,
    /// Pairs of token and f32 `[slots, MAX_EDITS]`.
    bias: DeviceTensor,
    /// u32 `[slots, MAX_EDITS]`.
    bans: DeviceTensor,
    /// u32 `[slots, vocab / 32]`, rounded up: a bit for each token, 1 may come.
    masks: DeviceTensor,
    /// f32 `[slots, vocab]`: changed logits, then weights.
    edited: DeviceTensor,
    /// What each slice of a row tells `[slots, slices x SLICE_BYTES]`, and u16 `[slots, slices x LISTED]` as bytes: its
    /// best tokens.
    slices: DeviceTensor,
    lists: DeviceTensor,
    /// u64 `[slots]`, twice, and u32 `[slots]`: largest logits, the same in the making, and blocks that have ended.
    best: DeviceTensor,
    partial: DeviceTensor,
    tickets: DeviceTensor,
    /// u32 `[1, HISTORY_CHUNK]`.
    history: DeviceTensor,
}

#[derive(Clone, Copy)]
struct Kernels {
    set_last_token: Kernel,
    mark_tokens: Kernel,
    edit_logits: Kernel,
    greedy: Kernel,
    weigh: Kernel,
    draw: Kernel,
    sample_logit_slices: Kernel,
    sample_logprobs: Kernel,
    target_logit_slices: Kernel,
    target_logprobs: Kernel,
}

impl Kernels {
    fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        let kernels = Self {
            set_last_token: gpu.kernel("history", "set_last_token")?,
            mark_tokens: gpu.kernel("history", "mark_tokens")?,
            edit_logits: gpu.kernel("history", "edit_logits")?,
            greedy: gpu.kernel("greedy", "greedy")?,
            weigh: gpu.kernel("weigh", "weigh")?,
            draw: gpu.kernel("draw", "draw")?,
            sample_logit_slices: gpu.kernel("logprobs", "sample_logit_slices")?,
            sample_logprobs: gpu.kernel("logprobs", "sample_logprobs")?,
            target_logit_slices: gpu.kernel("logprobs", "target_logit_slices")?,
            target_logprobs: gpu.kernel("logprobs", "target_logprobs")?,
        };
        gpu.allow_shared_memory(kernels.draw, DRAW_SHARED_BYTES)?;
        Ok(kernels)
    }
}

impl Sampling {
    /// Bytes of GPU memory that [`Self::new`] takes.
    #[cfg(test)]
    pub fn bytes(rows: usize, vocab: usize) -> usize {
        let slices = vocab.div_ceil(SLICE) * (SLICE_BYTES + 2 * LISTED);
        rows * (vocab * (2 + 4) + vocab.div_ceil(32) * 4 + slices + MAX_EDITS * (8 + 4) + 4 + 8 + 8 + 4)
            + HISTORY_CHUNK * 4
    }

    /// State and room for `rows` sequences, and as many rows a step, of a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// If there is no room, or a kernel is missing.
    pub fn new(gpu: &Gpu, rows: usize, vocab: usize) -> Result<Self, CudaError> {
        let slices = vocab.div_ceil(SLICE);
        require("sampling", rows > 0 && vocab > 0 && slices <= ROW_THREADS as usize, || {
            format!("{rows} rows of {vocab} tokens")
        })?;
        let zeros = |columns: usize, dtype: DType| gpu.zeros(rows, columns, dtype, "what draws tokens");
        Ok(Self {
            kernels: Kernels::load(gpu)?,
            vocab,
            slots: rows,
            multiprocessors: gpu.limits().multiprocessors,
            last_tokens: zeros(1, DType::U32)?.reshape(1, rows, DType::U32),
            counts: zeros(2 * vocab, DType::U8)?,
            bias: zeros(2 * MAX_EDITS, DType::U32)?,
            bans: zeros(MAX_EDITS, DType::U32)?,
            masks: zeros(vocab.div_ceil(32), DType::U32)?,
            edited: zeros(vocab, DType::F32)?,
            slices: zeros(slices * SLICE_BYTES, DType::U8)?,
            lists: zeros(slices * LISTED * 2, DType::U8)?,
            best: zeros(2, DType::U32)?,
            partial: zeros(2, DType::U32)?,
            tickets: zeros(1, DType::U32)?,
            history: gpu.zeros(1, HISTORY_CHUNK, DType::U32, "what draws tokens")?,
        })
    }

    /// The last token of each slot, u32 `[1, slots]`.
    pub fn last_tokens(&self) -> &DeviceTensor {
        &self.last_tokens
    }

    /// Gives `slot` to a sequence: its last token where there is one, its history (prompt, answer) where penalties ask
    /// for it, what is added to its logits, and what may not come yet. Does not wait for the GPU. A token that comes
    /// twice in `bias` gets the sum.
    ///
    /// # Errors
    /// If the slot is outside, or `bias` or `banned` have more than [`MAX_EDITS`] entries; what the driver says.
    pub fn begin_slot(
        &self,
        gpu: &Gpu,
        slot: u32,
        last_token: Option<u32>,
        history: Option<(&[u32], &[u32])>,
        bias: &[(u32, f32)],
        banned: &[u32],
    ) -> Result<(), CudaError> {
        const OP: &str = "begin_slot";
        let row = slot as usize;
        require(OP, row < self.slots, || format!("slot {slot} of {}", self.slots))?;
        require(OP, bias.len().max(banned.len()) <= MAX_EDITS, || {
            format!("{} biased and {} banned tokens", bias.len(), banned.len())
        })?;
        if let Some(token) = last_token {
            let arguments = Arguments::new().tensor(&self.last_tokens).u32(slot).u32(token);
            // SAFETY: the slot is inside.
            unsafe { gpu.launch(self.kernels.set_last_token, Grid::linear(1, 1), arguments) }?;
        }
        if let Some((prompt, generated)) = history {
            gpu.fill_zero(&self.counts.slice(row, 1))?;
            self.mark(gpu, slot, prompt, false)?;
            self.mark(gpu, slot, generated, true)?;
        }
        if !bias.is_empty() {
            gpu.queue_upload_of(&self.bias.slice(row, 1), &words(merged(bias).as_flattened()))?;
        }
        if !banned.is_empty() {
            gpu.queue_upload_of(&self.bans.slice(row, 1), &words(banned))?;
        }
        Ok(())
    }

    /// Where it is read which tokens may come next in `slot`: u32 `[1, words]`, a bit for each of the vocabulary, the lowest of
    /// a word first. Rows with [`SampleRow::MASK`] alone read it.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn mask(&self, slot: u32) -> DeviceTensor {
        self.masks.slice(slot as usize, 1)
    }

    fn mark(&self, gpu: &Gpu, slot: u32, tokens: &[u32], generated: bool) -> Result<(), CudaError> {
        for chunk in tokens.chunks(HISTORY_CHUNK) {
            gpu.queue_upload_of(&self.history, &words(chunk))?;
            let arguments = Arguments::new().tensor(&self.counts).tensor(&self.history).u32(slot).size(chunk.len());
            let arguments = arguments.size(self.vocab).size(usize::from(generated));
            // SAFETY: the slot is inside; the kernel bounds the tokens.
            unsafe { gpu.launch(self.kernels.mark_tokens, Grid::linear(chunk.len().div_ceil(256), 256), arguments) }?;
        }
        Ok(())
    }

    /// Draws a token for each row of `logits` f32 `[r, vocab]`: `rows` are [`SampleRow`]s as bytes `[r, 64]`, `outputs`
    /// [`SampleOutput`]s as bytes `[r, 176]`; `r` is at most what [`Self::new`] was told. `needs` covers what the rows
    /// ask for. Also keeps the slots' last tokens and counts. Logits stay as they are. No two rows have one slot.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub fn sample(
        &self,
        gpu: &Gpu,
        logits: &DeviceTensor,
        rows: &DeviceTensor,
        needs: SamplingNeeds,
        outputs: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "sample";
        let count = logits.rows();
        require(OP, count <= self.slots, || format!("{count} rows, room for {}", self.slots))?;
        expect(OP, "the logits", logits, DType::F32, count, self.vocab)?;
        expect_at_least(OP, "rows", rows, DType::U8, count * size_of::<SampleRow>())?;
        expect_at_least(OP, "outputs", outputs, DType::U8, count * size_of::<SampleOutput>())?;
        if needs.edits {
            self.edit(gpu, logits, rows)?;
        }
        self.greedy(gpu, logits, rows, outputs)?;
        if needs.draws {
            self.draw(gpu, logits, rows, outputs)?;
        }
        if needs.logprobs {
            self.logprobs(gpu, logits, rows, outputs)?;
        }
        Ok(())
    }

    /// Log-probability and rank of given tokens, `targets` u32 with `r` elements, under `logits` f32 `[r, vocab]`, each
    /// with `alternatives` of the likeliest tokens, [`MAX_TOP_LOGPROBS`] at most; `outputs` as in [`Self::sample`], and
    /// `r` too.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub fn prompt_logprobs(
        &self,
        gpu: &Gpu,
        logits: &DeviceTensor,
        targets: &DeviceTensor,
        alternatives: usize,
        outputs: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "prompt_logprobs";
        let count = logits.rows();
        require(OP, count <= self.slots, || format!("{count} rows, room for {}", self.slots))?;
        expect(OP, "the logits", logits, DType::F32, count, self.vocab)?;
        expect_at_least(OP, "targets", targets, DType::U32, count)?;
        expect_at_least(OP, "outputs", outputs, DType::U8, count * size_of::<SampleOutput>())?;
        let alternatives = alternatives.min(MAX_TOP_LOGPROBS);
        let arguments = Arguments::new().tensor(&self.slices).tensor(&self.lists).tensor(logits).tensor(targets);
        let arguments = arguments.size(self.vocab).size(alternatives);
        // SAFETY: shapes were checked; the kernel bounds the targets.
        unsafe { gpu.launch(self.kernels.target_logit_slices, self.slice_grid(count), arguments) }?;
        let arguments = Arguments::new().tensor(outputs).tensor(logits).tensor(targets).tensor(&self.slices);
        let arguments = arguments.tensor(&self.lists).size(self.vocab).size(alternatives);
        // SAFETY: as above; `slices` and `lists` are what the kernel before has written.
        unsafe { gpu.launch(self.kernels.target_logprobs, row_grid(count, LOGPROBS_SHARED_BYTES), arguments) }
    }

    fn logprobs(
        &self,
        gpu: &Gpu,
        logits: &DeviceTensor,
        rows: &DeviceTensor,
        outputs: &DeviceTensor,
    ) -> Result<(), CudaError> {
        let arguments = Arguments::new().tensor(&self.slices).tensor(&self.lists).tensor(outputs).tensor(logits);
        let arguments = arguments.tensor(rows).size(self.vocab);
        // SAFETY: `sample` checked the shapes; tokens come from the kernels before.
        unsafe { gpu.launch(self.kernels.sample_logit_slices, self.slice_grid(logits.rows()), arguments) }?;
        let arguments = Arguments::new().tensor(outputs).tensor(logits).tensor(rows).tensor(&self.slices);
        let arguments = arguments.tensor(&self.lists).size(self.vocab);
        let grid = row_grid(logits.rows(), LOGPROBS_SHARED_BYTES);
        // SAFETY: as above; `slices` and `lists` are what the kernel before has written.
        unsafe { gpu.launch(self.kernels.sample_logprobs, grid, arguments) }
    }

    /// A block for each slice of each of `rows` rows.
    fn slice_grid(&self, rows: usize) -> Grid {
        let mut grid = Grid::linear(rows, SLICE_THREADS);
        grid.blocks[1] = self.vocab.div_ceil(SLICE) as u32;
        grid
    }

    fn edit(&self, gpu: &Gpu, logits: &DeviceTensor, rows: &DeviceTensor) -> Result<(), CudaError> {
        let arguments = Arguments::new().tensor(&self.edited).tensor(logits).tensor(rows).tensor(&self.counts);
        let arguments =
            arguments.tensor(&self.bias).tensor(&self.bans).tensor(&self.masks).size(self.vocab).size(self.slots);
        let mut grid = Grid::linear(logits.rows(), 256);
        grid.blocks[1] = self.vocab.div_ceil(SLICES[0]) as u32;
        // SAFETY: `sample` checked the shapes; the kernel bounds slots and tokens.
        unsafe { gpu.launch(self.kernels.edit_logits, grid, arguments.size(SLICES[0])) }
    }

    fn greedy(
        &self,
        gpu: &Gpu,
        logits: &DeviceTensor,
        rows: &DeviceTensor,
        outputs: &DeviceTensor,
    ) -> Result<(), CudaError> {
        let arguments = Arguments::new().tensor(outputs).tensor(&self.best).tensor(&self.partial).tensor(&self.tickets);
        let arguments = arguments.tensor(&self.last_tokens).tensor(&self.counts).tensor(logits).tensor(&self.edited);
        // Eight blocks fit a multiprocessor: small slices where they all run at once anyway.
        let few = logits.rows() * self.vocab.div_ceil(SLICES[0]) <= 16 * self.multiprocessors;
        let slice = SLICES[usize::from(!few)];
        let mut grid = Grid::linear(logits.rows(), 256);
        grid.blocks[1] = self.vocab.div_ceil(slice) as u32;
        let arguments = arguments.tensor(rows).size(self.vocab).size(self.slots).size(slice);
        // SAFETY: `sample` checked the shapes; `partial` and `tickets` are zero between launches.
        unsafe { gpu.launch(self.kernels.greedy, grid, arguments) }
    }

    fn draw(
        &self,
        gpu: &Gpu,
        logits: &DeviceTensor,
        rows: &DeviceTensor,
        outputs: &DeviceTensor,
    ) -> Result<(), CudaError> {
        let arguments = Arguments::new().tensor(&self.slices).tensor(&self.lists).tensor(logits).tensor(&self.edited);
        let arguments = arguments.tensor(&self.best).tensor(rows).size(self.vocab).size(self.slots);
        // SAFETY: `sample` checked the shapes; `best` is what `greedy` has written.
        unsafe { gpu.launch(self.kernels.weigh, self.slice_grid(logits.rows()), arguments) }?;
        let arguments = Arguments::new().tensor(outputs).tensor(&self.edited).tensor(&self.last_tokens);
        let arguments = arguments.tensor(&self.counts).tensor(logits).tensor(&self.best).tensor(rows);
        let arguments = arguments.tensor(&self.slices).tensor(&self.lists).size(self.vocab).size(self.slots);
        // SAFETY: `sample` checked the shapes; the shared memory was allowed when the kernel was loaded.
        unsafe { gpu.launch(self.kernels.draw, row_grid(logits.rows(), DRAW_SHARED_BYTES), arguments) }
    }
}

/// A block of [`ROW_THREADS`] a row.
fn row_grid(rows: usize, shared_bytes: usize) -> Grid {
    Grid { shared_bytes: shared_bytes as u32, ..Grid::linear(rows, ROW_THREADS) }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Pairs of token and bits of the bias, each token once, filled up to as many with a token that there is not.
fn merged(bias: &[(u32, f32)]) -> Vec<[u32; 2]> {
    let mut sums: Vec<(u32, f32)> = Vec::with_capacity(bias.len());
    for &(token, value) in bias {
        match sums.iter_mut().find(|(other, _)| *other == token) {
            Some((_, sum)) => *sum += value,
            None => sums.push((token, value)),
        }
    }
    sums.resize(bias.len(), (u32::MAX, 0.0));
    sums.into_iter().map(|(token, value)| [token, value.to_bits()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_biased_twice_gets_the_sum() {
        let found = merged(&[(4, 1.0), (7, 2.0), (4, 0.5)]);
        assert_eq!(found, [[4, 1.5_f32.to_bits()], [7, 2.0_f32.to_bits()], [u32::MAX, 0]]);
    }
}
