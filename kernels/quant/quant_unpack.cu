// Weights in records (`quant.cuh`) made dense: a whole matrix for products of many rows, or the rows of an embedding.
#include "fp8.cuh"
#include "quant.cuh"

constexpr int WARPS = 4;

template <typename T>
__device__ __forceinline__ void put_four(T* to, const float (&values)[4]) {
    Pack<T, 4> pack;
#pragma unroll
    for (int i = 0; i < 4; ++i) pack.at[i] = from_float<T>(values[i]);
    *reinterpret_cast<Pack<T, 4>*>(to) = pack;
}

// Calls put(row of the tile, k of the matrix, four floats, scale) for all weights of a record; the floats are weights, or, of
// e4m3, what is to be multiplied with the scale where QUANTS is set. Shared memory of a warp: the record and its scales.
template <typename C, bool QUANTS = false, typename Put>
__device__ __forceinline__ void unpack_record(const char* tile, int index, int K, int group, int scales, Put put) {
    extern __shared__ __align__(16) char memory[];
    int lane = threadIdx.x & 31;
    Records<C> records(K, group, scales);
    int pitch = records.pitch(), units = records.units_of(index);
    char* own = memory + (threadIdx.x >> 5) * (pitch + Records<C>::TABLE * (int)sizeof(float2));
    float2* table = reinterpret_cast<float2*>(own + pitch);
    const char* from = tile + (int64_t)index * pitch;
    for (int at = 16 * lane; at < units * records.unit_bytes; at += 512) {
        *reinterpret_cast<uint4*>(own + at) = *reinterpret_cast<const uint4*>(from + at);
    }
    __syncwarp();
    // Quants as they are, so that a weight is rounded once, as on the CPU.
    read_scales<C>(table, own + units * Records<C>::PLANES, units, group, scales, lane,
                   C::BITS == 8 ? excess<f16, C>() : 0.f, C::FLOAT ? 256.f : 1.f);
    __syncwarp();
    for (int unit = 0; unit < units; ++unit) {
        Unit<f16, C> quants;
        quants.load(own, units, unit, lane);
#pragma unroll
        for (int part = 0; part < 8; ++part) {
            int in_unit = part >> 2, half = (part >> 1) & 1, row = part & 1;
            int k = index * Records<C>::WIDTH + unit * UNIT + 32 * in_unit + 16 * half + 4 * (lane & 3);
            int own_row = (lane >> 2) + 8 * row;
            float2 scale = table[((2 * unit + in_unit) * C::HALVES + (C::HALVES == 2 ? half : 0)) * TILE_ROWS + own_row];
            float values[4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                uint32_t pair = quants.pair(in_unit, row, 2 * half + i);
                float2 both = __half22float2(*reinterpret_cast<__half2*>(&pair));
                if (C::BITS < 8) both.x -= 1024.f, both.y -= 1024.f;
                if (QUANTS) values[2 * i] = 256.f * both.x, values[2 * i + 1] = 256.f * both.y;
                else values[2 * i] = fmaf(scale.x, both.x, scale.y), values[2 * i + 1] = fmaf(scale.x, both.y, scale.y);
            }
            if (k < K) put(own_row, k, values, scale.x);
        }
    }
}

// dense [N, K] of T = the matrix. With `fold`, a multiple of 16, as many rows are left out behind each `fold` of them.
// Grid: [ceil(records of a tile / 4), tiles]; blocks of four warps. Cost: the bytes of the records read, 2 N K written.
template <typename C, typename T>
__device__ __forceinline__ void unpack(T* dense, const char* w, int N, int K, int fold, int group, int scales) {
    Records<C> records(K, group, scales);
    int index = blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (index >= records.count) return;
    int first = blockIdx.y * TILE_ROWS, to = fold ? first + first / fold * fold : first;
    const char* tile = w + blockIdx.y * records.tile_bytes();
    unpack_record<C>(tile, index, K, group, scales, [&](int row, int k, const float(&values)[4], float) {
        if (first + row < N) put_four(dense + (int64_t)(to + row) * K + k, values);
    });
}

// quants [N, K] = the e4m3 numbers of a matrix each of whose rows has one scale, scales [N] = these. Grid: as `unpack`.
// Cost: N K bytes read, N K written.
extern "C" __global__ void quant_unpack_fp8(fp8* quants, float* row_scales, const char* w, int N, int K, int group,
                                            int scales) {
    after_previous();
    Records<Float8> records(K, group, scales);
    int index = blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (index >= records.count) return;
    int first = blockIdx.y * TILE_ROWS;
    const char* tile = w + blockIdx.y * records.tile_bytes();
    unpack_record<Float8, true>(tile, index, K, group, scales, [&](int row, int k, const float(&values)[4], float scale) {
        if (first + row >= N) return;
        put_four(quants + (int64_t)(first + row) * K + k, values);
        // The numbers were read 256 times too small, which their scale makes good.
        if (k == 0) row_scales[first + row] = scale / 256.f;
    });
}

// residual[t] = table[id(t)], f32 [T, K]; ids and last_tokens as `embed` of rows.cu reads them. Grid: [ceil(records of a
// tile / 4), T]. Reads the sixteen rows around each.
template <typename C>
__device__ __forceinline__ void embed(float* residual, const char* w, const uint32_t* ids, const uint32_t* last_tokens,
                                      int slots, int N, int K, int group, int scales) {
    Records<C> records(K, group, scales);
    int index = blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (index >= records.count) return;
    uint32_t id = ids[blockIdx.y];
    if (id & 0x80000000u) {
        uint32_t slot = id & 0x7fffffffu;
        id = slot < uint32_t(slots) ? last_tokens[slot] : 0;
    }
    if (id >= uint32_t(N)) id = 0;
    const char* tile = w + id / TILE_ROWS * records.tile_bytes();
    float* to = residual + (int64_t)blockIdx.y * K;
    unpack_record<C>(tile, index, K, group, scales, [&](int row, int k, const float(&values)[4], float) {
        if (row == int(id % TILE_ROWS)) put_four(to + k, values);
    });
}

#define UNPACK_TO(C, T)                                                                                                  \
    extern "C" __global__ void quant_unpack_##C##_##T(T* dense, const char* w, int N, int K, int fold, int group,        \
                                                      int scales) {                                                      \
        after_previous();                                                                                                \
        unpack<C>(dense, w, N, K, fold, group, scales);                                                                  \
    }
#define UNPACK(C)                                                                                                        \
    UNPACK_TO(C, bf16)                                                                                                   \
    UNPACK_TO(C, f16)                                                                                                    \
    extern "C" __global__ void quant_embed_##C(float* residual, const char* w, const uint32_t* ids,                      \
                                               const uint32_t* last_tokens, int slots, int N, int K, int group,          \
                                               int scales) {                                                             \
        after_previous();                                                                                                \
        embed<C>(residual, w, ids, last_tokens, slots, N, K, group, scales);                                             \
    }

UNPACK(Plain4)
UNPACK(Plain5)
UNPACK(Plain8)
UNPACK(Float8)
UNPACK(K2)
UNPACK(K3)
UNPACK(K4)
UNPACK(K5)
UNPACK(K6)
