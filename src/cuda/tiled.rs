//! Products of many rows with weights by our own tensor-core kernels, for machines without cuBLASLt.

use super::gemm::check;
use super::maps::TensorMap;
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid, Kernel};

/// How y is cut into blocks: the tiles of `gemm.cu` and `gemm_sm90a.cu`. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tile {
    /// 128 x 256, one block a multiprocessor.
    Large,
    /// 128 x 128, two blocks a multiprocessor.
    Medium,
    /// 128 x 64, likewise.
    Narrow,
    /// 64 x 64, likewise.
    Small,
    /// 128 x 256 by Hopper's warpgroups, one block a multiprocessor; for whole 32 outputs.
    Hopper,
}

/// Threads of a block of `tiles_sm90a.cuh`, and its ring of slices from a multiple of 1024 bytes.
pub(super) const HOPPER_THREADS: u32 = 384;
pub(super) const HOPPER_RING_BYTES: usize = 193 << 10;

/// What a tile is and needs.
struct Shape {
    name: &'static str,
    rows: usize,
    columns: usize,
    threads: u32,
    shared_bytes: usize,
    /// Blocks of a multiprocessor that has the shared memory.
    blocks: usize,
    /// How fast a full GPU computes with it, against `Large`.
    speed: f64,
}

impl Tile {
    /// All tiles.
    pub const ALL: [Self; 5] = [Self::Large, Self::Medium, Self::Narrow, Self::Small, Self::Hopper];

    /// Those that are taken unasked. Where they are equally good, the first.
    const CHOSEN: [Self; 5] = [Self::Hopper, Self::Medium, Self::Large, Self::Narrow, Self::Small];

    #[rustfmt::skip]
    fn shape(self) -> Shape {
        let (name, rows, columns, threads, shared_bytes, blocks, speed) = match self {
            Self::Large => ("large", 128, 256, 256, 96 << 10, 1, 1.0),
            Self::Medium => ("medium", 128, 128, 128, 96 << 10, 2, 1.0),
            Self::Narrow => ("narrow", 128, 64, 128, 96 << 10, 2, 0.8),
            Self::Small => ("small", 64, 64, 128, 80 << 10, 2, 0.6),
            Self::Hopper => ("sm90a", 128, 256, HOPPER_THREADS, HOPPER_RING_BYTES, 1, 1.6),
        };
        Shape { name, rows, columns, threads, shared_bytes, blocks, speed }
    }

    /// The module that its kernel is in.
    fn module(self) -> &'static str {
        if self == Self::Hopper { "gemm_sm90a" } else { "gemm" }
    }

    /// Whether a card has it for so many outputs.
    fn serves(self, card: Card, outputs: usize) -> bool {
        self != Self::Hopper || card.is_hopper && outputs.is_multiple_of(32)
    }

    fn count(self, rows: usize, outputs: usize) -> usize {
        let shape = self.shape();
        rows.div_ceil(shape.rows) * outputs.div_ceil(shape.columns)
    }

    /// What y `[rows, outputs]` costs, in values of y that a multiprocessor computes in turn with `Large`.
    fn cost(self, card: Card, rows: usize, outputs: usize) -> f64 {
        let shape = self.shape();
        let area = (shape.rows * shape.columns) as f64 / shape.speed;
        let blocks = if card.holds_pairs { shape.blocks } else { 1 };
        let (at_once, count) = (card.multiprocessors * blocks, self.count(rows, outputs));
        let alone = if shape.blocks == 2 { ALONE } else { 1.0 };
        let whole = if blocks == 2 { 2.0 } else { alone } * (count / at_once) as f64;
        let rest = match (count % at_once).div_ceil(card.multiprocessors) {
            1 => alone,
            waves => waves as f64,
        };
        area * (whole + rest)
    }
}

/// How long a block of two that fit a multiprocessor takes without the other, against half of what both take.
const ALONE: f64 = 1.25;

/// What the choice of a tile depends on besides the shape.
#[derive(Clone, Copy)]
struct Card {
    multiprocessors: usize,
    /// Whether a multiprocessor holds two blocks of the tiles that are made for that.
    holds_pairs: bool,
    /// Whether it and this build have [`Tile::Hopper`].
    is_hopper: bool,
}

/// Values of k that a part of a split K is a multiple of.
const DEPTH: usize = 64;

/// Values of k that are worth a block of their own.
const LEAST_PART: usize = 512;

/// The kernel of a tile, and how many of its blocks the GPU holds at once.
struct TileKernel {
    tile: Tile,
    kernel: Kernel,
    at_once: usize,
}

/// The kernels of one dtype: those of the tiles that fit this GPU, and the sum of parts.
struct Kernels {
    tiles: Vec<TileKernel>,
    sum: Kernel,
}

/// The kernels of `gemm.cu`, and memory for the parts of a split K.
pub(super) struct TiledGemm {
    card: Card,
    bf16: Kernels,
    f16: Kernels,
    /// `[parts, M, N]` f32.
    parts: DeviceTensor,
}

/// What a product is computed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    tile: Tile,
    /// Parts of K.
    parts: usize,
    /// Values of k of a part.
    part: usize,
}

impl Way {
    fn whole(tile: Tile, inputs: usize) -> Self {
        Self { tile, parts: 1, part: inputs }
    }
}

impl TiledGemm {
    pub(super) fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        let limits = gpu.limits();
        let load = |dtype: DType| -> Result<Kernels, CudaError> {
            let mut tiles = Vec::new();
            for tile in Tile::ALL {
                let shape = tile.shape();
                if shape.shared_bytes > limits.shared_bytes_per_block {
                    continue;
                }
                let found = gpu.kernel(tile.module(), &format!("gemm_{}_{}", shape.name, dtype.suffix()));
                let found = if tile == Tile::Hopper { CudaError::if_here(found)? } else { Some(found?) };
                let Some(kernel) = found else { continue };
                gpu.allow_shared_memory(kernel, shape.shared_bytes)?;
                let fit = gpu.blocks_per_multiprocessor(kernel, shape.threads, shape.shared_bytes)?;
                tiles.push(TileKernel { tile, kernel, at_once: fit * limits.multiprocessors });
            }
            Ok(Kernels { tiles, sum: gpu.kernel("gemm", &format!("gemm_sum_{}", dtype.suffix()))? })
        };
        let (bf16, f16) = (load(DType::Bf16)?, load(DType::F16)?);
        let multiprocessors = limits.multiprocessors;
        let paired = |kernel: &TileKernel| kernel.tile.shape().blocks == 1 || kernel.at_once >= 2 * multiprocessors;
        let is_hopper = bf16.tiles.iter().any(|kernel| kernel.tile == Tile::Hopper);
        let card = Card { multiprocessors, holds_pairs: bf16.tiles.iter().all(paired), is_hopper };
        let small = Tile::Small.shape();
        let values = 2 * wanted_blocks(multiprocessors) * small.rows * small.columns;
        let parts = gpu.empty(1, values, DType::F32, "parts of matrix products")?;
        Ok(Self { card, bf16, f16, parts })
    }

    /// The tiles that this GPU has for so many outputs.
    #[cfg(test)]
    pub(super) fn tiles(&self, outputs: usize) -> Vec<Tile> {
        self.bf16.tiles.iter().map(|kernel| kernel.tile).filter(|tile| tile.serves(self.card, outputs)).collect()
    }

    /// Queues y `[M, N]` = x `[M, K]` · w `[N, K]`^T for any M, by `tile` with K whole, or by the way that is best.
    pub(super) fn multiply(
        &self,
        gpu: &Gpu,
        tile: Option<Tile>,
        x: &DeviceTensor,
        w: &DeviceTensor,
        y: &DeviceTensor,
    ) -> Result<(), CudaError> {
        check(x, w, y)?;
        let (rows, outputs, inputs) = (x.rows(), w.rows(), w.columns());
        let Way { tile, parts, part } = match tile {
            Some(tile) => Way::whole(tile, inputs),
            None => way(self.card, rows, outputs, inputs),
        };
        let kernels = if x.dtype() == DType::Bf16 { &self.bf16 } else { &self.f16 };
        let Some(TileKernel { kernel, at_once, .. }) = kernels.tiles.iter().find(|kernel| kernel.tile == tile) else {
            return Err(CudaError::argument("linear", format!("{tile:?} tiles need more shared memory")));
        };
        let shape = tile.shape();
        let is_f32 = usize::from(y.dtype() == DType::F32);
        let grid = Grid {
            blocks: [tile.count(rows, outputs).min(*at_once) as u32, parts as u32, 1],
            shared_bytes: shape.shared_bytes as u32,
            ..Grid::linear(1, shape.threads)
        };
        let (target, target_is_f32) = if parts > 1 { (&self.parts, 1) } else { (y, is_f32) };
        let arguments = Arguments::new().tensor(target).tensor(x);
        let arguments = match tile {
            Tile::Hopper => arguments.map(&TensorMap::permuted(gpu, w)?),
            _ => arguments.tensor(w),
        };
        let arguments = arguments.size(rows).size(outputs).size(inputs);
        // SAFETY: `check` holds shapes, dtypes and alignment; `way` splits K only where `self.parts` has the room.
        unsafe { gpu.launch(*kernel, grid, arguments.size(part).size(target_is_f32))? };
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

/// The tile that costs least. K is split only where the rows are one small tile, and then by N and K alone, so that the
/// split is the same for all such row counts.
fn way(card: Card, rows: usize, outputs: usize, inputs: usize) -> Way {
    let small = Tile::Small.shape();
    if rows > small.rows {
        let cost = |tile: &Tile| tile.cost(card, rows, outputs);
        let served = Tile::CHOSEN.into_iter().filter(|tile| tile.serves(card, outputs));
        let cheapest = served.min_by(|a, b| cost(a).total_cmp(&cost(b)));
        return Way::whole(cheapest.unwrap_or(Tile::Small), inputs);
    }
    let tiles = outputs.div_ceil(small.columns).max(1);
    let wanted = wanted_blocks(card.multiprocessors);
    let parts = if tiles >= wanted { 1 } else { wanted.div_ceil(tiles).min(inputs / LEAST_PART) };
    if parts <= 1 {
        return Way::whole(Tile::Small, inputs);
    }
    let part = inputs.div_ceil(parts).next_multiple_of(DEPTH);
    Way { tile: Tile::Small, parts: inputs.div_ceil(part), part }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Card = Card { multiprocessors: 132, holds_pairs: true, is_hopper: true };
    /// As large, without Hopper's own tiles.
    const OTHER: Card = Card { is_hopper: false, ..H100 };

    #[test]
    fn parts_cover_k_and_fit_their_memory() {
        for outputs in [1, 8, 130, 1536, 4096, 12_600, 28_672, 151_936] {
            for inputs in [8, 40, 1024, 4104, 8960, 14_336] {
                for rows in [1, 17, 64, 65, 300, 8192] {
                    let Way { parts, part, tile } = way(H100, rows, outputs, inputs);
                    assert!((parts - 1) * part < inputs && parts * part >= inputs, "{rows} {outputs} {inputs}");
                    assert!(parts == 1 || tile == Tile::Small && part.is_multiple_of(DEPTH));
                    let room = 2 * wanted_blocks(132) * 64 * 64;
                    assert!(parts == 1 || parts * rows * outputs <= room, "{rows} {outputs} {inputs}");
                }
            }
        }
        assert_eq!(way(H100, 32, 1536, 8960), Way { tile: Tile::Small, parts: 9, part: 1024 });
    }

    #[test]
    fn tiles_fill_the_gpu() {
        for (rows, outputs, tile, hopper) in [
            (8192, 4096, Tile::Medium, Tile::Hopper),
            (8192, 4100, Tile::Medium, Tile::Medium),
            (4096, 1536, Tile::Medium, Tile::Hopper),
            (256, 4096, Tile::Narrow, Tile::Narrow),
            (65, 1536, Tile::Small, Tile::Small),
        ] {
            assert_eq!(way(OTHER, rows, outputs, 4096).tile, tile, "{rows} rows of {outputs}");
            assert_eq!(way(H100, rows, outputs, 4096).tile, hopper, "{rows} rows of {outputs} on Hopper");
        }
        assert_eq!(way(Card { multiprocessors: 84, holds_pairs: false, ..OTHER }, 8192, 4096, 4096).tile, Tile::Large);
    }
}
