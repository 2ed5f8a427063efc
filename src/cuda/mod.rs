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
mod columns;
mod elementwise;
mod error;
mod experts;
mod experts_blocks;
mod few_rows;
mod gemm;
mod gemv;
mod gemv_fp8;
mod gpu;
mod graph;
mod heads;
mod kernel;
mod latent;
mod library;
mod maps;
mod memsets;
mod pages;
mod probe;
mod quant;
mod rope;
mod route;
mod sampling;
mod tensor;
mod tiled;
mod timing;

#[cfg(test)]
pub use attention::FP8_HEAD_DIMS;
pub use attention::{
    AttentionArrays, AttentionKernels, AttentionPlan, AttentionScratch, AttentionShape, AttentionTensors, HEAD_DIMS,
    KvMaps, MAX_GROUP, Splits, tile_queries,
};
pub use blas::{Blas, BlasMissing, find_blas};
pub use blocks::{BlockFormat, BlockMatrix, TILE_ROWS};
pub use ceilings::{CardRates, card_rates, copy_rate};
pub use columns::ColumnKernels;
pub use elementwise::{CachePlanes, ElementwiseKernels};
pub use error::CudaError;
#[cfg(test)]
pub use experts::ExpertsWay;
pub use experts::{ExpertBuffers, ExpertCall, ExpertKernels, ExpertMatrices, ExpertRange, Unpacking};
#[cfg(test)]
pub use experts_blocks::ExpertBlocksWay;
pub use experts_blocks::{ExpertBlockKernels, ExpertBlocks};
pub use gemm::{Gemm, Product};
pub use gemv::GEMV_ROWS;
pub use gemv_fp8::{GEMV_FP8_ROWS, GemvFp8};
pub use gpu::Gpu;
pub use graph::{Event, Graph};
pub use heads::{HeadKernels, HeadMatrices, HeadPart};
pub use kernel::{Arguments, Grid, Kernel};
#[cfg(test)]
pub use latent::EXPANDED_DIM;
pub use latent::{
    ExpandedLatents, LATENT_DIM, LATENT_ROTARY_DIM, LATENT_WIDTH, LatentHeads, LatentKernels, LatentRope,
};
pub use library::open_driver;
pub use pages::PartRows;
pub use probe::{FoundGpu, IMAGES, NO_DEVICE, ProbeError, driver_version, gpus, probe, start};
pub use quant::{DrawnBlocks, QuantKernels};
pub use rope::{RopeKernels, RopeShape, RopeWeights};
pub use route::{ExpertGroups, MAX_EXPERTS, MAX_TOP_K, RouteKernels, RouteShape};
pub use sampling::{SampleOutput, SampleRow, Sampling, SamplingNeeds};
pub use tensor::{DType, DeviceTensor, PinnedMemory};
