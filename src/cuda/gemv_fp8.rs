//! Products of at most eight rows with weights of e4m3: reading the weights once is all they cost.

use super::check::{Typed, expect, require};
use super::few_rows;
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu};

/// Rows of x that one call takes at most.
pub const GEMV_FP8_ROWS: usize = 8;

/// Columns that a warp takes at once, beside those of `few_rows.cuh`.
const HALVES: usize = 2;

/// The kernels of `gemv_fp8.cu`.
pub struct GemvFp8 {
    narrow: Typed,
    wide: Typed,
    silu: Typed,
}

impl GemvFp8 {
    /// Looks the kernels up.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`].
    pub fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        let kernel = |form: &str| few_rows::load(gpu, "gemv_fp8", &format!("gemv_fp8_{form}"));
        Ok(Self { narrow: kernel("narrow")?, wide: kernel("wide")?, silu: kernel("silu")? })
    }

    /// Queues y `[M, N]` = x `[M, K]` · (scales · w)^T: x bf16 or f16, M at most [`GEMV_FP8_ROWS`], w fp8 `[N, K]` with f32
    /// scales `[1, N]`, y of x's type or f32; K is a multiple of 16. Sums in f32.
    ///
    /// # Errors
    /// If shapes or dtypes don't fit.
    pub fn multiply(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        (w, scales): (&DeviceTensor, &DeviceTensor),
        y: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "gemv_fp8";
        check(OP, x, (w, scales))?;
        let is_f32 = y.dtype() == DType::F32;
        require(OP, is_f32 || y.dtype() == x.dtype(), || format!("{x:?} -> {y:?}"))?;
        expect(OP, "y", y, y.dtype(), x.rows(), w.rows())?;
        if x.rows() == 0 {
            return Ok(());
        }
        let is_wide = w.rows() >= 16 * gpu.limits().multiprocessors;
        let (kernel, outputs) = if is_wide { (self.wide, 16) } else { (self.narrow, 8) };
        let grid = few_rows::grid(gpu, w.rows().div_ceil(outputs), x.columns().div_ceil(HALVES));
        let arguments = Arguments::new().tensor(y).tensor(x).tensor(w).tensor(scales).size(x.rows());
        let arguments = arguments.size(w.rows()).size(x.columns()).size(usize::from(is_f32));
        // SAFETY: shapes, dtypes and alignment are checked above; the kernel touches rows below M and N alone.
        unsafe { gpu.launch(kernel.of(OP, x.dtype())?, grid, arguments) }
    }

    /// Queues y `[M, F]` = silu(x · gate^T) · (x · up^T), w `[2 F, K]` with gate above up; else as [`Self::multiply`].
    ///
    /// # Errors
    /// As [`Self::multiply`].
    pub fn silu(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        (w, scales): (&DeviceTensor, &DeviceTensor),
        y: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "gemv_fp8_silu";
        check(OP, x, (w, scales))?;
        expect(OP, "y", y, x.dtype(), x.rows(), y.columns())?;
        require(OP, w.rows() == 2 * y.columns(), || format!("{x:?}, {w:?} -> {y:?}"))?;
        if x.rows() == 0 {
            return Ok(());
        }
        let grid = few_rows::grid(gpu, y.columns().div_ceil(8), x.columns().div_ceil(HALVES));
        let arguments = Arguments::new().tensor(y).tensor(x).tensor(w).tensor(scales).size(x.rows());
        // SAFETY: as above.
        unsafe { gpu.launch(self.silu.of(OP, x.dtype())?, grid, arguments.size(y.columns()).size(x.columns())) }
    }
}

fn check(op: &'static str, x: &DeviceTensor, (w, scales): (&DeviceTensor, &DeviceTensor)) -> Result<(), CudaError> {
    expect(op, "the weights", w, DType::Fp8, w.rows(), x.columns())?;
    expect(op, "the scales", scales, DType::F32, 1, w.rows())?;
    require(op, x.rows() <= GEMV_FP8_ROWS, || format!("{} rows are more than {GEMV_FP8_ROWS}", x.rows()))?;
    let aligned = x.pointer().is_multiple_of(16) && w.pointer().is_multiple_of(16);
    require(op, aligned && w.rows() > 0 && x.columns() > 0 && x.columns().is_multiple_of(16), || {
        format!("{x:?} and {w:?} are not whole pieces of 16 bytes")
    })
}
