// Products of a few rows with weights, bound by reading the weights once: what those of whole matrices, of experts and of
// heads share.
//
// The tensor cores multiply, for their operands need no unpacking: x is the 16-row side, a tile of eight rows of w the
// 8-column side. Their sum over k has no order that a result could show, so both sides name k as it suits memory: lane
// 4 g + t takes 16 bytes, k 8t to 8t + 7 of 32, of row g of the tile and of row g of x, and uses the first four k for one
// product and the last four for the next. What a lane copies to shared memory it reads back itself: the copies are
// asynchronous, so that enough bytes are under way whatever the compiler does with registers, and no barrier is needed.
//
// A block computes 8 * TILES outputs of at most ROWS (8 or 16) rows. Its warps share K: warp i takes batches i, i + warps
// ... of 64 values; their sums are added in the order of the warps.
#pragma once

#include "mma.cuh"

// Values of k that a warp takes at once: a cache line of a row.
constexpr int BATCH = 64;

// Bytes of shared memory of a warp: a ring of batches under way, later its sums.
constexpr int RING = 12 * 1024;

// Sums of this warp's part of `batches` into its part of `rings`, as floats [ROWS, 8 * TILES]. `aim(batch)` points `x_rows`
// (this lane's rows, g and g + 8) and `tile_rows` (its row of each tile) at the matrices of a batch, if they differ, and
// gives the k that the batch begins at; these have K values of k. x is read behind `after_previous`, which this calls.
template <typename T, int ROWS, int TILES, typename Aim>
__device__ __forceinline__ void accumulate(char* rings, const T* (&x_rows)[ROWS / 8], const T* (&tile_rows)[TILES],
                                           int batches, int K, Aim aim) {
    constexpr int GROUPS = ROWS / 8;
    constexpr int SLOT = 2 * (TILES + GROUPS) * 512;
    constexpr int STAGES = RING / SLOT;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    int g = lane >> 2, t = lane & 3;
    // Each lane reads back what it copied itself, so that the warp needs no barrier.
    char* ring = rings + warp * RING + lane * 16;
    uint32_t ring_address = shared_address(ring);
    auto issue = [&](int slot, int batch, bool weights, bool inputs) {
        int first = aim(batch) + 8 * t;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            int k = first + 32 * j;
            int from = k < K ? k : 0;
            uint32_t to = ring_address + slot * SLOT + j * (TILES + GROUPS) * 512;
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                if (weights) cp_async_once(to + i * 512, tile_rows[i] + from, k < K);
            }
#pragma unroll
            for (int i = 0; i < GROUPS; ++i) {
                if (inputs) cp_async_cached(to + (TILES + i) * 512, x_rows[i] + from, k < K);
            }
        }
    };
    int count = (batches - warp + warps - 1) / warps;
    // The first weights arrive while the kernel before this one ends; all of them count to the first group.
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

// The same for one matrix: rows of x, of which those past the last repeat it (what they give is not to be written).
template <typename T, int ROWS, int TILES>
__device__ __forceinline__ void accumulate(char* rings, const T* x, const T* (&tile_rows)[TILES], int M, int K) {
    if (M <= FEWEST_ROWS) let_next_begin();
    const T* x_rows[ROWS / 8];
#pragma unroll
    for (int i = 0; i < ROWS / 8; ++i) {
        x_rows[i] = x + (int64_t)min((int)((threadIdx.x & 31) >> 2) + 8 * i, M - 1) * K;
    }
    accumulate<T, ROWS, TILES>(rings, x_rows, tile_rows, (K + BATCH - 1) / BATCH, K,
                               [](int batch) { return batch * BATCH; });
}

// The sum over the warps at `place` of their sums.
__device__ __forceinline__ float total(const char* rings, int place) {
    float sum = 0.f;
    for (int warp = 0; warp < (int)(blockDim.x >> 5); ++warp) {
        sum += reinterpret_cast<const float*>(rings + warp * RING)[place];
    }
    return sum;
}
