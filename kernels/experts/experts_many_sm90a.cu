// Gated MLPs of chosen experts for many tokens, as experts_many.cu has them, by Hopper's warpgroups.
//
// The parameters are those of that file, but that w is a tensor map of the matrices of all experts, one below the other. H and
// F are multiples of 32. Grid: a block a multiprocessor. Shared memory: the ring, then E + 1 numbers.
#include "experts_tiles.cuh"
#include "tiles_sm90a.cuh"

using namespace sm90a;

// y [pairs, N] from x, each row of which serves `share` pairs. GATED: an expert has 2 N rows of w, y as gate_up makes act, times
// `weights`; else N.
template <typename T, bool GATED>
struct Experts {
    static constexpr int OUTPUTS = GATED ? COLUMNS / 2 : COLUMNS;  // of a tile
    T* y;
    const float* weights;
    const uint32_t* sorted;
    const uint32_t* offsets;
    const int* before;  // tiles of rows before each expert
    int E, share, N;

    struct Row {
        int pair;  // negative where there is none
        float weight;
    };

    __device__ __forceinline__ int columns() const { return (N + OUTPUTS - 1) / OUTPUTS; }
    __device__ __forceinline__ Place place(int tile) const { return place_of<ROWS>(tile, before, E, columns()); }
    __device__ __forceinline__ int rows(const Place& at) const {
        return int(offsets[at.expert + 1] - offsets[at.expert]) - at.row;
    }
    __device__ __forceinline__ int x_row(const Place& at, int row) const {
        return sorted[min(offsets[at.expert] + at.row + row, offsets[at.expert + 1] - 1)] / share;
    }
    __device__ __forceinline__ int w_row(const Place& at, int box) const {
        const int first = at.column * OUTPUTS;
        return GATED ? (2 * at.expert + box) * N + first : at.expert * N + first + box * BOX_ROWS;
    }
    __device__ __forceinline__ Row row(const Place& at, int row) const {
        if (row >= rows(at)) return Row{-1, 0.f};
        const int pair = sorted[offsets[at.expert] + at.row + row];
        return Row{pair, GATED ? weights[pair] : 1.f};
    }
    __device__ __forceinline__ void write(const Place& at, const Row& row, const Sums& sums, int half, int lane) const {
        if (row.pair < 0) return;
#pragma unroll
        for (int q = 0; q < OUTPUTS / 32; q++) {
            float values[8];
            lane_values(values, sums, half, q);
            if constexpr (GATED) {
                float ups[8];
                lane_values(ups, sums, half, q + OUTPUTS / 32);
#pragma unroll
                for (int e = 0; e < 8; e++) values[e] = silu_times(values[e], ups[e]) * row.weight;
            }
            const int column = at.column * OUTPUTS + 32 * q + 8 * lane;
            write_eight(y, int64_t(row.pair) * N, column, N, true, values);
        }
    }
};

template <typename T, bool GATED>
__device__ __forceinline__ void experts(T* y, const T* x, const TensorMap& w, const float* weights, const uint32_t* sorted,
                                        const uint32_t* offsets, int E, int share, int N, int K) {
    extern __shared__ char memory[];
    int* before = reinterpret_cast<int*>(memory + RING_BYTES);
    count_tiles<ROWS>(before, offsets, E);
    const Experts<T, GATED> job{y, weights, sorted, offsets, before, E, share, N};
    const int tiles = before[E] * job.columns();
    if (blockIdx.x < tiles) compute_tiles<T>(job, w, x, tiles, K);
}

#define EXPERTS(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) experts_gate_up_sm90a_##T(                                \
        T* act, const T* x, const __grid_constant__ TensorMap w, const float* weights, const uint32_t* sorted,         \
        const uint32_t* offsets, int E, int top_k, int F, int H) {                                                     \
        after_previous();                                                                                              \
        experts<T, true>(act, x, w, weights, sorted, offsets, E, top_k, F, H);                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) experts_down_sm90a_##T(                                   \
        T* out, const T* act, const __grid_constant__ TensorMap w, const uint32_t* sorted, const uint32_t* offsets,    \
        int E, int H, int F) {                                                                                         \
        after_previous();                                                                                              \
        experts<T, false>(out, act, w, nullptr, sorted, offsets, E, 1, H, F);                                          \
    }

EXPERTS(bf16)
EXPERTS(f16)
