//! Matrix products by NVIDIA's cuBLASLt, where it is installed. Nothing links it: it is opened when asked for.
//!
//! Knows shapes, not layers. The choice between it and our own kernels is [`super::gemm`]'s.

mod library;
mod plan;
mod tune;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};

use super::check::{expect, require};
use super::{CudaError, DType, DeviceTensor, Gpu};
use plan::{Operands, Plan, Shape, algorithms, bucket, refused};
pub use tune::Tuned;

/// Why there is no cuBLASLt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cuBLASLt cannot be used: {0}")]
pub struct BlasMissing(pub String);

/// cuBLASLt on one GPU, with a plan for each shape that was asked for. Its products run on the GPU's one stream and
/// share one workspace, so that two can not run at once.
pub struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: DeviceTensor,
    plans: Mutex<HashMap<Shape, Plan>>,
    source: String,
}

// SAFETY: cuBLASLt's handle may be used from any thread; plans are behind a lock.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// Opens the library, from one of `folders` or where it is usually installed, and says its version and file. No GPU
/// is asked. Needs the driver's library, opened.
///
/// # Errors
/// [`BlasMissing`].
pub fn find_blas(folders: &[PathBuf]) -> Result<String, BlasMissing> {
    library::open(folders).map(|source| describe(&source))
}

/// Version and file of the library, which is open.
fn describe(source: &str) -> String {
    // SAFETY: the library is open, and the function takes nothing.
    let version = unsafe { sys::cublasLtGetVersion() };
    format!("cuBLASLt {}.{}.{} ({source})", version / 10_000, version / 100 % 100, version % 100)
}

impl Blas {
    /// Opens the library, from one of `folders` or where it is usually installed, and readies it for `gpu`.
    ///
    /// # Errors
    /// [`BlasMissing`] with the reason; our own kernels serve then.
    pub fn open(gpu: &Gpu, folders: &[PathBuf]) -> Result<Self, BlasMissing> {
        let source = library::open(folders)?;
        let missing = |error: CudaError| BlasMissing(format!("{source}: {error}"));
        gpu.bind().map_err(missing)?;
        let bytes = if gpu.limits().compute_capability >= 90 { 32 << 20 } else { 8 << 20 };
        let workspace = gpu.empty(1, bytes, DType::U8, "cuBLASLt's workspace").map_err(missing)?;
        let handle = result::create_handle().map_err(|error| missing(refused("starting it")(error)))?;
        Ok(Self { handle, workspace, plans: Mutex::default(), source })
    }

    /// Version and file, for the line at start.
    pub fn description(&self) -> String {
        describe(&self.source)
    }

    /// Queues y `[M, N]` = x `[M, K]` · w `[N, K]`^T: x and w bf16 or f16, y of their type or f32, sums in f32. K is
    /// a multiple of 8; x and w begin at multiples of 16 bytes. May be captured into a CUDA graph.
    ///
    /// The algorithm is chosen by the bucket that M falls into; the first product of a bucket asks cuBLASLt (some
    /// tens of microseconds on the host).
    ///
    /// # Errors
    /// If shapes or dtypes don't fit; what cuBLASLt says.
    pub fn multiply(&self, gpu: &Gpu, x: &DeviceTensor, w: &DeviceTensor, y: &DeviceTensor) -> Result<(), CudaError> {
        let shape = self.shape(x, w, y)?;
        if y.rows() == 0 || y.columns() == 0 {
            return Ok(());
        }
        // SAFETY: `shape` has checked the matrices.
        unsafe { self.queue(shape, self.operands(gpu, x, w, y)) }
    }

    /// The same of e4m3 numbers, each row of which has a scale: y bf16 or f16, scales f32 `[1, M]` and `[1, N]`; K and N are
    /// multiples of 16. What [`Self::takes_fp8`] says it can.
    ///
    /// # Errors
    /// As [`Self::multiply`].
    pub fn multiply_fp8(
        &self,
        gpu: &Gpu,
        (x, x_scales): (&DeviceTensor, &DeviceTensor),
        (w, w_scales): (&DeviceTensor, &DeviceTensor),
        y: &DeviceTensor,
    ) -> Result<(), CudaError> {
        if y.rows() == 0 {
            return Ok(());
        }
        let (shape, operands) = self.fp8_product(gpu, (x, x_scales), (w, w_scales), y)?;
        // SAFETY: the matrices and their scales were checked.
        unsafe { self.queue(shape, operands) }
    }

    /// Checks the matrices of a product in fp8; what its plan is filed under, and its operands.
    fn fp8_product(
        &self,
        gpu: &Gpu,
        (x, x_scales): (&DeviceTensor, &DeviceTensor),
        (w, w_scales): (&DeviceTensor, &DeviceTensor),
        y: &DeviceTensor,
    ) -> Result<(Shape, Operands), CudaError> {
        const OP: &str = "multiply_fp8";
        expect(OP, "x", x, DType::Fp8, y.rows(), w.columns())?;
        expect(OP, "w", w, DType::Fp8, y.columns(), x.columns())?;
        expect(OP, "x's scales", x_scales, DType::F32, 1, x.rows())?;
        expect(OP, "w's scales", w_scales, DType::F32, 1, w.rows())?;
        let whole = w.rows().is_multiple_of(16) && w.columns().is_multiple_of(16);
        require(OP, whole && matches!(y.dtype(), DType::Bf16 | DType::F16 | DType::F32), || {
            format!("{x:?}, {w:?} -> {y:?}")
        })?;
        let aligned = [x, w, x_scales, w_scales, y].iter().all(|tensor| tensor.pointer().is_multiple_of(16));
        require(OP, aligned, || "a matrix or its scales begin between 16 bytes".into())?;
        let shape = Shape {
            rows: bucket(x.rows()),
            outputs: w.rows(),
            inputs: w.columns(),
            input: DType::Fp8,
            output: y.dtype(),
            alignment: 16,
        };
        let scales = Some([w_scales.pointer(), x_scales.pointer()]);
        Ok((shape, Operands { scales, ..self.operands(gpu, x, w, y) }))
    }

    /// Whether it multiplies e4m3 numbers with a scale a row: cuBLASLt 12.9 and newer on a Hopper.
    pub fn takes_fp8(&self) -> bool {
        let (rows, outputs, inputs) = (256, 1024, 1024);
        let shape = Shape { rows, outputs, inputs, input: DType::Fp8, output: DType::Bf16, alignment: 16 };
        algorithms(self.handle, &shape, self.workspace.bytes(), 1).is_ok()
    }

    /// Queues a product.
    ///
    /// # Safety
    /// The operands are matrices of this shape.
    unsafe fn queue(&self, shape: Shape, operands: Operands) -> Result<(), CudaError> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if !plans.contains_key(&shape) {
            let plan = self.plan(&shape, &plans)?;
            plans.insert(shape, plan);
        }
        let plan = plans.get_mut(&shape).expect("inserted above");
        // SAFETY: the caller's promise; the stream orders the use of the workspace.
        if unsafe { plan.run(self.handle, operands) }.is_ok() {
            return Ok(());
        }
        // The bucket's algorithm does not take this number of rows: ask for one that does.
        let exact = Shape { rows: operands.rows, ..shape };
        let algorithm = algorithms(self.handle, &exact, self.workspace.bytes(), 1)?[0];
        *plan = Plan::new(&exact, algorithm)?;
        // SAFETY: as above.
        unsafe { plan.run(self.handle, operands) }.map_err(refused("a matrix product"))
    }

    /// The nearest tuned algorithm for at least as many rows, or else the advised one.
    fn plan(&self, shape: &Shape, plans: &HashMap<Shape, Plan>) -> Result<Plan, CudaError> {
        let near = |known: &Shape| {
            known.same_weights(shape) && known.rows >= shape.rows && known.rows <= shape.rows.saturating_mul(2)
        };
        let tuned = plans.iter().filter(|(known, plan)| plan.tuned && near(known)).min_by_key(|(known, _)| known.rows);
        let algorithm = match tuned {
            Some((_, plan)) => plan.algorithm(),
            None => algorithms(self.handle, shape, self.workspace.bytes(), 1)?[0],
        };
        Plan::new(shape, algorithm)
    }

    fn operands(&self, gpu: &Gpu, x: &DeviceTensor, w: &DeviceTensor, y: &DeviceTensor) -> Operands {
        Operands {
            x: x.pointer(),
            w: w.pointer(),
            y: y.pointer(),
            scales: None,
            rows: x.rows(),
            workspace: self.workspace.pointer(),
            workspace_bytes: self.workspace.bytes(),
            stream: gpu.stream().cast(),
        }
    }

    /// Checks the matrices and says what their plan is filed under.
    fn shape(&self, x: &DeviceTensor, w: &DeviceTensor, y: &DeviceTensor) -> Result<Shape, CudaError> {
        super::gemm::check(x, w, y)?;
        let alignment = 1 << y.pointer().trailing_zeros().min(4);
        Ok(Shape {
            rows: bucket(x.rows()),
            outputs: w.rows(),
            inputs: w.columns(),
            input: x.dtype(),
            output: y.dtype(),
            alignment,
        })
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: created in `open`, destroyed once; `self.workspace` keeps the context alive until after this.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_broken_library_is_a_reason_and_no_panic() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("libcublasLt.so.13"), "no library").expect("writable");
        if let Err(BlasMissing(reason)) = library::open(&[folder.path().to_owned()]) {
            assert!(reason.contains("libcublasLt.so.13"), "{reason}");
        }
    }

    #[test]
    fn buckets_are_at_least_the_rows_and_not_twice_as_many_beyond_16() {
        for rows in 1..10_000 {
            let bucket = bucket(rows);
            assert!(bucket >= rows && (rows < 16 || bucket < 2 * rows), "{rows} {bucket}");
            assert_eq!(super::bucket(bucket), bucket);
        }
    }
}
