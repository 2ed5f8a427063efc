// What the attention kernels share: tensor core fragments, asynchronous copies, how keys and values lie.
//
// The cache of a layer: K and V each [blocks][kv_heads][16 slots][head_dim]. Token p of a row is in slot p % 16 of the
// block table[p / 16]. Its elements are of the model's type T, or fp8, which is widened where it is read. Lane `4 g + t` of a warp is "thread (g, t)" of a fragment, as the PTX ISA draws them.
#pragma once

#include "copies.cuh"
#include "fp8.cuh"

#include <type_traits>

constexpr int BLOCK_TOKENS = 16;

// D [16, 8] in f32 += A [16, 16] B [16, 8]. Thread (g, t) holds of A: a0 row g, a1 row g + 8, both columns 2t, 2t + 1;
// a2 and a3 the same rows, columns 2t + 8, 2t + 9. Of B: b0 rows 2t, 2t + 1, b1 rows 2t + 8, 2t + 9, column g. Of D:
// d0, d1 row g, columns 2t, 2t + 1; d2, d3 row g + 8. The lower half of a register is the lower index.
template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
    if constexpr (std::is_same_v<T, bf16>) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
}

// Two floats as two elements; `low` in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    if constexpr (std::is_same_v<T, bf16>) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<uint32_t*>(&pair);
    } else {
        __half2 pair = __floats2half2_rn(low, high);
        return *reinterpret_cast<uint32_t*>(&pair);
    }
}

// The transpose of an 8 x 8 matrix of which thread (g, t) holds row g, columns 2t and 2t + 1.
__device__ __forceinline__ uint32_t transpose(uint32_t x) {
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// 16, 8 or 4 bytes that are read once: past the first-level cache. Volatile keeps loads before what waits for them.
__device__ __forceinline__ uint4 load_once(const void* from, uint4) {
    uint4 x;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(from));
    return x;
}
__device__ __forceinline__ uint2 load_once(const void* from, uint2) {
    uint2 x;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(from));
    return x;
}

__device__ __forceinline__ uint32_t load_once(const void* from, uint32_t) {
    uint32_t x;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(x) : "l"(from));
    return x;
}

__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Four 8 x 8 matrices from shared memory: lane 8 i + r gives the address of row r of matrix i. Thread (g, t) gets of
// matrix i row g, columns 2t and 2t + 1, in register i.
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address));
}

// The same, each matrix transposed: rows 2t and 2t + 1 of column g.
__device__ __forceinline__ void load_transposed(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address));
}

// Rows of one query: their contexts are cut into chunks.

constexpr int CHUNK_TOKENS = 256;
constexpr int MAX_CHUNKS = 32;
constexpr float NOTHING = -INFINITY;  // the maximum over no keys

// Tokens of a chunk: a function of the row's own context, so that no other row changes the order of additions.
__device__ __forceinline__ int chunk_tokens(int context) {
    constexpr int WHOLE = CHUNK_TOKENS * MAX_CHUNKS;
    return CHUNK_TOKENS * ((context + WHOLE - 1) / WHOLE);
}

// How much a part with maximum `m` counts in a whole with maximum `whole`.
__device__ __forceinline__ float weight(float m, float whole) { return m == NOTHING ? 0.f : fast_exp2(m - whole); }

template <typename T>
__device__ __forceinline__ void store4(T* to, float4 x) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack<T>(x.x, x.y), pack<T>(x.z, x.w));
}
