// Products of rows with a matrix for each head, as latent attention has them on both sides of its softmax.
//
// y[m, head, :N] = x[m, head, :K] * w[head]^T: w [heads][N, K]; N, K, strides and heads' distances multiples of 8 elements,
// x, w and y begin at multiples of 16 bytes. x_row and y_row: elements from a row to the next; x_head, y_head, w_head: from a
// head to the next.
// The `tail` elements that follow x[m, head] (a multiple of 8, or 0) are copied behind y[m, head].
// Cost: 2 heads N K bytes for few rows, 2 M heads N K flops for many.
#include "few_rows.cuh"
#include "tiles.cuh"

using Short = Tile<64, 128, 64, 4, 32, 64>;  // 96 KiB, 128 threads

// How rows lie.
struct Strides {
    int x_row, x_head, y_row, y_head, w_head;
};

// Copies the tails of rows `first` .. `last` of a head.
template <typename T>
__device__ __forceinline__ void copy_tails(T* y, const T* x, int first, int last, int head, int N, int K, int tail,
                                           Strides strides) {
    int packs = tail / 8;
    for (int i = threadIdx.x; i < (last - first) * packs; i += blockDim.x) {
        int64_t row = first + i / packs;
        const T* from = x + row * strides.x_row + (int64_t)head * strides.x_head + K;
        T* to = y + row * strides.y_row + (int64_t)head * strides.y_head + N;
        reinterpret_cast<uint4*>(to)[i % packs] = reinterpret_cast<const uint4*>(from)[i % packs];
    }
}

// M at most ROWS. Grid: (ceil(N / 16), heads), blocks and shared memory as few_rows.cuh says.
template <typename T, int ROWS>
__device__ __forceinline__ void heads_few(T* y, const T* x, const T* w, int M, int N, int K, int tail,
                                          Strides strides) {
    extern __shared__ __align__(16) char rings[];
    if (M <= FEWEST_ROWS) let_next_begin();
    int head = blockIdx.y, first = blockIdx.x * 16, g = (threadIdx.x & 31) >> 2;
    const T* tile_rows[2];
    const T* x_rows[ROWS / 8];
#pragma unroll
    for (int i = 0; i < 2; ++i) tile_rows[i] = w + (int64_t)head * strides.w_head + (int64_t)min(first + 8 * i + g, N - 1) * K;
#pragma unroll
    for (int i = 0; i < ROWS / 8; ++i) {
        x_rows[i] = x + (int64_t)min(g + 8 * i, M - 1) * strides.x_row + (int64_t)head * strides.x_head;
    }
    accumulate<T, ROWS, 2>(rings, x_rows, tile_rows, (K + BATCH - 1) / BATCH, K,
                           [](int batch) { return batch * BATCH; });
    if (blockIdx.x == 0) copy_tails(y, x, 0, M, head, N, K, tail, strides);
    for (int place = threadIdx.x; place < M * 16; place += blockDim.x) {
        int n = first + place % 16;
        if (n >= N) continue;
        y[(int64_t)(place / 16) * strides.y_row + (int64_t)head * strides.y_head + n] = from_float<T>(total(rings, place));
    }
}

// Any M. Grid: blocks that fit at once, at most the tiles of all heads.
template <typename T, typename S>
__device__ __forceinline__ void heads_many(T* y, const T* x, const T* w, int M, int heads, int N, int K, int tail,
                                           Strides strides) {
    extern __shared__ __align__(128) char memory[];
    int rows = (M + S::ROWS - 1) / S::ROWS, columns = (N + S::COLUMNS - 1) / S::COLUMNS, each = rows * columns;
    Copier<Side::X, S::ROWS, S::DEPTH, S::THREADS> copy_x(x, strides.x_row);
    Copier<Side::W, S::COLUMNS, S::DEPTH, S::THREADS> copy_w(w, K);
    auto aim = [&](int tile) {
        int head = tile / each, within = tile % each;
        copy_x.aim(x + (int64_t)head * strides.x_head, within % rows * S::ROWS, M, 0);
        copy_w.aim(w + (int64_t)head * strides.w_head, within / rows * S::COLUMNS, N, 0);
    };
    auto finish = [&](int tile, const Sums<S>& c) {
        int head = tile / each, within = tile % each;
        if (within < rows) {
            copy_tails(y, x, within * S::ROWS, min(M, (within + 1) * S::ROWS), head, N, K, tail, strides);
        }
        int first_row = within % rows * S::ROWS + lane_row<S>();
        int first_column = within / rows * S::COLUMNS + lane_column<S>();
#pragma unroll
        for (int i = 0; i < S::WARP_ROWS / 16; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int row = first_row + 16 * i + 8 * half;
                if (row >= M) continue;
                int64_t start = (int64_t)row * strides.y_row + (int64_t)head * strides.y_head;
#pragma unroll
                for (int q = 0; q < S::WARP_COLUMNS / 32; ++q) {
                    float values[8];
                    lane_values<S>(values, c, i, half, q);
                    write_eight(y, start, first_column + 32 * q, N, true, values);
                }
            }
        }
    };
    multiply_tiles<T, S>(memory, copy_x, copy_w, each * heads, 0, K, aim, finish);
}

#define FEW(T, ROWS)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) heads_few##ROWS##_##T(                                              \
        T* y, const T* x, const T* w, int M, int N, int K, int tail, int x_row, int x_head, int y_row, int y_head,        \
        int w_head) {                                                                                                     \
        heads_few<T, ROWS>(y, x, w, M, N, K, tail, Strides{x_row, x_head, y_row, y_head, w_head});                        \
    }

#define HEADS(T)                                                                                                          \
    FEW(T, 8)                                                                                                             \
    FEW(T, 16)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(Short::THREADS, 2) heads_many_##T(                                       \
        T* y, const T* x, const T* w, int M, int heads, int N, int K, int tail, int x_row, int x_head, int y_row,         \
        int y_head, int w_head) {                                                                                         \
        after_previous();                                                                                                 \
        heads_many<T, Short>(y, x, w, M, heads, N, K, tail, Strides{x_row, x_head, y_row, y_head, w_head});               \
    }

HEADS(bf16)
HEADS(f16)
