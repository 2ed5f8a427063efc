// Products of a few rows with a weight matrix: what decoding spends its time on. Bound by reading the weights once.
//
// y [M, N] = x [M, K] * w [N, K]^T with M <= ROWS (8 or 16); K is a multiple of 8, x and w begin at multiples of 16 bytes.
//
// The tensor cores multiply, for their operands need no unpacking: x is the 16-row side, a tile of eight rows of w the
// 8-column side. Their sum over k has no order that a result could show, so both sides name k as it suits memory: lane
// 4 g + t takes 16 bytes, k 8t to 8t + 7 of 32, of row g of the tile and of row g of x, and uses the first four k for one
// product and the last four for the next. What a lane copies to shared memory it reads back itself: the copies are
// asynchronous, so that enough bytes are under way whatever the compiler does with registers, and no barrier is needed.
//
// A block computes 8 * TILES outputs of all rows. Its warps share K: warp i takes batches i, i + warps ... of 64 values;
// their sums are added in the order of the warps. How K is shared depends on N, K and the card alone, so that a row's
// result is the same bits for any M.
//
// Grid: ceil(N / (8 * TILES)) blocks of 32 * warps threads, at most 8 warps; shared memory: 12 KiB a warp.
// Cost: 2 N K bytes. x is read once a block, mostly from L1.
#include "mma.cuh"

// Values of k that a warp takes at once: a cache line of a row.
constexpr int BATCH = 64;

// Bytes of shared memory of a warp: a ring of batches under way, later its sums.
constexpr int RING = 12 * 1024;

// Sums of this warp's part of K into its part of `rings`, as floats [ROWS, 8 * TILES]. `tile_rows[i]` is this lane's row
// of tile i.
template <typename T, int ROWS, int TILES>
__device__ __forceinline__ void accumulate(char* rings, const T* x, const T* const (&tile_rows)[TILES], int M, int K) {
    constexpr int GROUPS = ROWS / 8;
    constexpr int SLOT = 2 * (TILES + GROUPS) * 512;
    constexpr int STAGES = RING / SLOT;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    int g = lane >> 2, t = lane & 3;
    // Rows past the last one repeat it: what they give is not written.
    const T* x_rows[GROUPS];
#pragma unroll
    for (int i = 0; i < GROUPS; ++i) x_rows[i] = x + (int64_t)min(g + 8 * i, M - 1) * K;
    // Each lane reads back what it copied itself, so that the warp needs no barrier.
    char* ring = rings + warp * RING + lane * 16;
    uint32_t ring_address = shared_address(ring);
    int next = warp * BATCH + 8 * t;
    auto issue = [&](int slot) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            int k = next + 32 * j;
            int from = k < K ? k : 0;
            uint32_t to = ring_address + slot * SLOT + j * (TILES + GROUPS) * 512;
#pragma unroll
            for (int i = 0; i < TILES; ++i) cp_async_once(to + i * 512, tile_rows[i] + from, k < K);
#pragma unroll
            for (int i = 0; i < GROUPS; ++i) cp_async_cached(to + (TILES + i) * 512, x_rows[i] + from, k < K);
        }
        next += warps * BATCH;
    };
    int batches = (K + BATCH - 1) / BATCH;
    int count = (batches - warp + warps - 1) / warps;
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < count) issue(stage);
        cp_async_commit();
    }
    float c[TILES][4] = {};
    int slot = 0, free_slot = STAGES - 1;
    for (int done = 0; done < count; ++done) {
        cp_async_wait<STAGES - 2>();
        if (done + STAGES - 1 < count) issue(free_slot);
        cp_async_commit();
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const uint4* parts = reinterpret_cast<const uint4*>(ring + slot * SLOT + j * (TILES + GROUPS) * 512);
            uint4 low = parts[TILES * 32];
            uint4 high = GROUPS == 2 ? parts[(TILES + GROUPS - 1) * 32] : uint4{0, 0, 0, 0};
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                uint4 weights = parts[i * 32];
                mma_16x8x16<T>(c[i], uint4{low.x, high.x, low.y, high.y}, weights.x, weights.y);
                mma_16x8x16<T>(c[i], uint4{low.z, high.z, low.w, high.w}, weights.z, weights.w);
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
        for (int j = 0; j < 2 * GROUPS; ++j) {
            sums[(g + 8 * (j >> 1)) * (8 * TILES) + 8 * i + 2 * t + (j & 1)] = c[i][j];
        }
    }
    __syncthreads();
}

// The sum over the warps at `place` of their sums.
__device__ __forceinline__ float total(const char* rings, int place) {
    float sum = 0.f;
    for (int warp = 0; warp < (int)(blockDim.x >> 5); ++warp) {
        sum += reinterpret_cast<const float*>(rings + warp * RING)[place];
    }
    return sum;
}

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
