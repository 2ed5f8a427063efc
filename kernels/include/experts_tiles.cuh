// Tiles of an expert's pairs: how many rows each expert has the device alone knows, so that a block counts the experts' tiles
// itself. Tiles of rows beside one column of tiles follow each other, to share weights in L2.
#pragma once

#include "experts.cuh"

// Where a tile is: rows `row` .. of an expert's pairs, columns `column` .. of tiles.
struct Place {
    int expert, row, column;
};

// The tiles of rows before each expert, in shared memory, all threads together.
template <int ROWS>
__device__ __forceinline__ void count_tiles(int* before, const uint32_t* offsets, int E) {
    if (threadIdx.x < 32) {
        int lane = threadIdx.x, each = (E + 31) / 32, first = min(E, lane * each), last = min(E, first + each), sum = 0;
        for (int e = first; e < last; ++e) {
            int tiles = ((int)(offsets[e + 1] - offsets[e]) + ROWS - 1) / ROWS;
            before[e + 1] = tiles;
            sum += tiles;
        }
        int past = sum;  // of this and all lanes before it
        for (int offset = 1; offset < 32; offset <<= 1) {
            int other = __shfl_up_sync(~0u, past, offset);
            if (lane >= offset) past += other;
        }
        int running = past - sum;
        for (int e = first; e < last; ++e) running = before[e + 1] += running;
        if (lane == 0) before[0] = 0;
    }
    __syncthreads();
}

template <int ROWS>
__device__ __forceinline__ Place place_of(int tile, const int* before, int E, int columns) {
    int low = 0, high = E - 1, row_tile = tile / columns;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (before[middle] <= row_tile) low = middle;
        else high = middle - 1;
    }
    int rows = before[low + 1] - before[low], within = tile - before[low] * columns;
    return Place{low, within % rows * ROWS, within / rows};
}
