//! What is done to rows by themselves: embedding, norms, the gated activation, bias, random weights.
//!
//! `T` below is bf16 or f16. Each launch is limited by memory; none waits or allocates.

use super::check::{Typed, expect, expect_at_least, require};
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid, Kernel};

/// Threads of a block where a thread handles 8 elements.
const THREADS: u32 = 256;

/// Elements that a thread handles in one access.
const PACK: usize = 8;

/// The widest row that a norm keeps in registers; rows that are no multiple of 8 may be wider.
const MAX_NORM_WIDTH: usize = 16_384;

/// The kernels, looked up once.
#[derive(Clone, Copy, Debug)]
pub struct ElementwiseKernels {
    embed: Typed,
    rms_norm: Typed,
    rms_norm_plain: Typed,
    add_rms_norm: Typed,
    gather_add_rms_norm: Typed,
    silu_mul: Typed,
    scale_by_sigmoid: Typed,
    clear: Kernel,
    add_bias: Typed,
    sum_rows: Typed,
    quantize_rows: Typed,
    fill_random: Typed,
    fill_random_f32: Kernel,
    copy_blocks: Kernel,
}

/// The KV cache of a whole model, as bytes: `[layer][K, V][blocks][block_bytes]`.
#[derive(Clone, Copy, Debug)]
pub struct CachePlanes {
    /// K and V of each layer: twice the layers.
    pub planes: usize,
    /// Blocks of a plane.
    pub blocks: usize,
    /// Bytes of a block in one plane, a multiple of 16.
    pub block_bytes: usize,
}

/// A block a row and as many more beside it as cover `packs` with a pack a thread.
fn row_grid(rows: usize, packs: usize) -> Grid {
    let threads = (packs.next_multiple_of(32) as u32).clamp(32, THREADS);
    let mut grid = Grid::linear(rows, threads);
    grid.blocks[1] = packs.div_ceil(threads as usize).clamp(1, 65_535) as u32;
    grid
}

/// A block a row, two packs a thread.
fn norm_grid(op: &'static str, rows: usize, width: usize) -> Result<Grid, CudaError> {
    let whole_packs = width.is_multiple_of(PACK);
    require(op, width > 0 && (!whole_packs || width <= MAX_NORM_WIDTH), || {
        format!("rows of {width}, more than {MAX_NORM_WIDTH}")
    })?;
    let threads = if whole_packs { width.div_ceil(2 * PACK) } else { width.div_ceil(4) };
    Ok(Grid::linear(rows, threads.next_multiple_of(32).min(1024) as u32))
}

impl ElementwiseKernels {
    /// Looks the kernels up.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`].
    pub fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        Ok(Self {
            embed: Typed::load(gpu, "rows", "embed")?,
            rms_norm: Typed::load(gpu, "norm", "rms_norm")?,
            rms_norm_plain: Typed::load(gpu, "norm", "rms_norm_plain")?,
            add_rms_norm: Typed::load(gpu, "norm", "add_rms_norm")?,
            gather_add_rms_norm: Typed::load(gpu, "norm", "gather_add_rms_norm")?,
            silu_mul: Typed::load(gpu, "rows", "silu_mul")?,
            scale_by_sigmoid: Typed::load(gpu, "rows", "scale_by_sigmoid")?,
            clear: gpu.kernel("rows", "clear")?,
            add_bias: Typed::load(gpu, "rows", "add_bias")?,
            sum_rows: Typed::load(gpu, "rows", "sum_rows")?,
            quantize_rows: Typed::load(gpu, "rows", "quantize_rows")?,
            fill_random: Typed::load(gpu, "random", "fill_random")?,
            fill_random_f32: gpu.kernel("random", "fill_random_f32")?,
            copy_blocks: gpu.kernel("blocks", "copy_blocks")?,
        })
    }

    /// `residual[t] = table[ids[t]]`, as floats: `table [vocab, h]` of T, `ids` u32 `[1, t]` or `[t, 1]`, `residual` f32
    /// `[t, h]`. An id with its top bit set names a place of `last_tokens` (u32), which holds the token. An id outside
    /// the table counts as 0.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub fn embed(
        &self,
        gpu: &Gpu,
        table: &DeviceTensor,
        ids: &DeviceTensor,
        last_tokens: &DeviceTensor,
        residual: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "embed";
        let (tokens, width) = (residual.rows(), table.columns());
        expect(OP, "the residual", residual, DType::F32, tokens, width)?;
        expect_at_least(OP, "ids", ids, DType::U32, tokens)?;
        expect_at_least(OP, "last_tokens", last_tokens, DType::U32, 0)?;
        let kernel = self.embed.of(OP, table.dtype())?;
        let arguments = Arguments::new().tensor(residual).tensor(table).tensor(ids).tensor(last_tokens);
        let slots = last_tokens.rows() * last_tokens.columns();
        let arguments = arguments.size(width).size(table.rows()).size(slots);
        // SAFETY: shapes were checked; ids and slots are bounded by the kernel.
        unsafe { gpu.launch(kernel, row_grid(tokens, width.div_ceil(PACK)), arguments) }
    }

    /// `dst[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight`: `x [t, h]` f32 or of T, `weight` f32 `[1, h]`, `dst [t, h]` of T.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub fn rms_norm(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        weight: &DeviceTensor,
        eps: f32,
        dst: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "rms_norm";
        let (rows, width) = (dst.rows(), dst.columns());
        let (kernel, dtype) =
            if x.dtype() == DType::F32 { (&self.rms_norm, DType::F32) } else { (&self.rms_norm_plain, dst.dtype()) };
        expect(OP, "x", x, dtype, rows, width)?;
        expect_at_least(OP, "weight", weight, DType::F32, width)?;
        let arguments = Arguments::new().tensor(dst).tensor(x).tensor(weight).size(width).f32(eps);
        // SAFETY: shapes were checked; x is only read.
        unsafe { gpu.launch(kernel.of(OP, dst.dtype())?, norm_grid(OP, rows, width)?, arguments) }
    }

    /// `residual += x` in place, then `dst = rms_norm(residual)`: `residual` f32, `x` and `dst` of T, all `[t, h]`;
    /// `weight` f32 `[1, h]`.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub fn add_rms_norm(
        &self,
        gpu: &Gpu,
        residual: &DeviceTensor,
        x: &DeviceTensor,
        weight: &DeviceTensor,
        eps: f32,
        dst: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "add_rms_norm";
        let (rows, width) = (dst.rows(), dst.columns());
        expect(OP, "the residual", residual, DType::F32, rows, width)?;
        expect(OP, "x", x, dst.dtype(), rows, width)?;
        expect_at_least(OP, "weight", weight, DType::F32, width)?;
        let arguments = Arguments::new().tensor(dst).tensor(residual).tensor(x).tensor(weight).size(width).f32(eps);
        // SAFETY: shapes were checked.
        unsafe { gpu.launch(self.add_rms_norm.of(OP, dst.dtype())?, norm_grid(OP, rows, width)?, arguments) }
    }

    /// `dst[i] = rms_norm(residual[rows[i]] + x[rows[i]])`, the residual left as it is: `residual` f32 and `x` of T
    /// `[t, h]`, `rows` u32 with an element for each row of `dst [r, h]`, `weight` f32 `[1, h]`.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    #[allow(clippy::too_many_arguments)] // one pass over the row; each is a different thing
    pub fn gather_add_rms_norm(
        &self,
        gpu: &Gpu,
        residual: &DeviceTensor,
        x: &DeviceTensor,
        rows: &DeviceTensor,
        weight: &DeviceTensor,
        eps: f32,
        dst: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "gather_add_rms_norm";
        let (count, width) = (residual.rows(), dst.columns());
        expect(OP, "the residual", residual, DType::F32, count, width)?;
        expect(OP, "x", x, dst.dtype(), count, width)?;
        expect_at_least(OP, "rows", rows, DType::U32, dst.rows())?;
        expect_at_least(OP, "weight", weight, DType::F32, width)?;
        let arguments = Arguments::new().tensor(dst).tensor(residual).tensor(x).tensor(rows).tensor(weight);
        let arguments = arguments.size(width).size(count).f32(eps);
        let kernel = self.gather_add_rms_norm.of(OP, dst.dtype())?;
        // SAFETY: shapes were checked; the kernel bounds the rows and writes `dst` alone.
        unsafe { gpu.launch(kernel, norm_grid(OP, dst.rows(), width)?, arguments) }
    }

    /// `dst[t, i] = silu(gate[t, i]) * up[t, i]`, `silu(x) = x / (1 + e^-x)`: `gate_up [t, 2 f]` holds a row's gates,
    /// then its ups; `dst [t, f]`, both of T.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub fn silu_mul(&self, gpu: &Gpu, gate_up: &DeviceTensor, dst: &DeviceTensor) -> Result<(), CudaError> {
        const OP: &str = "silu_mul";
        let (rows, width) = (dst.rows(), dst.columns());
        expect(OP, "gate_up", gate_up, dst.dtype(), rows, 2 * width)?;
        let arguments = Arguments::new().tensor(dst).tensor(gate_up).size(width);
        // SAFETY: shapes were checked.
        unsafe { gpu.launch(self.silu_mul.of(OP, dst.dtype())?, row_grid(rows, width.div_ceil(PACK)), arguments) }
    }

    /// `x[t] *= sigmoid(gates[t])` in place: `x [t, n]` and `gates [t, 1]` of T.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub fn scale_by_sigmoid(&self, gpu: &Gpu, x: &DeviceTensor, gates: &DeviceTensor) -> Result<(), CudaError> {
        const OP: &str = "scale_by_sigmoid";
        expect(OP, "gates", gates, x.dtype(), x.rows(), 1)?;
        let arguments = Arguments::new().tensor(x).tensor(gates).size(x.columns());
        let grid = row_grid(x.rows(), x.columns().div_ceil(PACK));
        // SAFETY: shapes were checked.
        unsafe { gpu.launch(self.scale_by_sigmoid.of(OP, x.dtype())?, grid, arguments) }
    }

    /// `x[t, i] = 0`: `x [t, n]` of T.
    ///
    /// # Errors
    /// If the dtype does not fit.
    pub fn clear(&self, gpu: &Gpu, x: &DeviceTensor) -> Result<(), CudaError> {
        require("clear", matches!(x.dtype(), DType::Bf16 | DType::F16), || format!("{x:?} is no activation"))?;
        let arguments = Arguments::new().tensor(x).size(x.columns());
        // SAFETY: the kernel writes the tensor's own elements alone.
        unsafe { gpu.launch(self.clear, row_grid(x.rows(), x.columns().div_ceil(PACK)), arguments) }
    }

    /// `x[t, i] += bias[i]` in place: `x [t, n]` of T, `bias` f32 `[1, n]`.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub fn add_bias(&self, gpu: &Gpu, x: &DeviceTensor, bias: &DeviceTensor) -> Result<(), CudaError> {
        const OP: &str = "add_bias";
        expect_at_least(OP, "bias", bias, DType::F32, x.columns())?;
        let arguments = Arguments::new().tensor(x).tensor(bias).size(x.columns());
        let grid = row_grid(x.rows(), x.columns().div_ceil(PACK));
        // SAFETY: shapes were checked.
        unsafe { gpu.launch(self.add_bias.of(OP, x.dtype())?, grid, arguments) }
    }

    /// `quants[t] = x[t] / scales[t]`, rounded to e4m3, with the scale that brings the row's largest number to 448: `x [t, h]`
    /// of T, `quants` fp8 `[t, h]`, `scales` f32 `[1, t]`; h is a multiple of 8.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub fn quantize_rows(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        quants: &DeviceTensor,
        scales: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "quantize_rows";
        require(OP, x.columns().is_multiple_of(PACK), || format!("rows of {}", x.columns()))?;
        expect(OP, "the quants", quants, DType::Fp8, x.rows(), x.columns())?;
        expect(OP, "the scales", scales, DType::F32, 1, x.rows())?;
        let arguments = Arguments::new().tensor(quants).tensor(scales).tensor(x).size(x.columns());
        // SAFETY: shapes were checked.
        unsafe { gpu.launch(self.quantize_rows.of(OP, x.dtype())?, Grid::linear(x.rows(), THREADS), arguments) }
    }

    /// `sum[i] = x[0, i] + x[1, i] + ...`, in this order: `x [t, h]` of T, `sum` f32 `[1, h]`. What `sum` holds comes first
    /// where `goes_on`.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub fn sum_rows(&self, gpu: &Gpu, x: &DeviceTensor, sum: &DeviceTensor, goes_on: bool) -> Result<(), CudaError> {
        const OP: &str = "sum_rows";
        expect(OP, "the sum", sum, DType::F32, 1, x.columns())?;
        let arguments =
            Arguments::new().tensor(sum).tensor(x).size(x.rows()).size(x.columns()).size(usize::from(goes_on));
        let grid = Grid::linear(x.columns().div_ceil(THREADS as usize), THREADS);
        // SAFETY: shapes were checked.
        unsafe { gpu.launch(self.sum_rows.of(OP, x.dtype())?, grid, arguments) }
    }

    /// Fills `dst` (T or f32) with bell-shaped random numbers of the standard deviation `deviation` around 0. An element
    /// depends on `seed` and its index alone.
    ///
    /// # Errors
    /// If the dtype has no kernel.
    pub fn fill_random(&self, gpu: &Gpu, dst: &DeviceTensor, seed: u64, deviation: f32) -> Result<(), CudaError> {
        const OP: &str = "fill_random";
        let count = dst.rows() * dst.columns();
        let kernel = match dst.dtype() {
            DType::F32 => self.fill_random_f32,
            dtype => self.fill_random.of(OP, dtype)?,
        };
        let arguments = Arguments::new().tensor(dst).u64(count as u64).u64(seed).f32(deviation);
        let grid = Grid::linear(count.div_ceil(PACK * THREADS as usize), THREADS);
        // SAFETY: the kernel writes `count` elements.
        unsafe { gpu.launch(kernel, grid, arguments) }
    }

    /// [`Self::copy_blocks`] of `pairs`, each copy as if those before it were done: pairs of which one touches what the other
    /// writes come to launches of their own. `device_pairs` holds the same pairs.
    ///
    /// # Errors
    /// If the cache is smaller than `planes` says, or shapes do not fit.
    pub fn copy_blocks_in_order(
        &self,
        gpu: &Gpu,
        cache: &DeviceTensor,
        planes: CachePlanes,
        pairs: &[(u32, u32)],
        device_pairs: &DeviceTensor,
    ) -> Result<(), CudaError> {
        expect_at_least("copy_blocks", "pairs", device_pairs, DType::U32, 2 * pairs.len())?;
        let mut from = 0;
        while from < pairs.len() {
            let count = copies_at_once(&pairs[from..]);
            let own = device_pairs.view(8 * from, 1, 2 * count, DType::U32);
            self.copy_blocks(gpu, cache, planes, &own, count)?;
            from += count;
        }
        Ok(())
    }

    /// Copies block `from` to block `to` in every plane of `cache`, for each of the first `count` pairs: `pairs` u32
    /// `[count or more, 2]`. No block is both source and target, or a target twice, in one call; a pair with a block
    /// outside is passed over.
    ///
    /// # Errors
    /// If the cache is smaller than `planes` says, or shapes do not fit.
    pub fn copy_blocks(
        &self,
        gpu: &Gpu,
        cache: &DeviceTensor,
        planes: CachePlanes,
        pairs: &DeviceTensor,
        count: usize,
    ) -> Result<(), CudaError> {
        const OP: &str = "copy_blocks";
        let CachePlanes { planes, blocks, block_bytes } = planes;
        let fits = block_bytes.is_multiple_of(16) && planes * blocks * block_bytes <= cache.bytes() && planes <= 65_535;
        require(OP, fits, || format!("{planes} planes of {blocks} blocks of {block_bytes} bytes in {cache:?}"))?;
        expect_at_least(OP, "pairs", pairs, DType::U32, 2 * count)?;
        let arguments = Arguments::new().tensor(cache).tensor(pairs).size(blocks).size(block_bytes / 16);
        let mut grid = Grid::linear(count, 256);
        grid.blocks[1] = planes as u32;
        // SAFETY: checked above; the kernel bounds the blocks.
        unsafe { gpu.launch(self.copy_blocks, grid, arguments) }
    }
}

/// How many of the first `pairs`, of which there are some, may be copied at the same time.
fn copies_at_once(pairs: &[(u32, u32)]) -> usize {
    let depends = |at: usize| {
        let (source, target) = pairs[at];
        pairs[..at].iter().any(|(from, to)| source == *to || target == *from || target == *to)
    };
    (1..pairs.len()).find(|at| depends(*at)).unwrap_or(pairs.len())
}

#[cfg(test)]
mod tests {
    use super::copies_at_once;

    #[test]
    fn copies_that_touch_what_another_writes_are_not_made_at_once() {
        let cases: [(&[(u32, u32)], usize); 6] = [
            (&[(1, 2)], 1),
            (&[(1, 2), (1, 3), (4, 5)], 3),
            (&[(1, 2), (2, 3)], 1),
            (&[(1, 2), (7, 8), (3, 1), (5, 6)], 2),
            (&[(1, 2), (3, 2)], 1),
            (&[(4, 5), (6, 7), (8, 9), (7, 1)], 3),
        ];
        for (pairs, expected) in cases {
            assert_eq!(copies_at_once(pairs), expected, "{pairs:?}");
        }
    }
}
