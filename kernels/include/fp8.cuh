// e4m3 numbers in memory: sign, 4 bits of exponent (bias 7), 3 of mantissa; at most 448.
//
// They are read by shifts and one product, which every card from sm_80 on does for two numbers at once: as the bits of
// the wider type, the number is too small by the difference of the biases, subnormal numbers too. 0x7f and 0xff, which
// stand for no number, read as 480: what writes saturates, and never gives them for a number.
#pragma once

#include "lantern.cuh"

#include <cuda_fp8.h>
#include <type_traits>

struct fp8 {
    uint8_t bits;
};

template <>
__device__ __forceinline__ fp8 from_float<fp8>(float x) {
    return {__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)};
}

// Two pairs of T from four numbers; the lower half of a register is the lower index.
template <typename T>
__device__ __forceinline__ void widen_fp8(uint32_t four, uint32_t& first, uint32_t& second) {
    // A number in the upper byte of each half.
    const uint32_t pairs[2] = {__byte_perm(four, 0, 0x1404), __byte_perm(four, 0, 0x3424)};
    uint32_t wide[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t sign = pairs[i] & 0x80008000;
        if constexpr (std::is_same_v<T, bf16>) {
            const uint32_t bits = sign | ((pairs[i] >> 4) & 0x07f007f0);
            // Times 2^120, the bf16 of the bits 0x7b80.
            const uint32_t power = 0x7b807b80;
            const __nv_bfloat162 x = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&bits),
                                             *reinterpret_cast<const __nv_bfloat162*>(&power));
            wide[i] = *reinterpret_cast<const uint32_t*>(&x);
        } else {
            const uint32_t bits = sign | ((pairs[i] >> 1) & 0x3f803f80);
            // Times 2^8.
            const uint32_t power = 0x5c005c00;
            const __half2 x =
                __hmul2(*reinterpret_cast<const __half2*>(&bits), *reinterpret_cast<const __half2*>(&power));
            wide[i] = *reinterpret_cast<const uint32_t*>(&x);
        }
    }
    first = wide[0];
    second = wide[1];
}

__device__ __forceinline__ uint32_t widen_word(uint2 x, int n) { return n == 0 ? x.x : x.y; }
__device__ __forceinline__ uint32_t widen_word(uint32_t x, int) { return x; }
__device__ __forceinline__ void widened_words(uint4& to, int n, uint32_t first, uint32_t second) {
    if (n == 0) to.x = first, to.y = second;
    else to.z = first, to.w = second;
}
__device__ __forceinline__ void widened_words(uint2& to, int, uint32_t first, uint32_t second) {
    to.x = first, to.y = second;
}

// A piece of T's from memory: as it is, or from fp8 of half the size.
template <typename T, typename Piece, typename Raw>
__device__ __forceinline__ Piece widen(Raw raw) {
    if constexpr (std::is_same_v<Piece, Raw>) {
        return raw;
    } else {
        static_assert(sizeof(Piece) == 2 * sizeof(Raw));
        Piece piece;
#pragma unroll
        for (int n = 0; n < int(sizeof(Raw) / 4); n++) {
            uint32_t first, second;
            widen_fp8<T>(widen_word(raw, n), first, second);
            widened_words(piece, n, first, second);
        }
        return piece;
    }
}

// What eight numbers of the cache, and four, are in memory.
template <typename C>
struct CachePiece {
    using Eight = uint4;
    using Four = uint2;
};
template <>
struct CachePiece<fp8> {
    using Eight = uint2;
    using Four = uint32_t;
};
