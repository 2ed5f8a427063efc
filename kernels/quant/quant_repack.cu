// Blocks of a file put in the order of records (`quant.cuh`); random blocks, for speed tests without a file.
#include "quant.cuh"

// What the files hold: bits of quant k of the block at `p`, and the words of a record's scales. C: as it lies afterwards.
template <typename CODE, int LENGTH_, int BYTES_>
struct Blocks {
    using C = CODE;
    // Weights and bytes of a block.
    static __host__ __device__ __forceinline__ int length(int) { return LENGTH_; }
    static __host__ __device__ __forceinline__ int bytes(int) { return BYTES_; }
};

__host__ __device__ __forceinline__ int nibble(const uint8_t* p, int k) { return (p[k & 15] >> (k & 16 ? 4 : 0)) & 15; }

struct Q4_0 : Blocks<Plain4, 32, 18> {
    static constexpr int SCALE_AT = 0;
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) { return nibble(p + 2, k); }
};
struct Q4_1 : Blocks<Plain4, 32, 20> {
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) { return nibble(p + 4, k); }
};
struct Q5_0 : Blocks<Plain5, 32, 22> {
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) {
        return nibble(p + 6, k) | ((p[2 + k / 8] >> (k & 7)) & 1) << 4;
    }
};
struct Q5_1 : Blocks<Plain5, 32, 24> {
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) {
        return nibble(p + 8, k) | ((p[4 + k / 8] >> (k & 7)) & 1) << 4;
    }
};
struct Q8_0 : Blocks<Plain8, 32, 34> {
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) { return p[2 + k]; }
};
// Groups of 32, 64 or 128: scale f16, zero f16, then nibbles as in Q4_1, 32 after 32.
struct Int4 : Blocks<Plain4, 0, 0> {
    static __host__ __device__ __forceinline__ int length(int group) { return group; }
    static __host__ __device__ __forceinline__ int bytes(int group) { return 4 + group / 2; }
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) { return nibble(p + 4 + k / 32 * 16, k); }
};
// Scale f16, zero f16, unsigned bytes.
struct Int8 : Blocks<Plain8, 0, 0> {
    static __host__ __device__ __forceinline__ int length(int group) { return group; }
    static __host__ __device__ __forceinline__ int bytes(int group) { return 4 + group; }
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) { return p[4 + k] ^ 0x80; }
};
// Scale f32, bytes of e4m3.
struct Fp8 : Blocks<Float8, 0, 0> {
    static __host__ __device__ __forceinline__ int length(int group) { return group; }
    static __host__ __device__ __forceinline__ int bytes(int group) { return 4 + group; }
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) { return p[4 + k]; }
};
struct Q2_K : Blocks<K2, 256, 84> {
    static constexpr int SCALES_AT = 0, OUTER_AT = 80;
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) {
        return (p[16 + k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2)) & 3;
    }
};
struct Q3_K : Blocks<K3, 256, 110> {
    static constexpr int SCALES_AT = 96, OUTER_AT = 108;
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) {
        return ((p[32 + k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2)) & 3) | ((p[k % 32] >> (k / 32)) & 1) << 2;
    }
};
struct Q4_K : Blocks<K4, 256, 144> {
    static constexpr int SCALES_AT = 4, OUTER_AT = 0;
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) {
        return (p[16 + k / 64 * 32 + k % 32] >> (k & 32 ? 4 : 0)) & 15;
    }
};
struct Q5_K : Blocks<K5, 256, 176> {
    static constexpr int SCALES_AT = 4, OUTER_AT = 0;
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) {
        int high = (p[16 + k % 32] >> (k / 32)) & 1;
        return ((p[48 + k / 64 * 32 + k % 32] >> (k & 32 ? 4 : 0)) & 15) | high << 4;
    }
};
struct Q6_K : Blocks<K6, 256, 210> {
    static constexpr int SCALES_AT = 192, OUTER_AT = 208;
    static __host__ __device__ __forceinline__ int quant(const uint8_t* p, int k) {
        int half = k / 128, quarter = k % 128 / 32, l = k % 32;
        int low = (p[half * 64 + quarter % 2 * 32 + l] >> (quarter < 2 ? 0 : 4)) & 15;
        return low | ((p[128 + half * 32 + l] >> (2 * quarter)) & 3) << 4;
    }
};

// Rows of a file that a tile is made of.
struct Source {
    const uint8_t* blocks;
    int rows, columns, group;
};

template <typename F>
__host__ __device__ __forceinline__ const uint8_t* block_at(const Source& from, int row, int k) {
    int length = F::length(from.group);
    return from.blocks + ((int64_t)row * (from.columns / length) + k / length) * F::bytes(from.group);
}

// A quant of the matrix, 0 outside of it.
template <typename F>
__host__ __device__ __forceinline__ uint32_t quant_at(const Source& from, int row, int k) {
    if (row >= from.rows || k >= from.columns) return 0;
    return F::quant(block_at<F>(from, row, k), k % F::length(from.group));
}

__host__ __device__ __forceinline__ uint32_t read(const uint8_t* p, int bytes) {
    uint32_t word = 0;
    for (int i = 0; i < bytes; ++i) word |= uint32_t(p[i]) << (8 * i);
    return word;
}

// Pair `pair` of lane `lane` of group `group` (of 32 k, of the matrix) of row g or g + 8 of tile `tile`: two quants,
// shifted right and masked, the second 16 bits up.
template <typename F>
__host__ __device__ __forceinline__ uint32_t pair_at(const Source& from, int tile, int lane, int group, int row, int pair,
                                                     int shift, int mask) {
    int n = tile * TILE_ROWS + lane / 4 + 8 * row, k = group * 32 + pair / 2 * 16 + lane % 4 * 4 + pair % 2 * 2;
    return ((quant_at<F>(from, n, k) >> shift) & mask) | ((quant_at<F>(from, n, k + 1) >> shift) & mask) << 16;
}

// Word `word` of the planes of record `record` of tile `tile`.
template <typename F>
__host__ __device__ __forceinline__ uint32_t plane_word(const Source& from, int units, int tile, int record, int word) {
    using C = typename F::C;
    constexpr int LOW = low_bytes<C>() / 4, HIGH = high_bytes<C>() / 4;
    bool is_low = word < units * LOW;
    if (!is_low) word -= units * LOW;
    int plane = is_low ? LOW : HIGH;
    int first = (record * C::UNITS + word / plane) * 2;  // group
    int place = word % plane, result = 0;
    if (is_low && C::BITS == 8) {
        int group = place / 128, lane = place % 128 / 4, row = place % 4 / 2, half = place % 2;
        for (int i = 0; i < 2; ++i) {
            result |= pair_at<F>(from, tile, lane, first + group, row, 2 * half + i, 0, 255) << (8 * i);
        }
    } else if (is_low && C::BITS >= 4) {
        int lane = place / 4, group = place % 4 / 2, row = place % 2;
        for (int i = 0; i < 4; ++i) result |= pair_at<F>(from, tile, lane, first + group, row, i, 0, 15) << (4 * i);
    } else if (is_low || C::BITS == 6) {
        int lane = place / 2, group = place % 2;
        for (int i = 0; i < 8; ++i) {
            result |= pair_at<F>(from, tile, lane, first + group, i / 4, i % 4, is_low ? 0 : 4, 3) << (2 * i);
        }
    } else {
        for (int i = 0; i < 16; ++i) {
            int row = i / 4 % 2, group = i / 8;
            result |= pair_at<F>(from, tile, place, first + group, row, i % 4, C::BITS - 1, 1) << i;
        }
    }
    return result;
}

// Word `word` of what follows the planes.
template <typename F>
__host__ __device__ __forceinline__ uint32_t scale_word(const Source& from, int scales, int tile, int record, int word) {
    using C = typename F::C;
    auto there = [&](int row, int k) { return tile * TILE_ROWS + row < from.rows && k < from.columns; };
    auto block = [&](int row, int k) { return block_at<F>(from, tile * TILE_ROWS + row, k); };
    if constexpr (C::IS_K) {
        int k = record * 256;
        if (word < TILE_ROWS * C::SCALE_BYTES / 4) {
            int row = word / (C::SCALE_BYTES / 4), at = word % (C::SCALE_BYTES / 4) * 4;
            return there(row, k) ? read(block(row, k) + F::SCALES_AT + at, 4) : 0;
        }
        word -= TILE_ROWS * C::SCALE_BYTES / 4;
        if (C::OFFSETS) return there(word, k) ? read(block(word, k) + F::OUTER_AT, 4) : 0;
        uint32_t low = there(2 * word, k) ? read(block(2 * word, k) + F::OUTER_AT, 2) : 0;
        return low | (there(2 * word + 1, k) ? read(block(2 * word + 1, k) + F::OUTER_AT, 2) << 16 : 0);
    } else {
        if (scales != SCALE_ALONE) {
            int row = word % TILE_ROWS, k = record * Records<C>::WIDTH + word / TILE_ROWS * from.group;
            return there(row, k) ? read(block(row, k), 4) : 0;
        }
        int row = 2 * word % TILE_ROWS, k = record * Records<C>::WIDTH + 2 * word / TILE_ROWS * from.group;
        uint32_t low = there(row, k) ? read(block(row, k), 2) : 0;
        return low | (there(row + 1, k) ? read(block(row + 1, k), 2) << 16 : 0);
    }
}

// Records of ceil(rows / 16) tiles from `rows` rows of the file's blocks. Grid: [records of a tile, tiles]; blocks of 128.
// Each byte is written once; blocks are read some thirty times, mostly from L1.
template <typename F>
__device__ __forceinline__ void repack(char* tiles, const uint8_t* blocks, int rows, int columns, int group, int scales) {
    using C = typename F::C;
    Source from{blocks, rows, columns, group};
    Records<C> records(columns, group, scales);
    int tile = blockIdx.y, record = blockIdx.x, units = records.units_of(record);
    int planes = units * Records<C>::PLANES / 4, words = units * records.unit_bytes / 4;
    uint32_t* to = reinterpret_cast<uint32_t*>(tiles + tile * records.tile_bytes() + (int64_t)record * records.pitch());
    for (int word = threadIdx.x; word < words; word += blockDim.x) {
        to[word] = word < planes ? plane_word<F>(from, units, tile, record, word)
                                 : scale_word<F>(from, scales, tile, record, word - planes);
    }
}

#define REPACK(F)                                                                                                         \
    extern "C" __global__ void quant_repack_##F(char* tiles, const uint8_t* blocks, int rows, int columns,          \
                                                int group, int scales) {                                                  \
        after_previous();                                                                                                 \
        repack<F>(tiles, blocks, rows, columns, group, scales);                                                         \
    }

REPACK(Q4_0)
REPACK(Q4_1)
REPACK(Q5_0)
REPACK(Q5_1)
REPACK(Q8_0)
REPACK(Q2_K)
REPACK(Q3_K)
REPACK(Q4_K)
REPACK(Q5_K)
REPACK(Q6_K)
REPACK(Int4)
REPACK(Int8)
REPACK(Fp8)

// Random bytes, of whose bits those of `mask` stay, for `blocks` blocks of `bytes` bytes, with f16 `first` at `first_at` and `second` at `second_at` of each.
// Blocks count from `begin` on, so that a matrix can be drawn piece by piece. Grid: a thread a block.
extern "C" __global__ void quant_draw(uint8_t* to, unsigned long long begin, int blocks, int bytes, int first_at,
                                      uint32_t first, int second_at, uint32_t second, unsigned long long seed,
                                      uint32_t mask) {
    after_previous();
    int block = blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= blocks) return;
    uint8_t* own = to + (int64_t)block * bytes;
    unsigned long long bits = 0;
    for (int i = 0; i < bytes; ++i) {
        if (i % 8 == 0) {
            // SplitMix64 (Steele, Lea and Flood, 2014).
            bits = seed + ((begin + block) * 32 + i / 8) * 0x9E3779B97F4A7C15ull;
            bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9ull;
            bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBull;
            bits ^= bits >> 31;
        }
        own[i] = uint8_t(bits >> (i % 8 * 8)) & uint8_t(mask);
    }
    own[first_at] = uint8_t(first), own[first_at + 1] = uint8_t(first >> 8);
    own[second_at] = uint8_t(second), own[second_at + 1] = uint8_t(second >> 8);
}
