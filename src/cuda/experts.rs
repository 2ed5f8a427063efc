//! Gated MLPs of chosen experts: `kernels/experts/`, checked and launched.
//!
//! Few tokens take their experts pair by pair; more have their pairs listed by expert first, on the GPU, and each expert's
//! weights read once. The shapes of a launch depend on the number of tokens alone: all of it may be captured into a graph.

use super::check::{Typed, expect_at_least, require};
use super::few_rows;
use super::maps::TensorMap;
use super::route::{MAX_EXPERTS, RouteKernels};
use super::tiled::{HOPPER_RING_BYTES, HOPPER_THREADS};
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid};

/// Tokens up to which pairs are not listed by expert: duplicates among so few are read from L2.
pub(super) const MOST_UNSORTED_TOKENS: usize = 8;

/// Pairs of an expert, on the average, up to which its weights are read as for few rows.
const MOST_FEW_PAIRS: usize = 6;

/// Pairs of an expert, on the average, from which Hopper's own tiles are faster than those of 32 rows.
const LEAST_HOPPER_PAIRS: usize = 30;

/// The experts of a layer, dense.
#[derive(Clone, Copy, Debug)]
pub struct ExpertMatrices<'a> {
    /// How many.
    pub count: usize,
    /// `[count * 2 f, h]`: of each expert gate above up.
    pub gate_up: &'a DeviceTensor,
    /// `[count * h, f]`.
    pub down: &'a DeviceTensor,
}

/// What the experts of a step hand to each other. One serves all layers.
#[derive(Clone, Debug)]
pub struct ExpertBuffers {
    /// `[pairs, f]` of the activations' type.
    pub act: DeviceTensor,
    /// `[pairs, h]`, likewise.
    pub out: DeviceTensor,
    /// `[1, pairs]` u32.
    pub sorted: DeviceTensor,
    /// `[1, experts + 1]` u32.
    pub offsets: DeviceTensor,
}

impl ExpertBuffers {
    /// Buffers for `pairs` pairs of token and expert.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn new(
        gpu: &Gpu,
        pairs: usize,
        experts: usize,
        hidden: usize,
        inner: usize,
        dtype: DType,
    ) -> Result<Self, CudaError> {
        let zeros = |(rows, columns, dtype)| gpu.zeros(rows, columns, dtype, "the experts' buffers");
        let [act, out, sorted, offsets] = Self::shapes(pairs, experts, hidden, inner, dtype).map(zeros);
        Ok(Self { act: act?, out: out?, sorted: sorted?, offsets: offsets? })
    }

    /// Bytes of the buffers for `pairs` pairs of token and expert, of a type of two bytes.
    #[cfg(test)]
    pub fn bytes(pairs: usize, experts: usize, hidden: usize, inner: usize) -> usize {
        let shapes = Self::shapes(pairs, experts, hidden, inner, DType::Bf16);
        shapes.into_iter().map(|(rows, columns, dtype)| rows * columns * dtype.size()).sum()
    }

    /// Rows, columns and types, in the order of the fields.
    fn shapes(pairs: usize, experts: usize, hidden: usize, inner: usize, dtype: DType) -> [(usize, usize, DType); 4] {
        [(pairs, inner, dtype), (pairs, hidden, dtype), (1, pairs, DType::U32), (1, experts + 1, DType::U32)]
    }
}

/// How the experts of a step are computed. All give the same result but for rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertsWay {
    /// Each pair by itself, rows of weights read as they come.
    Pairs,
    /// By expert, eight of its pairs at a time.
    Few,
    /// By expert, in tiles of 32 pairs.
    Flat,
    /// In tiles of 64.
    Short,
    /// In tiles of 128.
    Tall,
    /// In tiles of 128 by Hopper's warpgroups.
    Hopper,
}

impl ExpertsWay {
    /// The fastest, as one H100 timed them over experts of 768 and 1408 elements; `hopper` where that way is there.
    fn choose(tokens: usize, pairs: usize, experts: usize, hopper: bool) -> Self {
        if tokens <= MOST_UNSORTED_TOKENS {
            return Self::Pairs;
        }
        let each = pairs / experts;
        if hopper && each >= LEAST_HOPPER_PAIRS {
            return Self::Hopper;
        }
        let ways = [(MOST_FEW_PAIRS, Self::Few), (48, Self::Flat), (80, Self::Short)];
        ways.into_iter().find(|(most, _)| each <= *most).map_or(Self::Tall, |(_, way)| way)
    }
}

/// A kind of tiles.
#[derive(Clone, Copy, Debug)]
struct Tiling {
    module: &'static str,
    name: &'static str,
    rows: usize,
    /// Outputs of a tile of `down`; half of them of `gate_up`.
    columns: usize,
    threads: u32,
    /// Bytes of the ring of slices.
    ring_bytes: usize,
    /// Whether weights are read by a tensor map.
    by_map: bool,
}

impl Tiling {
    const FLAT: Self = Self { name: "flat", rows: 32, ring_bytes: 80 << 10, ..Self::TALL };
    const SHORT: Self = Self { name: "short", rows: 64, ..Self::TALL };
    const TALL: Self = Self {
        module: "experts_many",
        name: "tall",
        rows: 128,
        columns: 128,
        threads: 128,
        ring_bytes: 96 << 10,
        by_map: false,
    };
    const HOPPER: Self = Self {
        module: "experts_many_sm90a",
        name: "sm90a",
        columns: 256,
        threads: HOPPER_THREADS,
        ring_bytes: HOPPER_RING_BYTES,
        by_map: true,
        ..Self::TALL
    };

    /// The ring, the rows of a tile (which Hopper's kernels do without), and the tiles before each expert.
    fn shared_bytes(self, experts: usize) -> usize {
        self.ring_bytes + (self.rows + experts + 1) * size_of::<u32>()
    }
}

/// Kernels of one kind of tiles.
#[derive(Clone, Copy, Debug)]
struct TileKernels {
    tiling: Tiling,
    gate_up: Typed,
    down: Typed,
    /// Blocks that the GPU holds at once.
    at_once: usize,
}

impl TileKernels {
    fn load(gpu: &Gpu, tiling: Tiling) -> Result<Self, CudaError> {
        let Tiling { module, name, threads, .. } = tiling;
        let gate_up = Typed::load(gpu, module, &format!("experts_gate_up_{name}"))?;
        let down = Typed::load(gpu, module, &format!("experts_down_{name}"))?;
        let bytes = tiling.shared_bytes(MAX_EXPERTS);
        let mut fit = usize::MAX;
        for dtype in [DType::Bf16, DType::F16] {
            for kernel in [gate_up.of("experts", dtype)?, down.of("experts", dtype)?] {
                gpu.allow_shared_memory(kernel, bytes)?;
                fit = fit.min(gpu.blocks_per_multiprocessor(kernel, threads, bytes)?);
            }
        }
        Ok(Self { tiling, gate_up, down, at_once: fit * gpu.limits().multiprocessors })
    }

    /// Blocks enough for all tiles of `outputs`, however pairs fall among experts.
    fn grid(&self, pairs: usize, experts: usize, outputs: usize) -> Grid {
        let Tiling { rows, columns, threads, .. } = self.tiling;
        let most_tiles = (pairs.div_ceil(rows) + experts.min(pairs)) * outputs.div_ceil(columns);
        let shared_bytes = self.tiling.shared_bytes(experts) as u32;
        Grid { shared_bytes, ..Grid::linear(most_tiles.min(self.at_once), threads) }
    }

    /// The argument for the weights `w` of experts.
    fn weights(&self, gpu: &Gpu, arguments: Arguments, w: &DeviceTensor) -> Result<Arguments, CudaError> {
        if self.tiling.by_map { Ok(arguments.map(&TensorMap::permuted(gpu, w)?)) } else { Ok(arguments.tensor(w)) }
    }
}

/// The kernels of `experts_few.cu`, `experts_many.cu` and `experts_many_sm90a.cu`, looked up once.
#[derive(Clone, Debug)]
pub struct ExpertKernels {
    route: RouteKernels,
    gate_up: Typed,
    down: Typed,
    down_sum: Typed,
    sum_pairs: Typed,
    flat: TileKernels,
    short: TileKernels,
    tall: TileKernels,
    /// Hopper's own, where this card and this build have them.
    hopper: Option<TileKernels>,
}

/// What a call has besides its weights: the tokens `t`, where they go, and where the result does.
#[derive(Clone, Copy, Debug)]
pub struct ExpertCall<'a> {
    /// `[t, h]`, bf16 or f16.
    pub x: &'a DeviceTensor,
    /// `[t, top_k]` u32, each below the number of experts.
    pub ids: &'a DeviceTensor,
    /// `[t, top_k]` f32.
    pub weights: &'a DeviceTensor,
    /// Where it is computed.
    pub buffers: &'a ExpertBuffers,
    /// `[t, h]` of the type of `x`: what is added to.
    pub dst: &'a DeviceTensor,
}

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) tokens: usize,
    pub(super) top_k: usize,
    pub(super) pairs: usize,
    pub(super) hidden: usize,
    pub(super) inner: usize,
}

impl ExpertCall<'_> {
    /// The type of x and of the result.
    pub(super) fn dtype(&self) -> DType {
        self.x.dtype()
    }

    /// Its sizes, for `count` experts of `inner` numbers.
    ///
    /// # Errors
    /// If shapes, dtypes or alignment do not fit, or the buffers are too small.
    pub(super) fn sizes(&self, count: usize, inner: usize) -> Result<Sizes, CudaError> {
        let Self { x, ids, weights, buffers, dst } = *self;
        let (tokens, hidden, dtype) = (x.rows(), x.columns(), x.dtype());
        let (top_k, pairs) = (ids.columns(), ids.rows() * ids.columns());
        let fits = matches!(dtype, DType::Bf16 | DType::F16)
            && dst.dtype() == dtype
            && (1..=MAX_EXPERTS).contains(&count)
            && ids.rows() == tokens
            && (dst.rows(), dst.columns()) == (tokens, hidden);
        require(OP, fits, || format!("{x:?} by {ids:?}, {count} experts -> {dst:?}"))?;
        let whole = hidden > 0 && inner > 0 && hidden.is_multiple_of(8) && inner.is_multiple_of(8);
        let aligned = [x, dst].iter().all(|tensor| tensor.pointer().is_multiple_of(16));
        require(OP, whole && aligned, || format!("rows of {x:?} and of {inner} are not whole pieces of 16 bytes"))?;
        expect_at_least(OP, "ids", ids, DType::U32, pairs)?;
        expect_at_least(OP, "weights", weights, DType::F32, pairs)?;
        expect_at_least(OP, "act", &buffers.act, dtype, pairs * inner)?;
        expect_at_least(OP, "out", &buffers.out, dtype, pairs * hidden)?;
        expect_at_least(OP, "sorted", &buffers.sorted, DType::U32, pairs)?;
        expect_at_least(OP, "offsets", &buffers.offsets, DType::U32, count + 1)?;
        Ok(Sizes { tokens, top_k, pairs, hidden, inner })
    }
}

impl ExpertKernels {
    /// Looks the kernels up.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`]; if the card has less shared memory than they need.
    pub fn load(gpu: &Gpu, route: RouteKernels) -> Result<Self, CudaError> {
        let few = |name: &str| few_rows::load(gpu, "experts_few", name);
        Ok(Self {
            route,
            gate_up: few("experts_gate_up_few")?,
            down: few("experts_down_few")?,
            down_sum: few("experts_down_sum")?,
            sum_pairs: Typed::load(gpu, "route", "sum_pairs")?,
            flat: TileKernels::load(gpu, Tiling::FLAT)?,
            short: TileKernels::load(gpu, Tiling::SHORT)?,
            tall: TileKernels::load(gpu, Tiling::TALL)?,
            hopper: CudaError::if_here(TileKernels::load(gpu, Tiling::HOPPER))?,
        })
    }

    /// Queues `dst[t] += sum over j of weights[t, j] * down[e](silu(gate[e](x[t])) * up[e](x[t]))` with `e = ids[t, j]`,
    /// for matrices of the type of x, h and f multiples of 8. Sums in f32; what is between is rounded after its weight is
    /// applied.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit, or the buffers are too small.
    pub fn experts(&self, gpu: &Gpu, call: ExpertCall<'_>, experts: ExpertMatrices<'_>) -> Result<(), CudaError> {
        self.experts_by(self.choose(call, experts.count, experts.down.columns()), gpu, call, experts)
    }

    /// The ways there are for experts of these sizes.
    #[cfg(test)]
    pub fn ways(&self, hidden: usize, inner: usize) -> Vec<ExpertsWay> {
        let hopper = self.hopper_for(hidden, inner).map(|_| ExpertsWay::Hopper);
        let all = [ExpertsWay::Pairs, ExpertsWay::Few, ExpertsWay::Flat, ExpertsWay::Short, ExpertsWay::Tall];
        all.into_iter().chain(hopper).collect()
    }

    /// The way that [`ExpertKernels::experts`] takes.
    pub fn choose(&self, call: ExpertCall<'_>, experts: usize, inner: usize) -> ExpertsWay {
        let pairs = call.ids.rows() * call.ids.columns();
        let hopper = self.hopper_for(call.x.columns(), inner).is_some();
        ExpertsWay::choose(call.x.rows(), pairs, experts.max(1), hopper)
    }

    /// Hopper's own tiles for these sizes: boxes of 32 rows are all of one matrix.
    fn hopper_for(&self, hidden: usize, inner: usize) -> Option<&TileKernels> {
        self.hopper.as_ref().filter(|_| hidden.is_multiple_of(32) && inner.is_multiple_of(32))
    }

    /// As [`ExpertKernels::experts`], by `way`.
    ///
    /// # Errors
    /// As [`ExpertKernels::experts`], and where `way` is not there.
    pub fn experts_by(
        &self,
        way: ExpertsWay,
        gpu: &Gpu,
        call: ExpertCall<'_>,
        experts: ExpertMatrices<'_>,
    ) -> Result<(), CudaError> {
        let sizes = check(call, experts)?;
        if sizes.pairs == 0 {
            return Ok(());
        }
        let tiles = match way {
            ExpertsWay::Pairs => {
                self.few(gpu, sizes, call, experts, None)?;
                return self.down_sum(gpu, sizes, call, experts);
            }
            ExpertsWay::Few => None,
            ExpertsWay::Flat => Some(&self.flat),
            ExpertsWay::Short => Some(&self.short),
            ExpertsWay::Tall => Some(&self.tall),
            ExpertsWay::Hopper => match self.hopper_for(sizes.hidden, sizes.inner) {
                None => return Err(CudaError::argument(OP, format!("{way:?} for {sizes:?}"))),
                found => found,
            },
        };
        self.list_pairs(gpu, call, experts.count)?;
        match tiles {
            Some(tiles) => {
                let all = ExpertRange { first: 0, count: experts.count };
                gate_up_tiles(gpu, tiles, sizes, call, all, experts.gate_up)?;
                down_tiles(gpu, tiles, sizes, call, all, experts.down)?;
            }
            None => {
                self.few(gpu, sizes, call, experts, Some(experts.count))?;
                self.down_few(gpu, sizes, call, experts)?;
            }
        }
        self.sum_pairs(gpu, sizes, call)
    }

    /// As [`ExpertKernels::experts`] in tiles, for weights that are made dense some experts at a time: `gate_up` and `down`
    /// queue that for a range of experts, and say where.
    ///
    /// # Errors
    /// As [`ExpertKernels::experts`], and theirs.
    pub fn experts_unpacked(
        &self,
        gpu: &Gpu,
        call: ExpertCall<'_>,
        count: usize,
        inner: usize,
        [gate_up, down]: [Unpacking<'_>; 2],
    ) -> Result<(), CudaError> {
        let sizes = call.sizes(count, inner)?;
        let tiles = match (self.choose(call, count, inner), &self.hopper) {
            (ExpertsWay::Hopper, Some(hopper)) => hopper,
            (ExpertsWay::Tall, _) => &self.tall,
            _ => &self.short,
        };
        self.list_pairs(gpu, call, count)?;
        for range in gate_up.ranges(count) {
            let matrix = (gate_up.unpack)(range)?;
            gate_up_tiles(gpu, tiles, sizes, call, range, &matrix)?;
        }
        for range in down.ranges(count) {
            let matrix = (down.unpack)(range)?;
            down_tiles(gpu, tiles, sizes, call, range, &matrix)?;
        }
        self.sum_pairs(gpu, sizes, call)
    }

    /// Lists the pairs of a call by expert.
    pub(super) fn list_pairs(&self, gpu: &Gpu, call: ExpertCall<'_>, experts: usize) -> Result<(), CudaError> {
        self.route.group_pairs(gpu, call.ids, experts, &call.buffers.sorted, &call.buffers.offsets)
    }

    /// Adds what a token's experts have written to `out`, in the order of its choices.
    pub(super) fn sum_pairs(&self, gpu: &Gpu, sizes: Sizes, call: ExpertCall<'_>) -> Result<(), CudaError> {
        let packs = sizes.hidden / 8;
        let mut grid = Grid::linear(sizes.tokens, (packs.next_multiple_of(32) as u32).clamp(32, 256));
        grid.blocks[1] = packs.div_ceil(grid.threads[0] as usize) as u32;
        let arguments = Arguments::new().tensor(call.dst).tensor(&call.buffers.out);
        let arguments = arguments.size(sizes.top_k).size(sizes.hidden);
        // SAFETY: `ExpertCall::sizes` holds sizes and dtypes.
        unsafe { gpu.launch(self.sum_pairs.of(OP, call.dtype())?, grid, arguments) }
    }

    /// `act` of each pair; by expert where `listed` says how many there are.
    fn few(
        &self,
        gpu: &Gpu,
        sizes: Sizes,
        call: ExpertCall<'_>,
        experts: ExpertMatrices<'_>,
        listed: Option<usize>,
    ) -> Result<(), CudaError> {
        let ExpertCall { x, ids, weights, buffers, .. } = call;
        let arguments = Arguments::new().tensor(&buffers.act).tensor(x).tensor(experts.gate_up).tensor(weights);
        let arguments = arguments
            .tensor(ids)
            .optional(listed.map(|_| &buffers.sorted))
            .optional(listed.map(|_| &buffers.offsets))
            .size(sizes.top_k)
            .size(sizes.inner)
            .size(sizes.hidden);
        let columns = sizes.inner.div_ceil(8);
        // A pair's sums are in the same order however many there are.
        let grid = few_rows::grid(gpu, columns * listed.unwrap_or(sizes.top_k), sizes.hidden);
        let grid = Grid { blocks: [listed.unwrap_or(sizes.pairs) as u32, columns as u32, 1], ..grid };
        // SAFETY: `check` holds sizes, dtypes and alignment; ids below the number of experts are the caller's promise.
        unsafe { gpu.launch(self.gate_up.of(OP, x.dtype())?, grid, arguments) }
    }

    fn down_few(
        &self,
        gpu: &Gpu,
        sizes: Sizes,
        call: ExpertCall<'_>,
        experts: ExpertMatrices<'_>,
    ) -> Result<(), CudaError> {
        let ExpertCall { ids, buffers, .. } = call;
        let arguments = Arguments::new().tensor(&buffers.out).tensor(&buffers.act).tensor(experts.down).tensor(ids);
        let arguments = arguments.tensor(&buffers.sorted).tensor(&buffers.offsets).size(sizes.hidden).size(sizes.inner);
        let columns = sizes.hidden.div_ceil(16);
        let grid = few_rows::grid(gpu, columns * experts.count, sizes.inner);
        let grid = Grid { blocks: [experts.count as u32, columns as u32, 1], ..grid };
        // SAFETY: as above.
        unsafe { gpu.launch(self.down.of(OP, buffers.act.dtype())?, grid, arguments) }
    }

    fn down_sum(
        &self,
        gpu: &Gpu,
        sizes: Sizes,
        call: ExpertCall<'_>,
        experts: ExpertMatrices<'_>,
    ) -> Result<(), CudaError> {
        let ExpertCall { ids, buffers, dst, .. } = call;
        let arguments = Arguments::new().tensor(dst).tensor(&buffers.act).tensor(experts.down).tensor(ids);
        let arguments = arguments.size(sizes.top_k).size(sizes.hidden).size(sizes.inner);
        let columns = sizes.hidden.div_ceil(8);
        let batches = sizes.inner.next_multiple_of(few_rows::BATCH) * sizes.top_k;
        let grid = few_rows::grid(gpu, columns, batches);
        let grid = Grid { blocks: [sizes.tokens as u32, columns as u32, 1], ..grid };
        // SAFETY: as above.
        unsafe { gpu.launch(self.down_sum.of(OP, dst.dtype())?, grid, arguments) }
    }
}

pub(super) const OP: &str = "experts";

/// Neighbours among the experts of a layer.
#[derive(Clone, Copy, Debug)]
pub struct ExpertRange {
    /// The first of them.
    pub first: usize,
    /// How many.
    pub count: usize,
}

/// How weights are made dense some experts at a time.
pub struct Unpacking<'a> {
    /// Experts that there is room for at a time.
    pub at_once: usize,
    /// Queues it for some of them; where they are then: gate above up `[count * 2 f, h]`, or down `[count * h, f]`.
    pub unpack: &'a mut dyn FnMut(ExpertRange) -> Result<DeviceTensor, CudaError>,
}

impl Unpacking<'_> {
    fn ranges(&self, count: usize) -> impl Iterator<Item = ExpertRange> + use<> {
        let at_once = self.at_once.max(1);
        (0..count).step_by(at_once).map(move |first| ExpertRange { first, count: at_once.min(count - first) })
    }
}

/// `act` of the pairs of some experts in tiles, over pairs that are listed by expert.
fn gate_up_tiles(
    gpu: &Gpu,
    tiles: &TileKernels,
    sizes: Sizes,
    call: ExpertCall<'_>,
    range: ExpertRange,
    gate_up: &DeviceTensor,
) -> Result<(), CudaError> {
    let ExpertCall { x, weights, buffers, .. } = call;
    let Sizes { top_k, pairs, hidden, inner, .. } = sizes;
    let offsets = buffers.offsets.view(4 * range.first, 1, range.count + 1, DType::U32);
    let arguments = tiles.weights(gpu, Arguments::new().tensor(&buffers.act).tensor(x), gate_up)?.tensor(weights);
    let arguments = arguments.tensor(&buffers.sorted).tensor(&offsets).size(range.count).size(top_k);
    let grid = tiles.grid(pairs, range.count, 2 * inner);
    // SAFETY: `check` holds sizes, dtypes and alignment; `sorted` and `offsets` were queued before.
    unsafe { gpu.launch(tiles.gate_up.of(OP, x.dtype())?, grid, arguments.size(inner).size(hidden)) }
}

/// `out` of the pairs of some experts, likewise.
fn down_tiles(
    gpu: &Gpu,
    tiles: &TileKernels,
    sizes: Sizes,
    call: ExpertCall<'_>,
    range: ExpertRange,
    down: &DeviceTensor,
) -> Result<(), CudaError> {
    let (buffers, Sizes { pairs, hidden, inner, .. }) = (call.buffers, sizes);
    let offsets = buffers.offsets.view(4 * range.first, 1, range.count + 1, DType::U32);
    let arguments = tiles.weights(gpu, Arguments::new().tensor(&buffers.out).tensor(&buffers.act), down)?;
    let arguments = arguments.tensor(&buffers.sorted).tensor(&offsets).size(range.count);
    let grid = tiles.grid(pairs, range.count, hidden);
    // SAFETY: as above.
    unsafe { gpu.launch(tiles.down.of(OP, call.dtype())?, grid, arguments.size(hidden).size(inner)) }
}

fn check(call: ExpertCall<'_>, experts: ExpertMatrices<'_>) -> Result<Sizes, CudaError> {
    let ExpertMatrices { count, gate_up, down } = experts;
    let (hidden, inner, dtype) = (call.x.columns(), down.columns(), call.dtype());
    let fits = [gate_up, down].iter().all(|w| w.dtype() == dtype && w.pointer().is_multiple_of(16))
        && (gate_up.rows(), gate_up.columns()) == (count * 2 * inner, hidden)
        && down.rows() == count * hidden;
    require(OP, fits, || format!("{:?} by {experts:?}", call.x))?;
    call.sizes(count, inner)
}
