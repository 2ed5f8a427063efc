//! A step's inputs and results in GPU memory, at addresses that never change, and their copies in page-locked memory.
//!
//! Knows places and sizes, not what is computed. Everything that a step of up to `sequences` tokens needs lies together,
//! the block tables last, so that one copy brings it over; what other steps have besides (tokens of prompts, tiles) follows,
//! each copied as far as it is filled.

use crate::cuda::{AttentionArrays, CudaError, DType, DeviceTensor, Gpu, PinnedMemory, SampleOutput, SampleRow};
use crate::runner::plan::StepLimits;

/// What fills a step up to the size of a recorded one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Padding {
    /// Tokens, at least those of the step.
    pub(super) tokens: usize,
    /// Tiles, at least those of the step.
    pub(super) tiles: usize,
}

/// Where one array lies, in bytes from the start, and how many u32 it has room for.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: usize,
    words: usize,
}

/// Lays arrays one behind the other, each at a multiple of 256 bytes.
#[derive(Default)]
struct Layout {
    bytes: usize,
}

impl Layout {
    fn place(&mut self, words: usize) -> Place {
        let place = Place { offset: self.bytes, words };
        self.bytes = (self.bytes + 4 * words).next_multiple_of(256);
        place
    }
}

/// Places of all arrays.
#[derive(Clone, Copy, Debug)]
struct Places {
    cu_seqlens_q: Place,
    context_lens: Place,
    table_offsets: Place,
    first_item: Place,
    item_count: Place,
    sample_tokens: Place,
    sample_rows: Place,
    ids: Place,
    positions: Place,
    slots: Place,
    items: Place,
    /// Copied over with all the above.
    block_tables: Place,
    copies: Place,
    many_ids: Place,
    many_positions: Place,
    many_slots: Place,
    tiles: Place,
    prompt_tokens: Place,
    prompt_targets: Place,
    bytes: usize,
}

impl Places {
    fn new(limits: StepLimits) -> Self {
        let (rows, tokens) = (limits.sequences, limits.tokens);
        let mut layout = Layout::default();
        let [cu_seqlens_q, context_lens, table_offsets] = [rows + 1, rows, rows + 1].map(|words| layout.place(words));
        let [first_item, item_count, sample_tokens] = [rows, 1, rows].map(|words| layout.place(words));
        let sample_rows = layout.place(rows * size_of::<SampleRow>() / 4);
        let [ids, positions, slots] = [rows; 3].map(|words| layout.place(words));
        let [items, block_tables, copies] =
            [2 * limits.items, limits.table_entries, 2 * rows].map(|words| layout.place(words));
        let [many_ids, many_positions, many_slots, tiles] =
            [tokens, tokens, tokens, 4 * limits.tiles].map(|words| layout.place(words));
        let [prompt_tokens, prompt_targets] = [tokens; 2].map(|words| layout.place(words));
        Self {
            cu_seqlens_q,
            context_lens,
            table_offsets,
            first_item,
            item_count,
            sample_tokens,
            sample_rows,
            ids,
            positions,
            slots,
            items,
            block_tables,
            copies,
            many_ids,
            many_positions,
            many_slots,
            tiles,
            prompt_tokens,
            prompt_targets,
            bytes: layout.bytes,
        }
    }
}

impl Places {
    /// Where ids, positions and slots of a step lie.
    fn tokens(&self, few: bool) -> [Place; 3] {
        if few { [self.ids, self.positions, self.slots] } else { [self.many_ids, self.many_positions, self.many_slots] }
    }
}

/// One step's inputs on the host, as they go over.
#[derive(Clone, Copy)]
pub(super) struct HostInputs<'a> {
    pub(super) ids: &'a [u32],
    pub(super) positions: &'a [u32],
    pub(super) slots: &'a [u32],
    pub(super) cu_seqlens_q: &'a [u32],
    pub(super) context_lens: &'a [u32],
    pub(super) table_offsets: &'a [u32],
    pub(super) block_tables: &'a [u32],
    pub(super) first_item: &'a [u32],
    pub(super) items: &'a [[u32; 2]],
    pub(super) tiles: &'a [[u32; 4]],
    /// From and to, of blocks to copy.
    pub(super) copies: &'a [(u32, u32)],
    /// Which token's logits each sample is drawn from.
    pub(super) sample_tokens: &'a [u32],
    pub(super) sample_rows: &'a [SampleRow],
    /// Tokens whose next token's log-probability is asked for, and that token.
    pub(super) prompt_tokens: &'a [u32],
    pub(super) prompt_targets: &'a [u32],
}

/// The arrays of a step on the GPU.
pub(super) struct StepArrays {
    pub(super) ids: DeviceTensor,
    pub(super) positions: DeviceTensor,
    pub(super) slots: DeviceTensor,
    pub(super) attention: AttentionArrays,
}

/// GPU memory for the inputs and results of a step, and page-locked memory for those of two.
pub(super) struct StepBuffers {
    limits: StepLimits,
    places: Places,
    inputs: DeviceTensor,
    staging: [PinnedMemory; 2],
    outputs: DeviceTensor,
    prompt_outputs: DeviceTensor,
    results: [PinnedMemory; 2],
    /// `[rows, hidden]` f32 each.
    pooled: [PinnedMemory; 2],
    hidden: usize,
    /// A row of words for each slot. One is enough: a step's masks are written when the draws of the step before are done.
    masks: PinnedMemory,
}

impl StepBuffers {
    /// Allocates everything.
    ///
    /// # Errors
    /// If there is no room.
    pub(super) fn new(gpu: &Gpu, limits: StepLimits, hidden: usize, vocab: usize) -> Result<Self, CudaError> {
        let places = Places::new(limits);
        let what = "the inputs of a step";
        let outputs = |rows: usize| gpu.zeros(rows, size_of::<SampleOutput>(), DType::U8, what);
        let (outputs, prompt_outputs) = (outputs(limits.sequences)?, outputs(limits.tokens)?);
        let result_bytes = outputs.bytes() + prompt_outputs.bytes();
        Ok(Self {
            limits,
            places,
            inputs: gpu.zeros(1, places.bytes, DType::U8, what)?,
            staging: [gpu.pinned(places.bytes)?, gpu.pinned(places.bytes)?],
            outputs,
            prompt_outputs,
            results: [gpu.pinned(result_bytes)?, gpu.pinned(result_bytes)?],
            pooled: [gpu.pinned(4 * limits.sequences * hidden)?, gpu.pinned(4 * limits.sequences * hidden)?],
            hidden,
            masks: gpu.pinned(4 * limits.sequences * vocab.div_ceil(32))?,
        })
    }

    /// Bytes of GPU memory that [`Self::new`] takes.
    #[cfg(test)]
    pub(super) fn bytes(limits: StepLimits) -> usize {
        Places::new(limits).bytes + (limits.sequences + limits.tokens) * size_of::<SampleOutput>()
    }

    /// Queues the copy of a step's inputs, filled up to `padding`, by way of staging memory `side`, which no step in flight
    /// uses. What fills it writes no keys and values, and no tile of it has work.
    ///
    /// # Errors
    /// If a step is larger than the limits; what the driver says.
    pub(super) fn upload(
        &mut self,
        gpu: &Gpu,
        side: usize,
        inputs: &HostInputs<'_>,
        padding: Padding,
    ) -> Result<(), CudaError> {
        let (places, few) = (self.places, padding.tokens <= self.limits.sequences);
        let staging = &mut self.staging[side];
        let mut writer = Writer { bytes: staging.as_mut_slice() };
        writer.words(places.cu_seqlens_q, inputs.cu_seqlens_q)?;
        writer.words(places.context_lens, inputs.context_lens)?;
        writer.words(places.table_offsets, inputs.table_offsets)?;
        writer.words(places.first_item, inputs.first_item)?;
        writer.words(places.item_count, &[inputs.items.len() as u32])?;
        writer.words(places.sample_tokens, inputs.sample_tokens)?;
        writer.bytes(places.sample_rows, SampleRow::as_bytes(inputs.sample_rows))?;
        writer.words(places.items, inputs.items.as_flattened())?;
        let (tables, table_bytes) = writer.words(places.block_tables, inputs.block_tables)?;
        let mut long = Vec::with_capacity(7);
        long.push(writer.pairs(places.copies, inputs.copies)?);
        let (tiles, _) = writer.words(places.tiles, inputs.tiles.as_flattened())?;
        writer.fill(places.tiles, 4 * inputs.tiles.len(), 4 * padding.tiles, PADDING)?;
        long.push((tiles, 16 * padding.tiles));
        long.push(writer.words(places.prompt_tokens, inputs.prompt_tokens)?);
        long.push(writer.words(places.prompt_targets, inputs.prompt_targets)?);
        let [ids, positions, slots] = places.tokens(few);
        for (place, words, value) in
            [(ids, inputs.ids, 0), (positions, inputs.positions, 0), (slots, inputs.slots, PADDING)]
        {
            writer.words(place, words)?;
            writer.fill(place, words.len(), padding.tokens, value)?;
            if !few {
                long.push((place.offset, 4 * padding.tokens));
            }
        }
        writer.fill(places.sample_tokens, inputs.sample_tokens.len(), self.limits.sequences, 0)?;
        let staging = &self.staging[side];
        gpu.queue_upload(&self.inputs, staging, 0, tables + table_bytes)?;
        for (offset, bytes) in long {
            gpu.queue_upload(&self.inputs.view(offset, 1, bytes, DType::U8), staging, offset, bytes)?;
        }
        Ok(())
    }

    /// Queues the copy of which tokens may come next in `slot` to `target`, u32 `[1, words]`; what lies behind the last word
    /// of `allowed` may not. The draws of the step before are done.
    ///
    /// # Errors
    /// What the driver says.
    pub(super) fn upload_mask(
        &mut self,
        gpu: &Gpu,
        target: &DeviceTensor,
        slot: u32,
        allowed: &[u32],
    ) -> Result<(), CudaError> {
        let (bytes, offset) = (target.bytes(), slot as usize * target.bytes());
        let place = Place { offset, words: target.columns() };
        let mut writer = Writer { bytes: self.masks.as_mut_slice() };
        let known = allowed.len().min(place.words);
        writer.words(place, &allowed[..known])?;
        writer.fill(place, known, place.words, 0)?;
        gpu.queue_upload(target, &self.masks, offset, bytes)
    }

    /// Queues the copy of the parameters of a step's samples once more, by way of staging memory `side`, as [`Self::upload`]
    /// did. Should that copy still be under way, it is this one that is read: it comes after.
    ///
    /// # Errors
    /// What the driver says.
    pub(super) fn upload_sample_rows(&mut self, gpu: &Gpu, side: usize, rows: &[SampleRow]) -> Result<(), CudaError> {
        let mut writer = Writer { bytes: self.staging[side].as_mut_slice() };
        let (offset, bytes) = writer.bytes(self.places.sample_rows, SampleRow::as_bytes(rows))?;
        gpu.queue_upload(&self.inputs.view(offset, 1, bytes, DType::U8), &self.staging[side], offset, bytes)
    }

    fn array(&self, place: Place, words: usize) -> DeviceTensor {
        assert!(words <= place.words, "a step larger than its buffers");
        self.inputs.view(place.offset, 1, words, DType::U32)
    }

    /// The arrays of a step of `tokens`, where [`Self::upload`] puts them.
    pub(super) fn arrays(&self, tokens: usize) -> StepArrays {
        let places = &self.places;
        let whole = |place: Place| self.array(place, place.words);
        let [ids, positions, slots] = places.tokens(tokens <= self.limits.sequences);
        StepArrays {
            ids: self.array(ids, tokens),
            positions: self.array(positions, tokens),
            slots: self.array(slots, tokens),
            attention: AttentionArrays {
                cu_seqlens_q: whole(places.cu_seqlens_q),
                context_lens: whole(places.context_lens),
                block_tables: whole(places.block_tables),
                table_offsets: whole(places.table_offsets),
                items: whole(places.items),
                first_item: whole(places.first_item),
                item_count: whole(places.item_count),
                tiles: whole(places.tiles),
            },
        }
    }

    /// Pairs of blocks to copy: `[1, 2 count]`.
    pub(super) fn copies(&self, count: usize) -> DeviceTensor {
        self.array(self.places.copies, 2 * count)
    }

    /// Which token's logits each of `count` samples is drawn from.
    pub(super) fn sample_tokens(&self, count: usize) -> DeviceTensor {
        self.array(self.places.sample_tokens, count)
    }

    /// The parameters of `count` samples.
    pub(super) fn sample_rows(&self, count: usize) -> DeviceTensor {
        self.inputs.view(self.places.sample_rows.offset, count, size_of::<SampleRow>(), DType::U8)
    }

    /// Prompt tokens `from .. from + count` whose next token's log-probability is asked for, and those next tokens.
    pub(super) fn prompt_tokens(&self, from: usize, count: usize) -> (DeviceTensor, DeviceTensor) {
        let slice = |place: Place| self.inputs.view(place.offset + 4 * from, 1, count, DType::U32);
        assert!(from + count <= self.places.prompt_tokens.words, "more prompt tokens than buffers");
        (slice(self.places.prompt_tokens), slice(self.places.prompt_targets))
    }

    /// Where the results of `count` samples go.
    pub(super) fn outputs(&self, count: usize) -> DeviceTensor {
        self.outputs.slice(0, count)
    }

    /// Where the results of prompt tokens `from .. from + count` go.
    pub(super) fn prompt_outputs(&self, from: usize, count: usize) -> DeviceTensor {
        self.prompt_outputs.slice(from, count)
    }

    /// Queues the copy of a step's results to results memory `side`.
    ///
    /// # Errors
    /// What the driver says.
    pub(super) fn download(&mut self, gpu: &Gpu, side: usize, samples: usize, prompt: usize) -> Result<(), CudaError> {
        let row = size_of::<SampleOutput>();
        gpu.queue_download(&mut self.results[side], 0, &self.outputs, samples * row)?;
        gpu.queue_download(&mut self.results[side], self.outputs.bytes(), &self.prompt_outputs, prompt * row)
    }

    /// Queues the copy of a step's sums, f32 `[parts, hidden]`, to results memory `side`.
    ///
    /// # Errors
    /// What the driver says.
    pub(super) fn download_pooled(&mut self, gpu: &Gpu, side: usize, sums: &DeviceTensor) -> Result<(), CudaError> {
        gpu.queue_download(&mut self.pooled[side], 0, sums, sums.bytes())
    }

    /// Sum `index` of a step whose download the stream has passed.
    pub(super) fn pooled(&self, side: usize, index: usize) -> Vec<f32> {
        let bytes = &self.pooled[side].as_slice()[4 * self.hidden * index..][..4 * self.hidden];
        bytes.chunks_exact(4).map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect()
    }

    /// The results of a step whose download the stream has passed: of its samples, and of its prompt tokens.
    pub(super) fn results(
        &self,
        side: usize,
        samples: usize,
        prompt: usize,
    ) -> [impl Iterator<Item = SampleOutput> + '_; 2] {
        let row = size_of::<SampleOutput>();
        let (first, second) = self.results[side].as_slice().split_at(self.outputs.bytes());
        [&first[..samples * row], &second[..prompt * row]].map(SampleOutput::read)
    }
}

/// A slot or a row that stands for none: nothing is written for it.
const PADDING: u32 = u32::MAX;

/// Writes arrays to their places.
struct Writer<'a> {
    bytes: &'a mut [u8],
}

impl Writer<'_> {
    /// Writes `bytes` to `place`; where they went and how many.
    fn bytes(&mut self, place: Place, bytes: &[u8]) -> Result<(usize, usize), CudaError> {
        if bytes.len() > 4 * place.words {
            let message = format!("{} bytes where there is room for {}", bytes.len(), 4 * place.words);
            return Err(CudaError::argument("a step", message));
        }
        self.bytes[place.offset..][..bytes.len()].copy_from_slice(bytes);
        Ok((place.offset, bytes.len()))
    }

    fn words(&mut self, place: Place, words: &[u32]) -> Result<(usize, usize), CudaError> {
        if words.len() > place.words {
            let message = format!("{} numbers where there is room for {}", words.len(), place.words);
            return Err(CudaError::argument("a step", message));
        }
        let target = &mut self.bytes[place.offset..][..4 * words.len()];
        for (target, word) in target.chunks_exact_mut(4).zip(words) {
            target.copy_from_slice(&word.to_ne_bytes());
        }
        Ok((place.offset, 4 * words.len()))
    }

    fn pairs(&mut self, place: Place, pairs: &[(u32, u32)]) -> Result<(usize, usize), CudaError> {
        let words: Vec<u32> = pairs.iter().flat_map(|(from, to)| [*from, *to]).collect();
        self.words(place, &words)
    }

    /// Fills numbers `from .. to` of a place.
    fn fill(&mut self, place: Place, from: usize, to: usize, value: u32) -> Result<(), CudaError> {
        if from > to || to > place.words {
            let message = format!("numbers {from}..{to} where there is room for {}", place.words);
            return Err(CudaError::argument("a step", message));
        }
        for target in self.bytes[place.offset + 4 * from..place.offset + 4 * to].chunks_exact_mut(4) {
            target.copy_from_slice(&value.to_ne_bytes());
        }
        Ok(())
    }
}
