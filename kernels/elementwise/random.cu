// Random weights, for speed tests without a file.
#include "lantern.cuh"

// Philox4x32 with seven rounds, the fewest that pass BigCrush (Salmon et al., SC 2011).
__device__ __forceinline__ uint4 philox7(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 7; round++) {
        uint32_t high_0 = __umulhi(0xD2511F53u, counter.x), low_0 = 0xD2511F53u * counter.x;
        uint32_t high_1 = __umulhi(0xCD9E8D57u, counter.z), low_1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high_1 ^ counter.y ^ key.x, low_1, high_0 ^ counter.w ^ key.y, low_0);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return counter;
}

// A bell-shaped number of variance 1 from 32 random bits: the sum of their four bytes has the mean 510 and the variance
// 4 (256^2 - 1) / 12.
__device__ __forceinline__ float bell(uint32_t bits) {
    return (float(__dp4a(bits, 0x01010101u, 0u)) - 510.f) * (1.f / 147.80054f);
}

// dst[i] = deviation * bell(seed, i): element i depends on seed and i alone. Grid: a thread for 8 elements.
// Writes 2 or 4 bytes an element; about 25 instructions each, so that memory is the limit.
template <typename T>
__device__ void fill_random(T* dst, size_t count, unsigned long long seed, float deviation) {
    size_t pack = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    uint2 key = make_uint2(uint32_t(seed), uint32_t(seed >> 32));
    uint4 a = philox7(make_uint4(uint32_t(pack), uint32_t(pack >> 32), 0, 0), key);
    uint4 b = philox7(make_uint4(uint32_t(pack), uint32_t(pack >> 32), 1, 0), key);
    uint32_t bits[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    Pack<T, 8> out;
#pragma unroll
    for (int i = 0; i < 8; i++) out.at[i] = from_float<T>(bell(bits[i]) * deviation);
    size_t at = pack * 8;
    if (at + 8 <= count) {
        constexpr int CHUNKS = sizeof(out) / 16;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            reinterpret_cast<uint4*>(dst + at)[i] = reinterpret_cast<const uint4*>(&out)[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (at + i < count) dst[at + i] = out.at[i];
        }
    }
}

#define FILL(T, NAME)                                                                                                 \
    extern "C" __global__ void fill_random_##NAME(                                                                    \
        T* dst, unsigned long long count, unsigned long long seed, float deviation                                    \
    ) {                                                                                                               \
        after_previous();                                                                                             \
        fill_random<T>(dst, count, seed, deviation);                                                                  \
    }
FILL(bf16, bf16)
FILL(f16, f16)
FILL(float, f32)
