//! Products with weights in block formats, their way to the GPU, and back to dense ones.

use super::blocks::{BlockFormat, BlockMatrix, Code, TILE_ROWS};
use super::check::{Typed, expect, expect_at_least, require};
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid, Kernel};

/// Rows of x that the kernel of few rows takes, and rows of a block of the other.
const FEW_ROWS: usize = 8;
const MANY_ROWS: usize = 32;

/// Shared memory that a block may have on every card.
pub(super) const SHARED_BYTES: usize = 99 * 1024;

/// Records of a warp that have arrived or are on their way, as in `quant_product.cuh`.
const STAGES: usize = 2;

/// Warps of a multiprocessor that are worth having.
const WARPS_PER_MULTIPROCESSOR: usize = 15;

/// The kernels of one code.
#[derive(Clone, Copy)]
struct Kernels {
    few: Typed,
    silu: Typed,
    many: Typed,
    narrow: Typed,
    unpack: Typed,
    embed: Kernel,
}

/// The kernels of `quant_*.cu`.
pub struct QuantKernels {
    kernels: Vec<(Code, Kernels)>,
    draw: Kernel,
    unpack_fp8: Kernel,
}

/// How a kernel cuts a product: what a team of warps computes, and how many warps a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Tiles of sixteen rows of weights of a team.
    pub(super) tiles: usize,
    /// Rows of x of a block.
    pub(super) rows: usize,
    /// Teams of a block.
    pub(super) teams: usize,
    /// Warps of a block, at least and at most.
    pub(super) warps: (usize, usize),
}

const FEW: Shape = Shape { tiles: 1, rows: FEW_ROWS, teams: 1, warps: (8, 16) };
/// A team for gate and one for up.
const SILU: Shape = Shape { tiles: 1, rows: FEW_ROWS, teams: 2, warps: (8, 16) };
const MANY: Shape = Shape { tiles: 2, rows: MANY_ROWS, teams: 1, warps: (8, 8) };
const NARROW: Shape = Shape { tiles: 1, rows: MANY_ROWS, teams: 1, warps: (8, 8) };

/// Random blocks: what is put over their random bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnBlocks {
    /// Of the matrix.
    pub seed: u64,
    /// Byte offsets in a block, and the f16 that stands there.
    pub scales: [(usize, u16); 2],
    /// Bits of each random byte that stay.
    pub mask: u8,
}

impl QuantKernels {
    /// Looks the kernels up.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`].
    pub fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        let kernels = Code::ALL.into_iter().map(|code| {
            let module = if code.is_plain() { "quant_plain" } else { "quant_k" };
            let product = |form: &str| {
                let kernel = Typed::load(gpu, module, &format!("quant_{form}_{code:?}"))?;
                for dtype in [DType::Bf16, DType::F16] {
                    gpu.allow_shared_memory(kernel.of("weights", dtype)?, SHARED_BYTES)?;
                }
                Ok::<_, CudaError>(kernel)
            };
            let kernels = Kernels {
                few: product("few")?,
                silu: product("silu")?,
                many: product("many")?,
                narrow: product("narrow")?,
                unpack: Typed::load(gpu, "quant_unpack", &format!("quant_unpack_{code:?}"))?,
                embed: gpu.kernel("quant_unpack", &format!("quant_embed_{code:?}"))?,
            };
            Ok((code, kernels))
        });
        Ok(Self {
            kernels: kernels.collect::<Result<_, CudaError>>()?,
            draw: gpu.kernel("quant_repack", "quant_draw")?,
            unpack_fp8: gpu.kernel("quant_unpack", "quant_unpack_fp8")?,
        })
    }

    fn of(&self, format: BlockFormat) -> &Kernels {
        let code = format.row().code;
        let (_, kernels) = self.kernels.iter().find(|(other, _)| *other == code).expect("all were loaded");
        kernels
    }

    /// Queues the `rows` rows of the file's `blocks` (bytes) into rows `from ..` of `target`; `from` is a multiple of
    /// sixteen, and so is `rows`, but for the last ones.
    ///
    /// # Errors
    /// If they don't fit.
    pub fn repack(
        &self,
        gpu: &Gpu,
        blocks: &DeviceTensor,
        target: &BlockMatrix,
        from: usize,
        rows: usize,
    ) -> Result<(), CudaError> {
        const OP: &str = "repack";
        let (format, columns) = (target.format(), target.columns());
        expect_at_least(OP, "the blocks", blocks, DType::U8, rows * format.row_bytes(columns))?;
        let whole = from.is_multiple_of(TILE_ROWS) && (rows.is_multiple_of(TILE_ROWS) || from + rows == target.rows());
        require(OP, whole && from + rows <= target.rows(), || format!("rows {from} .. + {rows} of {target:?}"))?;
        let part = target.slice(from, rows);
        let arguments = Arguments::new().tensor(part.tiles()).tensor(blocks).size(rows).size(columns);
        let mut grid = Grid::linear(format.records(columns), 128);
        grid.blocks[1] = part.tiles().rows() as u32;
        require(OP, grid.blocks[1] <= 65_535, || format!("{rows} rows at once"))?;
        let kernel = gpu.kernel("quant_repack", &format!("quant_repack_{}", format.row().name))?;
        // SAFETY: as many bytes of blocks as `rows` take; the kernel writes the tiles of `part`.
        unsafe { gpu.launch(kernel, grid, plain(arguments, format)) }
    }

    /// Fills `blocks` with random blocks of `format`, as a file holds them, of which the first is number `begin`.
    ///
    /// # Errors
    /// If they don't fit.
    pub fn draw(
        &self,
        gpu: &Gpu,
        blocks: &DeviceTensor,
        format: BlockFormat,
        begin: usize,
        count: usize,
        drawn: DrawnBlocks,
    ) -> Result<(), CudaError> {
        let (_, bytes) = format.row().block;
        let [(first_at, first), (second_at, second)] = drawn.scales;
        expect_at_least("draw", "the blocks", blocks, DType::U8, count * bytes)?;
        require("draw", first_at + 2 <= bytes && second_at + 2 <= bytes, || format!("{drawn:?} of {format:?}"))?;
        let arguments = Arguments::new().tensor(blocks).u64(begin as u64).size(count).size(bytes);
        let arguments = arguments.size(first_at).u32(u32::from(first)).size(second_at).u32(u32::from(second));
        // SAFETY: the kernel writes `count` blocks, and places within a block.
        unsafe {
            gpu.launch(
                self.draw,
                Grid::linear(count.div_ceil(128), 128),
                arguments.u64(drawn.seed).u32(drawn.mask.into()),
            )
        }
    }

    /// Queues columns `first ..` of y = x `[M, K]` · w `[N, K]`^T, for any M: x bf16 or f16, y of its type or f32, sums in
    /// f32. What a row gives depends on whether M is above 8, and above 32, not else on M.
    ///
    /// # Errors
    /// If shapes or dtypes don't fit.
    pub fn multiply(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        w: &BlockMatrix,
        y: &DeviceTensor,
        first: usize,
    ) -> Result<(), CudaError> {
        const OP: &str = "linear";
        let fits = x.columns() == w.columns() && y.rows() == x.rows() && first + w.rows() <= y.columns();
        require(OP, fits, || format!("the shapes don't fit: {x:?}, {w:?} -> {y:?} from {first}"))?;
        let is_f32 = y.dtype() == DType::F32;
        require(OP, is_f32 || y.dtype() == x.dtype(), || format!("{x:?} -> {y:?}"))?;
        require(OP, x.pointer().is_multiple_of(16), || format!("{x:?} begins between 16 bytes"))?;
        if x.rows() == 0 {
            return Ok(());
        }
        let (kernels, shape) =
            (self.of(w.format()), shape(gpu.limits().multiprocessors, x.rows(), w.format(), w.rows()));
        let kernels = match shape {
            FEW => &kernels.few,
            NARROW => &kernels.narrow,
            _ => &kernels.many,
        };
        let (grid, warp_bytes) = grid(gpu, shape, x.rows(), w.rows(), w);
        let target = y.view(first * y.dtype().size(), 1, 1, y.dtype());
        let arguments = Arguments::new().tensor(&target).tensor(x).tensor(w.tiles());
        let arguments = arguments.size(x.rows()).size(w.rows()).size(x.columns()).size(y.columns());
        let arguments = plain(arguments, w.format()).size(warp_bytes).size(usize::from(is_f32)).size(shape.teams);
        // SAFETY: shapes, dtypes and alignment are checked above; rows of y are `y.columns()` apart.
        unsafe { gpu.launch(kernels.of(OP, x.dtype())?, grid, arguments) }
    }

    /// Queues y `[M, F]` = silu(x · gate^T) · (x · up^T) for at most eight rows: gate and up `[F, K]` of one format.
    ///
    /// # Errors
    /// If shapes, formats or dtypes don't fit.
    pub fn silu(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        gate: &BlockMatrix,
        up: &BlockMatrix,
        y: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "linear_silu";
        let same = (gate.format(), gate.rows(), gate.columns()) == (up.format(), up.rows(), up.columns());
        require(OP, same && x.rows() <= FEW_ROWS, || format!("{x:?}, {gate:?}, {up:?}"))?;
        expect(OP, "x", x, y.dtype(), y.rows(), gate.columns())?;
        expect(OP, "y", y, x.dtype(), x.rows(), gate.rows())?;
        require(OP, x.pointer().is_multiple_of(16), || format!("{x:?} begins between 16 bytes"))?;
        if x.rows() == 0 {
            return Ok(());
        }
        let (grid, warp_bytes) = grid(gpu, SILU, x.rows(), 2 * gate.rows(), gate);
        let arguments = Arguments::new().tensor(y).tensor(x).tensor(gate.tiles()).tensor(up.tiles());
        let arguments = arguments.size(x.rows()).size(gate.rows()).size(x.columns()).size(y.columns());
        let kernel = self.of(gate.format()).silu.of(OP, x.dtype())?;
        // SAFETY: shapes, dtypes and alignment are checked above.
        unsafe { gpu.launch(kernel, grid, plain(arguments, gate.format()).size(warp_bytes)) }
    }

    /// Queues `dense [N, K]` (bf16, f16) = the weights.
    ///
    /// # Errors
    /// If shapes don't fit.
    pub fn unpack(&self, gpu: &Gpu, w: &BlockMatrix, dense: &DeviceTensor) -> Result<(), CudaError> {
        expect("unpack", "dense", dense, dense.dtype(), w.rows(), w.columns())?;
        self.unpack_folded(gpu, w, dense, 0)
    }

    /// The same of rows in groups of `fold`, a multiple of [`TILE_ROWS`], behind each of which as many rows of `dense` are
    /// left as they are; 0: in one group.
    ///
    /// # Errors
    /// As [`Self::unpack`].
    pub fn unpack_folded(
        &self,
        gpu: &Gpu,
        w: &BlockMatrix,
        dense: &DeviceTensor,
        fold: usize,
    ) -> Result<(), CudaError> {
        const OP: &str = "unpack";
        let rows = w.rows().checked_div(fold).map_or(w.rows(), |groups| w.rows() + groups.saturating_sub(1) * fold);
        let fits = dense.rows() >= rows && dense.columns() == w.columns() && fold.is_multiple_of(TILE_ROWS);
        require(OP, fits, || format!("{w:?}, folded after {fold} rows, into {dense:?}"))?;
        let arguments = Arguments::new().tensor(dense).tensor(w.tiles()).size(w.rows()).size(w.columns()).size(fold);
        let kernel = self.of(w.format()).unpack.of(OP, dense.dtype())?;
        // SAFETY: the kernel writes the elements of `dense`.
        unsafe { gpu.launch(kernel, unpack_grid(w, w.rows().div_ceil(TILE_ROWS)), plain(arguments, w.format())) }
    }

    /// Queues the e4m3 numbers of `w` to `quants` (fp8 `[N, K]`), and the scales of its rows, each of which has but one, to
    /// `scales` (f32 `[1, N]`).
    ///
    /// # Errors
    /// If shapes don't fit, or `w` is of another format.
    pub fn unpack_fp8(
        &self,
        gpu: &Gpu,
        w: &BlockMatrix,
        quants: &DeviceTensor,
        scales: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "unpack_fp8";
        require(OP, matches!(w.format(), BlockFormat::Fp8(_)), || format!("{w:?} is not of e4m3"))?;
        expect(OP, "quants", quants, DType::Fp8, w.rows(), w.columns())?;
        expect(OP, "scales", scales, DType::F32, 1, w.rows())?;
        let arguments = Arguments::new().tensor(quants).tensor(scales).tensor(w.tiles());
        let arguments = plain(arguments.size(w.rows()).size(w.columns()), w.format());
        // SAFETY: the kernel writes the elements of `quants` and `scales`.
        unsafe { gpu.launch(self.unpack_fp8, unpack_grid(w, w.rows().div_ceil(TILE_ROWS)), arguments) }
    }

    /// As [`super::ElementwiseKernels::embed`], from a table in a block format.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub fn embed(
        &self,
        gpu: &Gpu,
        table: &BlockMatrix,
        ids: &DeviceTensor,
        last_tokens: &DeviceTensor,
        residual: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "embed";
        let tokens = residual.rows();
        expect(OP, "the residual", residual, DType::F32, tokens, table.columns())?;
        expect_at_least(OP, "ids", ids, DType::U32, tokens)?;
        expect_at_least(OP, "last_tokens", last_tokens, DType::U32, 0)?;
        let slots = last_tokens.rows() * last_tokens.columns();
        let arguments = Arguments::new().tensor(residual).tensor(table.tiles()).tensor(ids).tensor(last_tokens);
        let arguments = arguments.size(slots).size(table.rows()).size(table.columns());
        let kernel = self.of(table.format()).embed;
        // SAFETY: shapes were checked; ids and slots are bounded by the kernel.
        unsafe { gpu.launch(kernel, unpack_grid(table, tokens), plain(arguments, table.format())) }
    }
}

/// The two numbers that tell plain formats apart.
pub(super) fn plain(arguments: Arguments, format: BlockFormat) -> Arguments {
    let row = format.row();
    arguments.size(row.block.0).size(row.scales as usize)
}

/// Four warps a block, a record each, for `count` tiles or rows.
fn unpack_grid(w: &BlockMatrix, count: usize) -> Grid {
    const WARPS: usize = 4;
    let mut grid = Grid::linear(w.format().records(w.columns()).div_ceil(WARPS), 32 * WARPS as u32);
    grid.blocks[1] = count as u32;
    grid.shared_bytes = (WARPS * (w.format().record_bytes() + w.format().row().code.table_bytes())) as u32;
    grid
}

/// The way of a product of `rows` rows with `outputs` rows of weights. Narrow tiles for one block of rows, where there are
/// not enough others for all multiprocessors; teams that share x where there are plenty, but for 4-bit K, which an H100
/// computes no faster so.
fn shape(multiprocessors: usize, rows: usize, format: BlockFormat, outputs: usize) -> Shape {
    let tiles = outputs.div_ceil(MANY.tiles * TILE_ROWS);
    if rows <= FEW_ROWS {
        return FEW;
    }
    if tiles <= multiprocessors && rows <= MANY_ROWS {
        return NARROW;
    }
    if format.row().code == Code::K4 {
        return MANY;
    }
    let teams = if 8 * warp_bytes(MANY, format) <= SHARED_BYTES { 4 } else { 2 };
    if tiles < 4 * multiprocessors { MANY } else { Shape { teams, warps: (2 * teams, 2 * teams), ..MANY } }
}

/// The grid of a product with `outputs` rows of weights, and the shared memory of each warp.
fn grid(gpu: &Gpu, shape: Shape, rows: usize, outputs: usize, w: &BlockMatrix) -> (Grid, usize) {
    let warp_bytes = warp_bytes(shape, w.format());
    let warps = warps(gpu.limits().multiprocessors, shape, outputs, w.format().records(w.columns()), warp_bytes);
    let blocks = outputs.div_ceil(shape.tiles * shape.teams * TILE_ROWS);
    let grid = Grid {
        blocks: [rows.div_ceil(shape.rows) as u32, blocks as u32, 1],
        threads: [32 * warps as u32, 1, 1],
        shared_bytes: (warps * warp_bytes) as u32,
    };
    (grid, warp_bytes)
}

/// A ring of records and their scales, over which the sums are laid at the end.
pub(super) fn warp_bytes(shape: Shape, format: BlockFormat) -> usize {
    let ring = shape.tiles * (STAGES * format.record_bytes() + format.row().code.table_bytes());
    let sums = shape.rows * (TILE_ROWS * shape.tiles + 4) * 4;
    ring.max(sums).next_multiple_of(16)
}

/// Warps of a block. Those of a team share `records`: enough for the whole card to be busy, and then the number that leaves
/// the fewest idle in the last round. Where the card holds that many warps, each has one record, so that all are read at
/// once. Not a matter of how many rows there are, for it decides the order of the sums.
pub(super) fn warps(multiprocessors: usize, shape: Shape, outputs: usize, records: usize, warp_bytes: usize) -> usize {
    let Shape { tiles, teams, warps: (least, most), .. } = shape;
    let of_teams = outputs.div_ceil(tiles * TILE_ROWS).max(1);
    let most = (most.min(SHARED_BYTES / warp_bytes) / teams).min(records).max(1);
    if records <= most && of_teams * records <= 64 * multiprocessors {
        return teams * records;
    }
    let wanted = (multiprocessors * WARPS_PER_MULTIPROCESSOR).div_ceil(of_teams).max(least / teams).min(most);
    teams * (wanted..=most).min_by_key(|warps| records.div_ceil(*warps) * warps).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_their_shared_memory_and_share_k_evenly() {
        let warps_of = |shape: Shape, format: BlockFormat, outputs: usize, inputs: usize| {
            let bytes = warp_bytes(shape, format);
            let warps = warps(132, shape, outputs, format.records(inputs), bytes);
            assert!(warps >= 1 && warps * bytes <= SHARED_BYTES, "{format:?}: {warps} warps of {bytes} bytes");
            assert!(warps.is_multiple_of(shape.teams) && warps <= shape.warps.1, "{format:?}: {warps} of {shape:?}");
            warps
        };
        let int8 = BlockFormat::Int8(32);
        for format in [BlockFormat::Q4K, BlockFormat::Q6K, int8, BlockFormat::Q5_1, BlockFormat::Q2K, BlockFormat::Q5K]
        {
            for (outputs, inputs) in [(16, 256), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096)] {
                for shape in [FEW, SILU, NARROW, shape(132, 70, format, outputs), MANY] {
                    warps_of(shape, format, outputs, inputs);
                }
            }
        }
        let q4 = BlockFormat::Q4K;
        assert_eq!(warps_of(FEW, q4, 4096, 4096), 16);
        assert_eq!(warps_of(FEW, q4, 28_672, 4096), 8);
        assert_eq!(warps_of(FEW, q4, 4096, 14_336), 8);
        assert_eq!(warps_of(SILU, q4, 28_672, 4096), 8);
        assert_eq!([shape(132, 32, q4, 4096), shape(132, 33, q4, 4096), shape(132, 9, q4, 6144)], [NARROW, MANY, MANY]);
        assert_eq!(shape(132, 9, BlockFormat::Q4_0, 28_672).teams, 4);
        assert_eq!(shape(132, 9, BlockFormat::Q6K, 28_672).teams, 2);
    }
}
