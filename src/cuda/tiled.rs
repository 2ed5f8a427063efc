//! Products of many rows with weights by our own tensor-core kernels, for machines without cuBLASLt.

use super::gemm::check;
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid, Kernel};

/// A way to cut y into blocks, as in `gemm.cu`.
#[derive(Clone, Copy)]
struct Tile {
    name: &'static str,
    rows: usize,
    columns: usize,
    threads: u32,
    shared_bytes: usize,
}

const LARGE: Tile = Tile { name: "large", rows: 128, columns: 256, threads: 256, shared_bytes: 96 << 10 };
const MEDIUM: Tile = Tile { name: "medium", rows: 128, columns: 128, threads: 256, shared_bytes: 64 << 10 };
const SMALL: Tile = Tile { name: "small", rows: 64, columns: 64, threads: 128, shared_bytes: 80 << 10 };

/// Values of k that a part of a split K is a multiple of.
const DEPTH: usize = 64;

/// Values of k that are worth a block of their own.
const LEAST_PART: usize = 512;

impl Tile {
    fn count(&self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.rows) * outputs.div_ceil(self.columns)
    }
}

/// The kernels of one dtype: large, medium, small tiles, and the sum of parts.
struct Kernels {
    tiles: [(Tile, Kernel); 3],
    sum: Kernel,
}

/// The kernels of `gemm.cu`, and memory for the parts of a split K.
pub(super) struct TiledGemm {
    bf16: Kernels,
    f16: Kernels,
    /// `[parts, M, N]` f32.
    parts: DeviceTensor,
}

/// What a product is computed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    /// Index of the tile: large, medium, small.
    tile: usize,
    /// Parts of K.
    parts: usize,
    /// Values of k of a part.
    part: usize,
}

impl TiledGemm {
    pub(super) fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        let load = |dtype: DType| -> Result<Kernels, CudaError> {
            let tile = |tile: Tile| {
                let kernel = gpu.kernel("gemm", &format!("gemm_{}_{}", tile.name, dtype.suffix()))?;
                gpu.allow_shared_memory(kernel, tile.shared_bytes)?;
                Ok::<_, CudaError>((tile, kernel))
            };
            let sum = gpu.kernel("gemm", &format!("gemm_sum_{}", dtype.suffix()))?;
            Ok(Kernels { tiles: [tile(LARGE)?, tile(MEDIUM)?, tile(SMALL)?], sum })
        };
        let values = 2 * wanted_blocks(gpu.limits().multiprocessors) * SMALL.rows * SMALL.columns;
        let parts = gpu.empty(1, values, DType::F32, "parts of matrix products")?;
        Ok(Self { bf16: load(DType::Bf16)?, f16: load(DType::F16)?, parts })
    }

    /// Queues y `[M, N]` = x `[M, K]` · w `[N, K]`^T for any M.
    pub(super) fn multiply(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        w: &DeviceTensor,
        y: &DeviceTensor,
    ) -> Result<(), CudaError> {
        check(x, w, y)?;
        let (rows, outputs, inputs) = (x.rows(), w.rows(), w.columns());
        if outputs.is_multiple_of(2) && !y.pointer().is_multiple_of(2 * y.dtype().size() as u64) {
            return Err(CudaError::argument("linear", format!("{y:?} begins between two pairs")));
        }
        let Way { tile, parts, part } = way(gpu.limits().multiprocessors, rows, outputs, inputs);
        let kernels = if x.dtype() == DType::Bf16 { &self.bf16 } else { &self.f16 };
        let (tile, kernel) = kernels.tiles[tile];
        let is_f32 = usize::from(y.dtype() == DType::F32);
        let grid = Grid {
            blocks: [tile.count(rows, outputs) as u32, parts as u32, 1],
            shared_bytes: tile.shared_bytes as u32,
            ..Grid::linear(1, tile.threads)
        };
        let (target, target_is_f32) = if parts > 1 { (&self.parts, 1) } else { (y, is_f32) };
        let arguments = Arguments::new().tensor(target).tensor(x).tensor(w).size(rows).size(outputs).size(inputs);
        // SAFETY: `check` holds shapes, dtypes and alignment; `way` splits K only where `self.parts` has the room.
        unsafe { gpu.launch(kernel, grid, arguments.size(part).size(target_is_f32))? };
        if parts == 1 {
            return Ok(());
        }
        let count = rows * outputs;
        let arguments = Arguments::new().tensor(y).tensor(&self.parts).size(parts).size(count).size(is_f32);
        // SAFETY: `parts` matrices of `count` values were just queued, and y has `count`.
        unsafe { gpu.launch(kernels.sum, Grid::linear(count.div_ceil(256), 256), arguments) }
    }
}

/// Blocks that a split of K aims at: three for two multiprocessors, which hold two each.
fn wanted_blocks(multiprocessors: usize) -> usize {
    (multiprocessors * 3).div_ceil(2)
}

/// The largest tile of which there are enough for all multiprocessors. K is split only where the rows are one small
/// tile, and then by N and K alone, so that the split is the same for all such row counts.
fn way(multiprocessors: usize, rows: usize, outputs: usize, inputs: usize) -> Way {
    let whole = |tile| Way { tile, parts: 1, part: inputs };
    if rows > SMALL.rows {
        let fills = |tile: &Tile| tile.count(rows, outputs) >= multiprocessors;
        return whole([LARGE, MEDIUM].iter().position(fills).unwrap_or(2));
    }
    let tiles = outputs.div_ceil(SMALL.columns).max(1);
    let wanted = wanted_blocks(multiprocessors);
    let parts = if tiles >= wanted { 1 } else { wanted.div_ceil(tiles).min(inputs / LEAST_PART) };
    if parts <= 1 {
        return whole(2);
    }
    let part = inputs.div_ceil(parts).next_multiple_of(DEPTH);
    Way { tile: 2, parts: inputs.div_ceil(part), part }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_k_and_fit_their_memory() {
        for outputs in [1, 8, 130, 1536, 4096, 12_600, 28_672, 151_936] {
            for inputs in [8, 40, 1024, 4104, 8960, 14_336] {
                for rows in [1, 17, 64, 65, 300, 8192] {
                    let Way { parts, part, tile } = way(132, rows, outputs, inputs);
                    assert!((parts - 1) * part < inputs && parts * part >= inputs, "{rows} {outputs} {inputs}");
                    assert!(parts == 1 || tile == 2 && part.is_multiple_of(DEPTH));
                    let room = 2 * wanted_blocks(132) * SMALL.rows * SMALL.columns;
                    assert!(parts == 1 || parts * rows * outputs <= room, "{rows} {outputs} {inputs}");
                }
            }
        }
        assert_eq!(way(132, 8192, 4096, 4096).tile, 0);
        assert_eq!(way(132, 32, 1536, 8960), Way { tile: 2, parts: 9, part: 1024 });
    }
}
