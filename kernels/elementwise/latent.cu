// Norm and rotary position of latents on their way into the paged cache, and the rotated part of queries: one pass over
// new tokens.
#include "lantern.cuh"

constexpr int THREADS = 128;

// Elements `at .. at + 8` of `from` [dim], rotated by a row of the tables. Interleaved: 2 i turns with 2 i + 1; else i with
// i + dim / 2, where dim is a multiple of 16.
template <typename T>
__device__ __forceinline__ Pack<T, 8> rotated(const T* from, int at, int dim, const float* cos, const float* sin,
                                              int interleaved) {
    Pack<T, 8> in = *reinterpret_cast<const Pack<T, 8>*>(from + at), out;
    if (interleaved) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            float c = cos[(at + i) / 2], s = sin[(at + i) / 2], a = to_float(in.at[i]), b = to_float(in.at[i + 1]);
            out.at[i] = from_float<T>(a * c - b * s);
            out.at[i + 1] = from_float<T>(b * c + a * s);
        }
    } else {
        int half = dim / 2;
        bool second = at >= half;
        int place = second ? at - half : at;
        Pack<T, 8> other = *reinterpret_cast<const Pack<T, 8>*>(from + (second ? place : at + half));
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float turn = to_float(other.at[i]) * sin[place + i];
            out.at[i] = from_float<T>(to_float(in.at[i]) * cos[place + i] + (second ? turn : -turn));
        }
    }
    return out;
}

// For each of T tokens:
//  1. of kv [T] rows of latent_dim + rotary_dim: the first latent_dim elements, RMS normed with norm f32 [latent_dim], and
//     the rest, rotated, go to the cache latents [block][16][latent_dim + rotary_dim] at slots u32 [T] (block * 16 + place);
//     a slot that is not below slot_count (0xffffffff: padding) writes nothing;
//  2. the last rotary_dim of each head of q [T] rows of heads x (plain_dim + rotary_dim) are rotated in place.
// cos, sin f32 [positions, rotary_dim / 2]. Dims are multiples of 8, rotary_dim at most 256 and a power of two, latent_dim
// at most 1024; kv_row and q_row: elements from a row to the next, multiples of 8.
// Grid: T blocks of 128 threads. Moves 4 bytes an element of kv and of the rotated part of q.
template <typename T>
__device__ __forceinline__ void latent_rope_and_cache(
    T* q, T* latents, const T* kv, const float* norm, const float* cos, const float* sin, const uint32_t* positions,
    const uint32_t* slots, int heads, int plain_dim, int latent_dim, int rotary_dim, int q_row, int kv_row,
    int interleaved, int position_count, int slot_count, float eps
) {
    __shared__ float scratch[32];
    int64_t token = blockIdx.x;
    int width = latent_dim + rotary_dim, packs = rotary_dim / 8;
    uint32_t position = min(positions[token], uint32_t(position_count - 1)), slot = slots[token];
    cos += int64_t(position) * (rotary_dim / 2), sin += int64_t(position) * (rotary_dim / 2);
    const T* row = kv + token * kv_row;
    bool cached = slot < uint32_t(slot_count);
    T* to = latents + int64_t(cached ? slot : 0) * width;

    int at = threadIdx.x * 8;
    Pack<T, 8> in = {};
    float squares = 0.f;
    if (at < latent_dim) {
        in = *reinterpret_cast<const Pack<T, 8>*>(row + at);
#pragma unroll
        for (int i = 0; i < 8; i++) squares += to_float(in.at[i]) * to_float(in.at[i]);
    }
    float scale = rsqrtf(block_sum(squares, scratch) / latent_dim + eps);
    if (at < latent_dim && cached) {
#pragma unroll
        for (int i = 0; i < 8; i++) in.at[i] = from_float<T>(to_float(in.at[i]) * scale * norm[at + i]);
        *reinterpret_cast<Pack<T, 8>*>(to + at) = in;
    }
    // The rotated part of the latent, then of each head of q, a head by neighbours of one warp.
    int jobs = (heads + 1) * packs;
    for (int first = 0; first < jobs; first += THREADS) {
        int job = first + threadIdx.x, head = job / packs - 1, place = job % packs * 8;
        const T* from = head < 0 ? row + latent_dim : q + token * q_row + int64_t(head) * (plain_dim + rotary_dim) + plain_dim;
        Pack<T, 8> out;
        if (job < jobs) out = rotated(from, place, rotary_dim, cos, sin, interleaved);
        __syncwarp();  // all of a head is read before any of it is written
        if (job >= jobs || (head < 0 && !cached)) continue;
        T* target = head < 0 ? to + latent_dim : q + (from - q);
        *reinterpret_cast<Pack<T, 8>*>(target + place) = out;
    }
}

// The latents of cache blocks one behind the other, apart from what is rotated: plain [n * 16, latent_dim] and rotated
// [n * 16, rotary_dim] of latents [block][16][latent_dim + rotary_dim], of the blocks that `table` u32 [n] lists.
// Grid: n * 16 blocks of 128 threads. Moves 4 bytes an element.
template <typename T>
__device__ __forceinline__ void latent_gather(T* plain, T* rotated, const T* latents, const uint32_t* table, int latent_dim,
                                              int rotary_dim) {
    int64_t row = blockIdx.x, slot = int64_t(table[row / 16]) * 16 + row % 16;
    const T* from = latents + slot * (latent_dim + rotary_dim);
    for (int at = threadIdx.x * 8; at < latent_dim + rotary_dim; at += THREADS * 8) {
        T* to = at < latent_dim ? plain + row * latent_dim + at : rotated + row * rotary_dim + at - latent_dim;
        *reinterpret_cast<Pack<T, 8>*>(to) = *reinterpret_cast<const Pack<T, 8>*>(from + at);
    }
}

#define LATENT_GATHER(T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) latent_gather_##T(                                          \
        T* plain, T* rotated, const T* latents, const uint32_t* table, int latent_dim, int rotary_dim                 \
    ) {                                                                                                               \
        after_previous();                                                                                             \
        latent_gather<T>(plain, rotated, latents, table, latent_dim, rotary_dim);                                     \
    }
LATENT_GATHER(bf16)
LATENT_GATHER(f16)

#define LATENT_ROPE(T)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) latent_rope_and_cache_##T(                                  \
        T* q, T* latents, const T* kv, const float* norm, const float* cos, const float* sin,                         \
        const uint32_t* positions, const uint32_t* slots, int heads, int plain_dim, int latent_dim, int rotary_dim,   \
        int q_row, int kv_row, int interleaved, int position_count, int slot_count, float eps                         \
    ) {                                                                                                               \
        after_previous();                                                                                             \
        latent_rope_and_cache<T>(                                                                                     \
            q, latents, kv, norm, cos, sin, positions, slots, heads, plain_dim, latent_dim, rotary_dim, q_row,        \
            kv_row, interleaved, position_count, slot_count, eps                                                      \
        );                                                                                                            \
    }
LATENT_ROPE(bf16)
LATENT_ROPE(f16)
