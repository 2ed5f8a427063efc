//! Attention over the paged cache: `kernels/attention/`, checked and launched.
//!
//! Rows with one query go to `decode`, rows with more to `prefill`; a mixed step calls both, in any order, and each
//! writes its own rows. What they work through, `AttentionPlan` lists. Knows not who owns a block.

mod plan;

pub use plan::{AttentionPlan, Splits, tile_queries};
use plan::{DIVIDED_TILE_QUERIES, TILE_QUERIES, counter_bytes, part_slots, partial_bytes};

use super::maps::TensorMap;
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid, Kernel};

/// Tokens of a cache block.
const BLOCK_TOKENS: usize = 16;

/// Threads of a block of either kernel.
const THREADS: u32 = 128;

/// Threads of a block of Hopper's own prefill kernels (`attention_sm90a.cuh`).
pub(super) const HOPPER_THREADS: u32 = 384;

/// Queries of their tiles, and keys.
pub(super) const HOPPER_TILE: usize = 128;

/// Their shared memory, for keys and values of so many elements of two bytes: q and two tiles of both, from a multiple of 1024
/// bytes.
pub(super) const fn hopper_shared_bytes(key: usize, value: usize) -> usize {
    1024 + 2 * HOPPER_TILE * (3 * key + 2 * value)
}

/// Head sizes that it has.
const HOPPER_HEAD_DIMS: [usize; 2] = [64, 128];

/// Head sizes that have kernels.
pub const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];

/// Head sizes that have kernels for a cache of fp8.
pub const FP8_HEAD_DIMS: [usize; 2] = [64, 128];

/// The most q heads that share a kv head.
pub const MAX_GROUP: usize = 64;

/// What a layer's attention looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`, at most 64 times as many.
    pub q_heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head: 64, 96, 128 or 256.
    pub head_dim: usize,
    /// What scores are multiplied with; above zero.
    pub scale: f32,
    /// Tokens that a query sees, itself counted; all where `None`.
    pub sliding_window: Option<u32>,
}

impl AttentionShape {
    /// Elements of a row of qkv.
    pub fn row_len(&self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Tiles of q heads that share a kv head.
    fn head_tiles(&self) -> usize {
        (self.q_heads / self.kv_heads).div_ceil(plan::HEADS_PER_TILE)
    }
}

/// What the kernels read of a step, all u32. The addresses stay, the content changes: graphs read it anew.
#[derive(Clone, Debug)]
pub struct AttentionArrays {
    /// Token at which each row starts in qkv, `[rows + 1]`.
    pub cu_seqlens_q: DeviceTensor,
    /// Tokens of each row in the cache, the step's own counted, `[rows]`.
    pub context_lens: DeviceTensor,
    /// Cache blocks of all rows, one row after the other.
    pub block_tables: DeviceTensor,
    /// Where each row's blocks start in `block_tables`, `[rows + 1]`.
    pub table_offsets: DeviceTensor,
    /// [`AttentionPlan::items`], `[max_items, 2]`.
    pub items: DeviceTensor,
    /// [`AttentionPlan::first_item`], `[rows]`.
    pub first_item: DeviceTensor,
    /// How many items there are, `[1]`.
    pub item_count: DeviceTensor,
    /// [`AttentionPlan::tiles`], `[max_tiles, 4]`.
    pub tiles: DeviceTensor,
}

/// What chunks of a row, and parts of a tile, hand to each other. One serves all layers and graphs: the stream runs them in turn.
#[derive(Clone, Debug)]
pub struct AttentionScratch {
    /// For each item and q head `head_dim + 4` f32, uninitialised.
    pub partials: DeviceTensor,
    /// For each row and tile of 8 q heads of a group a u32, and as many for the parts; zero before and after each launch.
    pub counters: DeviceTensor,
}

impl AttentionScratch {
    /// Bytes of GPU memory that `new` takes.
    #[cfg(test)]
    pub fn bytes(max_items: usize, max_rows: usize, shape: &AttentionShape) -> usize {
        partial_bytes(max_items, shape) + counter_bytes(max_items, max_rows, shape)
    }

    /// Scratch memory for `max_items` items of `max_rows` rows. The largest of several shapes serves all.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn new(gpu: &Gpu, max_items: usize, max_rows: usize, shape: &AttentionShape) -> Result<Self, CudaError> {
        let what = "merging parts of attention";
        let partials = gpu.empty(1, partial_bytes(max_items, shape) / DType::F32.size(), DType::F32, what)?;
        let counters = gpu.zeros(1, counter_bytes(max_items, max_rows, shape) / DType::U32.size(), DType::U32, what)?;
        Ok(Self { partials, counters })
    }
}

/// The tensors of one layer's attention, all of one dtype, bf16 or f16; keys and values may be fp8.
#[derive(Clone, Copy, Debug)]
pub struct AttentionTensors<'a> {
    /// `[tokens, (q_heads + 2 kv_heads) * head_dim]`; q is read, normed and rotated already.
    pub qkv: &'a DeviceTensor,
    /// `[blocks * kv_heads * 16, head_dim]`: the cache's keys, those of the step among them.
    pub keys: &'a DeviceTensor,
    /// The cache's values, likewise.
    pub values: &'a DeviceTensor,
    /// What [`AttentionKernels::maps`] gave for both.
    pub maps: Option<&'a KvMaps>,
    /// `[tokens, q_heads * head_dim]`, written.
    pub out: &'a DeviceTensor,
}

/// What lets Hopper's own kernel read a layer's cache.
#[derive(Clone, Copy, Debug)]
pub struct KvMaps {
    keys: TensorMap,
    values: TensorMap,
}

/// The kernels for one dtype, type of the cache, and head size.
#[derive(Clone, Debug)]
struct HeadKernels {
    dtype: DType,
    cache: DType,
    head_dim: usize,
    decode: Kernel,
    /// Blocks of `decode` that the whole card runs at once.
    decode_blocks: usize,
    /// For tiles of each size; none where a head is too large for it.
    prefill: Vec<PrefillKernel>,
    /// Hopper's own for large tiles, where this card and this build have it.
    hopper: Option<PrefillKernel>,
}

#[derive(Clone, Copy, Debug)]
struct PrefillKernel {
    tile_queries: usize,
    kernel: Kernel,
    threads: u32,
    shared_bytes: usize,
    /// Blocks that the whole card runs at once.
    at_once: usize,
}

impl PrefillKernel {
    fn load(
        gpu: &Gpu,
        tile_queries: usize,
        kernel: Kernel,
        threads: u32,
        shared_bytes: usize,
    ) -> Result<Self, CudaError> {
        gpu.allow_shared_memory(kernel, shared_bytes)?;
        let at_once = gpu.blocks_per_multiprocessor(kernel, threads, shared_bytes)? * gpu.limits().multiprocessors;
        Ok(Self { tile_queries, kernel, threads, shared_bytes, at_once })
    }
}

impl HeadKernels {
    fn load(gpu: &Gpu, dtype: DType, cache: DType, head_dim: usize) -> Result<Self, CudaError> {
        let types =
            if cache == dtype { dtype.suffix().to_owned() } else { format!("{}_{}", dtype.suffix(), cache.suffix()) };
        let name = |kernel: &str| format!("{kernel}_{types}_d{head_dim}");
        let decode = gpu.kernel("attention_decode", &name("attention_decode"))?;
        let decode_blocks = gpu.blocks_per_multiprocessor(decode, THREADS, 0)? * gpu.limits().multiprocessors;
        let mut prefill = Vec::new();
        for tile_queries in TILE_QUERIES.into_iter().filter(|queries| *queries == 64 || head_dim < 256) {
            let rows = tile_queries / 64;
            let kernel = gpu.kernel("attention_prefill", &format!("{}_r{rows}", name("attention_prefill")))?;
            let keys = if head_dim == 256 { 32 } else { 64 };
            // As much for fp8: two stages as they are copied, and one widened.
            let shared_bytes = (tile_queries + 4 * keys) * head_dim * dtype.size();
            prefill.push(PrefillKernel::load(gpu, tile_queries, kernel, THREADS, shared_bytes)?);
        }
        Ok(Self { dtype, cache, head_dim, decode, decode_blocks, prefill, hopper: None })
    }

    /// Looks Hopper's own kernel up.
    fn find_hopper(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        if self.cache != self.dtype || !HOPPER_HEAD_DIMS.contains(&self.head_dim) {
            return Ok(());
        }
        let name = format!("attention_prefill_sm90a_{}_d{}", self.dtype.suffix(), self.head_dim);
        let found = CudaError::if_here(gpu.kernel("attention_prefill_sm90a", &name))?;
        let Some(kernel) = found else { return Ok(()) };
        let shared_bytes = hopper_shared_bytes(self.head_dim, self.head_dim);
        self.hopper = Some(PrefillKernel::load(gpu, HOPPER_TILE, kernel, HOPPER_THREADS, shared_bytes)?);
        Ok(())
    }

    /// The kernel for tiles of so many queries.
    fn prefill(&self, tile_queries: usize) -> Option<&PrefillKernel> {
        self.prefill.iter().find(|kernel| kernel.tile_queries == tile_queries)
    }
}

/// Attention for all dtypes and head sizes that have kernels.
#[derive(Clone, Debug)]
pub struct AttentionKernels {
    kernels: Vec<HeadKernels>,
}

impl AttentionKernels {
    /// Looks the kernels up.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`]; if the card has less shared memory than they need.
    pub fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        let mut kernels = Vec::new();
        for dtype in [DType::Bf16, DType::F16] {
            for head_dim in HEAD_DIMS {
                kernels.push(HeadKernels::load(gpu, dtype, dtype, head_dim)?);
            }
            for head_dim in FP8_HEAD_DIMS {
                kernels.push(HeadKernels::load(gpu, dtype, DType::Fp8, head_dim)?);
            }
        }
        kernels.iter_mut().try_for_each(|kernels| kernels.find_hopper(gpu))?;
        Ok(Self { kernels })
    }

    /// What lets Hopper's own kernel read this cache for activations of `dtype`; `None` where there is none for it. To be made
    /// once, as long as the cache is there.
    ///
    /// # Errors
    /// What the driver says.
    pub fn maps(
        &self,
        gpu: &Gpu,
        dtype: DType,
        keys: &DeviceTensor,
        values: &DeviceTensor,
    ) -> Result<Option<KvMaps>, CudaError> {
        let kernels = self.find(dtype, keys.dtype(), keys.columns());
        let map = |tensor| TensorMap::rows(gpu, tensor, BLOCK_TOKENS as u32);
        let found = kernels.and_then(|kernels| kernels.hopper);
        found.map(|_| Ok(KvMaps { keys: map(keys)?, values: map(values)? })).transpose()
    }

    /// Attention of the rows in `arrays.items`. `max_items` bounds the grid alone: a graph that was captured with it
    /// may be replayed with any count up to it. A row's bits depend on that row alone.
    ///
    /// # Errors
    /// If dtypes or shapes do not fit, or `arrays` or `scratch` are too small for `max_items`.
    pub fn decode(
        &self,
        gpu: &Gpu,
        shape: &AttentionShape,
        tensors: AttentionTensors<'_>,
        arrays: &AttentionArrays,
        scratch: &AttentionScratch,
        max_items: usize,
    ) -> Result<(), CudaError> {
        const OP: &str = "attention_decode";
        let kernels = self.check(OP, shape, tensors, arrays)?;
        let rows = length(&arrays.context_lens);
        let fits = [
            (&arrays.items, 2 * max_items * DType::U32.size(), "items"),
            (&arrays.first_item, rows * DType::U32.size(), "first_item"),
            (&arrays.item_count, DType::U32.size(), "item_count"),
            (&scratch.partials, partial_bytes(max_items, shape), "partials"),
            (&scratch.counters, counter_bytes(max_items, rows, shape), "counters"),
        ];
        for (tensor, bytes, what) in fits {
            if tensor.bytes() < bytes {
                return Err(CudaError::argument(OP, format!("{what}, {tensor:?}, need {bytes} bytes")));
            }
        }
        let arguments = Arguments::new()
            .tensor(tensors.out)
            .tensor(&scratch.partials)
            .tensor(&scratch.counters)
            .tensor(tensors.qkv)
            .tensor(tensors.keys)
            .tensor(tensors.values)
            .tensor(&arrays.cu_seqlens_q)
            .tensor(&arrays.context_lens)
            .tensor(&arrays.block_tables)
            .tensor(&arrays.table_offsets)
            .tensor(&arrays.items)
            .tensor(&arrays.first_item)
            .tensor(&arrays.item_count)
            .size(shape.q_heads)
            .size(shape.kv_heads)
            .size(shape.sliding_window.map_or(0, |window| window as usize))
            .f32(shape.scale);
        let work = max_items * shape.kv_heads * shape.head_tiles();
        // SAFETY: tensors, arrays and scratch were checked; what the arrays say is the runner's promise.
        unsafe { gpu.launch(kernels.decode, Grid::linear(work.min(kernels.decode_blocks), THREADS), arguments) }
    }

    /// How tiles may be divided where there is scratch memory for `max_items`. `cache` is the dtype of keys and values.
    pub fn splits(&self, shape: &AttentionShape, [dtype, cache]: [DType; 2], max_items: usize) -> Splits {
        let found = self.find(dtype, cache, shape.head_dim);
        let divided = found.and_then(|kernels| kernels.prefill(DIVIDED_TILE_QUERIES));
        divided.map_or(Splits::NONE, |prefill| Splits {
            tiles_at_once: prefill.at_once / shape.q_heads,
            max_tiles: usize::MAX,
            slots: part_slots(max_items, shape),
        })
    }

    /// Attention of the first `tiles` of `arrays.tiles`, each of `tile_queries`; a tile of row `u32::MAX` is passed over. What
    /// [`Self::splits`] gave for `scratch` bounds the slots of their parts.
    ///
    /// # Errors
    /// If dtypes or shapes do not fit, `arrays` holds fewer tiles, or none are of that size.
    pub fn prefill(
        &self,
        gpu: &Gpu,
        shape: &AttentionShape,
        tensors: AttentionTensors<'_>,
        arrays: &AttentionArrays,
        scratch: &AttentionScratch,
        [tiles, tile_queries]: [usize; 2],
    ) -> Result<(), CudaError> {
        const OP: &str = "attention_prefill";
        let kernels = self.check(OP, shape, tensors, arrays)?;
        if length(&arrays.tiles) < 4 * tiles {
            return Err(CudaError::argument(OP, format!("{tiles} tiles in {:?}", arrays.tiles)));
        }
        let arguments = Arguments::new()
            .tensor(tensors.out)
            .tensor(&scratch.partials)
            .tensor(&scratch.counters)
            .tensor(tensors.qkv);
        let hopper = kernels.hopper.as_ref().filter(|hopper| hopper.tile_queries == tile_queries);
        let (prefill, arguments) = match (tensors.maps, hopper, kernels.prefill(tile_queries)) {
            (Some(maps), Some(hopper), _) => (hopper, arguments.map(&maps.keys).map(&maps.values)),
            (_, _, Some(prefill)) => (prefill, arguments.tensor(tensors.keys).tensor(tensors.values)),
            _ => return Err(CudaError::argument(OP, format!("tiles of {tile_queries} queries"))),
        };
        let arguments = arguments
            .tensor(&arrays.cu_seqlens_q)
            .tensor(&arrays.context_lens)
            .tensor(&arrays.block_tables)
            .tensor(&arrays.table_offsets)
            .tensor(&arrays.tiles)
            .size(shape.q_heads)
            .size(shape.kv_heads)
            .size(shape.sliding_window.map_or(0, |window| window as usize))
            .f32(shape.scale);
        let mut grid = Grid::linear(tiles * shape.q_heads, prefill.threads);
        grid.shared_bytes = prefill.shared_bytes as u32;
        // SAFETY: tensors and arrays were checked; what the arrays say is the runner's promise.
        unsafe { gpu.launch(prefill.kernel, grid, arguments) }
    }

    fn find(&self, dtype: DType, cache: DType, head_dim: usize) -> Option<&HeadKernels> {
        let wanted = (dtype, cache, head_dim);
        self.kernels.iter().find(|kernels| (kernels.dtype, kernels.cache, kernels.head_dim) == wanted)
    }

    /// The kernels for these tensors, which fit the shape and each other.
    fn check(
        &self,
        op: &'static str,
        shape: &AttentionShape,
        tensors: AttentionTensors<'_>,
        arrays: &AttentionArrays,
    ) -> Result<&HeadKernels, CudaError> {
        let AttentionTensors { qkv, keys, values, out, .. } = tensors;
        let wrong = |message: String| Err(CudaError::argument(op, message));
        let AttentionShape { q_heads, kv_heads, head_dim, scale, sliding_window } = *shape;
        if kv_heads == 0 || q_heads == 0 || !q_heads.is_multiple_of(kv_heads) || q_heads / kv_heads > MAX_GROUP {
            return wrong(format!("{q_heads} q heads over {kv_heads} kv heads"));
        }
        if scale <= 0.0 || !scale.is_finite() || sliding_window.is_some_and(|window| window == 0 || window > 1 << 30) {
            return wrong(format!("a scale of {scale}, a window of {sliding_window:?}"));
        }
        if out.dtype() != qkv.dtype() || values.dtype() != keys.dtype() {
            return wrong(format!("dtypes of {tensors:?}"));
        }
        if qkv.columns() != shape.row_len() || out.columns() != q_heads * head_dim || out.rows() != qkv.rows() {
            return wrong(format!("{qkv:?} to {out:?} with {shape:?}"));
        }
        let cache_fits = keys.columns() == head_dim && keys.rows().is_multiple_of(kv_heads * BLOCK_TOKENS);
        if !cache_fits || (values.rows(), values.columns()) != (keys.rows(), keys.columns()) {
            return wrong(format!("a cache of {keys:?} and {values:?} with {shape:?}"));
        }
        let rows = length(&arrays.context_lens);
        let all = [
            &arrays.cu_seqlens_q,
            &arrays.context_lens,
            &arrays.block_tables,
            &arrays.table_offsets,
            &arrays.items,
            &arrays.first_item,
            &arrays.item_count,
            &arrays.tiles,
        ];
        if all.iter().any(|array| array.dtype() != DType::U32)
            || length(&arrays.cu_seqlens_q) <= rows
            || length(&arrays.table_offsets) <= rows
        {
            return wrong(format!("{arrays:?}"));
        }
        let found = self.find(qkv.dtype(), keys.dtype(), head_dim);
        found.ok_or_else(|| CudaError::argument(op, format!("{qkv:?} over {keys:?} with heads of {head_dim}")))
    }
}

/// Elements of an array.
fn length(array: &DeviceTensor) -> usize {
    array.rows() * array.columns()
}
