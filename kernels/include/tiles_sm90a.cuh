// Products of tiles of rows by Hopper's warpgroups: what tiles.cuh is for all cards. For files `*_sm90a.cu` alone.
//
// A block computes tiles of 128 x 256 of y = x w^T, one after the other. One warpgroup copies slices of 64 values of k into a
// ring of four stages: rows of x, which may lie anywhere, by asynchronous copies, those of w as two boxes of 128 by the tensor
// memory accelerator. It is ahead of the two that multiply, also into the next tile. Each of these has 64 rows of the tile,
// and passes over those that no row counts in.
//
// A box of w has its rows in an order (`copy_permuted`) by which a lane gets eight neighbours of a row of y.
//
// K is a multiple of 8, w's columns are K.
#pragma once

#include "mma.cuh"
#include "places.cuh"
#include "wgmma.cuh"

namespace sm90a {

constexpr int WARPGROUP = 128;
constexpr int THREADS = 3 * WARPGROUP;
constexpr int MULTIPLYING_WARPS = 8;
constexpr int ROWS = 128;
constexpr int COLUMNS = 256;
constexpr int BOX_ROWS = 128;
constexpr int DEPTH = 64;
constexpr int STAGES = 4;
constexpr int X_BYTES = ROWS * DEPTH * 2;
constexpr int BOX_BYTES = BOX_ROWS * DEPTH * 2;
constexpr int STAGE_BYTES = X_BYTES + 2 * BOX_BYTES;  // 48 KiB, each part a multiple of 1024 bytes
constexpr int RING_BYTES = STAGES * STAGE_BYTES + 1024;        // from whatever address on

// What a lane has of 64 x 256: of row g and g + 8 of its warp's 16.
using Sums = float[COLUMNS / 2];

// Eight neighbours: of row g + 8 half, columns 32 q + 8 t on.
__device__ __forceinline__ void lane_values(float (&values)[8], const Sums& sums, int half, int q) {
#pragma unroll
    for (int e = 0; e < 8; e++) values[e] = sums[4 * (4 * q + e / 2) + 2 * half + e % 2];
}

// The ring, and where its stages lie in shared memory.
struct Stages : Ring<STAGES> {
    uint32_t first;
    __device__ __forceinline__ Stages(uint32_t first_stage, uint32_t barriers)
        : Ring(barriers, WARPGROUP + 1, MULTIPLYING_WARPS), first(first_stage) {}
    __device__ __forceinline__ uint32_t stage(int at) const { return first + at % STAGES * STAGE_BYTES; }
};

// The warpgroup that copies.
template <typename T, typename Job>
__device__ __forceinline__ void copy_tiles(const Job& job, const TensorMap& w, const T* x, const Stages& ring, int tiles,
                                           int K) {
    constexpr int PIECES = DEPTH / 8, STEP = WARPGROUP / PIECES, COUNT = ROWS / STEP;
    const int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    const uint32_t to = row * 128 + ((piece ^ (row & 7)) << 4);
    // Once what this thread has copied has arrived.
    auto tell = [&](int at) {
        show_to_products();
        arrive(ring.filled(at));
    };
    int at = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const auto place = job.place(tile);
        const T* from[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; i++) from[i] = x + int64_t(job.x_row(place, row + i * STEP)) * K + piece * 8;
        for (int k = 0; k < K; k += DEPTH, at++) {
            ring.wait_empty(at);
            const uint32_t stage = ring.stage(at);
            if (threadIdx.x == 0) {
                expect_bytes(ring.filled(at), 2 * BOX_BYTES);
                copy_permuted(stage + X_BYTES, w, k, job.w_row(place, 0), ring.filled(at));
                copy_permuted(stage + X_BYTES + BOX_BYTES, w, k, job.w_row(place, 1), ring.filled(at));
            }
            const bool there = k + piece * 8 < K;
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                cp_async_once(stage + to + i * STEP * 128, there ? from[i] + k : from[i], there);
            }
            cp_async_commit();
            if (at > 0) {
                cp_async_wait<1>();
                tell(at - 1);
            }
        }
    }
    cp_async_wait<0>();
    tell(at - 1);
}

// A warpgroup that multiplies, the first or the second.
template <typename T, typename Job>
__device__ __forceinline__ void multiply_tiles(const Job& job, const Stages& ring, int group, int tiles, int K) {
    const int lane = threadIdx.x & 31;
    const int row = group * 64 + ((threadIdx.x >> 5) & 3) * 16 + (lane >> 2);
    const int slices = (K + DEPTH - 1) / DEPTH;
    int at = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const auto place = job.place(tile);
        if (group * 64 >= job.rows(place)) {
            for (int slice = 0; slice < slices; slice++, at++) {
                ring.wait_full(at);
                if (lane == 0) ring.release(at);
            }
            continue;
        }
        const typename Job::Row rows[2] = {job.row(place, row), job.row(place, row + 8)};
        Sums sums;
        for (int slice = 0; slice < slices; slice++, at++) {
            ring.wait_full(at);
            const uint32_t x = ring.stage(at) + group * 64 * 128, w = ring.stage(at) + X_BYTES;
            begin_products();
#pragma unroll
            for (int n = 0; n < DEPTH / 16; n++) {
                multiply<T>(sums, describe(x + n * 32, 0), describe(w + n * 32, 0), slice > 0 || n > 0);
            }
            commit_products();
            if (slice > 0) {
                wait_for_products_but<1>();
                if (lane == 0) ring.release(at - 1);
            }
        }
        wait_for_products();
        settle(sums);
        if (lane == 0) ring.release(at - 1);
#pragma unroll
        for (int half = 0; half < 2; half++) job.write(place, rows[half], sums, half, lane & 3);
    }
}

// Computes tiles blockIdx.x, + gridDim.x .. below `tiles` (the first one is) over k below K. Of a job: `place(tile)` says where
// one is, and of a place `rows` how many of its rows count, `x_row` which row of x is one of the 128, `w_row` with which row of w
// a box begins, a multiple of 32; `row` is read before the products and given to `write` behind them.
template <typename T, typename Job>
__device__ __forceinline__ void compute_tiles(const Job& job, const TensorMap& w, const T* x, int tiles, int K) {
    extern __shared__ char memory[];
    __shared__ uint64_t barriers[2 * STAGES];
    const Stages ring((shared_address(memory) + 1023) & ~1023u, shared_address(barriers));
    if (threadIdx.x < WARPGROUP) {
        keep_registers<56>();
        copy_tiles<T>(job, w, x, ring, tiles, K);
    } else {
        take_registers<224>();
        multiply_tiles<T>(job, ring, __shfl_sync(~0u, threadIdx.x / WARPGROUP - 1, 0), tiles, K);
    }
}

}  // namespace sm90a
