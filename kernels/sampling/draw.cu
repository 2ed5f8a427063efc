// Draws a token: temperature, min_p, top_k, top_p, then one uniform number, as src/sampling/draw.rs, without sorting.
//
// A token's weight is w = exp((logit - max) / temperature) in (0, 1]. Sums are integers (w * 2^40, rounded), so that
// they do not depend on the order of threads. Positive floats are ordered as their bits: "the place where the running
// sum of weights, largest first, reaches so much" is found digit by digit over histograms of counts and sums.
#include "sampling.cuh"

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / 32;
constexpr int BINS = 2048;
// Tokens that fit the list in shared memory.
constexpr int LIST = 4096;
// Of the 30 bits of a weight (1 is the largest): a first digit of 11, a second of 11, a third of 8.
constexpr int FIRST_SHIFT = 19, SECOND_SHIFT = 8;

__device__ __forceinline__ u64 fixed(uint32_t bits) {
    return __float2ull_rn(__uint_as_float(bits) * 1099511627776.f); // 2^40: exact, but for the rounding
}

struct Histogram {
    u64 sums[BINS];
    uint32_t counts[BINS];
};

struct Shared {
    Histogram first, digit;
    u64 scratch[WARPS];
    u64 found[3];
    uint32_t found_bin, list_length;
    uint32_t list[LIST];
};

// Where a walk from the largest weight down stops: in tokens of weight `bits`, after `count` tokens of larger weight
// whose sum is `sum`.
struct Place {
    uint32_t bits;
    u64 count, sum;
};

__device__ void clear(Histogram& histogram) {
    for (int i = threadIdx.x; i < BINS; i += THREADS) histogram.sums[i] = 0, histogram.counts[i] = 0;
    __syncthreads();
}

__device__ __forceinline__ void add(Histogram& histogram, int bin, uint32_t bits) {
    atomicAdd(&histogram.counts[bin], 1u);
    u64 sum = fixed(bits);
    if (sum) atomicAdd(&histogram.sums[bin], sum);
}

// The bin, from the highest down, in which the running count (or sum) reaches `need`, which the whole does; `before`
// gets count and sum of what is above it. A thread looks after two neighbouring bins.
template <bool BY_COUNT>
__device__ uint32_t cross(Shared& shared, const Histogram& histogram, u64 need, Place& before) {
    int high = BINS - 1 - 2 * int(threadIdx.x), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u64 high_value = BY_COUNT ? u64(histogram.counts[high]) : histogram.sums[high];
    u64 low_value = BY_COUNT ? u64(histogram.counts[high - 1]) : histogram.sums[high - 1];
    u64 high_other = BY_COUNT ? histogram.sums[high] : u64(histogram.counts[high]);
    u64 value = high_value + low_value;
    u64 other = BY_COUNT ? histogram.sums[high] + histogram.sums[high - 1]
                         : u64(histogram.counts[high]) + histogram.counts[high - 1];
    u64 own_value = value, own_other = other;
    // Inclusive sums over the warp, then what the warps before hold.
    for (int offset = 1; offset < 32; offset <<= 1) {
        u64 value_before = __shfl_up_sync(~0u, value, offset), other_before = __shfl_up_sync(~0u, other, offset);
        if (lane >= offset) value += value_before, other += other_before;
    }
    __shared__ u64 totals[2][WARPS];
    if (lane == 31) totals[0][warp] = value, totals[1][warp] = other;
    __syncthreads();
    for (int i = 0; i < warp; i++) value += totals[0][i], other += totals[1][i];
    value -= own_value, other -= own_other; // exclusive now
    if (value < need && need <= value + own_value) {
        bool in_high = need <= value + high_value;
        shared.found_bin = in_high ? high : high - 1;
        u64 found_value = in_high ? value : value + high_value, found_other = in_high ? other : other + high_other;
        shared.found[0] = BY_COUNT ? found_value : found_other;
        shared.found[1] = BY_COUNT ? found_other : found_value;
    }
    __syncthreads();
    before.count = shared.found[0], before.sum = shared.found[1];
    uint32_t bin = shared.found_bin;
    __syncthreads();
    return bin;
}

// Calls one(bits) for every weight above 0, in any order: from the list where there is one, else from the row.
template <typename F>
__device__ __forceinline__ void for_each(const Shared& shared, const float* weights, int vocab, bool listed, F one) {
    if (listed) {
        for (uint32_t i = threadIdx.x; i < shared.list_length; i += THREADS) one(shared.list[i]);
    } else {
#pragma unroll 4
        for (int i = threadIdx.x; i < vocab; i += THREADS) {
            uint32_t bits = __float_as_uint(weights[i]);
            if (bits) one(bits);
        }
    }
}

// The place at which the running count or sum reaches `need`, digit by digit.
template <bool BY_COUNT>
__device__ Place descend(Shared& shared, const float* weights, int vocab, bool listed, u64 need) {
    Place place = {0, 0, 0}, inner;
    uint32_t first = cross<BY_COUNT>(shared, shared.first, need, place);
    clear(shared.digit);
    for_each(shared, weights, vocab, listed, [&](uint32_t bits) {
        if (bits >> FIRST_SHIFT == first) add(shared.digit, bits >> SECOND_SHIFT & 2047, bits);
    });
    __syncthreads();
    u64 rest = need - (BY_COUNT ? place.count : place.sum);
    uint32_t prefix = first << 11 | cross<BY_COUNT>(shared, shared.digit, rest, inner);
    place.count += inner.count, place.sum += inner.sum;
    clear(shared.digit);
    for_each(shared, weights, vocab, listed, [&](uint32_t bits) {
        if (bits >> SECOND_SHIFT == prefix) add(shared.digit, bits & 255, bits);
    });
    __syncthreads();
    rest = need - (BY_COUNT ? place.count : place.sum);
    place.bits = prefix << SECOND_SHIFT | cross<BY_COUNT>(shared, shared.digit, rest, inner);
    place.count += inner.count, place.sum += inner.sum;
    return place;
}

// The first token, in order of id, at which the running sum of value(id) reaches need(total); need is 1 to total.
// Each warp sums its stretch of tokens, the stretch with the answer is shared out anew, down to 32 tokens.
template <typename V, typename N>
__device__ int walk(u64* sums, int vocab, V value, N need_of) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, begin = 0, end = vocab;
    u64 need = 0;
    for (bool first = true;; first = false) {
        int length = ((end - begin + WARPS - 1) / WARPS + 31) & ~31;
        int from = begin + warp * length, to = min(from + length, end);
        u64 sum = 0;
#pragma unroll 4
        for (int i = from + lane; i < to; i += 32) sum += value(i);
        sum = warp_sum(sum);
        if (lane == 0) sums[warp] = sum;
        __syncthreads();
        if (first) {
            u64 total = 0;
            for (int i = 0; i < WARPS; i++) total += sums[i];
            need = need_of(total);
        }
        u64 before = 0;
        int stretch = 0;
        for (; stretch < WARPS - 1 && before + sums[stretch] < need; stretch++) before += sums[stretch];
        __syncthreads();
        need -= before;
        begin += stretch * length;
        end = min(begin + length, end);
        if (end - begin <= 32) break;
    }
    u64 sum = begin + lane < end ? value(begin + lane) : 0;
    for (int offset = 1; offset < 32; offset <<= 1) {
        u64 before = __shfl_up_sync(~0u, sum, offset);
        if (lane >= offset) sum += before;
    }
    unsigned reached = __ballot_sync(~0u, begin + lane < end && sum >= need);
    return begin + (reached ? __ffs(reached) - 1 : 0);
}

// The least integer that is no less than share of the whole, 1 to whole.
__device__ __forceinline__ u64 share_up(u64 whole, double share) {
    u64 need = __double2ull_ru(double(whole) * share);
    return min(max(need, 1ull), whole);
}

// The least integer above share of the whole, at most the whole.
__device__ __forceinline__ u64 share_above(u64 whole, double share) {
    return min(__double2ull_rd(double(whole) * share) + 1, whole);
}

// Without top_k and top_p tokens are walked through by id.
__device__ int draw_by_id(Shared& shared, const SampleRow& row, const float* logits, float max, int vocab) {
    double share = uniform(row);
    return walk(
        shared.scratch, vocab,
        [&](int i) {
            float weight = expf(__fdiv_rn(logits[i] - max, row.temperature));
            return weight > 0.f && weight >= row.min_p ? fixed(__float_as_uint(weight)) : 0;
        },
        [&](u64 total) { return share_above(total, share); }
    );
}

// With top_k or top_p they are walked through by weight, largest first, equals by id. `weights` [vocab] is scratch and
// may be the logits themselves.
__device__ int draw_by_weight(
    Shared& shared, const SampleRow& row, const float* logits, float* weights, float max, int vocab
) {
    clear(shared.first);
    u64 candidates = 0, total = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        float weight = expf(__fdiv_rn(logits[i] - max, row.temperature));
        bool kept = weight > 0.f && weight >= row.min_p;
        uint32_t bits = kept ? __float_as_uint(weight) : 0;
        weights[i] = __uint_as_float(bits);
        if (kept) {
            add(shared.first, bits >> FIRST_SHIFT, bits);
            candidates++;
            total += fixed(bits);
        }
    }
    candidates = block_sum(candidates, shared.scratch);
    total = block_sum(total, shared.scratch);
    bool limited = row.top_k && row.top_k < candidates;
    double share = uniform(row);
    // What all searches below look at: the bins from the one in which the first search ends.
    Place before;
    uint32_t lowest;
    if (limited) {
        lowest = cross<true>(shared, shared.first, row.top_k, before);
    } else {
        u64 need = row.top_p < 1.f ? share_up(total, row.top_p) : share_above(total, share);
        lowest = cross<false>(shared, shared.first, need, before);
    }
    bool listed = before.count + shared.first.counts[lowest] <= LIST;
    if (listed) {
        if (threadIdx.x == 0) shared.list_length = 0;
        __syncthreads();
#pragma unroll 4
        for (int i = threadIdx.x; i < vocab; i += THREADS) {
            uint32_t bits = __float_as_uint(weights[i]);
            if (bits && bits >> FIRST_SHIFT >= lowest) shared.list[atomicAdd(&shared.list_length, 1u)] = bits;
        }
        __syncthreads();
    }
    u64 sum = total;
    if (limited) {
        Place last = descend<true>(shared, weights, vocab, listed, row.top_k);
        sum = last.sum + (row.top_k - last.count) * fixed(last.bits);
    }
    if (row.top_p < 1.f) {
        u64 need = share_up(sum, row.top_p);
        Place last = descend<false>(shared, weights, vocab, listed, need);
        u64 each = fixed(last.bits);
        sum = last.sum + (need - last.sum + each - 1) / each * each;
    }
    u64 need = share_above(sum, share);
    Place place = descend<false>(shared, weights, vocab, listed, need);
    u64 each = fixed(place.bits);
    u64 nth = (need - place.sum + each - 1) / each; // of the tokens of this weight, from 1
    return walk(
        shared.scratch, vocab, [&](int i) { return __float_as_uint(weights[i]) == place.bits ? 1ull : 0ull; },
        [&](u64 equals) { return min(nth, equals); }
    );
}

// Draws for each row that is not greedy and has a finite logit: logits f32 [R, vocab], or edited where the row's were
// changed; edited is scratch. best u64 [R] holds the largest logit, from the kernel `greedy`. Grid: a block a row, with
// sizeof(Shared) of dynamic shared memory. Reads 4 bytes a token two to four times, mostly from L2.
extern "C" __global__ void __launch_bounds__(THREADS) draw(
    SampleOutput* outputs, float* edited, uint32_t* last_tokens, uint16_t* counts, const float* logits,
    const u64* best, const SampleRow* rows, int vocab, int slots
) {
    extern __shared__ __align__(16) char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    SampleRow row = rows[blockIdx.x];
    u64 key = best[blockIdx.x];
    if (!key || is_greedy(row)) return;
    float max = from_ordered(uint32_t(key >> 32));
    float* scratch = edited + size_t(blockIdx.x) * vocab;
    const float* from = is_edited(row, slots) ? scratch : logits + size_t(blockIdx.x) * vocab;
    int token = row.top_k || row.top_p < 1.f ? draw_by_weight(shared, row, from, scratch, max, vocab)
                                             : draw_by_id(shared, row, from, max, vocab);
    if (threadIdx.x == 0) {
        finish_row(row, &outputs[blockIdx.x], last_tokens, counts, vocab, slots, uint32_t(token), 0);
    }
}
