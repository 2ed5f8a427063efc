// Root-mean-square norms of rows, alone or after an addition to the residual stream.
#include "lantern.cuh"

// Packs of 8 elements that a thread keeps in registers: 1024 threads hold rows of up to 16384 elements.
constexpr int PACKS = 2;

// Eight floats from two 16-byte loads.
__device__ __forceinline__ void load8(const float* from, float* to) {
    Pack<float, 4> low = reinterpret_cast<const Pack<float, 4>*>(from)[0];
    Pack<float, 4> high = reinterpret_cast<const Pack<float, 4>*>(from)[1];
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = low.at[i], to[4 + i] = high.at[i];
}

__device__ __forceinline__ void store8(const float* from, float* to) {
    Pack<float, 4> low, high;
#pragma unroll
    for (int i = 0; i < 4; i++) low.at[i] = from[i], high.at[i] = from[4 + i];
    reinterpret_cast<Pack<float, 4>*>(to)[0] = low;
    reinterpret_cast<Pack<float, 4>*>(to)[1] = high;
}

// dst = s / sqrt(mean(s^2) + eps) * weight of one row, s = residual (+ x where ADD); WRITE keeps s in the residual. Without
// a RESIDUAL, which is null then, s = x.
// All but weight is read behind `after_previous`, which this calls. All of the block's threads; where width is a
// multiple of 8, 8 * PACKS * threads >= width.
template <typename T, bool RESIDUAL, bool ADD, bool WRITE>
__device__ __forceinline__ void norm_row(T* dst, float* residual, const T* x, const float* weight, int width, float eps) {
    __shared__ float scratch[32];
    if (gridDim.x <= FEWEST_ROWS) let_next_begin();
    float squares = 0.f;
    if (width % 8 == 0) {
        float sum[PACKS][8], factor[PACKS][8];
#pragma unroll
        for (int pack = 0; pack < PACKS; pack++) {
            int at = (pack * blockDim.x + threadIdx.x) * 8;
            if (at < width) load8(weight + at, factor[pack]);
        }
        after_previous();
#pragma unroll
        for (int pack = 0; pack < PACKS; pack++) {
            int at = (pack * blockDim.x + threadIdx.x) * 8;
            if (at >= width) continue;
            if (RESIDUAL) load8(residual + at, sum[pack]);
            if (ADD) {
                Pack<T, 8> added = *reinterpret_cast<const Pack<T, 8>*>(x + at);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[pack][i] = (RESIDUAL ? sum[pack][i] : 0.f) + to_float(added.at[i]);
            }
            if (WRITE) store8(sum[pack], residual + at);
#pragma unroll
            for (int i = 0; i < 8; i++) squares += sum[pack][i] * sum[pack][i];
        }
        float scale = rsqrtf(block_sum(squares, scratch) / width + eps);
#pragma unroll
        for (int pack = 0; pack < PACKS; pack++) {
            int at = (pack * blockDim.x + threadIdx.x) * 8;
            if (at >= width) continue;
            Pack<T, 8> out;
#pragma unroll
            for (int i = 0; i < 8; i++) out.at[i] = from_float<T>(sum[pack][i] * scale * factor[pack][i]);
            *reinterpret_cast<Pack<T, 8>*>(dst + at) = out;
        }
    } else {
        after_previous();
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            float sum = (RESIDUAL ? residual[i] : 0.f) + (ADD ? to_float(x[i]) : 0.f);
            if (WRITE) residual[i] = sum;
            squares += sum * sum;
        }
        float scale = rsqrtf(block_sum(squares, scratch) / width + eps);
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            // A thread reads again what it wrote itself.
            float sum = (RESIDUAL ? residual[i] : 0.f) + (ADD && !WRITE ? to_float(x[i]) : 0.f);
            dst[i] = from_float<T>(sum * scale * weight[i]);
        }
    }
}

// dst[t] = rms_norm(x[t]) * weight: x f32 [T, width], weight f32 [width], dst [T, width]. Grid: a block a row.
// Moves 6 bytes an element: read 4, written 2.
template <typename T>
__device__ void rms_norm(T* dst, const float* x, const float* weight, int width, float eps) {
    size_t at = size_t(blockIdx.x) * width;
    norm_row<T, true, false, false>(dst + at, const_cast<float*>(x) + at, nullptr, weight, width, eps);
}

// The same of x [T, width] of T itself. Moves 4 bytes an element.
template <typename T>
__device__ void rms_norm_plain(T* dst, const T* x, const float* weight, int width, float eps) {
    size_t at = size_t(blockIdx.x) * width;
    norm_row<T, false, true, false>(dst + at, nullptr, x + at, weight, width, eps);
}

// residual[t] += x[t]; dst[t] = rms_norm(residual[t]) * weight: residual f32 and x [T, width], dst [T, width].
// Grid: a block a row. Moves 12 bytes an element: read 6, written 6.
template <typename T>
__device__ void add_rms_norm(T* dst, float* residual, const T* x, const float* weight, int width, float eps) {
    size_t at = size_t(blockIdx.x) * width;
    norm_row<T, true, true, true>(dst + at, residual + at, x + at, weight, width, eps);
}

// dst[i] = rms_norm(residual[rows[i]] + x[rows[i]]) * weight; the residual stays as it is. dst [R, width], rows u32 [R].
// A row that is not below `count` is read as row 0. Grid: a block a row of dst. Moves 8 bytes an element.
template <typename T>
__device__ void gather_add_rms_norm(
    T* dst, const float* residual, const T* x, const uint32_t* rows, const float* weight, int width, int count, float eps
) {
    uint32_t row = rows[blockIdx.x];
    size_t from = size_t(row < uint32_t(count) ? row : 0) * width;
    norm_row<T, true, true, false>(
        dst + size_t(blockIdx.x) * width, const_cast<float*>(residual) + from, x + from, weight, width, eps
    );
}

#define NORMS(T)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        rms_norm_##T(T* dst, const float* x, const float* weight, int width, float eps) {                             \
        rms_norm<T>(dst, x, weight, width, eps);                                                                      \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        rms_norm_plain_##T(T* dst, const T* x, const float* weight, int width, float eps) {                           \
        rms_norm_plain<T>(dst, x, weight, width, eps);                                                                \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        add_rms_norm_##T(T* dst, float* residual, const T* x, const float* weight, int width, float eps) {            \
        add_rms_norm<T>(dst, residual, x, weight, width, eps);                                                        \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(1024) gather_add_rms_norm_##T(                                       \
        T* dst, const float* residual, const T* x, const uint32_t* rows, const float* weight, int width, int count,   \
        float eps                                                                                                     \
    ) {                                                                                                               \
        after_previous();                                                                                             \
        gather_add_rms_norm<T>(dst, residual, x, rows, weight, width, count, eps);                                    \
    }
NORMS(bf16)
NORMS(f16)
