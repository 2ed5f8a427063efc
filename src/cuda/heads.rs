//! Products of rows with a matrix for each head: `kernels/gemm/heads.cu`, checked and launched.

use super::check::{Typed, require};
use super::few_rows;
use super::{Arguments, CudaError, DType, DeviceTensor, GEMV_ROWS, Gpu, Grid};

/// Threads, rows, columns and shared memory of a tile, as in `heads.cu`.
const TILE_THREADS: u32 = 128;
const TILE_ROWS: usize = 64;
const TILE_COLUMNS: usize = 128;
const TILE_BYTES: usize = 96 << 10;

/// Where the heads' parts of a row lie.
#[derive(Clone, Copy, Debug)]
pub struct HeadPart<'a> {
    /// `[t, _]`: a token a row.
    pub rows: &'a DeviceTensor,
    /// Column at which the part of the first head begins.
    pub first: usize,
    /// Columns from a head's part to the next one's.
    pub stride: usize,
}

impl HeadPart<'_> {
    fn address(&self) -> u64 {
        self.rows.pointer() + (self.first * self.rows.dtype().size()) as u64
    }

    /// Whether `heads` parts of `width` lie in a row, each a whole number of 16-byte pieces from the next.
    fn holds(&self, heads: usize, width: usize) -> bool {
        let inside = heads > 0 && self.first + (heads - 1) * self.stride + width <= self.rows.columns();
        let whole = [width, self.stride, self.rows.columns()].iter().all(|count| count.is_multiple_of(8));
        inside && width > 0 && whole && self.address().is_multiple_of(16)
    }
}

/// A matrix for each head, `[N, K]`.
#[derive(Clone, Copy, Debug)]
pub struct HeadMatrices<'a> {
    /// `[heads * stride, K]`.
    pub rows: &'a DeviceTensor,
    /// Row at which the matrix of the first head begins.
    pub first: usize,
    /// Rows from a head's matrix to the next one's.
    pub stride: usize,
    /// N.
    pub outputs: usize,
}

impl<'a> HeadMatrices<'a> {
    /// Matrices one below the other.
    pub fn stacked(rows: &'a DeviceTensor, heads: usize) -> Self {
        let outputs = rows.rows() / heads.max(1);
        Self { rows, first: 0, stride: outputs, outputs }
    }
}

/// The kernels of `heads.cu`, looked up once.
#[derive(Clone, Copy, Debug)]
pub struct HeadKernels {
    few8: Typed,
    few16: Typed,
    many: Typed,
    at_once: usize,
}

impl HeadKernels {
    /// Looks the kernels up.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`]; if the card has less shared memory than they need.
    pub fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        let many = Typed::load(gpu, "heads", "heads_many")?;
        let mut fit = usize::MAX;
        for dtype in [DType::Bf16, DType::F16] {
            let kernel = many.of("heads", dtype)?;
            gpu.allow_shared_memory(kernel, TILE_BYTES)?;
            fit = fit.min(gpu.blocks_per_multiprocessor(kernel, TILE_THREADS, TILE_BYTES)?);
        }
        let few = |name: &str| few_rows::load(gpu, "heads", name);
        Ok(Self {
            few8: few("heads_few8")?,
            few16: few("heads_few16")?,
            many,
            at_once: fit * gpu.limits().multiprocessors,
        })
    }

    /// Queues `y[t, head] = x[t, head] * w[head]^T` for each of `heads`: of x K columns a head, of y N;
    /// all bf16 or all f16, sums in f32. The `tail` columns that follow a head's part of x are copied behind its part of
    /// y. All sizes and distances are multiples of 8. What else lies between the parts of y stays.
    ///
    /// # Errors
    /// If shapes, dtypes or alignment do not fit.
    pub fn multiply(
        &self,
        gpu: &Gpu,
        heads: usize,
        x: HeadPart<'_>,
        w: HeadMatrices<'_>,
        y: HeadPart<'_>,
        tail: usize,
    ) -> Result<(), CudaError> {
        const OP: &str = "heads";
        let (rows, dtype) = (x.rows.rows(), x.rows.dtype());
        let fits = heads > 0 && w.first + w.outputs <= w.stride && w.rows.rows() == heads * w.stride;
        require(OP, fits && y.rows.rows() == rows && w.rows.dtype() == dtype && y.rows.dtype() == dtype, || {
            format!("{heads} heads, {x:?}, {w:?} -> {y:?}")
        })?;
        let (outputs, inputs) = (w.outputs, w.rows.columns());
        let matrices = w.rows.slice(w.first, w.rows.rows() - w.first);
        let aligned = matrices.pointer().is_multiple_of(16);
        require(
            OP,
            x.holds(heads, inputs + tail) && y.holds(heads, outputs + tail) && tail.is_multiple_of(8) && aligned,
            || format!("parts of {inputs} and {outputs} for {heads} heads: {x:?}, {w:?} -> {y:?}"),
        )?;
        if rows == 0 {
            return Ok(());
        }
        let start = Arguments::new().u64(y.address()).u64(x.address()).tensor(&matrices).size(rows);
        let strides = |arguments: Arguments| {
            let arguments = arguments.size(x.rows.columns()).size(x.stride);
            arguments.size(y.rows.columns()).size(y.stride).size(w.stride * inputs)
        };
        if rows <= GEMV_ROWS {
            let kernel = if rows <= 8 { self.few8 } else { self.few16 }.of(OP, dtype)?;
            let columns = outputs.div_ceil(16);
            let grid = few_rows::grid(gpu, columns * heads, inputs);
            let grid = Grid { blocks: [columns as u32, heads as u32, 1], ..grid };
            // SAFETY: shapes, dtypes and alignment are checked above.
            return unsafe { gpu.launch(kernel, grid, strides(start.size(outputs).size(inputs).size(tail))) };
        }
        let tiles = rows.div_ceil(TILE_ROWS) * outputs.div_ceil(TILE_COLUMNS) * heads;
        let grid = Grid { shared_bytes: TILE_BYTES as u32, ..Grid::linear(tiles.min(self.at_once), TILE_THREADS) };
        let arguments = strides(start.size(heads).size(outputs).size(inputs).size(tail));
        // SAFETY: as above.
        unsafe { gpu.launch(self.many.of(OP, dtype)?, grid, arguments) }
    }
}
