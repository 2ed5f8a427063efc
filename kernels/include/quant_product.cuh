// Products of rows with weights in block formats, as `quant.cuh` lays them out.
//
// y [M, N] = x [M, K] * w [N, K]^T; rows of y are `stride` apart, rows of x K, a multiple of 32; x begins at a multiple of
// 16 bytes. The weights are the 16-row side of the tensor cores' products, x is the 8-column side: quants are turned into
// exact small floats, summed over a group, and the sums scaled. What a group's offset adds is the offset times the sum of
// x over the group, which a product with ones gives in the same lanes.
//
// A warp computes 16 * TILES outputs of 8 * COLUMNS rows of x. A block's warps are `teams` side by side, which read the
// same x and find it in the L1 cache; those of a team share K: the i-th takes records i, i + warps of a team ...; their
// sums are added in the order of the warps. A warp's records arrive in a ring of its own by asynchronous copies, two
// at a time; x comes through the L1 cache, a group ahead. How K is shared depends on N, K and the card alone.
//
// Grid: [ceil(M / (8 * COLUMNS)), ceil(N / (16 * TILES * teams))]; shared memory of each warp: `warp_bytes`, which the host works out.
// Cost: the bytes of the weights once for each 8 * COLUMNS rows, the repetitions from L2; some three instructions a weight.
#pragma once

#include "quant.cuh"

// Records of a warp that have arrived or are on their way.
constexpr int STAGES = 2;

// What a product is asked for, besides x and the weights.
struct QuantShape {
    int M, N, K, stride, group, scales, warp_bytes, teams;
};

template <typename T, typename C, int COLUMNS, int TILES>
struct QuantProduct {
    static constexpr int PITCH = 16 * TILES + 4;  // floats between rows of sums
    static constexpr int GROUP_SCALES = C::HALVES * TILE_ROWS, TABLE = Records<C>::TABLE, WIDTH = Records<C>::WIDTH;

    // Sums of this warp's records into its part of `memory`, as floats [8 * COLUMNS][PITCH]; then a barrier. `row_of(m)`:
    // the row of x that is the block's m-th.
    template <typename RowOf>
    static __device__ __forceinline__ void accumulate(char* memory, const T* x, const char* const (&tiles)[TILES],
                                                      const QuantShape& shape, RowOf row_of) {
        if constexpr (!C::IS_K && COLUMNS == 1) {
            if (shape.group == 128) return accumulate<true>(memory, x, tiles, shape, row_of);
        }
        accumulate<false>(memory, x, tiles, shape, row_of);
    }

    // WIDE: a scale serves two units, whose products are summed before it is applied.
    template <bool WIDE, typename RowOf>
    static __device__ __forceinline__ void accumulate(char* memory, const T* x, const char* const (&tiles)[TILES],
                                                      const QuantShape& shape, RowOf row_of) {
        if (COLUMNS == 1 && shape.M <= FEWEST_ROWS) let_next_begin();
        int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
        int warp = (threadIdx.x >> 5) / shape.teams, warps = (blockDim.x >> 5) / shape.teams;  // of the team
        Records<C> records(shape.K, shape.group, shape.scales);
        int pitch = records.pitch();
        char* ring = memory + (threadIdx.x >> 5) * shape.warp_bytes;
        float2* table = reinterpret_cast<float2*>(ring + STAGES * TILES * pitch);
        uint32_t ring_address = shared_address(ring);
        // This lane's values of x in the record whose x is loaded next.
        const T* at[COLUMNS];
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            at[n] = x + (int64_t)row_of(8 * n + g) * shape.K + 4 * t + (warp < records.count ? warp * WIDTH : 0);
        }
        auto issue = [&](int slot, int index) {
            if (index < records.count) {
                int bytes = records.units_of(index) * records.unit_bytes;
#pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    const char* from = tiles[i] + (int64_t)index * pitch;
                    uint32_t to = ring_address + (slot * TILES + i) * pitch;
                    for (int at = 16 * lane; at < bytes; at += 512) cp_async_once(to + at, from + at, true);
                }
            }
            cp_async_commit();
        };
#pragma unroll
        for (int stage = 0; stage < STAGES; ++stage) issue(stage, warp + stage * warps);
        uint2 next[COLUMNS][2];
        auto load_x = [&](int offset) {
#pragma unroll
            for (int n = 0; n < COLUMNS; ++n) {
                next[n][0] = *reinterpret_cast<const uint2*>(at[n] + offset);
                next[n][1] = *reinterpret_cast<const uint2*>(at[n] + offset + 16);
            }
        };
        after_previous();
        load_x(0);
        float total[TILES][COLUMNS][4] = {};
        Sums sums_of_scale;
        int slot = 0;
        constexpr float FACTOR = C::FLOAT && std::is_same_v<T, f16> ? 256.f : 1.f;
        for (int index = warp; index < records.count; index += warps) {
            cp_async_wait<STAGES - 1>();
            __syncwarp();
            const char* slots = ring + slot * TILES * pitch;
            int units = records.units_of(index);
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                read_scales<C>(table + i * TABLE, slots + i * pitch + units * Records<C>::PLANES, units, shape.group,
                               shape.scales, lane, excess<T, C>(), FACTOR);
            }
            __syncwarp();
            // Past K the weights are zeros, and x is any.
            int last_group = C::IS_K ? WIDTH : shape.K - 32 - index * WIDTH;
            int to_next = index + warps < records.count ? warps * WIDTH : 0;
            auto add_unit = [&](int unit) {
                Unit<T, C> quants[TILES];
#pragma unroll
                for (int i = 0; i < TILES; ++i) quants[i].load(slots + i * pitch, units, unit, lane);
#pragma unroll
                for (int group = 0; group < 2; ++group) {
                    uint2 now[COLUMNS][2];
#pragma unroll
                    for (int n = 0; n < COLUMNS; ++n) now[n][0] = next[n][0], now[n][1] = next[n][1];
                    if (group == 1 && unit == units - 1) {
#pragma unroll
                        for (int n = 0; n < COLUMNS; ++n) at[n] += to_next;
                        load_x(0);
                    } else {
                        int offset = unit * UNIT + 32 * group + 32;
                        load_x(C::IS_K ? offset : min(offset, last_group));
                    }
                    const float2* scales = table + (2 * unit + group) * GROUP_SCALES + g;
                    if constexpr (WIDE) {
                        if (group == 0 && unit % 2 == 0) sums_of_scale = Sums{};
                        sums_of_scale.add(quants, group, now);
                        if (group == 1 && unit % 2 == 1) sums_of_scale.apply(total, scales);
                    } else {
                        add_group(total, quants, group, now, scales);
                    }
                }
            };
            if ((C::IS_K || COLUMNS == 1) && units == C::UNITS) {
#pragma unroll
                for (int unit = 0; unit < C::UNITS; ++unit) add_unit(unit);
            } else {
                for (int unit = 0; unit < units; ++unit) add_unit(unit);
            }
            __syncwarp();
            issue(slot, index + STAGES * warps);
            slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
        cp_async_wait<0>();
        __syncwarp();
        float* sums = reinterpret_cast<float*>(ring);
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
#pragma unroll
            for (int n = 0; n < COLUMNS; ++n) {
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    sums[(8 * n + 2 * t + (c & 1)) * PITCH + 16 * i + g + 8 * (c >> 1)] = total[i][n][c];
                }
            }
        }
        __syncthreads();
    }

    // Sums under one scale: of quants times x, and of x.
    struct Sums {
        float products[TILES][COLUMNS][4], of_x[COLUMNS][4];

        // Adds those of a group of 32.
        __device__ __forceinline__ void add(const Unit<T, C> (&quants)[TILES], int group, const uint2 (&x)[COLUMNS][2]) {
            constexpr uint32_t ONES = std::is_same_v<T, bf16> ? 0x3f803f80 : 0x3c003c00;
#pragma unroll
            for (int step = 0; step < 2; ++step) {
#pragma unroll
                for (int n = 0; n < COLUMNS; ++n) {
                    uint2 pairs = x[n][step];
                    if constexpr (!C::FLOAT) {
                        mma_16x8x16<T>(of_x[n], uint4{ONES, ONES, ONES, ONES}, pairs.x, pairs.y);
                    }
#pragma unroll
                    for (int i = 0; i < TILES; ++i) {
                        mma_16x8x16<T>(products[i][n], quants[i].operand(group, step), pairs.x, pairs.y);
                    }
                }
            }
        }

        __device__ __forceinline__ void apply(float (&total)[TILES][COLUMNS][4], const float2* scales) const {
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
#pragma unroll
                for (int n = 0; n < COLUMNS; ++n) {
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        float2 scale = scales[i * TABLE + (c < 2 ? 0 : 8)];
                        total[i][n][c] = fmaf(scale.x, products[i][n][c], total[i][n][c]);
                        if constexpr (!C::FLOAT) total[i][n][c] = fmaf(scale.y, of_x[n][c & 1], total[i][n][c]);
                    }
                }
            }
        }
    };

    // Adds what a group of 32 gives.
    static __device__ __forceinline__ void add_group(float (&total)[TILES][COLUMNS][4], const Unit<T, C> (&quants)[TILES],
                                                     int group, const uint2 (&x)[COLUMNS][2], const float2* scales) {
        constexpr uint32_t ONES = std::is_same_v<T, bf16> ? 0x3f803f80 : 0x3c003c00;
        constexpr int STEPS = 2 / C::HALVES;  // products of 16 k that have one scale
#pragma unroll
        for (int half = 0; half < C::HALVES; ++half) {
            uint4 operands[TILES][STEPS];
            float2 upper[TILES], lower[TILES];
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                upper[i] = scales[i * TABLE + half * TILE_ROWS];
                lower[i] = scales[i * TABLE + half * TILE_ROWS + 8];
#pragma unroll
                for (int step = 0; step < STEPS; ++step) operands[i][step] = quants[i].operand(group, half + step);
            }
#pragma unroll
            for (int n = 0; n < COLUMNS; ++n) {
                float of_x[4] = {};
                if constexpr (!C::FLOAT) {
#pragma unroll
                    for (int step = 0; step < STEPS; ++step) {
                        uint2 pairs = x[n][half + step];
                        mma_16x8x16<T>(of_x, uint4{ONES, ONES, ONES, ONES}, pairs.x, pairs.y);
                    }
                }
#pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    float sum[4] = {};
#pragma unroll
                    for (int step = 0; step < STEPS; ++step) {
                        uint2 pairs = x[n][half + step];
                        mma_16x8x16<T>(sum, operands[i][step], pairs.x, pairs.y);
                    }
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        float2 scale = c < 2 ? upper[i] : lower[i];
                        total[i][n][c] = fmaf(scale.x, sum[c], total[i][n][c]);
                        if constexpr (!C::FLOAT) total[i][n][c] = fmaf(scale.y, of_x[c & 1], total[i][n][c]);
                    }
                }
            }
        }
    }

    // The sum over the warps of team `team` of their output `n` of row `m` of the block.
    static __device__ __forceinline__ float whole(const char* memory, const QuantShape& shape, int team, int m, int n) {
        float sum = 0.f;
        for (int warp = team; warp < (int)(blockDim.x >> 5); warp += shape.teams) {
            sum += reinterpret_cast<const float*>(memory + warp * shape.warp_bytes)[m * PITCH + n];
        }
        return sum;
    }

    // Rows past the last one repeat it: what they give is not written.
    static __device__ __forceinline__ int row_of_block(int m, const QuantShape& shape) {
        return min((int)blockIdx.x * COLUMNS * 8 + m, shape.M - 1);
    }

    // Where tile `tile` begins.
    static __device__ __forceinline__ const char* tile_at(const char* w, int tile, const QuantShape& shape) {
        return w + tile * Records<C>(shape.K, shape.group, shape.scales).tile_bytes();
    }

    // y of T or, where `y_is_f32`, of float.
    static __device__ __forceinline__ void multiply(void* y, const T* x, const char* w, const QuantShape& shape,
                                                    int y_is_f32) {
        extern __shared__ __align__(16) char memory[];
        int last_tile = (shape.N - 1) / TILE_ROWS;
        const char* tiles[TILES];
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            int tile = (blockIdx.y * shape.teams + (threadIdx.x >> 5) % shape.teams) * TILES + i;
            tiles[i] = tile_at(w, min(tile, last_tile), shape);
        }
        accumulate(memory, x, tiles, shape, [&](int m) { return row_of_block(m, shape); });
        int width = 16 * TILES * shape.teams;
        int first_row = blockIdx.x * 8 * COLUMNS, first = blockIdx.y * width;
        int rows = min(8 * COLUMNS, shape.M - first_row);
        for (int place = threadIdx.x; place < rows * width; place += blockDim.x) {
            int m = place / width, n = place % width;
            if (first + n >= shape.N) continue;
            float sum = whole(memory, shape, n / (16 * TILES), m, n % (16 * TILES));
            int64_t at = (int64_t)(first_row + m) * shape.stride + first + n;
            if (y_is_f32) {
                static_cast<float*>(y)[at] = sum;
            } else {
                static_cast<T*>(y)[at] = from_float<T>(sum);
            }
        }
    }

    // y [M, N] = silu(x * gate^T) * (x * up^T), gate and up [N, K]: a team each.
    static __device__ __forceinline__ void multiply_silu(T* y, const T* x, const char* gate, const char* up,
                                                         const QuantShape& shape) {
        static_assert(TILES == 1, "a tile of gate, a tile of up");
        extern __shared__ __align__(16) char memory[];
        const char* tiles[1] = {tile_at((threadIdx.x >> 5) & 1 ? up : gate, blockIdx.y, shape)};
        accumulate(memory, x, tiles, shape, [&](int m) { return row_of_block(m, shape); });
        int first_row = blockIdx.x * 8 * COLUMNS, first = blockIdx.y * 16;
        int rows = min(8 * COLUMNS, shape.M - first_row);
        for (int place = threadIdx.x; place < rows * 16; place += blockDim.x) {
            int m = place / 16, n = place % 16;
            if (first + n >= shape.N) continue;
            float left = whole(memory, shape, 0, m, n), right = whole(memory, shape, 1, m, n);
            y[(int64_t)(first_row + m) * shape.stride + first + n] = from_float<T>(left / (1.f + __expf(-left)) * right);
        }
    }
};

// Few: up to 8 rows, 16 outputs a block. Silu: up to 8 rows, 16 outputs of gate and of up. Many: 32 rows a block, 32 outputs
// a team; narrow: 16 outputs a block, for matrices of few rows.
#define QUANT_PRODUCTS(C, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(512, 2)                                                                  \
        quant_few_##C##_##T(void* y, const T* x, const char* w, int M, int N, int K, int stride, int group, int scales,   \
                            int warp_bytes, int y_is_f32) {                                                               \
        QuantProduct<T, C, 1, 1>::multiply(y, x, w, QuantShape{M, N, K, stride, group, scales, warp_bytes, 1}, y_is_f32); \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(512, 2)                                                                  \
        quant_silu_##C##_##T(T* y, const T* x, const char* gate, const char* up, int M, int N, int K, int stride,         \
                             int group, int scales, int warp_bytes) {                                                     \
        QuantShape shape{M, N, K, stride, group, scales, warp_bytes, 2};                                                  \
        QuantProduct<T, C, 1, 1>::multiply_silu(y, x, gate, up, shape);                                                   \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                                  \
        quant_many_##C##_##T(void* y, const T* x, const char* w, int M, int N, int K, int stride, int group, int scales,  \
                             int warp_bytes, int y_is_f32, int teams) {                                                   \
        QuantShape shape{M, N, K, stride, group, scales, warp_bytes, teams};                                              \
        QuantProduct<T, C, 4, 2>::multiply(y, x, w, shape, y_is_f32);                                                     \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                                  \
        quant_narrow_##C##_##T(void* y, const T* x, const char* w, int M, int N, int K, int stride, int group,            \
                               int scales, int warp_bytes, int y_is_f32) {                                                \
        QuantProduct<T, C, 4, 1>::multiply(y, x, w, QuantShape{M, N, K, stride, group, scales, warp_bytes, 1}, y_is_f32); \
    }
