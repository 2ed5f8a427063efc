//! Columns in another order: what inputs need for weights whose columns were sorted, and what such weights need once they
//! are dense.
//!
//! An order is u32 `[1, columns]` and names each column once; whoever uploads one has checked that.

use super::check::{expect, require};
use super::quant::SHARED_BYTES;
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid, Kernel};

/// Elements of two bytes that move as one access.
const PACK: usize = 8;

const THREADS: u32 = 256;

/// Rows up to which several blocks share a row.
const FEW_ROWS: usize = 8;

/// Columns of the widest row that shared memory holds.
const MAX_HELD_COLUMNS: usize = SHARED_BYTES / 2;

/// The kernels of `columns.cu`.
#[derive(Clone, Copy, Debug)]
pub struct ColumnKernels {
    gather: Kernel,
    gather_rows: Kernel,
    scatter: Kernel,
}

impl ColumnKernels {
    /// Looks the kernels up.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`].
    pub fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        let held = |name| {
            let kernel = gpu.kernel("columns", name)?;
            gpu.allow_shared_memory(kernel, SHARED_BYTES).map(|()| kernel)
        };
        Ok(Self {
            gather: gpu.kernel("columns", "gather_columns")?,
            gather_rows: held("gather_columns_of_rows")?,
            scatter: held("scatter_columns")?,
        })
    }

    /// Queues `dst[r, c] = src[r, order[c]]`: `src` and `dst [r, k]` of bf16 or f16, two tensors; k is a multiple of 8.
    ///
    /// # Errors
    /// If shapes, dtypes or alignment do not fit.
    pub fn gather(
        &self,
        gpu: &Gpu,
        src: &DeviceTensor,
        order: &DeviceTensor,
        dst: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "gather_columns";
        let (rows, columns) = (src.rows(), src.columns());
        check(OP, src, order)?;
        expect(OP, "dst", dst, src.dtype(), rows, columns)?;
        require(OP, dst.pointer().is_multiple_of(16), || format!("{dst:?} begins between 16 bytes"))?;
        let packs = columns / PACK;
        let arguments = Arguments::new().tensor(dst).tensor(src).tensor(order).size(packs);
        if rows > FEW_ROWS && columns <= MAX_HELD_COLUMNS {
            // SAFETY: shapes, dtypes and alignment were checked; a row fits the shared memory, and the order the row.
            return unsafe { gpu.launch(self.gather_rows, held_rows(rows, columns), arguments) };
        }
        let mut grid = Grid::linear(rows, THREADS);
        let blocks = packs.div_ceil(THREADS as usize);
        require(OP, blocks <= 65_535, || format!("rows of {columns}"))?;
        grid.blocks[1] = blocks as u32;
        // SAFETY: as above.
        unsafe { gpu.launch(self.gather, grid, arguments) }
    }

    /// Whether [`Self::scatter`] takes rows of so many columns.
    pub fn scatters(columns: usize) -> bool {
        columns <= MAX_HELD_COLUMNS && columns.is_multiple_of(PACK)
    }

    /// Queues `x[r, order[c]] = x[r, c]` for all c at once, in place: `x [r, k]` of bf16 or f16.
    ///
    /// # Errors
    /// If shapes, dtypes or alignment do not fit; if rows are wider than [`Self::scatters`] says.
    pub fn scatter(&self, gpu: &Gpu, x: &DeviceTensor, order: &DeviceTensor) -> Result<(), CudaError> {
        const OP: &str = "scatter_columns";
        check(OP, x, order)?;
        require(OP, Self::scatters(x.columns()), || format!("rows of {}", x.columns()))?;
        let arguments = Arguments::new().tensor(x).tensor(order).size(x.columns() / PACK);
        // SAFETY: shapes, dtypes and alignment were checked; a row fits the shared memory, and the order the row.
        unsafe { gpu.launch(self.scatter, held_rows(x.rows(), x.columns()), arguments) }
    }
}

/// A block a row, which it holds in shared memory.
fn held_rows(rows: usize, columns: usize) -> Grid {
    Grid { shared_bytes: 2 * columns as u32, ..Grid::linear(rows, THREADS) }
}

fn check(op: &'static str, x: &DeviceTensor, order: &DeviceTensor) -> Result<(), CudaError> {
    let fits = matches!(x.dtype(), DType::Bf16 | DType::F16) && x.columns().is_multiple_of(PACK);
    require(op, fits, || format!("columns of {x:?}"))?;
    require(op, x.pointer().is_multiple_of(16), || format!("{x:?} begins between 16 bytes"))?;
    require(op, order.pointer().is_multiple_of(32), || format!("{order:?} begins between 32 bytes"))?;
    expect(op, "the order", order, DType::U32, 1, x.columns())
}
