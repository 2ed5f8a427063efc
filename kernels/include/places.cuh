// Where tiles of a product are, and how a lane writes its part: for tiles of all kinds.
#pragma once

#include "lantern.cuh"

// Row and column of tile `tile`: columns of GROUP tiles of rows, one after the other, so that blocks that run at once read
// few different rows.
template <int GROUP>
__device__ __forceinline__ int2 tile_of(int tile, int row_tiles, int column_tiles) {
    int group = tile / (GROUP * column_tiles), within = tile % (GROUP * column_tiles);
    int height = min(GROUP, row_tiles - group * GROUP);
    return int2{group * GROUP + within % height, within / height};
}

// Eight neighbours of a row of y from `column` on, in one or two accesses if `aligned`.
template <typename T>
__device__ __forceinline__ void write_eight(T* y, int64_t row_start, int column, int N, bool aligned,
                                            const float (&values)[8]) {
    if (aligned) {
        if (column >= N) return;
        constexpr int WIDTH = 16 / sizeof(T);
#pragma unroll
        for (int at = 0; at < 8; at += WIDTH) {
            Pack<T, WIDTH> pack;
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) pack.at[i] = from_float<T>(values[at + i]);
            *reinterpret_cast<Pack<T, WIDTH>*>(y + row_start + column + at) = pack;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (column + i < N) y[row_start + column + i] = from_float<T>(values[i]);
    }
}
