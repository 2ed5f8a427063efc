// The way of tokens to experts: which are chosen, which pairs belong to each, and the sum of what they give.
#include "experts.cuh"

constexpr int WARPS = 4;

// Orders floats as unsigned integers; what is no number comes last. Never 0.
__device__ __forceinline__ uint32_t ordered(float x) {
    if (x != x) return 1;
    uint32_t bits = x == 0.f ? 0u : __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float from_ordered(uint32_t bits) {
    return bits == 1 ? -INFINITY : __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

__device__ __forceinline__ uint32_t warp_max(uint32_t x) { return __reduce_max_sync(~0u, x); }

// The largest key of the warp and, of equal ones, the lowest index; both in every lane.
__device__ __forceinline__ void best_of_warp(uint32_t& key, uint32_t& index) {
    uint32_t best = warp_max(key);
    index = __reduce_min_sync(~0u, key == best ? index : ~0u);
    key = best;
}

// Zeroes the keys of experts outside the `top_groups` best of `groups` groups of neighbours. A group's score is its best
// expert's (`best_two` 0) or the sum of its two best.
template <int PER>
__device__ __forceinline__ void limit_groups(uint32_t (&keys)[PER], int E, int groups, int top_groups, int best_two) {
    int lane = threadIdx.x & 31, size = E / groups;
    uint32_t group_key = 0;  // of group `lane`
    for (int group = 0; group < groups; ++group) {
        uint32_t first = 0, second = 0;
#pragma unroll
        for (int i = 0; i < PER; ++i) {
            int expert = lane + 32 * i;
            if (expert < E && expert / size == group) {
                second = max(second, min(first, keys[i]));
                first = max(first, keys[i]);
            }
        }
        uint32_t best = warp_max(first), winner = __reduce_min_sync(~0u, first == best ? lane : 32);
        if (best_two) {
            uint32_t next = warp_max((uint32_t)lane == winner ? second : first);
            best = next == 0 ? best : ordered(from_ordered(best) + from_ordered(next));
        }
        if (lane == group) group_key = best;
    }
    uint32_t chosen = 0;  // a bit a group
    for (int i = 0; i < top_groups; ++i) {
        uint32_t key = chosen >> lane & 1 ? 0 : group_key, index = lane;
        best_of_warp(key, index);
        chosen |= 1u << index;
    }
#pragma unroll
    for (int i = 0; i < PER; ++i) {
        int expert = lane + 32 * i;
        if (expert < E && !(chosen >> (expert / size) & 1)) keys[i] = 0;
    }
}

// One token, by one warp; at most 32 * PER experts.
template <int PER>
__device__ __forceinline__ void route_token(
    uint32_t* ids, float* weights, const float* logits, const float* bias, int E, int top_k, int sigmoid, int normalize,
    float scale, int groups, int top_groups, int best_two
) {
    int lane = threadIdx.x & 31;
    float scores[PER];
    float highest = -INFINITY;
#pragma unroll
    for (int i = 0; i < PER; ++i) {
        scores[i] = lane + 32 * i < E ? logits[lane + 32 * i] : -INFINITY;
        highest = fmaxf(highest, scores[i]);
    }
    if (sigmoid) {
#pragma unroll
        for (int i = 0; i < PER; ++i) scores[i] = 1.f / (1.f + expf(-scores[i]));
    } else {
        highest = warp_max(highest);
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < PER; ++i) {
            scores[i] = expf(scores[i] - highest);
            sum += lane + 32 * i < E ? scores[i] : 0.f;
        }
        sum = warp_sum(sum);
#pragma unroll
        for (int i = 0; i < PER; ++i) scores[i] = scores[i] / sum;
    }
    uint32_t keys[PER];  // 0: not to be chosen
#pragma unroll
    for (int i = 0; i < PER; ++i) {
        int expert = lane + 32 * i;
        keys[i] = expert < E ? ordered(scores[i] + (bias ? bias[expert] : 0.f)) : 0;
    }
    if (groups > 1 && top_groups < groups) limit_groups<PER>(keys, E, groups, top_groups, best_two);

    uint32_t chosen = 0;  // the expert of place `lane`
    float weight = 0.f;
    for (int place = 0; place < top_k; ++place) {
        uint32_t key = 0, index = ~0u;
#pragma unroll
        for (int i = PER - 1; i >= 0; --i) {
            if (keys[i] >= key) key = keys[i], index = lane + 32 * i;
        }
        best_of_warp(key, index);
        float score = 0.f;
#pragma unroll
        for (int i = 0; i < PER; ++i) {
            if (index == uint32_t(lane + 32 * i)) score = scores[i], keys[i] = 0;
        }
        score = __shfl_sync(~0u, score, index & 31);
        if (lane == place) chosen = index, weight = score;
    }
    // In the order of the places: the same sum however many lanes there are.
    if (normalize) {
        float sum = 1e-20f;
        for (int place = 0; place < top_k; ++place) sum += __shfl_sync(~0u, weight, place);
        weight /= sum;
    }
    if (lane < top_k) ids[lane] = min(chosen, uint32_t(E - 1)), weights[lane] = weight * scale;
}

// For each of T tokens: scores of logits f32 [T, E] by softmax or sigmoid; the top_k best by score + bias (f32 [E] or
// null), of equal ones the lower index, within the `top_groups` best groups where `groups` > 1; ids u32 [T, top_k], best
// first; weights f32 [T, top_k]: their scores without bias, divided by their sum if `normalize`, times `scale`. E at most
// 512, top_k at most 16, groups at most 32 and a divisor of E. `even`: the experts in turn instead, for benchmarks.
// Grid: ceil(T / 4) blocks of 128 threads, a warp a token. Cost: latency.
extern "C" __global__ void __launch_bounds__(WARPS * 32) route(
    uint32_t* ids, float* weights, const float* logits, const float* bias, int T, int E, int top_k, int sigmoid,
    int normalize, float scale, int groups, int top_groups, int best_two, int even
) {
    after_previous();
    int token = blockIdx.x * WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (token >= T) return;
    uint32_t* to = ids + token * top_k;
    float* to_weights = weights + token * top_k;
    const float* from = logits + (int64_t)token * E;
    if (E <= 128) {
        route_token<4>(to, to_weights, from, bias, E, top_k, sigmoid, normalize, scale, groups, top_groups, best_two);
    } else {
        route_token<16>(to, to_weights, from, bias, E, top_k, sigmoid, normalize, scale, groups, top_groups, best_two);
    }
    __syncwarp();
    if (even && lane < top_k) to[lane] = (token * top_k + lane) % E;
}

// The pairs by expert (experts.cuh): sorted u32 [n], offsets u32 [E + 1], of ids u32 [n] below E.
// Grid: E blocks of 512 threads; a block lists one expert's pairs. A warp has a run of pairs, so that ballots keep their
// order. Cost: 8 E n bytes from the second-level cache.
extern "C" __global__ void __launch_bounds__(512) group_pairs(
    uint32_t* sorted, uint32_t* offsets, const uint32_t* ids, int n
) {
    after_previous();
    __shared__ int before[17], less_of[16];
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    uint32_t expert = blockIdx.x;
    int run = (n + 16 * 32 - 1) / (16 * 32) * 32, from = min(n, warp * run), to = min(n, from + run);
    int less = 0, equal = 0;
#pragma unroll 8
    for (int i = from + lane; i < to; i += 32) {
        uint32_t id = ids[i];
        less += id < expert, equal += id == expert;
    }
    less = __reduce_add_sync(~0u, less), equal = __reduce_add_sync(~0u, equal);
    if (lane == 0) before[warp + 1] = equal, less_of[warp] = less;
    __syncthreads();
    if (threadIdx.x == 0) {
        int sum = 0;
        for (int i = 0; i < 16; ++i) sum += less_of[i];
        before[0] = sum;
        offsets[expert] = sum;
        for (int i = 1; i <= 16; ++i) before[i] += before[i - 1];
        if (expert == gridDim.x - 1) offsets[gridDim.x] = before[16];
    }
    __syncthreads();
    if (equal == 0) return;
    int place = before[warp];
#pragma unroll 4
    for (int i = from; i < to; i += 32) {
        bool mine = i + lane < to && ids[i + lane] == expert;
        uint32_t lanes = __ballot_sync(~0u, mine);
        if (mine) sorted[place + __popc(lanes & ((1u << lane) - 1))] = i + lane;
        place += __popc(lanes);
    }
}

// dst[t] += sum over j of pairs[t * top_k + j], in order, in f32: pairs [T * top_k, width], dst [T, width], width a multiple
// of 8. Grid: (T, blocks over the row's packs of 8). Moves 2 (top_k + 2) bytes an element.
template <typename T>
__device__ void sum_pairs(T* dst, const T* pairs, int top_k, int width) {
    const T* from = pairs + (int64_t)blockIdx.x * top_k * width;
    T* to = dst + (int64_t)blockIdx.x * width;
    for (int pack = blockIdx.y * blockDim.x + threadIdx.x; pack < width / 8; pack += gridDim.y * blockDim.x) {
        Pack<T, 8> out = reinterpret_cast<const Pack<T, 8>*>(to)[pack];
        float sum[8] = {};
#pragma unroll 4
        for (int j = 0; j < top_k; ++j) {
            Pack<T, 8> in = reinterpret_cast<const Pack<T, 8>*>(from + (int64_t)j * width)[pack];
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] += to_float(in.at[i]);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) out.at[i] = from_float<T>(to_float(out.at[i]) + sum[i]);
        reinterpret_cast<Pack<T, 8>*>(to)[pack] = out;
    }
}

extern "C" __global__ void sum_pairs_bf16(bf16* dst, const bf16* pairs, int top_k, int width) {
    after_previous();
    sum_pairs<bf16>(dst, pairs, top_k, width);
}
extern "C" __global__ void sum_pairs_f16(f16* dst, const f16* pairs, int top_k, int width) {
    after_previous();
    sum_pairs<f16>(dst, pairs, top_k, width);
}
