// The tensor cores' 16 x 8 x 16 product, for bf16 and f16 with sums in f32.
#pragma once

#include "copies.cuh"

// c [16, 8] += a [16, 16] * b [16, 8]. Of lane 4 g + t:
//   a.x: row g, k 2t and 2t + 1; a.y: row g + 8; a.z: row g, k 2t + 8 and 2t + 9; a.w: row g + 8, the same k.
//   b0: k 2t and 2t + 1 of column g; b1: k 2t + 8 and 2t + 9.
//   c[0], c[1]: row g, columns 2t and 2t + 1; c[2], c[3]: row g + 8.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], uint4 a, uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_16x8x16<bf16>(float (&c)[4], uint4 a, uint32_t b0, uint32_t b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_16x8x16<f16>(float (&c)[4], uint4 a, uint32_t b0, uint32_t b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
