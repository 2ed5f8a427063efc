// A token's weight in a draw, exp((logit - max) / temperature) in (0, 1], as an integer and as a rank.
//
// Sums are integers (weight * 2^40, rounded), so that they do not depend on the order of threads. Positive floats are
// ordered as their bits.
#pragma once

#include "sampling.cuh"

// The first digit of a weight's bits: its exponent and four bits of its mantissa.
constexpr int FIRST_SHIFT = 19;
constexpr uint32_t FIRST_OF_ONE = 0x3f800000u >> FIRST_SHIFT;

__device__ __forceinline__ u64 fixed(uint32_t bits) {
    return __float2ull_rn(__uint_as_float(bits) * 1099511627776.f); // 2^40: exact, but for the rounding
}

// The bits of a token's weight; 0 where it cannot be drawn: less than min_p, not a number, or 0 as an integer.
__device__ __forceinline__ uint32_t weight_bits(const SampleRow& row, float logit, float max) {
    // exp(-28.6) is less than 2^-41: spares what is far away the division.
    if (!(logit - max >= -28.6f * row.temperature)) return 0;
    // Divided, not scaled: the reciprocal of a tiny temperature is infinite, and 0 times it no number.
    float weight = expf(__fdiv_rn(logit - max, row.temperature));
    return weight > 4.54747351e-13f && weight >= row.min_p ? __float_as_uint(weight) : 0;
}

// 0 for a weight of 1, growing as weights fall; below SLICE_BINS for all that can be drawn (2^-41 has 656).
__device__ __forceinline__ uint32_t rank_of(uint32_t bits) { return FIRST_OF_ONE - (bits >> FIRST_SHIFT); }

// Whether a row's tokens are walked through by weight, largest first, equals by id; else by id.
__device__ __forceinline__ bool is_by_weight(const SampleRow& row) { return row.top_k || row.top_p < 1.f; }
