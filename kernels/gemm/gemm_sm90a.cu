// Products of many rows with a weight matrix, as gemm.cu has them, by Hopper's warpgroups.
//
// The parameters are those of that file, but that w is a tensor map, N a multiple of 32 and K whole. Grid: a block a
// multiprocessor, at most the tiles of y.
#include "tiles_sm90a.cuh"

using namespace sm90a;

template <typename T>
struct Product {
    void* y;
    int M, N, y_is_f32;

    using Row = int;

    __device__ __forceinline__ int2 place(int tile) const {
        return tile_of<2048 / ROWS>(tile, (M + ROWS - 1) / ROWS, (N + COLUMNS - 1) / COLUMNS);
    }
    __device__ __forceinline__ int rows(int2 at) const { return M - at.x * ROWS; }
    __device__ __forceinline__ int x_row(int2 at, int row) const { return min(at.x * ROWS + row, M - 1); }
    __device__ __forceinline__ int w_row(int2 at, int box) const { return at.y * COLUMNS + box * BOX_ROWS; }
    __device__ __forceinline__ Row row(int2 at, int row) const { return at.x * ROWS + row; }
    __device__ __forceinline__ void write(int2 at, Row row, const Sums& sums, int half, int lane) const {
        if (row >= M) return;
#pragma unroll
        for (int q = 0; q < COLUMNS / 32; q++) {
            float values[8];
            lane_values(values, sums, half, q);
            const int column = at.y * COLUMNS + 32 * q + 8 * lane;
            if (y_is_f32) {
                write_eight(static_cast<float*>(y), int64_t(row) * N, column, N, true, values);
            } else {
                write_eight(static_cast<T*>(y), int64_t(row) * N, column, N, true, values);
            }
        }
    }
};

#define GEMM(T)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_sm90a_##T(                                           \
        void* y, const T* x, const __grid_constant__ TensorMap w, int M, int N, int K, int /* part */, int y_is_f32) { \
        after_previous();                                                                                              \
        const int tiles = (M + ROWS - 1) / ROWS * ((N + COLUMNS - 1) / COLUMNS);                                       \
        compute_tiles<T>(Product<T>{y, M, N, y_is_f32}, w, x, tiles, K);                                               \
    }

GEMM(bf16)
GEMM(f16)
