//! Products of at most sixteen rows with weights: reading the weights once is all they cost.

use super::few_rows;
use super::gemm::check;
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Kernel};

/// Rows of x that one call takes at most.
pub const GEMV_ROWS: usize = 16;

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
                few_rows::allow(gpu, kernel)?;
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
        unsafe { gpu.launch(kernel, few_rows::grid(gpu, w.rows().div_ceil(outputs), x.columns()), arguments) }
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
        let grid = few_rows::grid(gpu, y.columns().div_ceil(8), x.columns());
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
