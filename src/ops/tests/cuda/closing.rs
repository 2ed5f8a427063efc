//! A GPU that is closed while another holds the same card.

use super::gpu;
use crate::cuda::{CudaError, DType, ElementwiseKernels, Gpu, QuantKernels};

/// Memory that the driver may keep of a closed one, for whatever reason, in bytes: its kernels alone are more.
const KEPT_BYTES: usize = 2 << 20;

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_a_closed_gpu_leaves_no_kernels_behind() -> Result<(), CudaError> {
    let mut free = Vec::new();
    for _ in 0..3 {
        {
            let other = Gpu::open(0)?;
            QuantKernels::load(&other)?;
            let (kernels, x) = (ElementwiseKernels::load(&other)?, other.zeros(4, 64, DType::Bf16, "a test")?);
            let graph = other.record_graph(|| kernels.clear(&other, &x))?;
            other.launch_graph(&graph)?;
            // The graph goes last, and keeps its kernels until then.
            drop(other);
            drop(x);
        }
        free.push(gpu().memory()?.0);
    }
    println!("free after each: {free:?}");
    let lost = free[0].saturating_sub(free[2]);
    assert!(lost <= KEPT_BYTES, "{lost} bytes more are taken after two more: {free:?}");
    // Another's kernels are still there.
    let x = gpu().zeros(4, 64, DType::Bf16, "a test")?;
    ElementwiseKernels::load(gpu())?.clear(gpu(), &x)?;
    gpu().synchronize()
}
