// Gated MLPs of chosen experts for many tokens, in tiles of tiles.cuh.
//
// gate_up [E][2 F, H] with gate above up, down [E][H, F]; F, H multiples of 8. Pairs as experts.cuh says, by expert; act
// [pairs, F] and out [pairs, H] lie by pair. A tile's rows are pairs of one expert, gathered through `sorted`.
//
// How many rows each expert has the device alone knows: a block counts the experts' tiles itself and takes those whose
// number is its own in stride. An expert's tiles of rows beside one column of tiles run together, to share weights in L2.
//
// Grid: blocks that fit at once. Cost: 2 flops a weight and pair; reads of each expert's weights once.
#include "experts_tiles.cuh"
#include "tiles.cuh"

#include <type_traits>

using Tall = Tile<128, 128, 64, 3, 64, 64>;  // 96 KiB, 128 threads, two blocks a multiprocessor of 228 KiB
using Short = Tile<64, 128, 64, 4, 32, 64>;  // 96 KiB, likewise
using Flat = Tile<32, 128, 64, 4, 16, 64>;   // 80 KiB, likewise

// Copies rows of x through a table of their numbers in shared memory, of which a warp uses entries of its own.
template <int ROWS, int DEPTH, int THREADS>
struct GatheringCopier {
    using Neighbours = Copier<Side::X, ROWS, DEPTH, THREADS>;
    static constexpr int PIECES = Neighbours::PIECES, STEP = Neighbours::STEP, COUNT = Neighbours::COUNT;
    static_assert(COUNT <= PIECES && 32 % PIECES == 0, "the lanes of a row look up all rows of theirs");
    const char* from;  // this thread's piece of row 0 of x, in the slice that is copied next
    uint32_t* table;   // the number of this thread's first row, after which each STEP further
    int bytes;         // from a row of x to the next
    uint32_t to;

    __device__ __forceinline__ GatheringCopier(uint32_t* rows, int stride)
        : table(rows + threadIdx.x / PIECES), bytes(2 * stride),
          to(place<Side::X, DEPTH>(threadIdx.x / PIECES, threadIdx.x % PIECES)) {}

    // Rows number_of(0), number_of(1) .. of x, from k = 0 on.
    template <typename T, typename Number>
    __device__ __forceinline__ void aim(const T* x, Number number_of) {
        int piece = threadIdx.x % PIECES;
        from = reinterpret_cast<const char*>(x) + 16 * piece;
        __syncwarp();
        if (piece < COUNT) table[piece * STEP] = number_of(threadIdx.x / PIECES + piece * STEP);
        __syncwarp();
    }

    __device__ __forceinline__ void copy(int i, uint32_t slice, bool there) const {
        uint32_t target = slice + (to ^ (mix<Side::X, DEPTH>(i * STEP) * 16)) + i * STEP * DEPTH * 2;
        cp_async_once(target, from + (int64_t)table[i * STEP] * bytes, there);
    }
};

// Copies rows of a matrix [2 F] so that each 64 rows of a tile are 32 of gate and the 32 of up that belong to them: then a
// lane has both of an output.
template <int ROWS, int DEPTH, int THREADS>
struct GatedCopier {
    using Neighbours = Copier<Side::W, ROWS, DEPTH, THREADS>;
    static constexpr int PIECES = Neighbours::PIECES, STEP = Neighbours::STEP, COUNT = Neighbours::COUNT;
    static_assert(STEP == 16, "a copy is all of gate or all of up");
    const char* from;  // this thread's piece of row 0 of the matrix, in the slice that is copied next
    int first, F;      // this thread's first output
    int bytes;
    uint32_t to;

    __device__ __forceinline__ GatedCopier(int outputs, int stride)
        : F(outputs), bytes(2 * stride), to(place<Side::W, DEPTH>(threadIdx.x / PIECES, threadIdx.x % PIECES)) {}

    template <typename T>
    __device__ __forceinline__ void aim(const T* matrix, int output) {
        first = output + threadIdx.x / PIECES;
        from = reinterpret_cast<const char*>(matrix) + 16 * (threadIdx.x % PIECES);
    }

    __device__ __forceinline__ void copy(int i, uint32_t slice, bool there) const {
        uint32_t target = slice + (to ^ (mix<Side::W, DEPTH>(i * STEP) * 16)) + i * STEP * DEPTH * 2;
        int row = min(first + (i >> 2) * 32 + (i & 1) * 16, F - 1) + (i & 2 ? F : 0);
        cp_async_once(target, from + (int64_t)row * bytes, there);
    }
};

// y [pairs, N] from x [.., K], each row of which serves `share` pairs. GATED: w [E][2 N, K], y as gate_up makes act, times
// `weights`; else w [E][N, K].
template <typename T, typename S, bool GATED>
__device__ __forceinline__ void experts(T* y, const T* x, const T* w, const float* weights, const uint32_t* sorted,
                                        const uint32_t* offsets, int E, int share, int N, int K) {
    extern __shared__ __align__(128) char memory[];
    uint32_t* rows = reinterpret_cast<uint32_t*>(memory + S::STAGES * S::SLICE);
    int* before = reinterpret_cast<int*>(rows + S::ROWS);
    constexpr int COLUMNS = GATED ? S::COLUMNS / 2 : S::COLUMNS;  // outputs of a tile
    static_assert(S::WARP_COLUMNS == 64, "32 columns of gate, 32 of up");
    count_tiles<S::ROWS>(before, offsets, E);
    int columns = (N + COLUMNS - 1) / COLUMNS, tiles = before[E] * columns;
    if (blockIdx.x >= tiles) return;

    GatheringCopier<S::ROWS, S::DEPTH, S::THREADS> copy_x(rows, K);
    using CopyW = std::conditional_t<GATED, GatedCopier<S::COLUMNS, S::DEPTH, S::THREADS>,
                                     Copier<Side::W, S::COLUMNS, S::DEPTH, S::THREADS>>;
    CopyW copy_w = [&] {
        if constexpr (GATED) return CopyW(N, K);
        else return CopyW(w, K);
    }();
    auto aim = [&](int tile) {
        Place at = place_of<S::ROWS>(tile, before, E, columns);
        int begin = offsets[at.expert] + at.row, last = offsets[at.expert + 1] - 1;
        copy_x.aim(x, [&](int row) { return sorted[min(begin + row, last)] / share; });
        const T* matrix = w + (int64_t)at.expert * N * K * (GATED ? 2 : 1);
        if constexpr (GATED) copy_w.aim(matrix, at.column * COLUMNS);
        else copy_w.aim(matrix, at.column * COLUMNS, N, 0);
    };
    auto finish = [&](int tile, const Sums<S>& c) {
        Place at = place_of<S::ROWS>(tile, before, E, columns);
        int begin = offsets[at.expert] + at.row + lane_row<S>(), end = offsets[at.expert + 1];
        int first = lane_column<S>();
        if constexpr (GATED) first = first / 64 * 32 + first % 32;
        first += at.column * COLUMNS;
#pragma unroll
        for (int i = 0; i < S::WARP_ROWS / 16; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int place = begin + 16 * i + 8 * half;
                if (place >= end) continue;
                int pair = sorted[place];
                float values[8], ups[8];
                lane_values<S>(values, c, i, half, 0);
                lane_values<S>(ups, c, i, half, 1);
                if constexpr (GATED) {
                    float weight = weights[pair];
#pragma unroll
                    for (int e = 0; e < 8; ++e) values[e] = silu_times(values[e], ups[e]) * weight;
                } else {
                    write_eight(y, (int64_t)pair * N, first + 32, N, true, ups);
                }
                write_eight(y, (int64_t)pair * N, first, N, true, values);
            }
        }
    };
    multiply_tiles<T, S>(memory, copy_x, copy_w, tiles, 0, K, aim, finish);
}

#define TILE(T, NAME, S)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(S::THREADS, 2) experts_gate_up_##NAME##_##T(                             \
        T* act, const T* x, const T* w, const float* weights, const uint32_t* sorted, const uint32_t* offsets, int E,     \
        int top_k, int F, int H) {                                                                                        \
        after_previous();                                                                                                 \
        experts<T, S, true>(act, x, w, weights, sorted, offsets, E, top_k, F, H);                                         \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(S::THREADS, 2) experts_down_##NAME##_##T(                                \
        T* out, const T* act, const T* w, const uint32_t* sorted, const uint32_t* offsets, int E, int H, int F) {         \
        after_previous();                                                                                                 \
        experts<T, S, false>(out, act, w, nullptr, sorted, offsets, E, 1, H, F);                                          \
    }

#define TILES(T)          \
    TILE(T, tall, Tall)   \
    TILE(T, short, Short) \
    TILE(T, flat, Flat)

TILES(bf16)
TILES(f16)
