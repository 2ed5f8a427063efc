//! The GPU: its driver, memory, kernels and libraries. All unsafe CUDA code stands here.
//!
//! Knows no models, no requests and no files. Kernels come from `kernels/`, one module a `.cu` file; each has a safe
//! wrapper here that checks dtypes and shapes, then queues it on the GPU's one stream without waiting or allocating.

mod allocations;
mod attention;
mod blas;
mod blocks;
mod ceilings;
mod check;
mod elementwise;
mod error;
mod gemm;
mod gemv;
mod gpu;
mod graph;
mod kernel;
mod library;
mod probe;
mod quant;
mod rope;
mod sampling;
mod tensor;
mod tiled;
mod timing;

pub use attention::{
    AttentionArrays, AttentionKernels, AttentionPlan, AttentionScratch, AttentionShape, AttentionTensors, HEAD_DIMS,
    MAX_GROUP, tile_queries,
};
pub use blas::{Blas, BlasMissing, find_blas};
pub use blocks::{BlockFormat, BlockMatrix, TILE_ROWS};
pub use ceilings::{CardRates, card_rates};
pub use elementwise::{CachePlanes, ElementwiseKernels};
pub use error::CudaError;
pub use gemm::{Gemm, Product};
pub use gemv::GEMV_ROWS;
pub use gpu::Gpu;
pub use graph::{Event, Graph};
pub use kernel::{Arguments, Grid, Kernel};
pub use library::open_driver;
pub use probe::{FoundGpu, IMAGES, NO_DEVICE, ProbeError, driver_version, gpus, probe, start};
pub use quant::{DrawnBlocks, QuantKernels};
pub use rope::{RopeKernels, RopeShape, RopeWeights};
pub use sampling::{SampleOutput, SampleRow, Sampling, SamplingNeeds};
pub use tensor::{DType, DeviceTensor, PinnedMemory};
