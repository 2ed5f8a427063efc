// Products of many rows with a weight matrix, where there is no cuBLASLt.
//
// y [M, N] = x [M, K] * w [N, K]^T for any M and N; K is a multiple of 8, x and w begin at multiples of 16 bytes.
//
// A block computes ROWS x COLUMNS of y with mma.sync. Slices of DEPTH values of k of both sides arrive in shared memory by
// asynchronous copies, STAGES - 1 slices ahead; a warp loads its operands with ldmatrix one step of 16 ahead of the product
// that uses them. 16-byte pieces of a row are permuted by the row's number, so that the eight rows that ldmatrix reads at
// once lie in different banks. Rows past M or N repeat the last one and are not written; values past K are zeros.
//
// Grid: [tiles of y, parts of K]; blocks of 8 x GROUP tiles run beside each other to share what they read in L2. Part p is
// k from p * part on, `part` a multiple of DEPTH; with more than one part, y is f32 [parts, M, N] for `gemm_sum`.
// Cost: 2 M N K flops; reads of w from memory about once, of x (M K) about once.
#include "mma.cuh"

template <int ROWS_, int COLUMNS_, int DEPTH_, int STAGES_, int WARP_ROWS_, int WARP_COLUMNS_>
struct Tile {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, DEPTH = DEPTH_, STAGES = STAGES_;
    static constexpr int WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;
    static constexpr int WARPS_ACROSS = COLUMNS / WARP_COLUMNS;
    static constexpr int THREADS = ROWS / WARP_ROWS * WARPS_ACROSS * 32;
    static constexpr int SLICE = (ROWS + COLUMNS) * DEPTH * 2;  // bytes of a stage
};

using Large = Tile<128, 256, 32, 4, 64, 64>;   // 96 KiB, 256 threads
using Medium = Tile<128, 128, 32, 4, 64, 32>;  // 64 KiB, 256 threads, two blocks a multiprocessor of 228 KiB
using Small = Tile<64, 64, 64, 5, 32, 32>;     // 80 KiB, 128 threads, likewise

// Byte offset of piece `piece` (16 bytes) of row `row` in a slice.
template <int DEPTH>
__device__ __forceinline__ int place(int row, int piece) {
    static_assert(DEPTH == 32 || DEPTH == 64, "64 or 128 bytes a row");
    int mixed = DEPTH == 64 ? piece ^ (row & 7) : piece ^ ((row >> 1) & 3);
    return row * DEPTH * 2 + mixed * 16;
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

// Copies ROWS rows of a slice; this thread's pieces are of rows thread / PIECES + i * STEP.
template <typename T, int ROWS, int DEPTH, int THREADS>
struct Copier {
    static constexpr int PIECES = DEPTH / 8;
    static constexpr int STEP = THREADS / PIECES;
    static constexpr int COUNT = ROWS / STEP;
    static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "the permutation is the same for all rows of a thread");
    const T* from;
    int offsets[COUNT];
    uint32_t to;

    // Rows `first ..` of `matrix` [rows, K].
    __device__ __forceinline__ Copier(const T* matrix, int first, int rows, int K) {
        int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
        from = matrix + (int64_t)first * K + 8 * piece;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) offsets[i] = min(row + i * STEP, rows - 1 - first) * K;
        to = place<DEPTH>(row, piece);
    }

    // Values k .. k + DEPTH; `end` bounds them.
    __device__ __forceinline__ void copy(uint32_t slice, int k, int end) const {
        bool there = k + 8 * (int)(threadIdx.x % PIECES) < end;
        const T* source = from + (there ? k : 0);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) cp_async_once(slice + to + i * STEP * DEPTH * 2, source + offsets[i], there);
    }
};

// Two neighbours of a row of y.
template <typename T>
__device__ __forceinline__ void write_pair(T* y, int64_t row_start, int column, int N, float a, float b) {
    if (column + 1 < N && (N & 1) == 0) {
        *reinterpret_cast<Pack<T, 2>*>(y + row_start + column) = Pack<T, 2>{{from_float<T>(a), from_float<T>(b)}};
        return;
    }
    if (column < N) y[row_start + column] = from_float<T>(a);
    if (column + 1 < N) y[row_start + column + 1] = from_float<T>(b);
}

// Which tile of y this block computes: columns of eight tiles of rows, one after the other, so that blocks that run at
// once read few different rows.
__device__ __forceinline__ int2 tile_of(int block, int row_tiles, int column_tiles) {
    constexpr int GROUP = 8;
    int group = block / (GROUP * column_tiles), within = block % (GROUP * column_tiles);
    int height = min(GROUP, row_tiles - group * GROUP);
    return int2{group * GROUP + within % height, within / height};
}

template <typename T, typename S>
__device__ __forceinline__ void gemm(void* y, const T* x, const T* w, int M, int N, int K, int part, int y_is_f32) {
    extern __shared__ __align__(128) char slices[];
    constexpr int FRAGMENT_ROWS = S::WARP_ROWS / 16, FRAGMENT_COLUMNS = S::WARP_COLUMNS / 16, STEPS = S::DEPTH / 16;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int2 tile = tile_of(blockIdx.x, (M + S::ROWS - 1) / S::ROWS, (N + S::COLUMNS - 1) / S::COLUMNS);
    int first_row = tile.x * S::ROWS, first_column = tile.y * S::COLUMNS;
    int start = blockIdx.y * part, end = min(K, start + part);
    int count = (end - start + S::DEPTH - 1) / S::DEPTH;
    Copier<T, S::ROWS, S::DEPTH, S::THREADS> copy_x(x, first_row, M, K);
    Copier<T, S::COLUMNS, S::DEPTH, S::THREADS> copy_w(w, first_column, N, K);
    uint32_t base = shared_address(slices);
    auto issue = [&](int slice) {
        if (slice < count) {
            uint32_t to = base + slice % S::STAGES * S::SLICE;
            copy_x.copy(to, start + slice * S::DEPTH, end);
            copy_w.copy(to + S::ROWS * S::DEPTH * 2, start + slice * S::DEPTH, end);
        }
        cp_async_commit();
    };
#pragma unroll
    for (int stage = 0; stage < S::STAGES - 1; ++stage) issue(stage);

    // Lanes 8 to 15 point at the second eight rows of x and at the second eight k of w; 16 to 23 the other way round.
    int warp_row = warp / S::WARPS_ACROSS * S::WARP_ROWS, warp_column = warp % S::WARPS_ACROSS * S::WARP_COLUMNS;
    int x_row = warp_row + (lane & 15), x_piece = lane >> 4;
    int w_row = warp_column + (lane & 7) + (lane >> 4) * 8, w_piece = (lane >> 3) & 1;
    uint4 a[2][FRAGMENT_ROWS], b[2][FRAGMENT_COLUMNS];
    float c[FRAGMENT_ROWS][2 * FRAGMENT_COLUMNS][4] = {};
    auto load = [&](int slice, int step, int into) {
        uint32_t from = base + slice % S::STAGES * S::SLICE;
#pragma unroll
        for (int i = 0; i < FRAGMENT_ROWS; ++i) {
            a[into][i] = load_matrices(from + place<S::DEPTH>(x_row, 2 * step + x_piece) + i * 16 * S::DEPTH * 2);
        }
        from += S::ROWS * S::DEPTH * 2;
#pragma unroll
        for (int i = 0; i < FRAGMENT_COLUMNS; ++i) {
            b[into][i] = load_matrices(from + place<S::DEPTH>(w_row, 2 * step + w_piece) + i * 16 * S::DEPTH * 2);
        }
    };
    cp_async_wait<S::STAGES - 2>();
    __syncthreads();
    load(0, 0, 0);
    for (int slice = 0; slice < count; ++slice) {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            if (step == STEPS - 1) {
                // All warps have read this slice, and the next one has arrived.
                cp_async_wait<S::STAGES - 2>();
                __syncthreads();
                if (slice + 1 < count) load(slice + 1, 0, (step + 1) & 1);
            } else {
                load(slice, step + 1, (step + 1) & 1);
            }
            if (step == 0) issue(slice + S::STAGES - 1);
#pragma unroll
            for (int i = 0; i < FRAGMENT_ROWS; ++i) {
#pragma unroll
                for (int j = 0; j < FRAGMENT_COLUMNS; ++j) {
                    uint4 both = b[step & 1][j];
                    mma_16x8x16<T>(c[i][2 * j], a[step & 1][i], both.x, both.y);
                    mma_16x8x16<T>(c[i][2 * j + 1], a[step & 1][i], both.z, both.w);
                }
            }
        }
    }

    int g = lane >> 2, t = lane & 3;
    int64_t skipped = (int64_t)blockIdx.y * M * N;
#pragma unroll
    for (int i = 0; i < FRAGMENT_ROWS; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int row = first_row + warp_row + 16 * i + 8 * half + g;
            if (row >= M) continue;
            int64_t row_start = skipped + (int64_t)row * N;
#pragma unroll
            for (int j = 0; j < 2 * FRAGMENT_COLUMNS; ++j) {
                int column = first_column + warp_column + 8 * j + 2 * t;
                float low = c[i][j][2 * half], high = c[i][j][2 * half + 1];
                if (y_is_f32) {
                    write_pair(static_cast<float*>(y), row_start, column, N, low, high);
                } else {
                    write_pair(static_cast<T*>(y), row_start, column, N, low, high);
                }
            }
        }
    }
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
        gemm<T, TILE>(y, x, w, M, N, K, part, y_is_f32);                                                                  \
    }

#define GEMMS(T)                                                                                                          \
    GEMM(T, large, Large, 1)                                                                                              \
    GEMM(T, medium, Medium, 2)                                                                                            \
    GEMM(T, small, Small, 2)                                                                                              \
    extern "C" __global__ void gemm_sum_##T(void* y, const float* parts, int splits, int count, int y_is_f32) {           \
        gemm_sum<T>(y, parts, splits, count, y_is_f32);                                                                   \
    }

GEMMS(bf16)
GEMMS(f16)
