//! What a model takes of a GPU's memory. Pure numbers, in every build: a plan is made on machines without a GPU too.
//!
//! What kernels keep is counted here as the rooms that allocate it do; tests hold the two together.

use super::{MemoryPlan, Placement, PlanError, USABLE_SHARE, context_wanted, plan};
use crate::config::{EngineConfig, KvDType, StepSizes};
use crate::models::{DecoderSpec, ModelSource, Stack, StepPlace, Workspace};
use crate::ops::{
    Format, KvLayout, LatentShape, StackPart, gpu_expert_bytes, gpu_expert_room, gpu_fp8_bytes, gpu_fp8_room,
    gpu_order_room, gpu_weight_bytes,
};
use crate::weights::WeightName;

/// What a driver takes for a process before anything is allocated: its context, our kernels, cuBLAS's.
pub(super) const DRIVER_BYTES: u64 = 384 << 20;

/// An allowance for one recorded step.
const GRAPH_BYTES: u64 = 2 << 20;

/// cuBLASLt's workspace, and the parts of matrix products that our own kernels add up.
const LIBRARY_BYTES: u64 = 40 << 20;

/// Free memory below which a GPU's steps are smaller: such cards are also slower.
const SMALL_GPU_BYTES: u64 = 20 << 30;

/// Share of what the weights leave over that a step's buffers may take before smaller steps are chosen.
const STEP_SHARE: u64 = 4;

/// A GPU's memory as a plan sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GpuMemory {
    /// What is free once the driver has taken its own.
    pub(crate) free_bytes: u64,
    /// Whether the model's numbers are f16 rather than bf16.
    pub(crate) is_f16: bool,
}

/// What the weights take of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GpuWeights {
    /// Bytes of the weights themselves.
    pub(crate) bytes: u64,
    /// Bytes of the room where a weight is made dense, or inputs are brought into another form.
    pub(crate) dense_bytes: u64,
}

impl GpuWeights {
    /// Those of a model whose headers were read: matrices in block formats stay in them, and what else there is has the
    /// model's own type of two bytes. The largest stack in block formats has room to be made dense, for products of many
    /// rows; not the output layer, whose products have a row for each sequence. Experts are made dense some at a time.
    ///
    /// Where the card `takes_fp8`, multiplying fp8 by fp8, matrices of it with a scale a row are a byte a weight, and inputs
    /// of their products have a room. Whoever does not know counts blocks, which take 3 % more. An embedding of it stays in
    /// blocks.
    ///
    /// Where columns were sorted, matrices come with their order, and inputs in that order have a room; but an embedding, and
    /// experts, are dense.
    ///
    /// The up-projection of latents to keys is there twice: as it is, for prompts, and transposed, for queries to absorb.
    ///
    /// Of them those of the layers from `first` on, and the output; the room for dense weights is that of all layers.
    pub(crate) fn of(source: &ModelSource, first: usize, takes_fp8: bool) -> Self {
        let spec = &source.spec;
        let is_here = |stack: &Stack| match stack.parts[0].0 {
            WeightName::TokenEmbedding => first == 0 || spec.tied_embeddings,
            name => name.layer().is_none_or(|layer| layer as usize >= first),
        };
        let elsewhere = match first {
            0 => 0,
            _ if spec.tied_embeddings => spec.layer_parameters(0..first),
            _ => spec.layer_parameters(0..first) + spec.vocabulary_parameters(),
        };
        let (mut bytes, mut counted, mut dense_bytes) = (0, 0, 0);
        for stack in spec.stacks() {
            let Some(own) = StackWeights::of(source, &stack, takes_fp8) else { continue };
            if is_here(&stack) {
                bytes += own.bytes;
                counted += own.elements;
            }
            dense_bytes = dense_bytes.max(own.room);
        }
        for layer in first as u32..spec.layers as u32 {
            let Some(own) = expert_weights(source, layer) else { continue };
            bytes += own.bytes;
            counted += own.elements;
        }
        for layer in 0..spec.layers as u32 {
            dense_bytes = dense_bytes.max(expert_weights(source, layer).map_or(0, |own| own.room));
        }
        let uncounted = source.weights.parameters().saturating_sub(elsewhere + counted);
        let transposed = spec.latent.as_ref().map_or(0, |latent| {
            let LatentShape { heads, rank, nope, .. } = latent.shape;
            (heads * rank * nope * (spec.layers - first)) as u64
        });
        Self { bytes: bytes + 2 * (uncounted + transposed), dense_bytes }
    }
}

/// What matrices of the same columns take.
struct StackWeights {
    bytes: u64,
    /// Their number of weights.
    elements: u64,
    /// Room to make them dense, or for what is multiplied with them.
    room: u64,
}

impl StackWeights {
    /// Those of a stack, where all of it is there.
    fn of(source: &ModelSource, stack: &Stack, takes_fp8: bool) -> Option<Self> {
        let (weights, columns) = (&source.weights, stack.columns);
        let part = |(name, rows): &(WeightName, usize)| {
            let format = weights.format(*name, columns)?;
            Some(StackPart { format, rows: *rows, order: weights.sorted_by(*name) })
        };
        let mut parts = stack.parts.iter().map(part).collect::<Option<Vec<_>>>()?;
        let is_table = stack.parts[0].0 == WeightName::TokenEmbedding;
        if is_table && parts[0].order.is_some() {
            parts[0] = StackPart { format: Format::Bf16, order: None, ..parts[0] };
        }
        let rows = parts.iter().map(|part| part.rows).sum::<usize>();
        let elements = (columns * rows) as u64;
        let has_row_scales = stack.parts.iter().all(|(name, _)| weights.has_row_scales(*name, columns));
        let as_fp8 = gpu_fp8_bytes(rows, columns).filter(|_| takes_fp8 && has_row_scales && !is_table);
        let pieces = gpu_weight_bytes(&parts, columns);
        let is_dense = pieces == [2 * elements];
        let is_sorted = parts.iter().any(|part| part.order.is_some());
        let rooms = [
            as_fp8.map_or(0, |_| gpu_fp8_room(columns)),
            if is_sorted && !is_dense { gpu_order_room(columns) } else { 0 },
            if is_dense || is_vocabulary(stack) { 0 } else { 2 * elements },
        ];
        let pieces = as_fp8.map_or(pieces, Vec::from);
        let bytes = pieces.into_iter().map(in_pages).sum();
        Some(Self { bytes, elements, room: rooms.into_iter().max().unwrap_or(0) })
    }
}

/// What the experts of a layer take.
struct ExpertWeights {
    bytes: u64,
    /// Their number of weights.
    elements: u64,
    /// Room to make them dense, for prompts.
    room: u64,
}

/// The experts of a layer, where it has some.
fn expert_weights(source: &ModelSource, layer: u32) -> Option<ExpertWeights> {
    use WeightName::{ExpertDown, ExpertGate, ExpertUp};
    let (spec, experts) = (&source.spec, source.spec.experts_of(layer)?);
    let format = |name: WeightName, columns: usize| source.weights.format(name, columns);
    let formats = (0..experts.count as u32).map(|expert| {
        let (gate, up) = (ExpertGate(layer, expert), ExpertUp(layer, expert));
        let down = format(ExpertDown(layer, expert), experts.ffn)?;
        Some([format(gate, spec.hidden)?, format(up, spec.hidden)?, down])
    });
    let mut formats = formats.collect::<Option<Vec<_>>>()?;
    let is_sorted = |expert| {
        let names = [ExpertGate(layer, expert), ExpertUp(layer, expert), ExpertDown(layer, expert)];
        names.into_iter().any(|name| source.weights.sorted_by(name).is_some())
    };
    if (0..experts.count as u32).any(is_sorted) {
        formats.fill([Format::Bf16; 3]);
    }
    let bytes = gpu_expert_bytes(&formats, spec.hidden, experts.ffn);
    Some(ExpertWeights {
        bytes: bytes.into_iter().map(in_pages).sum(),
        elements: (3 * experts.count * experts.ffn * spec.hidden) as u64,
        room: gpu_expert_room(&formats, spec.hidden, experts.ffn),
    })
}

/// Bytes of the largest stack of a layer, made dense.
pub(super) fn dense_room(spec: &DecoderSpec) -> u64 {
    let stacks = spec.stacks().into_iter().filter(|stack| !is_vocabulary(stack));
    let elements = |stack: Stack| stack.columns * stack.parts.iter().map(|(_, rows)| rows).sum::<usize>();
    2 * stacks.map(elements).max().unwrap_or(0) as u64
}

/// Whether a stack is the embedding or the output layer.
fn is_vocabulary(stack: &Stack) -> bool {
    matches!(stack.parts[..], [(WeightName::TokenEmbedding | WeightName::Output, _)])
}

/// A page of a GPU's memory. What is at least half as large has pages of its own.
const PAGE_BYTES: u64 = 2 << 20;

/// What the driver takes for `bytes`.
fn in_pages(bytes: u64) -> u64 {
    if bytes < PAGE_BYTES / 2 { bytes } else { bytes.next_multiple_of(PAGE_BYTES) }
}

/// What is lost to whole pages where sizes are not known: half of one for each matrix of a layer.
pub(super) fn pages(spec: &DecoderSpec) -> u64 {
    4 * spec.layers as u64 * PAGE_BYTES / 2
}

/// What may be used of a card where `free_bytes` are free and this process may take `limit_bytes`.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))] // only a GPU is limited
pub(crate) fn usable_bytes(free_bytes: u64, limit_bytes: Option<u64>) -> u64 {
    limit_bytes.map_or(free_bytes, |limit| free_bytes.min(limit.saturating_sub(DRIVER_BYTES)))
}

/// Plans a model onto a GPU: the largest steps whose buffers leave most of the memory to the KV cache, and what fits then.
///
/// # Errors
/// [`PlanError`].
pub(crate) fn plan_for_gpu(
    spec: &DecoderSpec,
    weights: GpuWeights,
    config: &EngineConfig,
    memory: GpuMemory,
) -> Result<(MemoryPlan, StepSizes), PlanError> {
    let most = context_wanted(spec, config)?;
    let usable = (memory.free_bytes as f64 * USABLE_SHARE) as u64;
    let left = usable.saturating_sub(weights.bytes + weights.dense_bytes);
    let sizes = step_sizes(spec, config, memory.free_bytes, left, most);
    let fit = |context: u32, config: &EngineConfig| {
        let mut placement = placement(spec, sizes, context, memory.is_f16);
        placement.kernel_bytes += weights.dense_bytes;
        plan(spec, weights.bytes, config, sizes, placement, memory.free_bytes)
    };
    let plan = fit(most, config)?;
    if plan.context_length == most {
        return Ok((plan, sizes));
    }
    // Tables need not be made for more than fits; what that leaves over goes to the KV cache.
    let context = plan.context_length;
    let config = EngineConfig { context_length: Some(context), ..config.clone() };
    Ok((fit(context, &config)?, sizes))
}

/// The largest of the usual sizes whose buffers take no more than their share of what the weights leave over.
fn step_sizes(spec: &DecoderSpec, config: &EngineConfig, free_bytes: u64, left: u64, context: u32) -> StepSizes {
    let small = [StepSizes::SMALL_GPU, StepSizes::TINY_GPU];
    let usual = (free_bytes >= SMALL_GPU_BYTES).then_some(StepSizes::GPU).into_iter().chain(small);
    let mut sizes = usual.map(|defaults| config.step_sizes(defaults));
    let fits = |sizes: &StepSizes| {
        let placement = placement(spec, *sizes, context, false);
        let step = Workspace::bytes(spec, sizes.max_step_tokens as usize, placement.logit_rows, placement.step);
        step + placement.kernel_bytes + placement.graph_bytes <= left / STEP_SHARE
    };
    sizes.find(fits).unwrap_or(config.step_sizes(StepSizes::TINY_GPU))
}

fn placement(spec: &DecoderSpec, sizes: StepSizes, context: u32, is_f16: bool) -> Placement {
    let graphs = decode_sizes(sizes.max_sequences as usize).len() + mixed_sizes(sizes.max_step_tokens as usize).len();
    Placement {
        name: "on a GPU for such a model",
        step: StepPlace::Gpu,
        kv_dtypes: kv_dtypes(spec, is_f16),
        logit_rows: sizes.max_sequences as usize,
        kernel_bytes: kernel_bytes(spec, sizes, context as usize) + LIBRARY_BYTES,
        graph_bytes: GRAPH_BYTES * graphs as u64,
        kv_share: 1.0,
        max_full_contexts: u64::MAX,
    }
}

/// Types of the KV cache that a GPU has kernels for: the model's own, and fp8 for the usual sizes of heads. Latents are kept
/// in the model's own, whatever the size of q's heads.
pub(crate) fn kv_dtypes(spec: &DecoderSpec, is_f16: bool) -> &'static [KvDType] {
    let has_fp8 = spec.latent.is_none() && FP8_HEAD_DIMS.contains(&spec.head_dim);
    match (has_fp8, is_f16) {
        (true, false) => &[KvDType::Bf16, KvDType::Fp8],
        (true, true) => &[KvDType::F16, KvDType::Fp8],
        (false, false) => &[KvDType::Bf16],
        (false, true) => &[KvDType::F16],
    }
}

/// Head sizes whose attention reads fp8; as `cuda` says.
const FP8_HEAD_DIMS: [usize; 2] = [64, 128];

/// Tiles of prompts in a recorded step beyond those that its tokens fill: rows whose last tile is short.
pub(crate) const SPARE_TILES: usize = 16;

/// What belongs to the largest step besides its activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepLimits {
    /// Rows, and samples.
    pub(crate) sequences: usize,
    /// Tokens.
    pub(crate) tokens: usize,
    /// Entries of all block tables together.
    pub(crate) table_entries: usize,
    /// Work items of attention over rows of one token.
    pub(crate) items: usize,
    /// Tiles of attention over rows of several tokens.
    pub(crate) tiles: usize,
}

impl StepLimits {
    /// Those of steps of `sizes` over contexts of up to `context` tokens.
    pub(crate) fn new(sizes: StepSizes, context: usize) -> Self {
        let (sequences, tokens) = (sizes.max_sequences as usize, sizes.max_step_tokens as usize);
        Self {
            sequences,
            tokens,
            table_entries: sequences * context.div_ceil(KvLayout::BLOCK_SIZE),
            // Chunks of 256 tokens, at most 32 of a row.
            items: sequences * context.div_ceil(256).min(32),
            // A row's last tile may be short, and none has fewer queries than the smallest kernel's tile. Recorded steps are
            // filled up to spare ones, however few sequences there may be.
            tiles: sequences.max(SPARE_TILES) + tokens.div_ceil(64),
        }
    }
}

/// Bytes of rotary tables, attention's scratch memory, what experts hand to each other, the state that draws tokens, and a step's inputs and results.
pub(crate) fn kernel_bytes(spec: &DecoderSpec, sizes: StepSizes, context: usize) -> u64 {
    let limits = StepLimits::new(sizes, context);
    let rope = 4 * context * spec.rope.rotary_dim;
    let attention = attention_bytes(spec, limits);
    let sampling = sampling_bytes(limits.sequences, spec.vocab);
    (rope + attention + sampling + step_input_bytes(limits) + expert_bytes(spec, limits)) as u64
}

/// Bytes of `cuda::AttentionScratch`.
fn attention_bytes(spec: &DecoderSpec, limits: StepLimits) -> usize {
    let (heads, kv_heads, head_dim) = match &spec.latent {
        // Heads of a latent share it as their key.
        Some(latent) => (latent.shape.heads, 1, latent.shape.rank),
        None => (spec.q_heads, spec.kv_heads, spec.head_dim),
    };
    let partials = limits.items * heads * (head_dim + 4);
    let chunks = limits.sequences * kv_heads * (heads / kv_heads).div_ceil(8);
    let parts = partials / (64 * heads * (head_dim + 8)) * heads;
    4 * (partials + chunks.max(parts))
}

/// Bytes of `cuda::ExpertBuffers`.
fn expert_bytes(spec: &DecoderSpec, limits: StepLimits) -> usize {
    spec.experts.as_ref().map_or(0, |experts| {
        let pairs = limits.tokens * experts.routing.top_k;
        pairs * (2 * (spec.hidden + experts.ffn) + 4) + 4 * (experts.count + 1)
    })
}

/// Bytes of `cuda::Sampling`: for each sequence counts and changed logits of a vocabulary, and some lists.
fn sampling_bytes(rows: usize, vocab: usize) -> usize {
    let slices = vocab.div_ceil(4096) * (24 + 2 * 512);
    rows * (vocab * 6 + vocab.div_ceil(32) * 4 + slices + SAMPLING_EDIT_BYTES + 24) + SAMPLING_HISTORY_BYTES
}

/// Bytes of what is added to a sequence's logits, and of what is banned.
const SAMPLING_EDIT_BYTES: usize = 12 * 1024;
/// Bytes of the piece of a history that is brought over at a time.
const SAMPLING_HISTORY_BYTES: usize = 4 * 8192;

/// Bytes of `StepBuffers`: arrays of u32 at multiples of 256 bytes, and results of 176 bytes.
fn step_input_bytes(limits: StepLimits) -> usize {
    let StepLimits { sequences: rows, tokens, table_entries, items, tiles } = limits;
    let small = [rows + 1, rows, rows + 1, rows, 1, rows, 16 * rows, rows, rows, rows];
    let long = [2 * items, table_entries, 2 * rows, tokens, tokens, tokens, 4 * tiles, tokens, tokens];
    let arrays: usize = small.into_iter().chain(long).map(|words| (4 * words).next_multiple_of(256)).sum();
    arrays + 176 * (rows + tokens)
}

/// Most tokens of a recorded step that computes prompts: 256 that decode, with eight prompt tokens for each.
const MOST_MIXED_TOKENS: usize = 2304;

/// Batch sizes that are recorded, up to `most`: each of the small ones, then in steps that cost at most a fourth more.
pub(crate) fn decode_sizes(most: usize) -> Vec<usize> {
    let small = (1..=8).chain((16..=128).step_by(8));
    let mut sizes: Vec<usize> = small.chain((144..).step_by(16).take_while(|size| *size < most)).collect();
    sizes.retain(|size| *size < most);
    sizes.push(most);
    sizes
}

/// Numbers of tokens of steps with prompts that are recorded, up to `most`.
pub(crate) fn mixed_sizes(most: usize) -> Vec<usize> {
    let small = [16, 32, 48].into_iter().chain((64..256).step_by(32));
    let sizes = small.chain((256..1280).step_by(64)).chain((1280..=MOST_MIXED_TOKENS).step_by(128));
    sizes.filter(|size| *size <= most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_sizes_ascend_to_the_largest_batch() {
        for most in [1, 5, 8, 9, 64, 100, 129, 256, 1000] {
            let sizes = decode_sizes(most);
            assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
            assert_eq!((sizes[0], *sizes.last().expect("some")), (1, most));
        }
        assert_eq!(decode_sizes(12), [1, 2, 3, 4, 5, 6, 7, 8, 12]);
        assert_eq!(mixed_sizes(100), [16, 32, 48, 64, 96]);
        assert!(mixed_sizes(1 << 20).is_sorted_by(|a, b| a < b));
    }
}
