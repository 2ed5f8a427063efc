// What all kernels share: element types, 16-byte accesses, reductions.
//
// A kernel's name ends with its element type (`_bf16`, `_f16`) and, where its head size is fixed, with `_d128`.
// Parameters: outputs, inputs, then sizes as int and scalars as float. Nothing here allocates or synchronises.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) { return __float2half_rn(x); }

// On compute capability 9.0 and later a kernel's blocks may begin while the kernel before it still runs (programmatic
// dependent launch). So every kernel first calls `after_previous`: what other kernels write or read is touched behind
// it alone. A kernel that calls `let_next_begin` first instead may before its own `wait_for_previous` read what no kernel
// of a step writes: weights, and what the host uploaded for the step.

// The next kernel's blocks may begin where these leave room, once every block of this kernel has begun.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Returns when the kernel before this one has ended and what it wrote can be read.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void after_previous() {
    let_next_begin();
    wait_for_previous();
}

// N elements that move as one access.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T at[N];
};

__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int offset = 16; offset; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
    return x;
}

// silu(gate) * up: what a gated MLP has between its two products.
__device__ __forceinline__ float silu_times(float gate, float up) {
    return __fdividef(gate, 1.f + __expf(-gate)) * up;
}

// The sum over the block, in every thread. `scratch` holds 32 floats of shared memory; safe to use again at once.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    int warps = (blockDim.x + 31) >> 5;
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    x = (threadIdx.x & 31) < warps ? scratch[threadIdx.x & 31] : 0.f;
    x = warp_sum(x);
    __syncthreads();
    return x;
}

// The largest of a block's numbers, none of which is below 0; as block_sum.
__device__ __forceinline__ float block_max(float x, float* scratch) {
    x = warp_max(x);
    int warps = (blockDim.x + 31) >> 5;
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    x = warp_max((threadIdx.x & 31) < warps ? scratch[threadIdx.x & 31] : 0.f);
    __syncthreads();
    return x;
}
