// Products of tiles of rows with mma.sync: what products of whole matrices, of experts and of heads share.
//
// A block computes tiles of ROWS x COLUMNS of y = x w^T, one after the other. Slices of DEPTH values of k of both sides
// arrive in shared memory by asynchronous copies, STAGES - 1 slices ahead, also those of the tile that comes next, so that
// neither the first slice of a tile nor the writes of the last one are waited for. A warp loads its operands with ldmatrix
// one step of 16 ahead of the products that use them. Loads and copies stand between the products, a few at a time: in a
// row they would fill the queue to shared memory, and the warp could not go on to its products. 16-byte pieces of a row are
// permuted by the row's number, so that the eight rows that ldmatrix reads at once lie in different banks. Which rows of x
// and w a tile is made of, its copiers say.
//
// Which eight rows of w make the columns of one product is free: here they are such that the four products of 32 columns
// leave eight neighbours of a row of y in a lane, which writes them as 16 bytes.
//
// Whatever the tile, an element of y is the sum over k in steps of 16, in order: all tiles give the same bits.
#pragma once

#include "mma.cuh"
#include "places.cuh"

template <int ROWS_, int COLUMNS_, int DEPTH_, int STAGES_, int WARP_ROWS_, int WARP_COLUMNS_>
struct Tile {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, DEPTH = DEPTH_, STAGES = STAGES_;
    static constexpr int WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;
    static constexpr int WARPS_ACROSS = COLUMNS / WARP_COLUMNS;
    static constexpr int THREADS = ROWS / WARP_ROWS * WARPS_ACROSS * 32;
    static constexpr int SLICE = (ROWS + COLUMNS) * DEPTH * 2;  // bytes of a stage
    static constexpr int GROUP = 2048 / ROWS;                   // tiles of rows that run beside each other
    static_assert(WARP_ROWS % 16 == 0 && WARP_COLUMNS % 32 == 0, "whole products, and eight columns a lane");
};

// Of x, ldmatrix reads eight rows that follow each other; of w, rows 0, 1, 8, 9, 16, 17, 24, 25 from some row on.
enum class Side { X, W };

// What the pieces of a row are permuted by: differs between the rows that are read at once, as far as two rows of 64 bytes
// don't differ already. Of a sum of rows that have no bit in common it is the exclusive or.
template <Side SIDE, int DEPTH>
__host__ __device__ constexpr int mix(int row) {
    static_assert(DEPTH == 32 || DEPTH == 64, "64 or 128 bytes a row");
    if (SIDE == Side::X) return DEPTH == 64 ? row & 7 : (row >> 1) & 3;
    return DEPTH == 64 ? (row & 1) | ((row >> 3) & 3) << 1 : (row >> 3) & 3;
}

// Byte offset of piece `piece` (16 bytes) of row `row` in a slice.
template <Side SIDE, int DEPTH>
__device__ __forceinline__ int place(int row, int piece) {
    return row * DEPTH * 2 + (piece ^ mix<SIDE, DEPTH>(row)) * 16;
}

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8 and gets, as lane 4 g + t, elements 2t and
// 2t + 1 of row g of each.
__device__ __forceinline__ uint4 load_matrices(uint32_t address) {
    uint4 value;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address)
                 : "memory");
    return value;
}

// Copies ROWS neighbouring rows of slices of one matrix; this thread's pieces are of rows thread / PIECES + i * STEP, i to COUNT.
template <Side SIDE, int ROWS, int DEPTH, int THREADS>
struct Copier {
    static constexpr int PIECES = DEPTH / 8;
    static constexpr int STEP = THREADS / PIECES;
    static constexpr int COUNT = ROWS / STEP;
    static_assert(ROWS % STEP == 0 && STEP % 8 == 0 && (STEP & (STEP - 1)) == 0, "rows of a thread differ in high bits");
    const char* from;  // this thread's piece of its first row, in the slice that is copied next
    int left;          // rows that follow its first one in the matrix; negative past the last
    int bytes;         // from a row of the matrix to the next
    uint32_t to;

    template <typename T>
    __device__ __forceinline__ Copier(const T*, int stride)
        : bytes(2 * stride), to(place<SIDE, DEPTH>(threadIdx.x / PIECES, threadIdx.x % PIECES)) {}

    // Rows `first ..` of `matrix` [rows], from k = start on. Rows past the last one repeat it.
    template <typename T>
    __device__ __forceinline__ void aim(const T* matrix, int first, int rows, int start) {
        int row = first + (int)threadIdx.x / PIECES;
        from = reinterpret_cast<const char*>(matrix) + (int64_t)row * bytes + 2 * start + 16 * (threadIdx.x % PIECES);
        left = rows - 1 - row;
    }

    __device__ __forceinline__ void copy(int i, uint32_t slice, bool there) const {
        uint32_t target = slice + (to ^ (mix<SIDE, DEPTH>(i * STEP) * 16)) + i * STEP * DEPTH * 2;
        cp_async_once(target, from + (int64_t)min(i * STEP, left) * bytes, there);
    }
};

// What a lane has of a tile: of rows 16 i + g and + 8 of its warp, columns as `lane_values` names them.
template <typename S>
using Sums = float[S::WARP_ROWS / 16][S::WARP_COLUMNS / 8][4];

// The first row of this lane in a tile, and its first column.
template <typename S>
__device__ __forceinline__ int lane_row() {
    return (threadIdx.x >> 5) / S::WARPS_ACROSS * S::WARP_ROWS + ((threadIdx.x & 31) >> 2);
}
template <typename S>
__device__ __forceinline__ int lane_column() {
    return (threadIdx.x >> 5) % S::WARPS_ACROSS * S::WARP_COLUMNS + 8 * (threadIdx.x & 3);
}

// Eight neighbours: of row lane_row + 16 i + 8 half, columns from lane_column + 32 q on.
template <typename S>
__device__ __forceinline__ void lane_values(float (&values)[8], const Sums<S>& c, int i, int half, int q) {
#pragma unroll
    for (int e = 0; e < 8; ++e) values[e] = c[i][4 * q + e / 2][2 * half + e % 2];
}

// Computes tiles blockIdx.x, + gridDim.x .. below `tiles` (the first one is) over k from `start` to `end`. `aim(tile)`
// points the copiers at a tile; `finish(tile, sums)` writes it. `memory`: STAGES * SLICE bytes.
template <typename T, typename S, typename CopyX, typename CopyW, typename Aim, typename Finish>
__device__ __forceinline__ void multiply_tiles(char* memory, CopyX& copy_x, CopyW& copy_w, int tiles, int start, int end,
                                               Aim aim, Finish finish) {
    constexpr int FRAGMENT_ROWS = S::WARP_ROWS / 16, FRAGMENT_COLUMNS = S::WARP_COLUMNS / 16, STEPS = S::DEPTH / 16;
    constexpr int PAIRS = FRAGMENT_ROWS * FRAGMENT_COLUMNS, LOADS = FRAGMENT_ROWS + FRAGMENT_COLUMNS;
    static_assert(STEPS % 2 == 0, "step 0 has the same fragments in each slice");
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int slices = (end - start + S::DEPTH - 1) / S::DEPTH;
    uint32_t base = shared_address(memory);

    // The slice that is copied next: of tile `next_tile`, from `next_k` on, to the stage at `next_stage`. After the last
    // tile, copies of zero bytes.
    int next_tile = blockIdx.x, next_k = start, own_k = 8 * (int)(threadIdx.x % (S::DEPTH / 8));
    uint32_t next_stage = base;
    aim(next_tile);
    bool there = next_k + own_k < end;
    auto advance = [&] {
        cp_async_commit();
        next_stage = next_stage == base + (S::STAGES - 1) * S::SLICE ? base : next_stage + S::SLICE;
        copy_x.from += S::DEPTH * 2;
        copy_w.from += S::DEPTH * 2;
        next_k += S::DEPTH;
        if (next_k >= end) {
            next_k = start;
            next_tile += gridDim.x;
            if (next_tile < tiles) aim(next_tile);
        }
        there = next_tile < tiles && next_k + own_k < end;
    };
    constexpr int X_COPIES = S::ROWS / CopyX::STEP, W_COPIES = S::COLUMNS / CopyW::STEP;
    constexpr int W_START = S::ROWS * S::DEPTH * 2;
#pragma unroll
    for (int stage = 0; stage < S::STAGES; ++stage) {
#pragma unroll
        for (int i = 0; i < X_COPIES; ++i) copy_x.copy(i, next_stage, there);
        if (stage == S::STAGES - 1) break;  // its rows of w and its commit are step 0's of the first slice
#pragma unroll
        for (int i = 0; i < W_COPIES; ++i) copy_w.copy(i, next_stage + W_START, there);
        advance();
    }

    // Of x, lanes 8 to 15 point at the second eight rows and 16 to 31 at the second eight k. Of w, lanes 8 to 15 and 24 to
    // 31 point at the second eight k and 16 to 31 at the rows of the second product.
    int warp_row = warp / S::WARPS_ACROSS * S::WARP_ROWS, warp_column = warp % S::WARPS_ACROSS * S::WARP_COLUMNS;
    int x_row = warp_row + (lane & 15), x_piece = lane >> 4;
    int w_row = warp_column + 8 * ((lane & 7) >> 1) + 2 * (lane >> 4) + (lane & 1), w_piece = (lane >> 3) & 1;
    uint4 a[2][FRAGMENT_ROWS], b[2][FRAGMENT_COLUMNS];
    uint32_t stage = base;
    // Load number `number` of a step, in the order of their first use: row 0 of x, all columns of w, the rest of x.
    auto load = [&](int number, int step, int into) {
        if (number >= 1 && number <= FRAGMENT_COLUMNS) {
            int j = number - 1, rows = 4 * (j & 1) + 32 * (j >> 1);
            int at = W_START + place<Side::W, S::DEPTH>(w_row, 2 * step + w_piece) + rows * S::DEPTH * 2;
            b[into][j] = load_matrices(stage + at);
        } else {
            int i = number == 0 ? 0 : number - FRAGMENT_COLUMNS;
            int at = place<Side::X, S::DEPTH>(x_row, 2 * step + x_piece) + 16 * i * S::DEPTH * 2;
            a[into][i] = load_matrices(stage + at);
        }
    };
    cp_async_wait<S::STAGES - 2>();
    __syncthreads();
#pragma unroll
    for (int number = 0; number < LOADS; ++number) load(number, 0, 0);

    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        Sums<S> c = {};
        for (int slice = 0; slice < slices; ++slice) {
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                bool last = step == STEPS - 1;
                if (last) {
                    // All warps have read this slice, and the next one, if only zeros after the last tile, has arrived.
                    cp_async_wait<S::STAGES - 2>();
                    __syncthreads();
                    stage = stage == base + (S::STAGES - 1) * S::SLICE ? base : stage + S::SLICE;
                }
                // This slice's stage is copied to from here on: x now, w with the next slice's step 0.
#pragma unroll
                for (int pair = 0; pair < PAIRS; ++pair) {
#pragma unroll
                    for (int number = 0; number < LOADS; ++number) {
                        // Done after three quarters of the products, for the last ones to arrive in time.
                        if (number * PAIRS * 3 / (4 * LOADS) == pair) load(number, last ? 0 : step + 1, (step + 1) & 1);
                    }
#pragma unroll
                    for (int i = 0; i < X_COPIES; ++i) {
                        if (last && i * PAIRS / X_COPIES == pair) copy_x.copy(i, next_stage, there);
                    }
#pragma unroll
                    for (int i = 0; i < W_COPIES; ++i) {
                        if (step == 0 && i * PAIRS / W_COPIES == pair) copy_w.copy(i, next_stage + W_START, there);
                    }
                    int i = pair / FRAGMENT_COLUMNS, j = pair % FRAGMENT_COLUMNS;
                    uint4 both = b[step & 1][j];
                    mma_16x8x16<T>(c[i][2 * j], a[step & 1][i], both.x, both.y);
                    mma_16x8x16<T>(c[i][2 * j + 1], a[step & 1][i], both.z, both.w);
                }
                if (step == 0) advance();
            }
        }

        finish(tile, c);
    }
    cp_async_wait<0>();
}
