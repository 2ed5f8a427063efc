//! What cuBLASLt needs for a product of one shape: descriptors and the algorithm.
//!
//! cuBLASLt's matrices are column-major. A row-major `y [M, N]` is a column-major `y^T [N, M]`, so it computes
//! `y^T = W · x^T`, with W `[K, N]` read transposed.

use std::ffi::c_void;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use crate::cuda::{CudaError, DType};

type Attribute = sys::cublasLtMatmulDescAttributes_t;

/// cuBLAS's `CUBLAS_OP_T`.
const TRANSPOSED: i32 = 1;

/// What an algorithm is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Rows of x and y: the bucket that the true count falls into.
    pub(super) rows: usize,
    /// Columns of y, rows of W.
    pub(super) outputs: usize,
    /// Columns of x and W.
    pub(super) inputs: usize,
    /// Of x and W.
    pub(super) input: DType,
    /// Of y.
    pub(super) output: DType,
    /// Bytes that y's address is a multiple of, at most 16.
    pub(super) alignment: u32,
}

impl Shape {
    /// Whether they differ in `rows` alone.
    pub(super) fn same_weights(&self, other: &Self) -> bool {
        Self { rows: other.rows, ..*self } == *other
    }
}

/// Rows that share an algorithm with `rows`: steps of an eighth to a half, and always at least as many.
pub(super) fn bucket(rows: usize) -> usize {
    let step = match rows {
        0..=128 => 16,
        129..=512 => 64,
        513..=2048 => 256,
        _ => 512,
    };
    rows.max(1).next_multiple_of(step)
}

/// Names what was tried when cuBLASLt refused.
pub(super) fn refused(call: &'static str) -> impl FnOnce(CublasError) -> CudaError {
    move |error| CudaError::Blas { call, status: error.0 as i32 }
}

fn kind(dtype: DType) -> sys::cudaDataType_t {
    match dtype {
        DType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::Fp8 => sys::cudaDataType_t::CUDA_R_8F_E4M3,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    }
}

/// Descriptors of the product and its three matrices, destroyed together.
struct Descriptors {
    product: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
}

impl Descriptors {
    fn new(shape: &Shape) -> Result<Self, CudaError> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let product = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F);
        let product = product.map_err(refused("a product's description"))?;
        let mut new = Self { product, layouts: [std::ptr::null_mut(); 3] };
        new.set_int(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        if shape.input == DType::Fp8 {
            let scale_a_row = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as i32;
            new.set_int(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, scale_a_row)?;
            new.set_int(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, scale_a_row)?;
            // Sums within the tensor cores, as vLLM takes them: the numbers themselves are rounded far more.
            let fast = 1_i8;
            // SAFETY: the description is alive, and the attribute is one byte.
            unsafe {
                let value = std::ptr::from_ref(&fast).cast();
                result::set_matmul_desc_attribute(product, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, value, 1)
            }
            .map_err(refused("a product's description"))?;
            // Advice is asked for before there are scales; any address stands for them.
            new.set_scales([16, 16]).map_err(refused("a product's description"))?;
        }
        let (m, n, k) = (shape.rows as u64, shape.outputs as u64, shape.inputs as u64);
        let sides = [(shape.input, k, n), (shape.input, k, m), (shape.output, n, m)];
        for (layout, (dtype, rows, columns)) in new.layouts.iter_mut().zip(sides) {
            *layout = result::create_matrix_layout(kind(dtype), rows, columns, rows as i64)
                .map_err(refused("a matrix's layout"))?;
        }
        Ok(new)
    }

    fn set_int(&self, attribute: Attribute, value: i32) -> Result<(), CudaError> {
        // SAFETY: the description is alive, and the attribute is an int of four bytes.
        unsafe { result::set_matmul_desc_attribute(self.product, attribute, std::ptr::from_ref(&value).cast(), 4) }
            .map_err(refused("a product's description"))
    }

    /// Addresses of the scales of W's rows and of x's.
    fn set_scales(&self, scales: [u64; 2]) -> Result<(), CublasError> {
        let attributes =
            [Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER];
        for (attribute, address) in attributes.into_iter().zip(&scales) {
            // SAFETY: the description is alive, and the attribute is an address.
            unsafe {
                result::set_matmul_desc_attribute(self.product, attribute, std::ptr::from_ref(address).cast(), 8)?;
            }
        }
        Ok(())
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once; cuBLASLt reads them during its calls alone.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.product);
        }
    }
}

/// Addresses and sizes of one product.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) x: u64,
    pub(super) w: u64,
    pub(super) y: u64,
    /// Of W's rows and of x's, where these are fp8.
    pub(super) scales: Option<[u64; 2]>,
    /// Rows of x and y.
    pub(super) rows: usize,
    pub(super) workspace: u64,
    pub(super) workspace_bytes: usize,
    pub(super) stream: sys::cudaStream_t,
}

/// A product that is ready to be queued.
pub(super) struct Plan {
    descriptors: Descriptors,
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Rows that the layouts say at the moment.
    rows: usize,
    /// Whether the algorithm was timed, not only advised.
    pub(super) tuned: bool,
}

// SAFETY: descriptors are plain memory of the host, which belongs to this value.
unsafe impl Send for Plan {}

impl Plan {
    /// A plan for `shape` with a known algorithm.
    pub(super) fn new(shape: &Shape, algorithm: sys::cublasLtMatmulAlgo_t) -> Result<Self, CudaError> {
        Ok(Self { descriptors: Descriptors::new(shape)?, algorithm, rows: shape.rows, tuned: false })
    }

    /// The algorithm.
    pub(super) fn algorithm(&self) -> sys::cublasLtMatmulAlgo_t {
        self.algorithm
    }

    /// Queues `y = x · W^T`. Allocates nothing.
    ///
    /// # Safety
    /// The addresses hold matrices of the plan's shape, and `operands.rows` rows of x and y.
    pub(super) unsafe fn run(&mut self, handle: sys::cublasLtHandle_t, at: Operands) -> Result<(), CublasError> {
        let Descriptors { product, layouts: [w, x, y] } = self.descriptors;
        if self.rows != at.rows {
            let columns = at.rows as u64;
            let attribute = sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS;
            for layout in [x, y] {
                // SAFETY: the layout is alive, and the attribute is a u64.
                unsafe {
                    result::set_matrix_layout_attribute(layout, attribute, std::ptr::from_ref(&columns).cast(), 8)?;
                }
            }
            self.rows = at.rows;
        }
        if let Some(scales) = at.scales {
            self.descriptors.set_scales(scales)?;
        }
        let (one, zero) = (1_f32, 0_f32);
        // SAFETY: descriptors are alive; the matrices are the caller's promise. Scalars are read during the call.
        unsafe {
            result::matmul(
                handle,
                product,
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&zero).cast(),
                at.w as *const c_void,
                w,
                at.x as *const c_void,
                x,
                at.y as *const c_void,
                y,
                at.y as *mut c_void,
                y,
                &self.algorithm,
                at.workspace as *mut c_void,
                at.workspace_bytes,
                at.stream,
            )
        }
    }
}

/// At most `count` algorithms for `shape`, the one that cuBLASLt thinks fastest first. None is an error.
pub(super) fn algorithms(
    handle: sys::cublasLtHandle_t,
    shape: &Shape,
    workspace_bytes: usize,
    count: usize,
) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CudaError> {
    use sys::cublasLtMatmulPreferenceAttributes_t as P;
    let descriptors = Descriptors::new(shape)?;
    let [w, x, y] = descriptors.layouts;
    let preference = result::create_matmul_pref().map_err(refused("a preference"))?;
    // Partial sums of a split K stay f32 until they are added: in place they would be rounded to y's type.
    let reductions = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    let (inputs, outputs) = (16_u32, shape.alignment);
    // SAFETY: all-zero bytes are a value of each of these fields.
    let mut found = vec![unsafe { std::mem::zeroed::<sys::cublasLtMatmulHeuristicResult_t>() }; count];
    let mut returned = 0;
    // SAFETY: the preference and descriptors are alive; attributes are a u64 and u32s; `found` has room for `count`.
    let status = unsafe {
        let set = |attribute, value: *const c_void, bytes| {
            result::set_matmul_pref_attribute(preference, attribute, value, bytes)
        };
        let word = |value: &u32| std::ptr::from_ref(value).cast::<c_void>();
        let bytes = workspace_bytes as u64;
        let status = set(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::ptr::from_ref(&bytes).cast(), 8)
            .and_then(|()| set(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, word(&reductions), 4))
            .and_then(|()| set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, word(&inputs), 4))
            .and_then(|()| set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, word(&inputs), 4))
            .and_then(|()| set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, word(&outputs), 4))
            .and_then(|()| set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, word(&outputs), 4))
            .and_then(|()| {
                let into = found.as_mut_ptr();
                let product = descriptors.product;
                sys::cublasLtMatmulAlgoGetHeuristic(
                    handle,
                    product,
                    w,
                    x,
                    y,
                    y,
                    preference,
                    count as i32,
                    into,
                    &mut returned,
                )
                .result()
            });
        let _ = result::destroy_matmul_pref(preference);
        status
    };
    status.map_err(refused("choosing an algorithm"))?;
    found.truncate(returned.max(0) as usize);
    found.retain(|one| one.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
    if found.is_empty() {
        return Err(refused("choosing an algorithm")(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)));
    }
    Ok(found.into_iter().map(|one| one.algo).collect())
}
