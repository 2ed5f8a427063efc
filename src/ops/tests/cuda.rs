//! The GPU's kernels beside the CPU's operations. Needs an NVIDIA GPU:
//! `cargo test --features cuda -- --ignored --test-threads 1 cuda_` (one at a time: they share a stream, and record it).

mod attention;
mod ceilings;
mod closing;
mod columns;
mod elementwise;
mod experts;
mod experts_blocks;
mod fp8;
mod gemm;
mod gemm_bench;
mod latent;
mod memory;
mod quant;

use std::sync::{Arc, OnceLock};

use crate::cuda::Gpu;

static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();

/// The one GPU of this process.
fn gpu() -> &'static Gpu {
    let gpu = GPU.get_or_init(|| Gpu::open(0).expect("an NVIDIA GPU"));
    gpu.bind().expect("the GPU was opened");
    gpu
}

/// The same, to keep.
fn open_gpu() -> Arc<Gpu> {
    gpu();
    GPU.get().expect("it is open").clone()
}
