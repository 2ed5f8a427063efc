//! Tensor maps: what Hopper's tensor memory accelerator reads to know how a tensor lies.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::error::driver;
use super::{CudaError, DType, DeviceTensor, Gpu};

/// Bytes of a map.
pub(super) const MAP_BYTES: usize = 128;

/// Columns of a box: rows of 128 bytes, which is what shared memory is swizzled by.
const BOX_COLUMNS: usize = 64;

impl Gpu {
    /// Maps of tensors `[rows, columns]` of bf16 or f16 in GPU memory, `[tensors, 128]` bytes, one behind the other. They are
    /// copied in boxes of `box_rows` rows and 64 columns, swizzled by 128 bytes. They hold addresses: the tensors must outlive
    /// what reads them.
    ///
    /// # Errors
    /// For other dtypes; if columns are no multiple of 64; what the driver says.
    pub(super) fn tensor_maps(&self, tensors: &[&DeviceTensor], box_rows: usize) -> Result<DeviceTensor, CudaError> {
        let mut bytes = Vec::with_capacity(tensors.len() * MAP_BYTES);
        for tensor in tensors {
            let map = encode(tensor, box_rows)?;
            bytes.extend(map.opaque.iter().flat_map(|word| word.to_ne_bytes()));
        }
        let maps = self.empty(tensors.len(), MAP_BYTES, DType::U8, "maps of the KV cache")?;
        self.upload(&maps, &bytes)?;
        Ok(maps)
    }
}

fn encode(tensor: &DeviceTensor, box_rows: usize) -> Result<sys::CUtensorMap, CudaError> {
    use sys::CUtensorMapDataType as Type;
    let kind = match tensor.dtype() {
        DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        _ => return Err(CudaError::argument("a tensor map", format!("of {tensor:?}"))),
    };
    if !tensor.columns().is_multiple_of(BOX_COLUMNS) {
        return Err(CudaError::argument("a tensor map", format!("boxes of {BOX_COLUMNS} columns of {tensor:?}")));
    }
    let sizes = [tensor.columns() as u64, tensor.rows() as u64];
    let row_bytes = [(tensor.columns() * tensor.dtype().size()) as u64];
    let (box_sizes, every) = ([BOX_COLUMNS as u32, box_rows as u32], [1_u32; 2]);
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: the arrays hold as much as a tensor of two dimensions asks for; nothing is read from the address.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            kind,
            2,
            tensor.pointer() as *mut c_void,
            sizes.as_ptr(),
            row_bytes.as_ptr(),
            box_sizes.as_ptr(),
            every.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(driver("a tensor map"))?;
    Ok(map)
}
