// What a GPU must get right before a model is given to it: integers, a fused multiply-add, and the tensor cores.
#include "lantern.cuh"

// Small integers, so that bf16 and the sums are exact.
__device__ __forceinline__ float a_element(int row, int k) { return float((row * 3 + k * 5) % 7 - 3); }
__device__ __forceinline__ float b_element(int k, int column) { return float((k * 2 + column * 3) % 5 - 2); }

__device__ __forceinline__ unsigned pack(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned*>(&both);
}

// One block of 32 threads. out, u32 [192]: 32 hashes of the lane, 32 bit patterns of fma(lane + 1, 1/3, -1/7), and the
// bit patterns of A x B, f32 [16, 8] row-major, with A [16, 16] and B [16, 8] as above, through one mma.sync.
// Fragments: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
extern "C" __global__ void probe(unsigned* out) {
    after_previous();
    int lane = threadIdx.x;
    unsigned hash = (unsigned(lane) + 1u) * 2654435761u;
    out[lane] = hash ^ (hash >> 15);
    out[32 + lane] = __float_as_uint(__fmaf_rn(float(lane + 1), 1.f / 3.f, -1.f / 7.f));

    int group = lane >> 2, k = (lane & 3) * 2;
    unsigned a[4], b[2];
    for (int i = 0; i < 4; i++) {
        int row = group + (i & 1) * 8, column = k + (i >> 1) * 8;
        a[i] = pack(a_element(row, column), a_element(row, column + 1));
    }
    for (int i = 0; i < 2; i++) b[i] = pack(b_element(k + i * 8, group), b_element(k + i * 8 + 1, group));
    float c[4] = {0.f, 0.f, 0.f, 0.f};
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    for (int i = 0; i < 4; i++) {
        int row = group + (i >> 1) * 8, column = k + (i & 1);
        out[64 + row * 8 + column] = __float_as_uint(c[i]);
    }
}
