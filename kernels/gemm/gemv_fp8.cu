// Products of a few rows with weights of e4m3, each row of which has a scale: bound by reading the weights once.
//
// y [M, N] = x [M, K] * (scales[n] * w [N, K])^T with M <= 8; K is a multiple of 16, x and w begin at multiples of 16 bytes.
// As in few_rows.cuh, with another order of k: lane 4 g + t takes 16 bytes, k 16t to 16t + 15 of 64, of row g of a tile, and
// 32 bytes of row g of x, four k for each of four products. A batch of a warp is 128 k. How K is shared among warps depends
// on N, K and the card alone, so that a row's result is the same bits for any M.
//
// Grid: ceil(N / (8 * TILES)) blocks of 32 * warps threads, at most 8 warps; shared memory: 12 KiB a warp.
// Cost: N K bytes. x is read once a block, mostly from L1.
#include "few_rows.cuh"
#include "fp8.cuh"

constexpr int FP8_BATCH = 128;

// Sums of this warp's part of K into its part of `rings`, as floats [8, 8 * TILES]. `tile_rows`: this lane's row of each tile.
template <typename T, int TILES>
__device__ __forceinline__ void accumulate_fp8(char* rings, const T* x, const fp8* (&tile_rows)[TILES], int M, int K) {
    // A batch: for each half of it the weights of the tiles, then the two pieces of x.
    constexpr int HALF = (TILES + 2) * 512, SLOT = 2 * HALF, STAGES = RING / SLOT;
    if (M <= FEWEST_ROWS) let_next_begin();
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    int g = lane >> 2, t = lane & 3;
    char* ring = rings + warp * RING + lane * 16;
    uint32_t ring_address = shared_address(ring);
    const T* x_row = x + (int64_t)min(g, M - 1) * K;
    auto issue = [&](int slot, int batch, bool weights, bool inputs) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            int k = batch * FP8_BATCH + 64 * j + 16 * t;
            bool inside = k < K;
            int from = inside ? k : 0;
            uint32_t to = ring_address + slot * SLOT + j * HALF;
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                if (weights) cp_async_once(to + i * 512, tile_rows[i] + from, inside);
            }
            if (inputs) {
                cp_async_cached(to + TILES * 512, x_row + from, inside);
                cp_async_cached(to + (TILES + 1) * 512, x_row + from + 8, inside);
            }
        }
    };
    int batches = (K + FP8_BATCH - 1) / FP8_BATCH, count = (batches - warp + warps - 1) / warps;
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < count) issue(stage, warp + stage * warps, true, false);
    }
    after_previous();
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < count) issue(stage, warp + stage * warps, false, true);
        cp_async_commit();
    }
    float c[TILES][4] = {};
    int slot = 0, free_slot = STAGES - 1;
    for (int done = 0; done < count; ++done) {
        cp_async_wait<STAGES - 2>();
        if (done + STAGES - 1 < count) issue(free_slot, warp + (done + STAGES - 1) * warps, true, true);
        cp_async_commit();
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const uint4* parts = reinterpret_cast<const uint4*>(ring + slot * SLOT + j * HALF);
            uint4 first = parts[TILES * 32], second = parts[(TILES + 1) * 32];
            const uint32_t pairs[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                uint4 weights = parts[i * 32];
                const uint32_t words[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    uint32_t low, high;
                    widen_fp8<T>(words[n], low, high);
                    mma_16x8x16<T>(c[i], uint4{pairs[2 * n], 0, pairs[2 * n + 1], 0}, low, high);
                }
            }
        }
        free_slot = slot;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    // The other lanes have read their last batch before the sums are laid over it.
    __syncwarp();
    float* sums = reinterpret_cast<float*>(rings + warp * RING);
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) sums[g * (8 * TILES) + 8 * i + 2 * t + j] = c[i][j];
    }
    __syncthreads();
}

// y [M, N], of T or, where `y_is_f32`, of float.
template <typename T, int TILES>
__device__ __forceinline__ void gemv_fp8(void* y, const T* x, const fp8* w, const float* scales, int M, int N, int K,
                                         int y_is_f32) {
    extern __shared__ __align__(16) char rings[];
    int first = blockIdx.x * 8 * TILES;
    const fp8* tile_rows[TILES];
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
        tile_rows[i] = w + (int64_t)min(first + 8 * i + (int)((threadIdx.x & 31) >> 2), N - 1) * K;
    }
    accumulate_fp8<T, TILES>(rings, x, tile_rows, M, K);
    for (int place = threadIdx.x; place < M * 8 * TILES; place += blockDim.x) {
        int n = first + place % (8 * TILES);
        if (n >= N) continue;
        float sum = scales[n] * total(rings, place);
        int64_t at = (int64_t)(place / (8 * TILES)) * N + n;
        if (y_is_f32) static_cast<float*>(y)[at] = sum;
        else static_cast<T*>(y)[at] = from_float<T>(sum);
    }
}

// y [M, F] = silu(x * gate^T) * (x * up^T), where w [2 F, K] holds gate above up. One tile of a block is of gate, the other
// of up.
template <typename T>
__device__ __forceinline__ void gemv_fp8_silu(T* y, const T* x, const fp8* w, const float* scales, int M, int F, int K) {
    extern __shared__ __align__(16) char rings[];
    int first = blockIdx.x * 8;
    int row = min(first + (int)((threadIdx.x & 31) >> 2), F - 1);
    const fp8* tile_rows[2] = {w + (int64_t)row * K, w + (int64_t)(F + row) * K};
    accumulate_fp8<T, 2>(rings, x, tile_rows, M, K);
    for (int place = threadIdx.x; place < M * 8; place += blockDim.x) {
        int m = place >> 3, n = place & 7;
        if (first + n >= F) continue;
        float gate = scales[first + n] * total(rings, m * 16 + n), up = scales[F + first + n] * total(rings, m * 16 + 8 + n);
        y[(int64_t)m * F + first + n] = from_float<T>(gate / (1.f + __expf(-gate)) * up);
    }
}

// Narrow: eight outputs a block, for matrices of few rows. Wide: sixteen, so that x is read half as often.
#define GEMV_FP8(T)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        gemv_fp8_narrow_##T(void* y, const T* x, const fp8* w, const float* scales, int M, int N, int K, int y_is_f32) { \
        gemv_fp8<T, 1>(y, x, w, scales, M, N, K, y_is_f32);                                                           \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        gemv_fp8_wide_##T(void* y, const T* x, const fp8* w, const float* scales, int M, int N, int K, int y_is_f32) { \
        gemv_fp8<T, 2>(y, x, w, scales, M, N, K, y_is_f32);                                                           \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        gemv_fp8_silu_##T(T* y, const T* x, const fp8* w, const float* scales, int M, int F, int K) {                 \
        gemv_fp8_silu<T>(y, x, w, scales, M, F, K);                                                                   \
    }

GEMV_FP8(bf16)
GEMV_FP8(f16)
