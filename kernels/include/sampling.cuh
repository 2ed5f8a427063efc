// What the sampling kernels share: a row's parameters and results, sums over a block, random numbers.
#pragma once

#include "lantern.cuh"

constexpr uint32_t HAS_PENALTIES = 1;
constexpr uint32_t HAS_BANS = 2;
constexpr uint32_t HAS_MASK = 4;
constexpr uint32_t NO_LOGPROBS = 0xffffffffu;
constexpr int MAX_TOP = 20;
// Entries of a slot's lists of bias and of banned tokens.
constexpr int MAX_EDITS = 1024;
// Of a slot's u16 for each token: the token is in the prompt; the other bits count how often it was generated.
constexpr uint32_t IN_PROMPT = 0x8000;
constexpr uint32_t COUNT_MASK = 0x7fff;

// The same as `SampleRow` in src/cuda/sampling.rs.
struct SampleRow {
    uint32_t slot, flags;
    float temperature;
    uint32_t top_k;
    float top_p, min_p, repetition, presence, frequency;
    uint32_t top_logprobs, seed_low, seed_high, choice, drawn, bias_count, ban_count;
};
static_assert(sizeof(SampleRow) == 64, "as the host writes it");

// The same as `SampleOutput` in src/cuda/sampling.rs.
struct SampleOutput {
    uint32_t token;
    float logprob;
    uint32_t rank, status;
    uint32_t top_ids[MAX_TOP];
    float top_logprobs[MAX_TOP];
};
static_assert(sizeof(SampleOutput) == 176, "as the host reads it");

typedef unsigned long long u64;

__device__ __forceinline__ bool is_greedy(const SampleRow& row) { return row.temperature == 0.f || row.top_k == 1; }

// Whether the row's logits are changed before the draw, so that they lie in the scratch.
__device__ __forceinline__ bool is_edited(const SampleRow& row, int slots) {
    return row.slot < uint32_t(slots) && ((row.flags & (HAS_PENALTIES | HAS_BANS | HAS_MASK)) || row.bias_count);
}

// Orders floats as unsigned integers; -0 counts as 0. Never 0 for what is no NaN.
__device__ __forceinline__ uint32_t ordered(float x) {
    uint32_t bits = x == 0.f ? 0u : __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float from_ordered(uint32_t bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// A logit and its token as one number: the larger logit wins, then the smaller id. 0: none.
__device__ __forceinline__ u64 ranked(float logit, uint32_t id) {
    return logit == logit ? u64(ordered(logit)) << 32 | uint32_t(~id) : 0;
}

__device__ __forceinline__ u64 warp_max(u64 x) {
    for (int offset = 16; offset; offset >>= 1) {
        u64 other = __shfl_xor_sync(~0u, x, offset);
        x = other > x ? other : x;
    }
    return x;
}

__device__ __forceinline__ u64 warp_sum(u64 x) {
    for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

// The largest over the block, in every thread. `scratch` holds 32 numbers; safe to use again at once.
__device__ __forceinline__ u64 block_max(u64 x, u64* scratch) {
    x = warp_max(x);
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    x = (threadIdx.x & 31) < (blockDim.x >> 5) ? scratch[threadIdx.x & 31] : 0;
    x = warp_max(x);
    __syncthreads();
    return x;
}

__device__ __forceinline__ u64 block_sum(u64 x, u64* scratch) {
    x = warp_sum(x);
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    x = (threadIdx.x & 31) < (blockDim.x >> 5) ? scratch[threadIdx.x & 31] : 0;
    x = warp_sum(x);
    __syncthreads();
    return x;
}

// Counts a token that was generated; the count stops at its largest value. Safe among threads.
__device__ __forceinline__ void count_token(uint16_t* counts, uint32_t token) {
    unsigned short* at = reinterpret_cast<unsigned short*>(counts) + token;
    unsigned short seen = *at, before;
    do {
        before = seen;
        if ((before & COUNT_MASK) == COUNT_MASK) return;
        seen = atomicCAS(at, before, (unsigned short)(before + 1));
    } while (seen != before);
}

// Marks a token as part of the prompt. Safe among threads.
__device__ __forceinline__ void mark_prompt(uint16_t* counts, uint32_t token) {
    unsigned short* at = reinterpret_cast<unsigned short*>(counts) + token;
    unsigned short seen = *at, before;
    do {
        before = seen;
        seen = atomicCAS(at, before, (unsigned short)(before | IN_PROMPT));
    } while (seen != before);
}

// One thread notes what a row drew.
__device__ __forceinline__ void finish_row(
    const SampleRow& row, SampleOutput* output, uint32_t* last_tokens, uint16_t* counts, int vocab, int slots,
    uint32_t token, uint32_t status
) {
    output->token = token;
    output->status = status;
    if (row.slot >= uint32_t(slots)) return;
    last_tokens[row.slot] = token;
    if ((row.flags & HAS_PENALTIES) && status == 0) count_token(counts + size_t(row.slot) * vocab, token);
}

// The number in [0, 1) of a draw, with 53 random bits: Philox4x32-10 (Salmon et al., SC 2011), as src/sampling/random.rs.
__device__ __forceinline__ double uniform(const SampleRow& row) {
    uint32_t c0 = row.drawn, c1 = row.choice, c2 = 0, c3 = 0, k0 = row.seed_low, k1 = row.seed_high;
    for (int round = 0; round < 10; round++) {
        uint32_t high_0 = __umulhi(0xD2511F53u, c0), low_0 = 0xD2511F53u * c0;
        uint32_t high_1 = __umulhi(0xCD9E8D57u, c2), low_1 = 0xCD9E8D57u * c2;
        c0 = high_1 ^ c1 ^ k0, c1 = low_1, c2 = high_0 ^ c3 ^ k1, c3 = low_0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return double((u64(c0) << 32 | c1) >> 11) * (1.0 / 9007199254740992.0);
}
