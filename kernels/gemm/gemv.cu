// Products of a few rows with a weight matrix: what decoding spends its time on. Bound by reading the weights once.
//
// y [M, N] = x [M, K] * w [N, K]^T with M <= ROWS (8 or 16); K is a multiple of 8, x and w begin at multiples of 16 bytes.
// How K is shared among warps (few_rows.cuh) depends on N, K and the card alone, so that a row's result is the same bits
// for any M.
//
// Grid: ceil(N / (8 * TILES)) blocks of 32 * warps threads, at most 8 warps; shared memory: 12 KiB a warp.
// Cost: 2 N K bytes. x is read once a block, mostly from L1.
#include "few_rows.cuh"

// y [M, N], of T or, where `y_is_f32`, of float.
template <typename T, int ROWS, int TILES>
__device__ __forceinline__ void gemv(void* y, const T* x, const T* w, int M, int N, int K, int y_is_f32) {
    extern __shared__ __align__(16) char rings[];
    int first = blockIdx.x * 8 * TILES;
    const T* tile_rows[TILES];
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
        tile_rows[i] = w + (int64_t)min(first + 8 * i + (int)((threadIdx.x & 31) >> 2), N - 1) * K;
    }
    accumulate<T, ROWS, TILES>(rings, x, tile_rows, M, K);
    for (int place = threadIdx.x; place < M * 8 * TILES; place += blockDim.x) {
        int n = first + place % (8 * TILES);
        if (n >= N) continue;
        float sum = total(rings, place);
        int64_t at = (int64_t)(place / (8 * TILES)) * N + n;
        if (y_is_f32) {
            static_cast<float*>(y)[at] = sum;
        } else {
            static_cast<T*>(y)[at] = from_float<T>(sum);
        }
    }
}

// y [M, F] = silu(x * gate^T) * (x * up^T), where w [2 F, K] holds gate above up: the first half of a gated MLP. One tile
// of a block is of gate, the other of up.
template <typename T, int ROWS>
__device__ __forceinline__ void gemv_silu(T* y, const T* x, const T* w, int M, int F, int K) {
    extern __shared__ __align__(16) char rings[];
    int first = blockIdx.x * 8;
    int row = min(first + (int)((threadIdx.x & 31) >> 2), F - 1);
    const T* tile_rows[2] = {w + (int64_t)row * K, w + (int64_t)(F + row) * K};
    accumulate<T, ROWS, 2>(rings, x, tile_rows, M, K);
    for (int place = threadIdx.x; place < M * 8; place += blockDim.x) {
        int m = place >> 3, n = place & 7;
        if (first + n >= F) continue;
        float gate = total(rings, m * 16 + n), up = total(rings, m * 16 + 8 + n);
        y[(int64_t)m * F + first + n] = from_float<T>(gate / (1.f + __expf(-gate)) * up);
    }
}

// Narrow: eight outputs a block, for matrices of few rows. Wide: sixteen, so that x is read half as often.
#define GEMV(T, ROWS)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        gemv##ROWS##_narrow_##T(void* y, const T* x, const T* w, int M, int N, int K, int y_is_f32) {                     \
        gemv<T, ROWS, 1>(y, x, w, M, N, K, y_is_f32);                                                                  \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        gemv##ROWS##_wide_##T(void* y, const T* x, const T* w, int M, int N, int K, int y_is_f32) {                       \
        gemv<T, ROWS, 2>(y, x, w, M, N, K, y_is_f32);                                                                  \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        gemv##ROWS##_silu_##T(T* y, const T* x, const T* w, int M, int F, int K) {                                        \
        gemv_silu<T, ROWS>(y, x, w, M, F, K);                                                                             \
    }

GEMV(bf16, 8)
GEMV(bf16, 16)
GEMV(f16, 8)
GEMV(f16, 16)
