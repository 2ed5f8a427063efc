// Rows moved or changed element by element: embedding, the gated activation, bias.
#include "fp8.cuh"
#include "lantern.cuh"

// residual[t] = float(table[id(t)]): table [vocab, width], ids u32 [T], residual f32 [T, width]. An id whose top bit is
// set names a place of `last_tokens` u32 [slots], which holds the token that an earlier step drew. What is outside the
// table is read as token 0. Grid: (T, blocks over the row's packs of 8). Moves 6 bytes an element.
template <typename T>
__device__ void embed(
    float* residual, const T* table, const uint32_t* ids, const uint32_t* last_tokens, int width, int vocab, int slots
) {
    uint32_t id = ids[blockIdx.x];
    if (id & 0x80000000u) {
        uint32_t slot = id & 0x7fffffffu;
        id = slot < uint32_t(slots) ? last_tokens[slot] : 0;
    }
    if (id >= uint32_t(vocab)) id = 0;
    const T* from = table + size_t(id) * width;
    float* to = residual + size_t(blockIdx.x) * width;
    int first = blockIdx.y * blockDim.x + threadIdx.x, step = gridDim.y * blockDim.x;
    if (width % 8 == 0) {
        for (int pack = first; pack < width / 8; pack += step) {
            Pack<T, 8> in = reinterpret_cast<const Pack<T, 8>*>(from)[pack];
            Pack<float, 4> low, high;
#pragma unroll
            for (int i = 0; i < 4; i++) low.at[i] = to_float(in.at[i]), high.at[i] = to_float(in.at[4 + i]);
            reinterpret_cast<Pack<float, 4>*>(to)[2 * pack] = low;
            reinterpret_cast<Pack<float, 4>*>(to)[2 * pack + 1] = high;
        }
    } else {
        for (int i = first; i < width; i += step) to[i] = to_float(from[i]);
    }
}

// dst[t, i] = silu(gate_up[t, i]) * gate_up[t, width + i]: gate_up [T, 2 width], dst [T, width].
// Grid: (T, blocks over the row's packs of 8). Moves 6 bytes an element of dst.
template <typename T>
__device__ void silu_mul(T* dst, const T* gate_up, int width) {
    const T* gate = gate_up + size_t(blockIdx.x) * 2 * width;
    const T* up = gate + width;
    T* to = dst + size_t(blockIdx.x) * width;
    int first = blockIdx.y * blockDim.x + threadIdx.x, step = gridDim.y * blockDim.x;
    if (width % 8 == 0) {
        for (int pack = first; pack < width / 8; pack += step) {
            Pack<T, 8> g = reinterpret_cast<const Pack<T, 8>*>(gate)[pack];
            Pack<T, 8> u = reinterpret_cast<const Pack<T, 8>*>(up)[pack];
            Pack<T, 8> out;
#pragma unroll
            for (int i = 0; i < 8; i++) out.at[i] = from_float<T>(silu_times(to_float(g.at[i]), to_float(u.at[i])));
            reinterpret_cast<Pack<T, 8>*>(to)[pack] = out;
        }
    } else {
        for (int i = first; i < width; i += step) to[i] = from_float<T>(silu_times(to_float(gate[i]), to_float(up[i])));
    }
}

// x[t, i] += bias[i]: x [T, width], bias f32 [width]. Grid: (T, blocks over the row's packs of 8). 4 bytes an element.
template <typename T>
__device__ void add_bias(T* x, const float* bias, int width) {
    T* row = x + size_t(blockIdx.x) * width;
    int first = blockIdx.y * blockDim.x + threadIdx.x, step = gridDim.y * blockDim.x;
    if (width % 8 == 0) {
        for (int pack = first; pack < width / 8; pack += step) {
            Pack<T, 8> v = reinterpret_cast<Pack<T, 8>*>(row)[pack];
            Pack<float, 4> low = reinterpret_cast<const Pack<float, 4>*>(bias)[2 * pack];
            Pack<float, 4> high = reinterpret_cast<const Pack<float, 4>*>(bias)[2 * pack + 1];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                v.at[i] = from_float<T>(to_float(v.at[i]) + low.at[i]);
                v.at[4 + i] = from_float<T>(to_float(v.at[4 + i]) + high.at[i]);
            }
            reinterpret_cast<Pack<T, 8>*>(row)[pack] = v;
        }
    } else {
        for (int i = first; i < width; i += step) row[i] = from_float<T>(to_float(row[i]) + bias[i]);
    }
}

// sum[i] = x[0, i] + ... + x[rows - 1, i], in this order, after what it holds where goes_on: x [rows, width], sum f32
// [width]. Grid: blocks over the row, a thread a column. 2 bytes an element.
template <typename T>
__device__ void sum_rows(float* sum, const T* x, int rows, int width, int goes_on) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width) return;
    float total = goes_on ? sum[i] : 0.f;
#pragma unroll 4
    for (int row = 0; row < rows; row++) total += to_float(x[size_t(row) * width + i]);
    sum[i] = total;
}

// quants[t] = x[t] / scales[t] in e4m3, scales[t] = the largest |x[t, i]| / 448: x, quants [T, width], width a multiple of 8;
// rows of zeros have the scale 1. Grid: T blocks of 256. 5 bytes an element, 2 of them from the cache; to keep them in
// registers instead was slower, for fewer rows are then under way.
template <typename T>
__device__ void quantize_rows(fp8* quants, float* scales, const T* x, int width) {
    __shared__ float scratch[32];
    const Pack<T, 8>* row = reinterpret_cast<const Pack<T, 8>*>(x + size_t(blockIdx.x) * width);
    float most = 0.f;
    for (int pack = threadIdx.x; pack < width / 8; pack += blockDim.x) {
        Pack<T, 8> v = row[pack];
#pragma unroll
        for (int i = 0; i < 8; i++) most = fmaxf(most, fabsf(to_float(v.at[i])));
    }
    most = block_max(most, scratch);
    float scale = most > 0.f ? most / 448.f : 1.f, inverse = 1.f / scale;
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
    Pack<fp8, 8>* to = reinterpret_cast<Pack<fp8, 8>*>(quants + size_t(blockIdx.x) * width);
    for (int pack = threadIdx.x; pack < width / 8; pack += blockDim.x) {
        Pack<T, 8> v = row[pack];
        Pack<fp8, 8> q;
#pragma unroll
        for (int i = 0; i < 8; i++) q.at[i] = from_float<fp8>(to_float(v.at[i]) * inverse);
        to[pack] = q;
    }
}

// x[t] *= sigmoid(gates[t]): x [T, width], gates [T]. Grid: (T, blocks over the row). 4 bytes an element.
template <typename T>
__device__ void scale_by_sigmoid(T* x, const T* gates, int width) {
    float scale = 1.f / (1.f + __expf(-to_float(gates[blockIdx.x])));
    T* row = x + size_t(blockIdx.x) * width;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < width; i += gridDim.y * blockDim.x) {
        row[i] = from_float<T>(to_float(row[i]) * scale);
    }
}

// x[t, i] = 0: x [T, width] of 2 bytes an element. Grid: (T, blocks over the row).
extern "C" __global__ void clear(uint16_t* x, int width) {
    after_previous();
    uint16_t* row = x + size_t(blockIdx.x) * width;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < width; i += gridDim.y * blockDim.x) row[i] = 0;
}

#define ROWS(T)                                                                                                       \
    extern "C" __global__ void embed_##T(                                                                             \
        float* residual, const T* table, const uint32_t* ids, const uint32_t* last_tokens, int width, int vocab,      \
        int slots                                                                                                     \
    ) {                                                                                                               \
        after_previous();                                                                                             \
        embed<T>(residual, table, ids, last_tokens, width, vocab, slots);                                             \
    }                                                                                                                 \
    extern "C" __global__ void scale_by_sigmoid_##T(T* x, const T* gates, int width) {                                \
        after_previous();                                                                                             \
        scale_by_sigmoid<T>(x, gates, width);                                                                         \
    }                                                                                                                 \
    extern "C" __global__ void silu_mul_##T(T* dst, const T* gate_up, int width) {                                    \
        after_previous();                                                                                             \
        silu_mul<T>(dst, gate_up, width);                                                                             \
    }                                                                                                                 \
    extern "C" __global__ void add_bias_##T(T* x, const float* bias, int width) {                                     \
        after_previous();                                                                                             \
        add_bias<T>(x, bias, width);                                                                                  \
    }                                                                                                                 \
    extern "C" __global__ void sum_rows_##T(float* sum, const T* x, int rows, int width, int goes_on) {               \
        after_previous();                                                                                             \
        sum_rows<T>(sum, x, rows, width, goes_on);                                                                    \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        quantize_rows_##T(fp8* quants, float* scales, const T* x, int width) {                                        \
        after_previous();                                                                                             \
        quantize_rows<T>(quants, scales, x, width);                                                                   \
    }
ROWS(bf16)
ROWS(f16)
