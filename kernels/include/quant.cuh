// Weights in block formats, as they lie in GPU memory, and how they become operands of the tensor cores.
//
// A matrix [N, K] lies in tiles of sixteen rows, a tile in records of 256 values of k (128 where quants have 8 bits). A
// record takes as many bytes as its blocks take in the file; they are only put in another order, so that a warp reads them
// as one piece and a lane finds what it multiplies. In plain formats the last record of a tile is shorter where K is no
// multiple of 256, by whole units of 64 k (128 where a scale serves 128). Rows and k past the matrix are zero weights.
//
// A record is made of planes: of units of 64 k, low bits [unit][lane], then high bits [unit][lane]; then scales; then the
// scales of scales. Lane 4 g + t holds of rows g and g + 8, of each group of 32 k, the k 4t .. 4t + 3 and 16 + 4t ..
// 16 + 4t + 3: in this order four pairs, of which pairs 0 and 1 are its part of one 16 x 8 x 16 product, and pairs 2 and 3
// of the next. The first of a pair lies in the lower half of a word, the second 16 bits above it, so that one mask finds
// both: ored with the bits of 1024 (128 for bf16) they are two exact floats, 1024 (128) too large.
//
// A weight is scale * quant + offset. Products sum quants; scale and offset are applied to the sums of a group, in f32.
#pragma once

#include "mma.cuh"

#include <type_traits>

constexpr int TILE_ROWS = 16;
constexpr int UNIT = 64;

// Plain formats: what follows the quants, for each group of `group` weights (32, 64, 128), as [group][16 rows].
// The same as `Scales` in src/cuda/quant.rs.
constexpr int SCALE_ALONE = 0;   // f16 scale; the offset is scale * -(half of what quants can be)
constexpr int SCALE_OFFSET = 1;  // f16 scale, f16 offset
constexpr int SCALE_ZERO = 2;    // f16 scale, f16 zero: the offset is scale * -zero
constexpr int SCALE_FLOAT = 3;   // f32 scale, no offset

// Quants of BITS bits, 8 as signed bytes 128 below the unsigned ones; FLOAT: bytes are e4m3.
template <int BITS_, bool FLOAT_ = false>
struct Plain {
    static constexpr int BITS = BITS_;
    static constexpr bool FLOAT = FLOAT_, IS_K = false;
    static constexpr int HALVES = 1;                    // scales of a group of 32
    static constexpr int UNITS = BITS == 8 ? 2 : 4;  // of 64 k in a whole record
    static constexpr int MIDDLE = FLOAT ? 0 : 1 << (BITS - 1);
};

// K formats: 256 k a record, eight groups of 32 with HALVES scales each.
template <int BITS_, int HALVES_, bool OFFSETS_, int SCALE_BYTES_>
struct KQuant {
    static constexpr int BITS = BITS_;
    static constexpr bool FLOAT = false, IS_K = true;
    static constexpr int HALVES = HALVES_, UNITS = 4;
    static constexpr bool OFFSETS = OFFSETS_;          // f16 that scales the offsets beside the one that scales scales
    static constexpr int SCALE_BYTES = SCALE_BYTES_;  // of a row
    static constexpr int MIDDLE = OFFSETS ? 0 : 1 << (BITS - 1);
};

using Plain4 = Plain<4>;
using Plain5 = Plain<5>;
using Plain8 = Plain<8>;
using Float8 = Plain<8, true>;
using K2 = KQuant<2, 2, true, 16>;
using K3 = KQuant<3, 2, false, 12>;
using K4 = KQuant<4, 1, true, 12>;
using K5 = KQuant<5, 1, true, 12>;
using K6 = KQuant<6, 2, false, 16>;

// Bytes of a unit's planes.
template <typename C>
__host__ __device__ constexpr int low_bytes() {
    return C::BITS == 8 ? 1024 : C::BITS >= 4 ? 512 : 256;
}
template <typename C>
__host__ __device__ constexpr int high_bytes() {
    return C::BITS == 6 ? 256 : C::BITS == 5 || C::BITS == 3 ? 128 : 0;
}

// How a tile of a matrix of K columns is cut into records. `group` and `scales` are of plain formats.
template <typename C>
struct Records {
    static constexpr int WIDTH = C::UNITS * UNIT;                               // k of a whole record
    static constexpr int PLANES = low_bytes<C>() + high_bytes<C>();             // bytes of a unit
    static constexpr int TABLE = 2 * C::UNITS * C::HALVES * TILE_ROWS;          // scales of a whole record
    int unit_bytes, units, count;

    __host__ __device__ __forceinline__ Records(int K, int group, int scales) {
        if constexpr (C::IS_K) {
            unit_bytes = PLANES + TILE_ROWS * (C::SCALE_BYTES + (C::OFFSETS ? 4 : 2)) / 4;
            units = (K + 255) / 256 * 4;
        } else {
            unit_bytes = PLANES + UNIT * TILE_ROWS * (scales == SCALE_ALONE ? 2 : 4) / group;
            units = group == 128 ? (K + 127) / 128 * 2 : (K + UNIT - 1) / UNIT;
        }
        count = (units + C::UNITS - 1) / C::UNITS;
    }

    __host__ __device__ __forceinline__ int64_t tile_bytes() const { return (int64_t)units * unit_bytes; }
    // Bytes of a whole record: where the next one begins.
    __host__ __device__ __forceinline__ int pitch() const { return C::UNITS * unit_bytes; }
    __host__ __device__ __forceinline__ int units_of(int record) const {
        return C::IS_K || record + 1 < count ? C::UNITS : units - record * C::UNITS;
    }
};

// A quant's float is so much too large.
template <typename T, typename C>
__host__ __device__ constexpr float excess() {
    return C::FLOAT ? 0.f : C::BITS == 8 ? -128.f : std::is_same_v<T, bf16> ? 128.f : 1024.f;
}

// (x & mask) | base in one instruction; with two constants the compiler takes two.
__device__ __forceinline__ uint32_t masked(uint32_t x, uint32_t mask, uint32_t base) {
    uint32_t y;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(base));
    return y;
}

__device__ __forceinline__ uint32_t shifted(uint32_t x, int right) { return right >= 0 ? x >> right : x << -right; }

// The signed bytes 0 and 2 of a word as two elements.
template <typename T>
__device__ __forceinline__ uint32_t signed_pair(uint32_t x) {
    if constexpr (std::is_same_v<T, bf16>) {
        // 128 + the lower seven bits, less 128, or 256 where the sign is set.
        uint32_t low = masked(x, 0x007f007f, 0x43004300), less = masked(x, 0x00800080, 0x43004300);
        __nv_bfloat162 y = __hsub2(*reinterpret_cast<__nv_bfloat162*>(&low), *reinterpret_cast<__nv_bfloat162*>(&less));
        return *reinterpret_cast<uint32_t*>(&y);
    } else {
        uint32_t high = (x & 0x00ff00ff) ^ 0x64806480, less = 0x64806480;  // 1024 + 128 + the byte
        __half2 y = __hsub2(*reinterpret_cast<__half2*>(&high), *reinterpret_cast<__half2*>(&less));
        return *reinterpret_cast<uint32_t*>(&y);
    }
}

// The e4m3 bytes 1 and 3 of a word as two elements, for f16 256 times too small.
template <typename T>
__device__ __forceinline__ uint32_t float8_pair(uint32_t x) {
    if constexpr (std::is_same_v<T, bf16>) {
        uint32_t small = ((x >> 4) & 0x07f007f0) | (x & 0x80008000), scale = 0x7b807b80;  // times 2^120
        __nv_bfloat162 y = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&small), *reinterpret_cast<__nv_bfloat162*>(&scale));
        return *reinterpret_cast<uint32_t*>(&y);
    } else {
        return ((x >> 1) & 0x3f803f80) | (x & 0x80008000);
    }
}

// The quants of a lane in one unit.
template <typename T, typename C>
struct Unit {
    uint4 low[C::BITS == 8 ? 2 : 1];
    uint2 high;

    // From `planes`, where the record's planes of low and of high bits begin.
    __device__ __forceinline__ void load(const char* record, int units, int unit, int lane) {
        const char* from = record + unit * low_bytes<C>();
        if constexpr (C::BITS == 8) {
            low[0] = reinterpret_cast<const uint4*>(from)[lane];
            low[1] = reinterpret_cast<const uint4*>(from + 512)[lane];
        } else if constexpr (C::BITS >= 4) {
            low[0] = reinterpret_cast<const uint4*>(from)[lane];
        } else {
            uint2 words = reinterpret_cast<const uint2*>(from)[lane];
            low[0].x = words.x, low[0].y = words.y;
        }
        from = record + units * low_bytes<C>() + unit * high_bytes<C>();
        if constexpr (C::BITS == 6) high = reinterpret_cast<const uint2*>(from)[lane];
        if constexpr (C::BITS == 5 || C::BITS == 3) high.x = reinterpret_cast<const uint32_t*>(from)[lane];
    }

    // Pair `pair` of row g (`row` 0) or g + 8 (1) of group `group` of the unit: two elements of T.
    __device__ __forceinline__ uint32_t pair(int group, int row, int pair) const {
        constexpr uint32_t BASE = std::is_same_v<T, bf16> ? 0x43004300 : 0x64006400;
        if constexpr (C::BITS == 8) {
            const uint4& four = low[group];
            uint32_t word = row == 0 ? (pair < 2 ? four.x : four.y) : (pair < 2 ? four.z : four.w);
            if constexpr (C::FLOAT) return float8_pair<T>(pair & 1 ? word : word << 8);
            return signed_pair<T>(pair & 1 ? word >> 8 : word);
        } else if constexpr (C::BITS >= 4) {
            int index = 2 * group + row;
            uint32_t word = index == 0 ? low[0].x : index == 1 ? low[0].y : index == 2 ? low[0].z : low[0].w;
            uint32_t both = masked(word >> (4 * pair), 0x000f000f, BASE);
            if constexpr (C::BITS == 5) both |= shifted(high.x, 4 * index + pair - 4) & 0x00100010;
            if constexpr (C::BITS == 6) {
                both |= shifted(group == 0 ? high.x : high.y, 8 * row + 2 * pair - 4) & 0x00300030;
            }
            return both;
        } else {
            uint32_t word = group == 0 ? low[0].x : low[0].y;
            uint32_t both = masked(word >> (8 * row + 2 * pair), 0x00030003, BASE);
            if constexpr (C::BITS == 3) both |= shifted(high.x, 4 * (2 * group + row) + pair - 2) & 0x00040004;
            return both;
        }
    }

    // The operand of 16 rows for values 16 half .. 16 half + 15 of a group.
    __device__ __forceinline__ uint4 operand(int group, int half) const {
        return uint4{pair(group, 0, 2 * half), pair(group, 1, 2 * half), pair(group, 0, 2 * half + 1),
                     pair(group, 1, 2 * half + 1)};
    }
};

__device__ __forceinline__ float half_at(uint32_t word) { return __half2float(__ushort_as_half((unsigned short)word)); }
__device__ __forceinline__ float byte_of(uint32_t word, int byte) { return float((word >> (8 * byte)) & 255); }

// Scale and offset of each group (or half of one) of a record, for quants that are EXCESS too large, to `table`
// [groups * HALVES][16 rows]. A warp calls it; barriers of the warp are the caller's. For f16, FLOAT quants are 256 times
// too small.
template <typename C>
__device__ __forceinline__ void read_scales(float2* table, const char* scales, int units, int group, int kind, int lane,
                                            float excess, float factor) {
    int row = lane & 15, part = lane >> 4;
    if constexpr (!C::IS_K) {
        // So many groups of 32 have one scale, as a power of 2.
        int shared = __ffs(group) - 6;
#pragma unroll
        for (int j = 0; j < C::UNITS; ++j) {
            int i = 2 * j + part;
            if (i >= 2 * units) break;
            int at = (i >> shared) * TILE_ROWS + row;
            float scale, offset;
            if (kind == SCALE_ALONE) {
                scale = half_at(reinterpret_cast<const uint16_t*>(scales)[at]);
                offset = scale * (-C::MIDDLE - excess);
            } else {
                uint32_t word = reinterpret_cast<const uint32_t*>(scales)[at];
                float second = half_at(word >> 16);
                scale = half_at(word);
                offset = kind == SCALE_OFFSET ? fmaf(-excess, scale, second) : scale * (-second - excess);
                if (kind == SCALE_FLOAT) scale = __uint_as_float(word) * factor, offset = 0.f;
            }
            table[i * TILE_ROWS + row] = float2{scale, offset};
        }
        return;
    } else {
        const char* own = scales + row * C::SCALE_BYTES;
        const char* outer = scales + TILE_ROWS * C::SCALE_BYTES;
        float d, d_offset = 0.f;
        if constexpr (C::OFFSETS) {
            uint32_t word = reinterpret_cast<const uint32_t*>(outer)[row];
            d = half_at(word), d_offset = half_at(word >> 16);
        } else {
            d = half_at(reinterpret_cast<const uint16_t*>(outer)[row]);
        }
        auto put = [&](int index, float scale, float offset) {
            scale *= d;
            offset = C::OFFSETS ? fmaf(-excess, scale, -(d_offset * offset)) : scale * (-C::MIDDLE - excess);
            table[index * TILE_ROWS + row] = float2{scale, offset};
        };
        const uint32_t* words = reinterpret_cast<const uint32_t*>(own);
        if constexpr (C::BITS == 4 || C::BITS == 5) {
            // Six bits each: of groups 0 to 3 in bytes 0 to 3 and 4 to 7, of the others in 8 to 11 and the upper bits.
            uint32_t low = words[0], middle = words[1], high = words[2];
            uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x30303030;
            uint32_t scale = part == 0 ? low & six : (high & four) | ((low >> 2) & two);
            uint32_t offset = part == 0 ? middle & six : ((high >> 4) & four) | ((middle >> 2) & two);
#pragma unroll
            for (int i = 0; i < 4; ++i) put(4 * part + i, byte_of(scale, i), byte_of(offset, i));
        } else if constexpr (C::BITS == 3) {
            // Six bits around 32: four in bytes 0 to 7 (low halves first), two in bytes 8 to 11.
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                uint32_t nibble = words[i / 4] >> (8 * (i % 4) + 4 * part);
                uint32_t upper = words[2] >> (8 * (i % 4) + 2 * (2 * part + i / 4));
                put(8 * part + i, float((nibble & 15) | (upper & 3) << 4) - 32.f, 0.f);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                uint32_t byte = (words[2 * part + i / 4] >> (8 * (i % 4))) & 255;
                if constexpr (C::BITS == 2) {
                    put(8 * part + i, float(byte & 15), float(byte >> 4));
                } else {
                    put(8 * part + i, float((int)(signed char)byte), 0.f);
                }
            }
        }
    }
}
