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
// dependent launch). So every kernel calls `after_previous`, most as the first thing they do: what other kernels write or
// read is touched behind it alone. Before it may be read what no kernel of a step writes: weights, and what the host
// uploaded for the step.

// Once every block of this kernel has come here, blocks of the next may begin where these leave room.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Returns when the kernel before this one has ended and what it wrote can be read; then lets the next begin. Not earlier:
// blocks of two kernels ahead would crowd on the multiprocessors that become free first, and end late there.
__device__ __forceinline__ void after_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    let_next_begin();
}

// Rows up to which a step is a chain of kernels too short to crowd: there the next begins while this one still waits.
constexpr int FEWEST_ROWS = 2;

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
