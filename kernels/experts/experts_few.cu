// Gated MLPs of chosen experts for few tokens, bound by reading the chosen experts' weights once.
//
// gate_up [E][2 F, H] with gate above up, down [E][H, F]; F and H multiples of 8. act [pairs, F], by pair, whatever the
// order of work: silu(gate) * up times the pair's weight, so that a token's result is a plain sum over its experts.
// Pairs and units of work as experts.cuh says: of few tokens a unit is a pair, of more an expert, whose weights then are
// read once for each ROWS of its pairs.
//
// Blocks as few_rows.cuh says, with 12 KiB of shared memory a warp. Warps depend on the matrices and the card alone.
#include "experts.cuh"
#include "few_rows.cuh"

// This lane's rows of x [.., stride]: of the unit's pairs first + g and first + g + 8, each row of x serving `share` pairs.
template <typename T, int ROWS>
__device__ __forceinline__ void aim_rows(const T* (&rows)[ROWS / 8], const T* x, const Work& unit, int first, int share,
                                         int stride) {
#pragma unroll
    for (int i = 0; i < ROWS / 8; ++i) {
        rows[i] = x + (int64_t)(unit.pair(first + 8 * i + (int)((threadIdx.x & 31) >> 2)) / share) * stride;
    }
}

// act from x [T, H]. Grid: (units, ceil(F / 8)). Cost: 4 F H bytes an expert.
template <typename T, int ROWS>
__device__ __forceinline__ void gate_up(T* act, const T* x, const T* w, const float* weights, Pairs pairs, int top_k, int F,
                                        int H) {
    extern __shared__ __align__(16) char rings[];
    Work unit(pairs, blockIdx.x);
    int column = blockIdx.y * 8, row = min(column + (int)((threadIdx.x & 31) >> 2), F - 1);
    const T* matrix = w + (int64_t)unit.expert * 2 * F * H;
    for (int first = 0; first < unit.count; first += ROWS) {
        const T* tile_rows[2] = {matrix + (int64_t)row * H, matrix + (int64_t)(F + row) * H};
        const T* x_rows[ROWS / 8];
        aim_rows<T, ROWS>(x_rows, x, unit, first, top_k, H);
        accumulate<T, ROWS, 2>(rings, x_rows, tile_rows, (H + BATCH - 1) / BATCH, H,
                               [](int batch) { return batch * BATCH; });
        for (int place = threadIdx.x; place < min(ROWS, unit.count - first) * 8; place += blockDim.x) {
            int m = place >> 3, n = place & 7;
            if (column + n >= F) continue;
            float gate = total(rings, m * 16 + n), up = total(rings, m * 16 + 8 + n);
            int pair = unit.pair(first + m);
            act[(int64_t)pair * F + column + n] = from_float<T>(silu_times(gate, up) * weights[pair]);
        }
        __syncthreads();  // the sums are read before the next pairs' batches are laid over them
    }
}

// out [pairs, H] from act. Grid: (units, ceil(H / 16)). Cost: 2 F H bytes an expert.
template <typename T, int ROWS>
__device__ __forceinline__ void down_pairs(T* out, const T* act, const T* w, Pairs pairs, int H, int F) {
    extern __shared__ __align__(16) char rings[];
    Work unit(pairs, blockIdx.x);
    int column = blockIdx.y * 16;
    for (int first = 0; first < unit.count; first += ROWS) {
        const T* tile_rows[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            int row = min(column + 8 * i + (int)((threadIdx.x & 31) >> 2), H - 1);
            tile_rows[i] = w + ((int64_t)unit.expert * H + row) * F;
        }
        const T* x_rows[ROWS / 8];
        aim_rows<T, ROWS>(x_rows, act, unit, first, 1, F);
        accumulate<T, ROWS, 2>(rings, x_rows, tile_rows, (F + BATCH - 1) / BATCH, F,
                               [](int batch) { return batch * BATCH; });
        for (int place = threadIdx.x; place < min(ROWS, unit.count - first) * 16; place += blockDim.x) {
            int m = place >> 4, n = place & 15;
            if (column + n < H) out[(int64_t)unit.pair(first + m) * H + column + n] = from_float<T>(total(rings, place));
        }
        __syncthreads();
    }
}

// dst [T, H] += the sum over a token's experts of act * down^T, as one sum over all their k: nothing between is rounded.
// Grid: (T, ceil(H / 8)). Cost: 2 F H bytes a token and chosen expert.
template <typename T>
__device__ __forceinline__ void down_sum(T* dst, const T* act, const T* w, const uint32_t* ids, int top_k, int H, int F) {
    extern __shared__ __align__(16) char rings[];
    int token = blockIdx.x, column = blockIdx.y * 8, lane = threadIdx.x & 31;
    int expert = lane < top_k ? ids[token * top_k + lane] : 0;
    const T* row = w + (int64_t)min(column + (lane >> 2), H - 1) * F;
    const T* token_act = act + (int64_t)token * top_k * F;
    const T* tile_rows[1] = {row};
    const T* x_rows[1] = {token_act};
    int each = (F + BATCH - 1) / BATCH;
    accumulate<T, 8, 1>(rings, x_rows, tile_rows, top_k * each, F, [&](int batch) {
        int j = batch / each;
        tile_rows[0] = row + (int64_t)__shfl_sync(~0u, expert, j) * H * F;
        x_rows[0] = token_act + (int64_t)j * F;
        return (batch - j * each) * BATCH;
    });
    if (threadIdx.x < 8 && column + threadIdx.x < H) {
        T* to = dst + (int64_t)token * H + column + threadIdx.x;
        *to = from_float<T>(to_float(*to) + total(rings, threadIdx.x));
    }
}

#define EXPERTS(T)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(256) experts_gate_up_few_##T(                                            \
        T* act, const T* x, const T* w, const float* weights, const uint32_t* ids, const uint32_t* sorted,                \
        const uint32_t* offsets, int top_k, int F, int H) {                                                               \
        after_previous();                                                                                                 \
        gate_up<T, 8>(act, x, w, weights, Pairs{ids, sorted, offsets}, top_k, F, H);                                      \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) experts_down_few_##T(                                               \
        T* out, const T* act, const T* w, const uint32_t* ids, const uint32_t* sorted, const uint32_t* offsets, int H,    \
        int F) {                                                                                                          \
        after_previous();                                                                                                 \
        down_pairs<T, 8>(out, act, w, Pairs{ids, sorted, offsets}, H, F);                                                 \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        experts_down_sum_##T(T* dst, const T* act, const T* w, const uint32_t* ids, int top_k, int H, int F) {            \
        after_previous();                                                                                                 \
        down_sum<T>(dst, act, w, ids, top_k, H, F);                                                                       \
    }

EXPERTS(bf16)
EXPERTS(f16)
