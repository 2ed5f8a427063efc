// Bias, norms of heads, rotary positions, and the way of k and v into the paged cache: one pass over new tokens.
#include "fp8.cuh"
#include "lantern.cuh"

constexpr int THREADS = 256;
constexpr int BLOCK_SIZE = 16;

// Eight values of a rotary table from `at` on. Tables of whole packs are read as such.
__device__ __forceinline__ void load_table(const float* table, int at, bool packed, float* to) {
    if (packed) {
        Pack<float, 4> low = *reinterpret_cast<const Pack<float, 4>*>(table + at);
        Pack<float, 4> high = *reinterpret_cast<const Pack<float, 4>*>(table + at + 4);
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] = low.at[i], to[4 + i] = high.at[i];
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = table[at + i];
    }
}

// Rotates elements `at .. at + 8` of a head whose (normed) elements lie in `head` (f32, shared memory); `x` holds the
// eight themselves. Halves: i goes with i + half. Interleaved: 2 i with 2 i + 1. From rotary_dim on nothing changes.
__device__ __forceinline__ void rotate(
    float* x, const float* head, const float* cos, const float* sin, int at, int rotary_dim, int interleaved
) {
    int half = rotary_dim / 2;
    if (interleaved) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            if (at + i >= rotary_dim) continue;
            float c = cos[(at + i) / 2], s = sin[(at + i) / 2], a = x[i], b = x[i + 1];
            x[i] = a * c - b * s;
            x[i + 1] = b * c + a * s;
        }
    } else if (half % 8 == 0) {
        // The whole pack lies in one half.
        if (at >= rotary_dim) return;
        bool second = at >= half;
        int place = second ? at - half : at;
        float c[8], s[8], other[8];
        load_table(cos, place, true, c);
        load_table(sin, place, true, s);
        load_table(head, second ? place : at + half, true, other);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = x[i] * c[i] + (second ? other[i] : -other[i]) * s[i];
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int element = at + i;
            if (element < half) {
                x[i] = x[i] * cos[element] - head[element + half] * sin[element];
            } else if (element < rotary_dim) {
                x[i] = x[i] * cos[element - half] + head[element - half] * sin[element - half];
            }
        }
    }
}

// For each of T tokens and each head of its row of qkv [T, (q_heads + 2 kv_heads) * dim]:
//  1. adds bias f32 [row] (may be null); 2. q and k heads: RMS norm with q_weight / k_weight f32 [dim] (may be null);
//  3. q and k heads: rotates the first rotary_dim elements by cos, sin f32 [positions, rotary_dim / 2];
//  4. writes q back in place, k and v to keys, values [block][kv_heads][16][dim] at slots u32 [T] (block * 16 + place),
//     as T or in fp8.
// A slot that is not below slot_count (0xffffffff: padding) writes neither k nor v; k and v in qkv stay as they were.
// A head belongs to `lanes` (8, 16 or 32) neighbouring lanes of 8 elements each; dim is a multiple of 8, at most
// 8 * lanes. Grid: (T, blocks of THREADS / lanes heads). Moves 4 bytes an element.
template <typename T, typename C>
__device__ void rope_and_cache(
    T* qkv, C* keys, C* values, const float* bias, const float* q_weight, const float* k_weight, const float* cos,
    const float* sin, const uint32_t* positions, const uint32_t* slots, int q_heads, int kv_heads, int dim,
    int rotary_dim, int interleaved, int lanes, int position_count, int slot_count, float eps
) {
    __shared__ __align__(16) float normed[THREADS * 8];
    if (gridDim.x <= FEWEST_ROWS) let_next_begin();
    int token = blockIdx.x, heads = q_heads + 2 * kv_heads;
    int group = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    int head = blockIdx.y * (THREADS / lanes) + group;
    int at = lane * 8;
    bool active = head < heads && at < dim;
    bool is_q = head < q_heads, rotated = head < q_heads + kv_heads;
    T* row = qkv + size_t(token) * heads * dim + size_t(head) * dim;
    uint32_t position = min(positions[token], uint32_t(position_count - 1)), slot = slots[token];
    float x[8] = {}, weight[8] = {};
    if (active && bias) load_table(bias, head * dim + at, true, x);
    if (active && rotated && q_weight) load_table(is_q ? q_weight : k_weight, at, true, weight);
    after_previous();
    if (active) {
        Pack<T, 8> in = *reinterpret_cast<const Pack<T, 8>*>(row + at);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] += to_float(in.at[i]);
    }
    if (q_weight) {
        float squares = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) squares += x[i] * x[i];
        // Lanes of one head are neighbours; those past its end bring zeros.
        for (int offset = lanes / 2; offset; offset >>= 1) squares += __shfl_xor_sync(~0u, squares, offset);
        if (active && rotated) {
            float scale = rsqrtf(squares / dim + eps);
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] *= scale * weight[i];
        }
    }
    float* shared_head = normed + group * lanes * 8;
    Pack<float, 4> low, high;
#pragma unroll
    for (int i = 0; i < 4; i++) low.at[i] = x[i], high.at[i] = x[4 + i];
    *reinterpret_cast<Pack<float, 4>*>(shared_head + at) = low;
    *reinterpret_cast<Pack<float, 4>*>(shared_head + at + 4) = high;
    __syncwarp(); // a head never spans two warps
    if (!active) return;
    if (rotated) {
        size_t start = size_t(position) * (rotary_dim / 2);
        rotate(x, shared_head, cos + start, sin + start, at, rotary_dim, interleaved);
    }
    if (is_q) {
        Pack<T, 8> out;
#pragma unroll
        for (int i = 0; i < 8; i++) out.at[i] = from_float<T>(x[i]);
        *reinterpret_cast<Pack<T, 8>*>(row + at) = out;
        return;
    }
    if (slot >= uint32_t(slot_count)) return;
    int kv_head = rotated ? head - q_heads : head - q_heads - kv_heads;
    size_t place = (size_t(slot / BLOCK_SIZE) * kv_heads + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE;
    Pack<C, 8> out;
#pragma unroll
    for (int i = 0; i < 8; i++) out.at[i] = from_float<C>(x[i]);
    *reinterpret_cast<Pack<C, 8>*>((rotated ? keys : values) + place * dim + at) = out;
}

#define ROPE(NAME, T, C)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) rope_and_cache_##NAME(                                      \
        T* qkv, C* keys, C* values, const float* bias, const float* q_weight, const float* k_weight,                  \
        const float* cos, const float* sin, const uint32_t* positions, const uint32_t* slots, int q_heads,            \
        int kv_heads, int dim, int rotary_dim, int interleaved, int lanes, int position_count, int slot_count,        \
        float eps                                                                                                     \
    ) {                                                                                                               \
        rope_and_cache<T, C>(                                                                                         \
            qkv, keys, values, bias, q_weight, k_weight, cos, sin, positions, slots, q_heads, kv_heads, dim,          \
            rotary_dim, interleaved, lanes, position_count, slot_count, eps                                           \
        );                                                                                                            \
    }
ROPE(bf16, bf16, bf16)
ROPE(f16, f16, f16)
ROPE(bf16_fp8, bf16, fp8)
ROPE(f16_fp8, f16, fp8)
