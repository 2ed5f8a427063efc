// Log-probabilities under the model's own distribution: of one token of each row, and of the likeliest ones.
//
// First a block a slice, then a block a row, which sorts what the slices have listed as their best. Where a list has no
// room for a slice's best, since too many are as good as equal, the row is searched instead.
#include "slices.cuh"

constexpr int THREADS = 1024;
constexpr int BINS = 2048;
constexpr int LIST = 4096;
// Bins for a difference of 1 to the largest logit: of a row that is searched, and of a slice.
constexpr float BINS_PER_UNIT = 128.f, SLICE_BINS_PER_UNIT = 32.f;

struct Shared {
    uint32_t counts[BINS];
    u64 list[LIST];
    u64 scratch[32];
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

// The sum over the block of doubles, in the first thread. `scratch` holds 32 numbers.
__device__ double first_sum(double x, double* scratch) {
    for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(~0u, x, offset);
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    double sum = 0.;
    if (threadIdx.x == 0) {
        for (int warp = 0; warp < int(blockDim.x) / 32; warp++) sum += scratch[warp];
    }
    return sum;
}

struct SliceShared {
    uint32_t groups[SLICE_BINS], counts[SLICE_BINS];
    uint32_t scratch[9], length, lowest;
    float floats[32];
    double sums[32];
    u64 numbers[32];
};

// The slice's `count` best and those as good, within LISTED. Bins and length have been cleared.
__device__ __forceinline__ void list_best(
    SliceShared& shared, uint16_t* list, const Pack<float, 4> (&logits)[SLICE_GROUPS], float max, uint32_t count
) {
    auto bin = [&](float logit) { return min(int((max - logit) * SLICE_BINS_PER_UNIT), SLICE_BINS - 1); };
#pragma unroll
    for (int group = 0; group < SLICE_GROUPS; group++) {
        const float* four = logits[group].at;
        float best = fmaxf(fmaxf(four[0], four[1]), fmaxf(four[2], four[3]));
        if (best == best) atomicAdd(&shared.groups[bin(best)], 1u);
    }
    __syncthreads();
    // The `count` best are no worse than the `count`-th best of any groups' best.
    int limit = min(first_reaching(shared.groups, count, shared.scratch) + 1, SLICE_BINS);
#pragma unroll
    for (int group = 0; group < SLICE_GROUPS; group++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float logit = logits[group].at[j];
            if (logit == logit && bin(logit) < limit) atomicAdd(&shared.counts[bin(logit)], 1u);
        }
    }
    __syncthreads();
    limit = min(limit, first_reaching(shared.counts, LISTED + 1, shared.scratch));
    uint32_t lowest = ~0u;
#pragma unroll
    for (int group = 0; group < SLICE_GROUPS; group++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float logit = logits[group].at[j];
            bool wanted = logit == logit && bin(logit) < limit;
            uint32_t place = take_place(wanted, &shared.length);
            if (wanted) list[place] = uint16_t(place_in_slice(group, j)), lowest = min(lowest, ordered(logit));
        }
    }
    lowest = __reduce_min_sync(~0u, lowest);
    if ((threadIdx.x & 31) == 0) atomicMin(&shared.lowest, lowest);
    __syncthreads();
}

// What a slice tells, with the `count` best of it, 0 to MAX_TOP.
__device__ __forceinline__ void tell_slice(
    LogitSlice* slices, uint16_t* lists, const float* logits, uint32_t token, int vocab, uint32_t count
) {
    __shared__ SliceShared shared;
    for (int i = threadIdx.x; i < SLICE_BINS; i += SLICE_THREADS) shared.groups[i] = 0, shared.counts[i] = 0;
    if (threadIdx.x == 0) shared.length = 0, shared.lowest = ~0u;
    float own = token < uint32_t(vocab) ? logits[token] : __uint_as_float(0xff800000u);
    Pack<float, 4> loaded[SLICE_GROUPS];
    float max = __uint_as_float(0xff800000u);
    u64 ahead = 0;
#pragma unroll
    for (int group = 0; group < SLICE_GROUPS; group++) {
        loaded[group] = slice_logits(logits, blockIdx.y * SLICE, group, vocab);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            max = fmaxf(max, loaded[group].at[j]);
            ahead += loaded[group].at[j] > own;
        }
    }
    int lane = threadIdx.x & 31;
    max = warp_max(max);
    if (lane == 0) shared.floats[threadIdx.x >> 5] = max;
    __syncthreads();
    max = warp_max(shared.floats[lane % (SLICE_THREADS / 32)]);
    // Where nothing is finite: 0 of -inf, and NaN stays.
    float base = max == __uint_as_float(0xff800000u) ? 0.f : max, sum = 0.f;
#pragma unroll
    for (int group = 0; group < SLICE_GROUPS; group++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            bool inside = int(blockIdx.y) * SLICE + place_in_slice(group, j) < vocab;
            if (inside) sum += expf(loaded[group].at[j] - base);
        }
    }
    // A thread's floats are few and of one sign; from here on in doubles.
    double whole = first_sum(sum, shared.sums);
    ahead = block_sum(ahead, shared.numbers);
    size_t slice = size_t(blockIdx.x) * gridDim.y + blockIdx.y;
    if (count) list_best(shared, lists + slice * LISTED, loaded, max, count);
    if (threadIdx.x == 0) slices[slice] = LogitSlice{whole, max, uint32_t(ahead), shared.length, shared.lowest};
}

// What of the row must be listed to be among its best; 0 where the lists do not tell. Each warp for itself.
__device__ __forceinline__ uint32_t least_wanted(const LogitSlice* slices, int vocab, uint32_t count) {
    uint32_t least = 1;
    bool whole = true;
    int slice_count = (vocab + SLICE - 1) / SLICE;
    for (int slice = threadIdx.x & 31; slice < slice_count; slice += 32) {
        uint32_t listed = slices[slice].listed;
        // A slice that has listed fewer than asked must have listed all of its own.
        if (listed >= count) least = max(least, slices[slice].lowest);
        whole = whole && listed >= min(count, uint32_t(min(vocab - slice * SLICE, SLICE)));
    }
    least = __reduce_max_sync(~0u, least);
    return __all_sync(~0u, whole) ? least : 0;
}

// Puts the listed tokens of a row that are no worse than `least` into the list, ranked; how many there are.
__device__ int gather(
    Shared& shared, const float* logits, const LogitSlice* slices, const uint16_t* lists, int vocab, uint32_t least
) {
    if (threadIdx.x == 0) shared.length = 0;
    __syncthreads();
    int lane = threadIdx.x & 31, slice_count = (vocab + SLICE - 1) / SLICE;
    for (int slice = threadIdx.x >> 5; slice < slice_count; slice += THREADS / 32) {
        int listed = int(slices[slice].listed);
#pragma unroll 2
        for (int from = 0; from < listed; from += 32) {
            bool inside = from + lane < listed;
            uint32_t id = inside ? slice * SLICE + lists[size_t(slice) * LISTED + from + lane] : 0;
            float logit = logits[id];
            bool wanted = inside && ordered(logit) >= least;
            uint32_t place = take_place(wanted, &shared.length);
            if (wanted && place < LIST) shared.list[place] = ranked(logit, id);
        }
    }
    __syncthreads();
    return int(shared.length);
}

// Log-probability and rank of `token`, and the `count` likeliest, from what the slices tell.
__device__ void row_logprobs(
    Shared& shared, SampleOutput* output, const float* logits, const LogitSlice* slices, const uint16_t* lists,
    uint32_t token, int vocab, int count
) {
    int lane = threadIdx.x & 31, slice_count = (vocab + SLICE - 1) / SLICE;
    float max = __uint_as_float(0xff800000u);
    u64 ahead = 0;
    for (int slice = lane; slice < slice_count; slice += 32) {
        max = fmaxf(max, slices[slice].max);
        ahead += slices[slice].ahead;
    }
    max = warp_max(max), ahead = warp_sum(ahead);
    double whole = 0.;
    for (int slice = lane; slice < slice_count; slice += 32) {
        whole += slices[slice].sum * double(expf(slices[slice].max - max));
    }
    for (int offset = 16; offset; offset >>= 1) whole += __shfl_xor_sync(~0u, whole, offset);
    double normaliser = double(max) + log(whole);
    if (threadIdx.x == 0) {
        float own = token < uint32_t(vocab) ? logits[token] : __uint_as_float(0xff800000u);
        output->logprob = float(double(own) - normaliser);
        output->rank = uint32_t(ahead) + 1;
    }
    if (count <= 0) return;
    uint32_t least = least_wanted(slices, vocab, count);
    int length = least ? gather(shared, logits, slices, lists, vocab, least) : LIST + 1;
    if (length > LIST) {
        __syncthreads(); // all have read the length
        likeliest(shared, output, logits, max, normaliser, vocab, count);
        return;
    }
    sort_descending(shared.list, length);
    if (int(threadIdx.x) < count) {
        u64 key = shared.list[threadIdx.x];
        float logit = key ? from_ordered(uint32_t(key >> 32)) : __uint_as_float(0xff800000u);
        output->top_ids[threadIdx.x] = key ? ~uint32_t(key) : ~0u;
        output->top_logprobs[threadIdx.x] = float(double(logit) - normaliser);
    }
}

// For each row that asks for log-probabilities, of each slice: what the next kernel wants to know. slices [R, S]; lists
// u16 [R, S, LISTED]; outputs hold the tokens that were drawn; logits f32 [R, vocab], as the model gave them.
// Grid: (R, S). Reads 4 bytes a token.
extern "C" __global__ void __launch_bounds__(SLICE_THREADS) sample_logit_slices(
    LogitSlice* slices, uint16_t* lists, const SampleOutput* outputs, const float* logits, const SampleRow* rows,
    int vocab
) {
    after_previous();
    uint32_t count = rows[blockIdx.x].top_logprobs;
    const SampleOutput& output = outputs[blockIdx.x];
    if (count == NO_LOGPROBS || output.status != 0) return;
    const float* from = logits + size_t(blockIdx.x) * vocab;
    tell_slice(slices, lists, from, output.token, vocab, min(count, uint32_t(MAX_TOP)));
}

// For each row that asks for them: log-probability, rank and alternatives of the token that was drawn (outputs' own).
// Grid: a block a row, sizeof(Shared) of dynamic shared memory. Reads 24 bytes a slice and 6 a token listed; where the
// lists do not suffice, 4 bytes a token twice or more.
extern "C" __global__ void __launch_bounds__(THREADS) sample_logprobs(
    SampleOutput* outputs, const float* logits, const SampleRow* rows, const LogitSlice* slices,
    const uint16_t* lists, int vocab
) {
    after_previous();
    extern __shared__ __align__(16) char memory[];
    uint32_t count = rows[blockIdx.x].top_logprobs;
    SampleOutput* output = &outputs[blockIdx.x];
    if (count == NO_LOGPROBS || output->status != 0) return;
    size_t first = size_t(blockIdx.x) * ((vocab + SLICE - 1) / SLICE);
    row_logprobs(
        *reinterpret_cast<Shared*>(memory), output, logits + size_t(blockIdx.x) * vocab, slices + first,
        lists + first * LISTED, output->token, vocab, min(count, uint32_t(MAX_TOP))
    );
}

// As sample_logit_slices, for given tokens, targets u32 [R], with `count` alternatives each.
extern "C" __global__ void __launch_bounds__(SLICE_THREADS) target_logit_slices(
    LogitSlice* slices, uint16_t* lists, const float* logits, const uint32_t* targets, int vocab, int count
) {
    after_previous();
    const float* from = logits + size_t(blockIdx.x) * vocab;
    tell_slice(slices, lists, from, targets[blockIdx.x], vocab, min(count, MAX_TOP));
}

// As sample_logprobs, for given tokens, targets u32 [R], with `count` alternatives each.
extern "C" __global__ void __launch_bounds__(THREADS) target_logprobs(
    SampleOutput* outputs, const float* logits, const uint32_t* targets, const LogitSlice* slices,
    const uint16_t* lists, int vocab, int count
) {
    after_previous();
    extern __shared__ __align__(16) char memory[];
    SampleOutput* output = &outputs[blockIdx.x];
    uint32_t token = targets[blockIdx.x];
    if (threadIdx.x == 0) output->token = token, output->status = 0;
    size_t first = size_t(blockIdx.x) * ((vocab + SLICE - 1) / SLICE);
    row_logprobs(
        *reinterpret_cast<Shared*>(memory), output, logits + size_t(blockIdx.x) * vocab, slices + first,
        lists + first * LISTED, token, vocab, min(count, MAX_TOP)
    );
}
