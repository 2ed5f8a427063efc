//! Tensor maps: what Hopper's tensor memory accelerator reads to know how a tensor lies.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::error::driver;
use super::{CudaError, DType, DeviceTensor, Gpu};

/// Columns of a box: rows of 128 bytes, which is what shared memory is swizzled by.
const BOX_COLUMNS: u32 = 64;

/// Rows that [`TensorMap::permuted`] reorders among themselves.
const PERMUTED_ROWS: usize = 32;

/// A map of a tensor in GPU memory, given to a kernel as a `__grid_constant__` parameter. It holds the address: the tensor
/// must outlive what is launched with it.
#[derive(Clone, Copy, Debug)]
pub struct TensorMap([u64; 16]);

impl TensorMap {
    /// A map of a tensor `[rows, columns]` of bf16 or f16 in boxes of `box_rows` rows and 64 columns, swizzled by 128 bytes.
    /// What a box has beyond the tensor is zeros.
    ///
    /// # Errors
    /// For other dtypes; what the driver says, as of rows that are no multiple of 16 bytes.
    pub(super) fn rows(gpu: &Gpu, tensor: &DeviceTensor, box_rows: u32) -> Result<Self, CudaError> {
        Self::encode(gpu, tensor, [(tensor.rows(), 1, box_rows)])
    }

    /// The same in boxes of 128 rows, whose row 8 e + 2 t + p of each 32 is the tensor's row 8 t + 2 e + p: where the weights
    /// of outputs lie so, a lane of Hopper's products gets eight neighbours of its row (`tiles_sm90a.cuh`).
    ///
    /// # Errors
    /// As [`TensorMap::rows`]; if rows are no multiple of 32.
    pub(super) fn permuted(gpu: &Gpu, tensor: &DeviceTensor) -> Result<Self, CudaError> {
        if !tensor.rows().is_multiple_of(PERMUTED_ROWS) {
            return Err(CudaError::argument("a tensor map", format!("{PERMUTED_ROWS} rows at a time of {tensor:?}")));
        }
        // How many, how many rows apart, and how many a box has.
        let groups = (tensor.rows() / PERMUTED_ROWS, PERMUTED_ROWS, 4);
        Self::encode(gpu, tensor, [(2, 1, 2), (4, 8, 4), (4, 2, 4), groups])
    }

    /// Dimensions of rows, innermost first: how many there are, from one to the next in rows, and how many a box has.
    fn encode<const N: usize>(
        gpu: &Gpu,
        tensor: &DeviceTensor,
        rows: [(usize, usize, u32); N],
    ) -> Result<Self, CudaError> {
        use sys::CUtensorMapDataType as Type;
        let kind = match tensor.dtype() {
            DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => return Err(CudaError::argument("a tensor map", format!("of {tensor:?}"))),
        };
        let row_bytes = tensor.columns() * tensor.dtype().size();
        let sizes: Vec<u64> =
            std::iter::once(tensor.columns()).chain(rows.map(|row| row.0)).map(|size| size as u64).collect();
        let strides = rows.map(|(_, step, _)| (step * row_bytes) as u64);
        let boxes: Vec<u32> = std::iter::once(BOX_COLUMNS).chain(rows.map(|row| row.2)).collect();
        let every = vec![1_u32; N + 1];
        // The driver asks the current context what the card can do.
        gpu.bind()?;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the arrays hold a value a dimension; nothing is read from the address.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                kind,
                N as u32 + 1,
                tensor.pointer() as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                every.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(driver("a tensor map"))?;
        Ok(Self(map.opaque))
    }

    /// The parameter's value.
    pub(super) fn words(&self) -> &[u64; 16] {
        &self.0
    }
}
