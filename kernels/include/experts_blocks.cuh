// Gated MLPs of chosen experts whose weights lie in block formats, as `quant.cuh` lays them out.
//
// gate and up [E * F, H], down [E * H, F]: one matrix each, the experts below one another; F and H multiples of 32. act
// [pairs, F] and out [pairs, H] lie by pair, of which experts.cuh says more; a pair's weight is applied to its act, so that
// a token's result is a plain sum over its experts.
//
// A unit of work takes 8 * COLUMNS of its pairs at a time, each time with the same tiles of weights, which then lie in L2.
// Blocks as quant_product.cuh says. How K is shared depends on the matrices and the card alone, so a pair's sums are the
// same beside any others.
#pragma once

#include "experts.cuh"
#include "quant_product.cuh"

// Sizes of one expert's matrix.
struct ExpertShape {
    int N, K, group, scales, warp_bytes;

    __device__ __forceinline__ QuantShape with_teams(int teams) const {
        return QuantShape{0, N, K, 0, group, scales, warp_bytes, teams};
    }
};

template <typename T, typename C, int COLUMNS, int TILES>
struct ExpertProduct {
    using Product = QuantProduct<T, C, COLUMNS, TILES>;
    static constexpr int ROWS = 8 * COLUMNS;

    // act from x [tokens, H]: a tile of gate and one of up, by two teams or, with two TILES, by the same warps.
    // Grid: (units, F / 16). Cost: the bytes of gate and up of an expert.
    static __device__ __forceinline__ void gate_up(T* act, const T* x, const char* gate, const char* up,
                                                   const float* weights, const Pairs& pairs, int top_k,
                                                   const ExpertShape& expert) {
        extern __shared__ __align__(16) char memory[];
        constexpr int TEAMS = 2 / TILES;
        QuantShape shape = expert.with_teams(TEAMS);
        Work work(pairs, blockIdx.x);
        int tile = work.expert * (shape.N / TILE_ROWS) + blockIdx.y, team = (threadIdx.x >> 5) % TEAMS;
        const char* tiles[TILES];
#pragma unroll
        for (int i = 0; i < TILES; ++i) tiles[i] = Product::tile_at(i + team == 0 ? gate : up, tile, shape);
        for (int first = 0; first < work.count; first += ROWS) {
            Product::accumulate(memory, x, tiles, shape, [&](int m) { return work.pair(first + m) / top_k; });
            for (int place = threadIdx.x; place < min(ROWS, work.count - first) * TILE_ROWS; place += blockDim.x) {
                int m = place / TILE_ROWS, n = place % TILE_ROWS, pair = work.pair(first + m);
                float left = Product::whole(memory, shape, 0, m, n);
                float right = Product::whole(memory, shape, TEAMS - 1, m, n + (TILES - 1) * TILE_ROWS);
                int64_t to = (int64_t)pair * shape.N + blockIdx.y * TILE_ROWS + n;
                act[to] = from_float<T>(silu_times(left, right) * weights[pair]);
            }
            __syncthreads();  // the sums are read before the next pairs' records are laid over them
        }
    }

    // out from act. Grid: (units, H / (16 * TILES)). Cost: the bytes of down of an expert.
    static __device__ __forceinline__ void down(T* out, const T* act, const char* w, const Pairs& pairs,
                                                const ExpertShape& expert) {
        extern __shared__ __align__(16) char memory[];
        constexpr int WIDTH = TILES * TILE_ROWS;
        QuantShape shape = expert.with_teams(1);
        Work work(pairs, blockIdx.x);
        const char* tiles[TILES];
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            tiles[i] = Product::tile_at(w, work.expert * (shape.N / TILE_ROWS) + blockIdx.y * TILES + i, shape);
        }
        for (int first = 0; first < work.count; first += ROWS) {
            Product::accumulate(memory, act, tiles, shape, [&](int m) { return work.pair(first + m); });
            for (int place = threadIdx.x; place < min(ROWS, work.count - first) * WIDTH; place += blockDim.x) {
                int m = place / WIDTH, n = place % WIDTH;
                int64_t to = (int64_t)work.pair(first + m) * shape.N + blockIdx.y * WIDTH + n;
                out[to] = from_float<T>(Product::whole(memory, shape, 0, m, n));
            }
            __syncthreads();
        }
    }
};

// Few: eight pairs at a time, for units of few. Many: 32.
#define EXPERTS_OF(C, T, FORM, COLUMNS, TILES, THREADS)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) experts_gate_up_##FORM##_##C##_##T(                          \
        T* act, const T* x, const char* gate, const char* up, const float* weights, const uint32_t* ids,                  \
        const uint32_t* sorted, const uint32_t* offsets, int top_k, int F, int H, int group, int scales,                  \
        int warp_bytes) {                                                                                                 \
        after_previous();                                                                                                 \
        ExpertProduct<T, C, COLUMNS, TILES>::gate_up(act, x, gate, up, weights, Pairs{ids, sorted, offsets}, top_k,       \
                                                     ExpertShape{F, H, group, scales, warp_bytes});                       \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) experts_down_##FORM##_##C##_##T(                             \
        T* out, const T* act, const char* w, const uint32_t* ids, const uint32_t* sorted, const uint32_t* offsets,        \
        int H, int F, int group, int scales, int warp_bytes) {                                                            \
        after_previous();                                                                                                 \
        ExpertProduct<T, C, COLUMNS, TILES>::down(out, act, w, Pairs{ids, sorted, offsets},                               \
                                                  ExpertShape{H, F, group, scales, warp_bytes});                          \
    }

#define EXPERTS(C)                          \
    EXPERTS_OF(C, bf16, few, 1, 1, 512)     \
    EXPERTS_OF(C, f16, few, 1, 1, 512)      \
    EXPERTS_OF(C, bf16, many, 4, 2, 256)    \
    EXPERTS_OF(C, f16, many, 4, 2, 256)
