// Products of many rows with a weight matrix, where there is no cuBLASLt.
//
// y [M, N] = x [M, K] * w [N, K]^T for any M and N; K is a multiple of 8, x and w begin at multiples of 16 bytes. Tiles as
// tiles.cuh says. Rows past M or N repeat the last one and are not written; values past K are zeros.
//
// Grid: [blocks that fit at once, at most the tiles of y; parts of K]; tiles of GROUP x some run beside each other to share
// what they read in L2. Part p is k from p * part on, `part` a multiple of DEPTH; with more than one part, y is f32
// [parts, M, N] for `gemm_sum`.
// Cost: 2 M N K flops; reads of w from memory about once, of x (M K) about once.
#include "tiles.cuh"

using Large = Tile<128, 256, 32, 4, 64, 64>;   // 96 KiB, 256 threads
using Medium = Tile<128, 128, 64, 3, 64, 64>;  // 96 KiB, 128 threads, two blocks a multiprocessor of 228 KiB
using Narrow = Tile<128, 64, 64, 4, 64, 32>;   // 96 KiB, 128 threads, likewise
using Small = Tile<64, 64, 64, 5, 32, 32>;     // 80 KiB, 128 threads, likewise

template <typename T, typename S>
__device__ __forceinline__ void gemm(void* y, const T* x, const T* w, int M, int N, int K, int part, int y_is_f32) {
    extern __shared__ __align__(128) char memory[];
    int row_tiles = (M + S::ROWS - 1) / S::ROWS, column_tiles = (N + S::COLUMNS - 1) / S::COLUMNS;
    int start = blockIdx.y * part, end = min(K, start + part);
    Copier<Side::X, S::ROWS, S::DEPTH, S::THREADS> copy_x(x, K);
    Copier<Side::W, S::COLUMNS, S::DEPTH, S::THREADS> copy_w(w, K);
    auto aim = [&](int tile) {
        int2 at = tile_of<S::GROUP>(tile, row_tiles, column_tiles);
        copy_x.aim(x, at.x * S::ROWS, M, start);
        copy_w.aim(w, at.y * S::COLUMNS, N, start);
    };
    bool aligned = N % 8 == 0 && reinterpret_cast<uint64_t>(y) % 16 == 0;
    auto finish = [&](int tile, const Sums<S>& c) {
        int2 at = tile_of<S::GROUP>(tile, row_tiles, column_tiles);
        int first_row = at.x * S::ROWS + lane_row<S>(), first_column = at.y * S::COLUMNS + lane_column<S>();
#pragma unroll
        for (int i = 0; i < S::WARP_ROWS / 16; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int row = first_row + 16 * i + 8 * half;
                if (row >= M) continue;
                int64_t row_start = ((int64_t)blockIdx.y * M + row) * N;
#pragma unroll
                for (int q = 0; q < S::WARP_COLUMNS / 32; ++q) {
                    float values[8];
                    lane_values<S>(values, c, i, half, q);
                    if (y_is_f32) {
                        write_eight(static_cast<float*>(y), row_start, first_column + 32 * q, N, aligned, values);
                    } else {
                        write_eight(static_cast<T*>(y), row_start, first_column + 32 * q, N, aligned, values);
                    }
                }
            }
        }
    };
    multiply_tiles<T, S>(memory, copy_x, copy_w, row_tiles * column_tiles, start, end, aim, finish);
}

// y [count] = the sum of `parts` [splits, count] in order. Grid: any; blocks of 256. Cost: 4 * splits * count bytes.
template <typename T>
__device__ __forceinline__ void gemm_sum(void* y, const float* parts, int splits, int count, int y_is_f32) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        float sum = 0.f;
        for (int split = 0; split < splits; ++split) sum += parts[(int64_t)split * count + i];
        if (y_is_f32) {
            static_cast<float*>(y)[i] = sum;
        } else {
            static_cast<T*>(y)[i] = from_float<T>(sum);
        }
    }
}

#define GEMM(T, NAME, TILE, BLOCKS)                                                                                       \
    extern "C" __global__ void __launch_bounds__(TILE::THREADS, BLOCKS)                                                   \
        gemm_##NAME##_##T(void* y, const T* x, const T* w, int M, int N, int K, int part, int y_is_f32) {                 \
        after_previous();                                                                                                 \
        gemm<T, TILE>(y, x, w, M, N, K, part, y_is_f32);                                                                  \
    }

#define GEMMS(T)                                                                                                          \
    GEMM(T, large, Large, 1)                                                                                              \
    GEMM(T, medium, Medium, 2)                                                                                            \
    GEMM(T, narrow, Narrow, 2)                                                                                            \
    GEMM(T, small, Small, 2)                                                                                              \
    extern "C" __global__ void gemm_sum_##T(void* y, const float* parts, int splits, int count, int y_is_f32) {           \
        after_previous();                                                                                                 \
        gemm_sum<T>(y, parts, splits, count, y_is_f32);                                                                   \
    }

GEMMS(bf16)
GEMMS(f16)
