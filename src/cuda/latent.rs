//! Multi-head latent attention over the paged cache: `kernels/attention/attention_latent.cu` and
//! `kernels/elementwise/latent.cu`, checked and launched.
//!
//! A token's latent, 512 elements and 64 rotated ones, serves all heads as key, and its 512 as value. Rows and their plan
//! are those of the other attention kernels.

use super::attention::{HOPPER_THREADS, HOPPER_TILE, hopper_shared_bytes};
use super::check::{Typed, expect, expect_at_least, require};
use super::maps::TensorMap;
use super::{Arguments, AttentionArrays, CudaError, DType, DeviceTensor, Gpu, Grid};

/// Elements of a latent that are the value too.
pub const LATENT_DIM: usize = 512;

/// Elements that are rotated.
pub const LATENT_ROTARY_DIM: usize = 64;

/// Elements of a token in the cache, and of an absorbed query.
pub const LATENT_WIDTH: usize = LATENT_DIM + LATENT_ROTARY_DIM;

/// Elements of a head's key and of its value once latents are expanded: what [`LatentKernels::prefill_expanded`] is made for.
pub const EXPANDED_DIM: usize = 128;

/// Tokens of a cache block.
const BLOCK_TOKENS: usize = 16;

/// Shared memory of a block of expanded attention.
const EXPANDED_BYTES: usize = hopper_shared_bytes(EXPANDED_DIM + LATENT_ROTARY_DIM, EXPANDED_DIM);

/// Threads of a block.
const THREADS: u32 = 128;

/// Shared memory of a block that takes so many rows of queries and heads, as in `attention_latent.cu`.
const fn shared_bytes(rows: usize) -> usize {
    let stages = if rows == 16 { 3 } else { 4 };
    stages * BLOCK_TOKENS * LATENT_WIDTH * 2 + rows * (4 * 4 * BLOCK_TOKENS + 2 * BLOCK_TOKENS + 12)
}

/// Heads of latent attention and what their scores are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentHeads {
    /// Query heads.
    pub heads: usize,
    /// Above zero.
    pub scale: f32,
}

/// How queries and latents are made ready.
#[derive(Clone, Copy, Debug)]
pub struct LatentRope<'a> {
    /// Query heads.
    pub heads: usize,
    /// Elements of a head before its rotated ones.
    pub plain_dim: usize,
    /// `[1, 512]` f32: weight of the latent's norm.
    pub norm: &'a DeviceTensor,
    /// Added to the mean of squares.
    pub eps: f32,
    /// `[positions, 32]` f32.
    pub cos: &'a DeviceTensor,
    /// `[positions, 32]` f32.
    pub sin: &'a DeviceTensor,
    /// Whether `2 i` turns with `2 i + 1`, rather than `i` with `i + 32`.
    pub interleaved: bool,
}

/// A kernel and how many of its blocks the GPU runs at once.
#[derive(Clone, Copy, Debug)]
struct Decode {
    kernels: Typed,
    rows: usize,
    at_once: usize,
}

impl Decode {
    fn load(gpu: &Gpu, rows: usize) -> Result<Self, CudaError> {
        let kernels = Typed::load(gpu, "attention_latent", &format!("attention_latent_decode{rows}"))?;
        let mut fit = usize::MAX;
        for dtype in [DType::Bf16, DType::F16] {
            let kernel = kernels.of("attention_latent", dtype)?;
            gpu.allow_shared_memory(kernel, shared_bytes(rows))?;
            fit = fit.min(gpu.blocks_per_multiprocessor(kernel, THREADS, shared_bytes(rows))?);
        }
        Ok(Self { kernels, rows, at_once: fit * gpu.limits().multiprocessors })
    }
}

/// The kernels of latent attention, looked up once.
#[derive(Clone, Copy, Debug)]
pub struct LatentKernels {
    rope_and_cache: Typed,
    /// For 16 heads at a time, and for 32.
    decode: [Decode; 2],
    merge: Typed,
    prefill: Typed,
    gather: Typed,
    /// Hopper's own, where this card and this build have it.
    expanded: Option<Typed>,
}

/// Latents of some blocks as keys and values of some heads.
#[derive(Clone, Copy, Debug)]
pub struct ExpandedLatents<'a> {
    /// `[blocks * 16, heads * 256]`: of each head 128 elements of a key and 128 of a value.
    pub kv: &'a DeviceTensor,
    /// `[blocks * 16, 64]`: what is rotated of keys, for all heads.
    pub rotated: &'a DeviceTensor,
    /// Entry of the block tables that the first block is.
    pub first_block: usize,
    /// The first of the heads.
    pub first_head: usize,
}

/// Rows of queries and heads of a block of `prefill`.
const PREFILL_ROWS: usize = 32;

impl LatentKernels {
    /// Looks the kernels up.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`]; if the card has less shared memory than they need.
    pub fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        let prefill = Typed::load(gpu, "attention_latent", "attention_latent_prefill32")?;
        for dtype in [DType::Bf16, DType::F16] {
            gpu.allow_shared_memory(prefill.of("attention_latent", dtype)?, shared_bytes(PREFILL_ROWS))?;
        }
        let name = "attention_expanded_sm90a";
        let expanded = CudaError::if_here(Typed::load(gpu, name, name))?;
        for (kernels, dtype) in
            expanded.into_iter().flat_map(|kernels| [DType::Bf16, DType::F16].map(|of| (kernels, of)))
        {
            gpu.allow_shared_memory(kernels.of("attention_expanded", dtype)?, EXPANDED_BYTES)?;
        }
        Ok(Self {
            rope_and_cache: Typed::load(gpu, "latent", "latent_rope_and_cache")?,
            decode: [Decode::load(gpu, 16)?, Decode::load(gpu, 32)?],
            merge: Typed::load(gpu, "attention_latent", "attention_latent_merge")?,
            prefill,
            gather: Typed::load(gpu, "latent", "latent_gather")?,
            expanded,
        })
    }

    /// Whether there is attention over expanded latents for heads of so many plain and so many value elements, in tiles of
    /// `tile_queries`.
    pub fn expands(&self, plain: usize, value: usize, tile_queries: usize) -> bool {
        self.expanded.is_some() && (plain, value, tile_queries) == (EXPANDED_DIM, EXPANDED_DIM, HOPPER_TILE)
    }

    /// Floats of the buffer for what chunks hand to the merge.
    pub fn partials(max_items: usize, heads: usize) -> usize {
        max_items * heads * (LATENT_DIM + 4)
    }

    /// For each token: norms the first 512 columns of `kv [t, >= 576]` and rotates the next 64, to `latents` at its slot
    /// (block * 16 + place; a slot outside the cache writes nothing), while `kv` stays as it was; rotates the last 64 of each
    /// head of `q [t, >= heads * (plain_dim + 64)]` in place. `positions` and `slots` u32.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    #[allow(clippy::too_many_arguments)] // one pass over the row; each is a different thing
    pub fn rope_and_cache(
        &self,
        gpu: &Gpu,
        q: &DeviceTensor,
        kv: &DeviceTensor,
        rope: LatentRope<'_>,
        positions: &DeviceTensor,
        slots: &DeviceTensor,
        latents: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "latent_rope_and_cache";
        let LatentRope { heads, plain_dim, norm, eps, cos, sin, interleaved } = rope;
        let (tokens, dtype) = (q.rows(), q.dtype());
        let fits = kv.rows() == tokens
            && kv.columns() >= LATENT_WIDTH
            && q.columns() >= heads * (plain_dim + LATENT_ROTARY_DIM)
            && [kv, latents].iter().all(|tensor| tensor.dtype() == dtype);
        require(OP, fits, || format!("{q:?}, {kv:?} -> {latents:?} with {heads} heads"))?;
        let whole = [kv.columns(), q.columns(), plain_dim].iter().all(|count| count.is_multiple_of(8));
        let aligned = [q, kv, latents].iter().all(|tensor| tensor.pointer().is_multiple_of(16));
        require(OP, whole && aligned, || format!("{q:?}, {kv:?}: not whole pieces of 16 bytes"))?;
        expect_at_least(OP, "positions", positions, DType::U32, tokens)?;
        expect_at_least(OP, "slots", slots, DType::U32, tokens)?;
        let position_count = cos.rows() * cos.columns() / (LATENT_ROTARY_DIM / 2);
        require(OP, position_count > 0, || "the rotary table is empty".into())?;
        expect_at_least(OP, "cos", cos, DType::F32, position_count * LATENT_ROTARY_DIM / 2)?;
        expect_at_least(OP, "sin", sin, DType::F32, position_count * LATENT_ROTARY_DIM / 2)?;
        expect_at_least(OP, "the latent's norm", norm, DType::F32, LATENT_DIM)?;
        let slot_count = latents.rows() * latents.columns() / LATENT_WIDTH;
        let arguments = Arguments::new().tensor(q).tensor(latents).tensor(kv).tensor(norm);
        let arguments = arguments.tensor(cos).tensor(sin).tensor(positions).tensor(slots).size(heads).size(plain_dim);
        let arguments = arguments.size(LATENT_DIM).size(LATENT_ROTARY_DIM).size(q.columns()).size(kv.columns());
        let arguments = arguments.size(usize::from(interleaved)).size(position_count).size(slot_count).f32(eps);
        // SAFETY: shapes were checked; the kernel bounds positions and slots.
        unsafe { gpu.launch(self.rope_and_cache.of(OP, dtype)?, Grid::linear(tokens, THREADS), arguments) }
    }

    /// Attention of the rows in `arrays.items`, of one query each: `q [t, heads * 576]` absorbed queries, `latents`
    /// `[blocks * 16, 576]`, `out [t, heads * 512]`; `partials` f32 for `max_items`. `max_items` bounds the grid alone. A
    /// row's bits depend on that row alone.
    ///
    /// # Errors
    /// If dtypes or shapes do not fit, or an array or `partials` is too small.
    #[allow(clippy::too_many_arguments)] // each is a different thing
    pub fn decode(
        &self,
        gpu: &Gpu,
        shape: LatentHeads,
        q: &DeviceTensor,
        latents: &DeviceTensor,
        arrays: &AttentionArrays,
        partials: &DeviceTensor,
        max_items: usize,
        out: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "attention_latent_decode";
        let LatentHeads { heads, scale } = shape;
        let rows = check(OP, shape, q, latents, arrays, out)?;
        expect_at_least(OP, "items", &arrays.items, DType::U32, 2 * max_items)?;
        expect_at_least(OP, "first_item", &arrays.first_item, DType::U32, rows)?;
        expect_at_least(OP, "item_count", &arrays.item_count, DType::U32, 1)?;
        expect_at_least(OP, "partials", partials, DType::F32, Self::partials(max_items, heads))?;
        let decode = self.decode[usize::from(heads > 16)];
        let arguments = Arguments::new().tensor(out).tensor(partials).tensor(q).tensor(latents);
        let arguments = rows_of(arguments, arrays).tensor(&arrays.items).tensor(&arrays.first_item);
        let arguments = arguments.tensor(&arrays.item_count).size(heads).f32(scale);
        let blocks = (max_items * heads.div_ceil(decode.rows)).min(decode.at_once);
        let grid = Grid { shared_bytes: shared_bytes(decode.rows) as u32, ..Grid::linear(blocks, THREADS) };
        // SAFETY: tensors and arrays were checked; what the arrays say is the runner's promise.
        unsafe { gpu.launch(decode.kernels.of(OP, q.dtype())?, grid, arguments)? };
        let arguments = Arguments::new().tensor(out).tensor(partials).tensor(&arrays.cu_seqlens_q);
        let arguments = arguments.tensor(&arrays.context_lens).tensor(&arrays.first_item);
        let mut grid = Grid::linear(rows, THREADS);
        grid.blocks[1] = heads as u32;
        // SAFETY: as above.
        unsafe { gpu.launch(self.merge.of(OP, q.dtype())?, grid, arguments) }
    }

    /// Attention of the first `tiles` of `arrays.tiles`, each of `tile_queries`, as [`LatentKernels::decode`] has them; a
    /// tile of row `u32::MAX` is passed over.
    ///
    /// # Errors
    /// If dtypes or shapes do not fit, or `arrays` holds fewer tiles.
    #[allow(clippy::too_many_arguments)] // each is a different thing
    pub fn prefill(
        &self,
        gpu: &Gpu,
        shape: LatentHeads,
        q: &DeviceTensor,
        latents: &DeviceTensor,
        arrays: &AttentionArrays,
        tiles: usize,
        tile_queries: usize,
        out: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "attention_latent_prefill";
        let LatentHeads { heads, scale } = shape;
        check(OP, shape, q, latents, arrays, out)?;
        expect_at_least(OP, "tiles", &arrays.tiles, DType::U32, 4 * tiles)?;
        let arguments = rows_of(Arguments::new().tensor(out).tensor(q).tensor(latents), arrays).tensor(&arrays.tiles);
        let arguments = arguments.size(tile_queries).size(heads).f32(scale);
        let blocks = tiles * (tile_queries * heads).div_ceil(PREFILL_ROWS);
        let grid = Grid { shared_bytes: shared_bytes(PREFILL_ROWS) as u32, ..Grid::linear(blocks, THREADS) };
        // SAFETY: tensors and arrays were checked; what the arrays say is the runner's promise.
        unsafe { gpu.launch(self.prefill.of(OP, q.dtype())?, grid, arguments) }
    }

    /// Copies the latents of `arrays.block_tables` from entry `first` on, as many blocks as have room, `latents`
    /// `[blocks * 16, 576]` to `plain [n * 16, 512]` and `rotated [n * 16, 64]`.
    ///
    /// # Errors
    /// If dtypes or shapes do not fit, or there are not as many entries.
    pub fn gather(
        &self,
        gpu: &Gpu,
        latents: &DeviceTensor,
        arrays: &AttentionArrays,
        first: usize,
        [plain, rotated]: [&DeviceTensor; 2],
    ) -> Result<(), CudaError> {
        const OP: &str = "latent_gather";
        let (rows, dtype, table) = (plain.rows(), latents.dtype(), &arrays.block_tables);
        expect(OP, "latents", latents, dtype, latents.rows(), LATENT_WIDTH)?;
        expect(OP, "plain", plain, dtype, rows, LATENT_DIM)?;
        expect(OP, "rotated", rotated, dtype, rows, LATENT_ROTARY_DIM)?;
        expect_at_least(OP, "block_tables", table, DType::U32, first + rows / BLOCK_TOKENS)?;
        let aligned = [latents, plain, rotated].iter().all(|tensor| tensor.pointer().is_multiple_of(16));
        require(OP, aligned && rows.is_multiple_of(BLOCK_TOKENS), || format!("{latents:?} to {plain:?}, {rotated:?}"))?;
        let listed = table.view(first * DType::U32.size(), 1, rows / BLOCK_TOKENS, DType::U32);
        let arguments = Arguments::new().tensor(plain).tensor(rotated).tensor(latents).tensor(&listed);
        let arguments = arguments.size(LATENT_DIM).size(LATENT_ROTARY_DIM);
        // SAFETY: shapes were checked; what the table says is the runner's promise.
        unsafe { gpu.launch(self.gather.of(OP, dtype)?, Grid::linear(rows, THREADS), arguments) }
    }

    /// Attention of the first `tiles` of `arrays.tiles`, of 128 queries each, over `expanded` latents, which hold all blocks of
    /// their rows: `q [t, heads * 192]`, rotated already, to the heads of `out [t, heads * 128]` that were expanded. Where
    /// [`Self::expands`] says so.
    ///
    /// # Errors
    /// If dtypes or shapes do not fit, `arrays` holds fewer tiles, or there is no such kernel.
    #[allow(clippy::too_many_arguments)] // each is a different thing
    pub fn prefill_expanded(
        &self,
        gpu: &Gpu,
        shape: LatentHeads,
        q: &DeviceTensor,
        expanded: ExpandedLatents<'_>,
        arrays: &AttentionArrays,
        tiles: usize,
        out: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "attention_expanded";
        let (LatentHeads { heads, scale }, dtype) = (shape, q.dtype());
        let ExpandedLatents { kv, rotated, first_block, first_head } = expanded;
        let at_once = kv.columns() / (2 * EXPANDED_DIM);
        expect(OP, "q", q, dtype, out.rows(), heads * (EXPANDED_DIM + LATENT_ROTARY_DIM))?;
        expect(OP, "out", out, dtype, q.rows(), heads * EXPANDED_DIM)?;
        expect(OP, "keys and values", kv, dtype, rotated.rows(), at_once * 2 * EXPANDED_DIM)?;
        expect(OP, "what is rotated", rotated, dtype, kv.rows(), LATENT_ROTARY_DIM)?;
        expect_at_least(OP, "tiles", &arrays.tiles, DType::U32, 4 * tiles)?;
        let aligned = [q, kv, rotated, out].iter().all(|tensor| tensor.pointer().is_multiple_of(16));
        require(OP, aligned && first_head + at_once <= heads && scale > 0.0, || format!("{expanded:?} of {shape:?}"))?;
        let Some(kernels) = self.expanded else {
            return Err(CudaError::argument(OP, "there is no such kernel"));
        };
        let map = |tensor| TensorMap::rows(gpu, tensor, HOPPER_TILE as u32);
        let arguments = Arguments::new().tensor(out).tensor(q).map(&map(kv)?).map(&map(rotated)?);
        let arguments =
            arguments.tensor(&arrays.cu_seqlens_q).tensor(&arrays.context_lens).tensor(&arrays.table_offsets);
        let arguments = arguments.tensor(&arrays.tiles).size(first_block).size(heads).size(first_head).size(at_once);
        let grid = Grid { shared_bytes: EXPANDED_BYTES as u32, ..Grid::linear(tiles * at_once, HOPPER_THREADS) };
        // SAFETY: tensors were checked, and keys beyond them read as zeros; what the arrays say is the runner's promise.
        unsafe { gpu.launch(kernels.of(OP, dtype)?, grid, arguments.f32(scale)) }
    }
}

/// The arrays that both kernels read of rows.
fn rows_of(arguments: Arguments, arrays: &AttentionArrays) -> Arguments {
    let arguments = arguments.tensor(&arrays.cu_seqlens_q).tensor(&arrays.context_lens);
    arguments.tensor(&arrays.block_tables).tensor(&arrays.table_offsets)
}

/// How many rows the arrays have, if all fits.
fn check(
    op: &'static str,
    shape: LatentHeads,
    q: &DeviceTensor,
    latents: &DeviceTensor,
    arrays: &AttentionArrays,
    out: &DeviceTensor,
) -> Result<usize, CudaError> {
    let LatentHeads { heads, scale } = shape;
    let fits = heads > 0
        && scale > 0.0
        && scale.is_finite()
        && q.columns() == heads * LATENT_WIDTH
        && (out.rows(), out.columns()) == (q.rows(), heads * LATENT_DIM)
        && (latents.dtype(), out.dtype()) == (q.dtype(), q.dtype())
        && latents.columns() == LATENT_WIDTH
        && latents.rows().is_multiple_of(BLOCK_TOKENS);
    require(op, fits, || format!("{q:?} over {latents:?} to {out:?} with {shape:?}"))?;
    let aligned = [q, latents, out].iter().all(|tensor| tensor.pointer().is_multiple_of(16));
    require(op, aligned, || format!("{q:?}, {latents:?} or {out:?} is not aligned"))?;
    let rows = arrays.context_lens.rows() * arrays.context_lens.columns();
    expect_at_least(op, "context_lens", &arrays.context_lens, DType::U32, rows)?;
    expect_at_least(op, "cu_seqlens_q", &arrays.cu_seqlens_q, DType::U32, rows + 1)?;
    expect_at_least(op, "table_offsets", &arrays.table_offsets, DType::U32, rows + 1)?;
    expect_at_least(op, "block_tables", &arrays.block_tables, DType::U32, 1)?;
    Ok(rows)
}
