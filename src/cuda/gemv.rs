//! Products of at most sixteen rows with weights: reading the weights once is all they cost.

use super::gemm::check;
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid, Kernel};

/// Rows of x that one call takes at most.
pub const GEMV_ROWS: usize = 16;

/// Values of k that a warp takes at once, as in `gemv.cu`.
const BATCH: usize = 64;

/// Shared memory of a warp, as in `gemv.cu`.
const RING_BYTES: usize = 12 * 1024;

/// Warps of a block at most: what 99 KiB of shared memory hold.
const MAX_WARPS: usize = 8;

/// Warps that keep a multiprocessor's share of the memory busy.
const WARPS_PER_MULTIPROCESSOR: usize = 16;

/// The kernels of one dtype and one number of rows.
#[derive(Clone, Copy)]
struct Kernels {
    narrow: Kernel,
    wide: Kernel,
    silu: Kernel,
}

/// The kernels of `gemv.cu`.
pub(super) struct Gemv {
    /// For at most 8 and at most 16 rows.
    bf16: [Kernels; 2],
    f16: [Kernels; 2],
}

impl Gemv {
    pub(super) fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        let load = |rows: usize, dtype: DType| -> Result<Kernels, CudaError> {
            let kernel = |form: &str| {
                let kernel = gpu.kernel("gemv", &format!("gemv{rows}_{form}_{}", dtype.suffix()))?;
                gpu.allow_shared_memory(kernel, MAX_WARPS * RING_BYTES)?;
                Ok(kernel)
            };
            Ok(Kernels { narrow: kernel("narrow")?, wide: kernel("wide")?, silu: kernel("silu")? })
        };
        let both = |dtype| Ok::<_, CudaError>([load(8, dtype)?, load(16, dtype)?]);
        Ok(Self { bf16: both(DType::Bf16)?, f16: both(DType::F16)? })
    }

    fn kernels(&self, rows: usize, dtype: DType) -> Kernels {
        let kernels = if dtype == DType::Bf16 { &self.bf16 } else { &self.f16 };
        kernels[usize::from(rows > 8)]
    }

    /// Queues y `[M, N]` = x `[M, K]` · w `[N, K]`^T, M at most [`GEMV_ROWS`].
    pub(super) fn multiply(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        w: &DeviceTensor,
        y: &DeviceTensor,
    ) -> Result<(), CudaError> {
        check(x, w, y)?;
        few("gemv", x)?;
        let multiprocessors = gpu.limits().multiprocessors;
        let kernels = self.kernels(x.rows(), x.dtype());
        let is_wide = w.rows() >= 16 * multiprocessors;
        let (kernel, outputs) = if is_wide { (kernels.wide, 16) } else { (kernels.narrow, 8) };
        let arguments = Arguments::new().tensor(y).tensor(x).tensor(w).size(x.rows()).size(w.rows()).size(x.columns());
        let arguments = arguments.size(usize::from(y.dtype() == DType::F32));
        if x.rows() == 0 {
            return Ok(());
        }
        // SAFETY: `check` holds shapes, dtypes and alignment; the kernel touches rows below M and N alone.
        unsafe { gpu.launch(kernel, grid(multiprocessors, w.rows().div_ceil(outputs), x.columns()), arguments) }
    }

    /// Queues y `[M, F]` = silu(x · gate^T) · (x · up^T), w `[2 F, K]` with gate above up, all of one dtype.
    pub(super) fn silu(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        w: &DeviceTensor,
        y: &DeviceTensor,
    ) -> Result<(), CudaError> {
        let wrong = |message: &str| CudaError::argument("gemv_silu", format!("{message}: {x:?}, {w:?} -> {y:?}"));
        few("gemv_silu", x)?;
        if !matches!(x.dtype(), DType::Bf16 | DType::F16) || w.dtype() != x.dtype() || y.dtype() != x.dtype() {
            return Err(wrong("all are bf16 or all are f16"));
        }
        if x.columns() != w.columns() || y.rows() != x.rows() || w.rows() != 2 * y.columns() {
            return Err(wrong("the shapes don't fit"));
        }
        let is_aligned = x.pointer().is_multiple_of(16) && w.pointer().is_multiple_of(16);
        if x.columns() == 0 || !x.columns().is_multiple_of(8) || !is_aligned {
            return Err(wrong("the inputs are not whole pieces of 16 bytes"));
        }
        if x.rows() == 0 {
            return Ok(());
        }
        let kernel = self.kernels(x.rows(), x.dtype()).silu;
        let arguments = Arguments::new().tensor(y).tensor(x).tensor(w).size(x.rows()).size(y.columns());
        let grid = grid(gpu.limits().multiprocessors, y.columns().div_ceil(8), x.columns());
        // SAFETY: shapes, dtypes and alignment are checked above.
        unsafe { gpu.launch(kernel, grid, arguments.size(x.columns())) }
    }
}

fn few(op: &'static str, x: &DeviceTensor) -> Result<(), CudaError> {
    if x.rows() <= GEMV_ROWS {
        return Ok(());
    }
    Err(CudaError::argument(op, format!("{} rows are more than {GEMV_ROWS}", x.rows())))
}

/// `tiles` blocks of as many warps as [`warps`] says.
fn grid(multiprocessors: usize, tiles: usize, inputs: usize) -> Grid {
    let warps = warps(multiprocessors, tiles, inputs.div_ceil(BATCH));
    Grid { shared_bytes: (warps * RING_BYTES) as u32, ..Grid::linear(tiles, 32 * warps as u32) }
}

/// Warps of a block that share `batches` of k: enough for the whole card to be busy, and then the number that leaves
/// the fewest idle in the last round. Not a matter of how many rows there are, for it decides the order of the sums.
fn warps(multiprocessors: usize, tiles: usize, batches: usize) -> usize {
    let most = MAX_WARPS.min(batches).max(1);
    let wanted = (multiprocessors * WARPS_PER_MULTIPROCESSOR).div_ceil(tiles.max(1)).max(4).min(most);
    (wanted..=most).min_by_key(|warps| batches.div_ceil(*warps) * warps).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warps_share_k_evenly() {
        for (tiles, inputs, expected) in [(256, 4096, 8), (1792, 4096, 4), (192, 1536, 8), (256, 14336, 8), (3, 8, 1)] {
            assert_eq!(warps(132, tiles, usize::div_ceil(inputs, BATCH)), expected, "{tiles} tiles of {inputs}");
        }
    }
}
