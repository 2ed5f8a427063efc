// A row in slices of 4096 tokens, a block each: what a slice tells of itself, how its few best are found and sorted.
#pragma once

#include "sampling.cuh"

// Tokens of a slice, threads of its block, and how many of its best tokens it lists at most.
constexpr int SLICE = 4096;
constexpr int SLICE_THREADS = 256;
constexpr int SLICE_GROUPS = SLICE / SLICE_THREADS / 4;
constexpr int LISTED = 512;
// Bins of a slice's histograms, best first: three a thread.
constexpr int SLICE_BINS = 3 * SLICE_THREADS;

// What a slice says of its weights. All its tokens whose weight's rank is below `limit` are listed.
struct WeighedSlice {
    u64 sum;
    uint32_t kept, listed, limit, unused;
};

// What a slice says of its logits: sum of exp(logit - max), how many are ahead of the row's token, and the least of
// those that are listed, as `ordered`.
struct LogitSlice {
    double sum;
    float max;
    uint32_t ahead, listed, lowest;
};
static_assert(sizeof(WeighedSlice) == 24 && sizeof(LogitSlice) == 24, "as the host makes room");

// The logits of group `group` of a thread: four neighbours; NaN beyond the row's end.
__device__ __forceinline__ Pack<float, 4> slice_logits(const float* row, int begin, int group, int vocab) {
    int at = begin + (group * SLICE_THREADS + int(threadIdx.x)) * 4;
    if (vocab % 4 == 0 && at < vocab) return *reinterpret_cast<const Pack<float, 4>*>(row + at);
    Pack<float, 4> four;
#pragma unroll
    for (int j = 0; j < 4; j++) four.at[j] = at + j < vocab ? row[at + j] : __uint_as_float(0x7fc00000u);
    return four;
}

// Where in its slice a thread's token is.
__device__ __forceinline__ int place_in_slice(int group, int j) {
    return (group * SLICE_THREADS + int(threadIdx.x)) * 4 + j;
}

// The first bin up to which there are `need` (at least 1); SLICE_BINS where there are fewer. All SLICE_THREADS threads;
// `scratch` holds 9 numbers and is safe to use again at once.
__device__ __forceinline__ int first_reaching(const uint32_t* bins, uint32_t need, uint32_t* scratch) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    uint32_t one = bins[3 * threadIdx.x], two = bins[3 * threadIdx.x + 1], three = bins[3 * threadIdx.x + 2];
    uint32_t own = one + two + three, after = own;
    for (int offset = 1; offset < 32; offset <<= 1) {
        uint32_t other = __shfl_up_sync(~0u, after, offset);
        if (lane >= offset) after += other;
    }
    if (lane == 31) scratch[warp] = after;
    if (threadIdx.x == 0) scratch[8] = SLICE_BINS;
    __syncthreads();
    for (int i = 0; i < warp; i++) after += scratch[i];
    uint32_t before = after - own;
    if (before < need && need <= after) {
        scratch[8] = 3 * threadIdx.x + (need <= before + one ? 0 : need <= before + one + two ? 1 : 2);
    }
    __syncthreads();
    int found = int(scratch[8]);
    __syncthreads();
    return found;
}

// A place in a list for each lane that wants one; all 32 lanes call. `length`, the list's, lies in shared memory.
__device__ __forceinline__ uint32_t take_place(bool wanted, uint32_t* length) {
    unsigned lanes = __ballot_sync(~0u, wanted);
    uint32_t from = 0;
    if (lanes) {
        if ((threadIdx.x & 31) == 0) from = atomicAdd(length, uint32_t(__popc(lanes)));
        from = __shfl_sync(~0u, from, 0);
    }
    return from + __popc(lanes & ((1u << (threadIdx.x & 31)) - 1));
}

// Sorts keys[0 .. count], the largest first, and fills up with zeros to a power of two: a bitonic sort by the whole
// block. Strides up to 32 stay within the 64 keys of a warp. What was written before must be visible.
__device__ __forceinline__ void sort_descending(u64* keys, int count) {
    int length = 64;
    while (length < count) length <<= 1;
    for (int i = count + threadIdx.x; i < length; i += blockDim.x) keys[i] = 0;
    __syncthreads();
    for (int run = 2; run <= length; run <<= 1) {
        for (int stride = run >> 1; stride; stride >>= 1) {
            for (int i = threadIdx.x; i < length / 2; i += blockDim.x) {
                int at = 2 * i - (i & (stride - 1));
                u64 x = keys[at], y = keys[at + stride];
                if ((x < y) == !(at & run)) keys[at] = y, keys[at + stride] = x;
            }
            int next = stride > 1 ? stride >> 1 : run;
            if (stride > 32 || next > 32) {
                __syncthreads();
            } else {
                __syncwarp();
            }
        }
    }
    __syncthreads();
}
