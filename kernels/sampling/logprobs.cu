// Log-probabilities under the model's own distribution: of one token of each row, and of the likeliest ones.
#include "sampling.cuh"

constexpr int THREADS = 1024;
constexpr int BINS = 2048;
constexpr int LIST = 4096;
// Bins for a difference of 1 to the largest logit.
constexpr float BINS_PER_UNIT = 128.f;

struct Shared {
    uint32_t counts[BINS];
    u64 list[LIST];
    u64 scratch[32];
    float floats[32];
    double sums[32];
    uint32_t length, lowest;
};

__device__ __forceinline__ int bin_of(float logit, float max) {
    // Monotonous in the logit, so that equal logits share a bin and a greater one is never in a later bin.
    return min(int((max - logit) * BINS_PER_UNIT), BINS - 1);
}

// The `count` best of a row, best first, of equals the smaller id first, with their log-probabilities.
__device__ void likeliest(
    Shared& shared, SampleOutput* output, const float* logits, float max, double normaliser, int vocab, int count
) {
    for (int i = threadIdx.x; i < BINS; i += THREADS) shared.counts[i] = 0;
    if (threadIdx.x == 0) shared.length = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        float logit = logits[i];
        // What is far below the largest is not counted one by one: all of it would meet in one bin.
        if (logit == logit && bin_of(logit, max) < BINS - 1) atomicAdd(&shared.counts[bin_of(logit, max)], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        // The first bin up to which there are `count`, by steps of 32 bins.
        uint32_t before = 0, lowest = BINS - 1;
        for (int step = 0; step < BINS; step += 32) {
            uint32_t sum = shared.counts[step + threadIdx.x];
            for (int offset = 1; offset < 32; offset <<= 1) {
                uint32_t other = __shfl_up_sync(~0u, sum, offset);
                if (threadIdx.x >= offset) sum += other;
            }
            unsigned reached = __ballot_sync(~0u, before + sum >= uint32_t(count));
            if (reached) {
                lowest = step + __ffs(reached) - 1;
                break;
            }
            before += __shfl_sync(~0u, sum, 31);
        }
        if (threadIdx.x == 0) shared.lowest = lowest;
    }
    __syncthreads();
    int lowest = shared.lowest;
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        float logit = logits[i];
        if (logit == logit && bin_of(logit, max) <= lowest) {
            uint32_t place = atomicAdd(&shared.length, 1u);
            if (place < LIST) shared.list[place] = ranked(logit, i);
        }
    }
    __syncthreads();
    int length = shared.length;
    u64 last = ~0ull;
    for (int n = 0; n < count; n++) {
        u64 best = 0;
        if (length <= LIST) {
            for (int i = threadIdx.x; i < length; i += THREADS) {
                u64 key = shared.list[i];
                if (key < last && key > best) best = key;
            }
        } else {
            for (int i = threadIdx.x; i < vocab; i += THREADS) {
                u64 key = ranked(logits[i], i);
                if (key < last && key > best) best = key;
            }
        }
        last = block_max(best, shared.scratch);
        if (threadIdx.x == 0) {
            output->top_ids[n] = last ? ~uint32_t(last) : ~0u;
            float logit = last ? from_ordered(uint32_t(last >> 32)) : __uint_as_float(0xff800000u);
            output->top_logprobs[n] = float(double(logit) - normaliser);
        }
    }
}

// Log-probability and rank of `token`, and the `count` likeliest.
__device__ void row_logprobs(
    Shared& shared, SampleOutput* output, const float* logits, uint32_t token, int vocab, int count
) {
    float own = token < uint32_t(vocab) ? logits[token] : __uint_as_float(0xff800000u);
    float max = __uint_as_float(0xff800000u);
    u64 ahead = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        float logit = logits[i];
        max = fmaxf(max, logit);
        ahead += logit > own;
    }
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    max = warp_max(max);
    if (lane == 0) shared.floats[warp] = max;
    __syncthreads();
    max = warp_max(shared.floats[lane]);
    float sum = 0.f;
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab; i += THREADS) sum += expf(logits[i] - max);
    // A thread's floats are few and of one sign; from here on in doubles.
    double whole = sum;
    for (int offset = 16; offset; offset >>= 1) whole += __shfl_xor_sync(~0u, whole, offset);
    if (lane == 0) shared.sums[warp] = whole;
    __syncthreads();
    whole = shared.sums[lane];
    for (int offset = 16; offset; offset >>= 1) whole += __shfl_xor_sync(~0u, whole, offset);
    double normaliser = double(max) + log(whole);
    ahead = block_sum(ahead, shared.scratch);
    if (threadIdx.x == 0) {
        output->logprob = float(double(own) - normaliser);
        output->rank = uint32_t(ahead) + 1;
    }
    if (count > 0) likeliest(shared, output, logits, max, normaliser, vocab, count);
}

// For each row that asks for them: log-probability, rank and alternatives of the token that was drawn (outputs' own).
// logits f32 [R, vocab], as the model gave them. Grid: a block a row, sizeof(Shared) of dynamic shared memory.
// Reads 4 bytes a token twice, four times where alternatives are asked for, mostly from L2.
extern "C" __global__ void __launch_bounds__(THREADS)
    sample_logprobs(SampleOutput* outputs, const float* logits, const SampleRow* rows, int vocab) {
    extern __shared__ __align__(16) char memory[];
    uint32_t count = rows[blockIdx.x].top_logprobs;
    SampleOutput* output = &outputs[blockIdx.x];
    if (count == NO_LOGPROBS || output->status != 0) return;
    const float* from = logits + size_t(blockIdx.x) * vocab;
    row_logprobs(*reinterpret_cast<Shared*>(memory), output, from, output->token, vocab, min(count, uint32_t(MAX_TOP)));
}

// The same for given tokens, targets u32 [R], each with `count` alternatives.
extern "C" __global__ void __launch_bounds__(THREADS)
    target_logprobs(SampleOutput* outputs, const float* logits, const uint32_t* targets, int vocab, int count) {
    extern __shared__ __align__(16) char memory[];
    SampleOutput* output = &outputs[blockIdx.x];
    uint32_t token = targets[blockIdx.x];
    if (threadIdx.x == 0) output->token = token, output->status = 0;
    const float* from = logits + size_t(blockIdx.x) * vocab;
    row_logprobs(*reinterpret_cast<Shared*>(memory), output, from, token, vocab, min(count, MAX_TOP));
}
