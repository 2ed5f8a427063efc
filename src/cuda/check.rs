//! What wrappers ask of tensors before they launch, and kernels that exist once for each activation type.

use super::{CudaError, DType, DeviceTensor, Gpu, Kernel};

/// An error unless `tensor` is `[rows, columns]` of `dtype`; `name` is what the operation `op` calls it.
pub(super) fn expect(
    op: &'static str,
    name: &str,
    tensor: &DeviceTensor,
    dtype: DType,
    rows: usize,
    columns: usize,
) -> Result<(), CudaError> {
    if (tensor.dtype(), tensor.rows(), tensor.columns()) == (dtype, rows, columns) {
        return Ok(());
    }
    let message = format!("{name} is {tensor:?}, not {} [{rows}, {columns}]", dtype.suffix());
    Err(CudaError::argument(op, message))
}

/// An error unless `tensor` holds at least `count` elements of `dtype`.
pub(super) fn expect_at_least(
    op: &'static str,
    name: &str,
    tensor: &DeviceTensor,
    dtype: DType,
    count: usize,
) -> Result<(), CudaError> {
    if tensor.dtype() == dtype && tensor.rows() * tensor.columns() >= count {
        return Ok(());
    }
    let message = format!("{name} is {tensor:?}, not {count} elements of {}", dtype.suffix());
    Err(CudaError::argument(op, message))
}

/// An error with `message` unless `fits`.
pub(super) fn require(op: &'static str, fits: bool, message: impl FnOnce() -> String) -> Result<(), CudaError> {
    if fits { Ok(()) } else { Err(CudaError::argument(op, message())) }
}

/// A kernel for bf16 and its twin for f16.
#[derive(Clone, Copy, Debug)]
pub(super) struct Typed {
    bf16: Kernel,
    f16: Kernel,
}

impl Typed {
    /// `name_bf16` and `name_f16` of the module `module`.
    pub(super) fn load(gpu: &Gpu, module: &str, name: &str) -> Result<Self, CudaError> {
        let kernel = |dtype: DType| gpu.kernel(module, &format!("{name}_{}", dtype.suffix()));
        Ok(Self { bf16: kernel(DType::Bf16)?, f16: kernel(DType::F16)? })
    }

    /// The one for `dtype`.
    pub(super) fn of(&self, op: &'static str, dtype: DType) -> Result<Kernel, CudaError> {
        match dtype {
            DType::Bf16 => Ok(self.bf16),
            DType::F16 => Ok(self.f16),
            _ => Err(CudaError::argument(op, format!("{} is no type of activations", dtype.suffix()))),
        }
    }
}
