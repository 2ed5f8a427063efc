//! How products of a few rows are shared among blocks and warps: what `kernels/include/few_rows.cuh` asks of a launch.

use super::check::Typed;
use super::{CudaError, DType, Gpu, Grid, Kernel};

/// Values of k that a warp takes at once, as in `few_rows.cuh`.
pub(super) const BATCH: usize = 64;

/// Shared memory of a warp, as in `few_rows.cuh`.
const RING_BYTES: usize = 12 * 1024;

/// Warps of a block at most: what 99 KiB of shared memory hold.
const MAX_WARPS: usize = 8;

/// Warps that keep a multiprocessor's share of the memory busy.
const WARPS_PER_MULTIPROCESSOR: usize = 16;

/// Lets a kernel have the shared memory that its most warps need.
pub(super) fn allow(gpu: &Gpu, kernel: Kernel) -> Result<(), CudaError> {
    gpu.allow_shared_memory(kernel, MAX_WARPS * RING_BYTES)
}

/// `name_bf16` and `name_f16` of a module, ready for any number of warps.
pub(super) fn load(gpu: &Gpu, module: &str, name: &str) -> Result<Typed, CudaError> {
    let kernels = Typed::load(gpu, module, name)?;
    for dtype in [DType::Bf16, DType::F16] {
        allow(gpu, kernels.of("few rows", dtype)?)?;
    }
    Ok(kernels)
}

/// `tiles` blocks of as many warps as share `inputs` of k best.
pub(super) fn grid(gpu: &Gpu, tiles: usize, inputs: usize) -> Grid {
    let warps = warps(gpu.limits().multiprocessors, tiles, inputs.div_ceil(BATCH));
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
