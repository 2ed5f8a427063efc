// Draws a token: temperature, min_p, top_k, top_p, then one uniform number, as src/sampling/draw.rs.
//
// The slices' lists from the kernel `weigh` hold all tokens that matter for most rows, and few others: they are sorted.
// Where they do not suffice the whole row is searched: "the place where the running sum of weights, largest first,
// reaches so much" is found digit by digit over histograms of counts and sums. Both give the same token.
#include "slices.cuh"
#include "weights.cuh"

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / 32;
constexpr int BINS = 2048;
// Tokens that fit the list in shared memory.
constexpr int LIST = 4096;
// Candidates that are sorted, at most: four a thread.
constexpr int SORTED = 4 * THREADS;
static_assert(SLICE == 4 * THREADS, "a thread looks after four tokens of a slice");
// Of the 30 bits of a weight (1 is the largest): a first digit of 11, a second of 11, a third of 8.
constexpr int SECOND_SHIFT = 8;

struct Histogram {
    u64 sums[BINS];
    uint32_t counts[BINS];
};

struct Shared {
    Histogram first;
    union {
        struct {
            Histogram digit;
            uint32_t list[LIST];
        };
        u64 keys[SORTED];
    };
    u64 scratch[WARPS];
    u64 found[3];
    uint32_t found_bin, list_length;
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

// The sum of what the threads before this one hold; `whole` gets the sum of all.
__device__ u64 sum_before(Shared& shared, u64 own, u64& whole) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u64 after = own;
    for (int offset = 1; offset < 32; offset <<= 1) {
        u64 other = __shfl_up_sync(~0u, after, offset);
        if (lane >= offset) after += other;
    }
    if (lane == 31) shared.scratch[warp] = after;
    __syncthreads();
    u64 of_warp = shared.scratch[lane];
    whole = warp_sum(of_warp);
    after += warp_sum(lane < warp ? of_warp : 0);
    __syncthreads();
    return after - own;
}

// Of values, four a thread in order, the one at which the running sum reaches `need`, which the whole does; `before` is
// the sum of the threads before. shared.found gets the running sums without and with it.
__device__ int reach(Shared& shared, u64 before, const u64 (&values)[4], u64 need) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        u64 after = before + values[j];
        if (before < need && need <= after) {
            shared.found_bin = 4 * threadIdx.x + j;
            shared.found[0] = before, shared.found[1] = after;
        }
        before = after;
    }
    __syncthreads();
    return int(shared.found_bin);
}

// Without top_k and top_p tokens are walked through by id: to the slice, then in it.
__device__ int draw_by_id(
    Shared& shared, const SampleRow& row, const float* logits, const WeighedSlice* slices, float max, int vocab
) {
    int count = (vocab + SLICE - 1) / SLICE;
    u64 values[4] = {int(threadIdx.x) < count ? slices[threadIdx.x].sum : 0, 0, 0, 0}, total;
    u64 before = sum_before(shared, values[0], total);
    u64 need = share_above(total, uniform(row));
    int begin = reach(shared, before, values, need) / 4 * SLICE;
    need -= shared.found[0];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int at = begin + 4 * int(threadIdx.x) + j;
        values[j] = at < vocab ? fixed(weight_bits(row, logits[at], max)) : 0;
    }
    // Nobody writes to what was found before all have read it: the sum is between.
    before = sum_before(shared, values[0] + values[1] + values[2] + values[3], total);
    return begin + reach(shared, before, values, need);
}

// What is drawn from: a row's logits, and its slices with their lists.
struct Candidates {
    const float* logits;
    const WeighedSlice* slices;
    const uint16_t* lists;
    float max;
    int count;

    // Calls one(wanted, bits, id) for what is listed and ranks below `limit`; all lanes of a warp call together.
    template <typename F>
    __device__ __forceinline__ void for_each(const SampleRow& row, uint32_t limit, F one) const {
        int lane = threadIdx.x & 31;
        for (int slice = threadIdx.x >> 5; slice < count; slice += WARPS) {
            int listed = int(slices[slice].listed);
            const uint16_t* list = lists + size_t(slice) * LISTED;
            // Eight lists' lines, then eight logits, wait for memory together.
            for (int from = lane; from - lane < listed; from += 32 * 8) {
                uint32_t ids[8];
                float loaded[8];
#pragma unroll
                for (int i = 0; i < 8; i++) ids[i] = slice * SLICE + (from + 32 * i < listed ? list[from + 32 * i] : 0);
#pragma unroll
                for (int i = 0; i < 8; i++) loaded[i] = logits[ids[i]];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    if (from - lane + 32 * i >= listed) break;
                    uint32_t bits = weight_bits(row, loaded[i], max);
                    one(from + 32 * i < listed && rank_of(bits) < limit, bits, ids[i]);
                }
            }
        }
    }

    // Puts weight and id of all that rank below `limit` into shared.keys, as far as there is room; how many there are.
    __device__ __forceinline__ int gather(Shared& shared, const SampleRow& row, uint32_t limit) const {
        __syncthreads();
        if (threadIdx.x == 0) shared.list_length = 0;
        __syncthreads();
        for_each(row, limit, [&](bool wanted, uint32_t bits, uint32_t id) {
            uint32_t place = take_place(wanted, &shared.list_length);
            if (wanted && place < SORTED) shared.keys[place] = u64(bits) << 32 | uint32_t(~id);
        });
        __syncthreads();
        return int(shared.list_length);
    }
};

// The rank below which few enough candidates are left to sort, and yet all that matter: the first `need` by count, or
// those whose sum reaches `need`. 0 where the lists do not hold them.
__device__ uint32_t narrow(
    Shared& shared, const Candidates& candidates, const SampleRow& row, uint32_t limit, bool by_count, u64 need
) {
    clear(shared.first);
    u64 count = 0, sum = 0;
    candidates.for_each(row, limit, [&](bool wanted, uint32_t bits, uint32_t) {
        if (!wanted) return;
        add(shared.first, bits >> FIRST_SHIFT, bits);
        count++;
        sum += fixed(bits);
    });
    u64 whole = block_sum(by_count ? count : sum, shared.scratch);
    if (whole < need) return 0;
    Place before;
    uint32_t lowest = by_count ? cross<true>(shared, shared.first, need, before)
                               : cross<false>(shared, shared.first, need, before);
    return before.count + shared.first.counts[lowest] <= SORTED ? FIRST_OF_ONE - lowest + 1 : 0;
}

// Draws by weight from the slices' lists. -1: they do not hold all that matters.
__device__ int draw_listed(Shared& shared, const SampleRow& row, const Candidates& candidates) {
    int lane = threadIdx.x & 31;
    u64 total = 0, kept = 0, listed = 0;
    uint32_t limit = SLICE_BINS;
    for (int slice = lane; slice < candidates.count; slice += 32) {
        total += candidates.slices[slice].sum;
        kept += candidates.slices[slice].kept;
        listed += candidates.slices[slice].listed;
        limit = min(limit, candidates.slices[slice].limit);
    }
    total = warp_sum(total), kept = warp_sum(kept), listed = warp_sum(listed), limit = __reduce_min_sync(~0u, limit);
    bool limited = row.top_k && row.top_k < kept;
    double share = uniform(row);
    u64 need = limited ? row.top_k : row.top_p < 1.f ? share_up(total, row.top_p) : share_above(total, share);
    if (listed > SORTED) {
        limit = narrow(shared, candidates, row, limit, limited, need);
        if (limit == 0) return -1;
    }
    int count = candidates.gather(shared, row, limit);
    if (limited && u64(count) < need) return -1;
    sort_descending(shared.keys, count);
    u64 values[4], whole;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int at = 4 * int(threadIdx.x) + j;
        values[j] = at < count ? fixed(uint32_t(shared.keys[at] >> 32)) : 0;
    }
    u64 before = sum_before(shared, values[0] + values[1] + values[2] + values[3], whole);
    if (!limited && whole < need) return -1;
    u64 sum = total;
    if (limited) {
        if (threadIdx.x == (row.top_k - 1) / 4) {
            sum = before;
            for (uint32_t j = 0; j <= (row.top_k - 1) % 4; j++) sum += values[j];
            shared.found[2] = sum;
        }
        __syncthreads();
        sum = shared.found[2];
    }
    if (row.top_p < 1.f) {
        reach(shared, before, values, share_up(sum, row.top_p));
        sum = shared.found[1];
        __syncthreads();
    }
    int at = reach(shared, before, values, share_above(sum, share));
    return int(~uint32_t(shared.keys[at]));
}

// Draws by weight from the whole row. `weights` [vocab] is scratch and may be the logits themselves.
__device__ int draw_searching(
    Shared& shared, const SampleRow& row, const float* logits, float* weights, float max, int vocab
) {
    clear(shared.first);
    u64 candidates = 0, total = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        uint32_t bits = weight_bits(row, logits[i], max);
        weights[i] = __uint_as_float(bits);
        if (bits) {
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
// changed; edited is scratch. best u64 [R] holds the largest logit, from the kernel `greedy`; slices and lists are from
// the kernel `weigh`, at most THREADS a row. Grid: a block a row, with sizeof(Shared) of dynamic shared memory. Reads 6
// bytes a token listed; where the lists do not suffice 4 bytes a token two to four times, mostly from L2.
extern "C" __global__ void __launch_bounds__(THREADS) draw(
    SampleOutput* outputs, float* edited, uint32_t* last_tokens, uint16_t* counts, const float* logits,
    const u64* best, const SampleRow* rows, const WeighedSlice* slices, const uint16_t* lists, int vocab, int slots
) {
    after_previous();
    extern __shared__ __align__(16) char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    SampleRow row = rows[blockIdx.x];
    u64 key = best[blockIdx.x];
    if (!key || is_greedy(row)) return;
    float largest = from_ordered(uint32_t(key >> 32));
    float* scratch = edited + size_t(blockIdx.x) * vocab;
    const float* from = is_edited(row, slots) ? scratch : logits + size_t(blockIdx.x) * vocab;
    int count = (vocab + SLICE - 1) / SLICE;
    Candidates candidates = {
        from, slices + size_t(blockIdx.x) * count, lists + size_t(blockIdx.x) * count * LISTED, largest, count
    };
    int token;
    if (is_by_weight(row)) {
        token = draw_listed(shared, row, candidates);
        __syncthreads();
        if (token < 0) token = draw_searching(shared, row, from, scratch, largest, vocab);
    } else {
        token = draw_by_id(shared, row, from, candidates.slices, largest, vocab);
    }
    if (threadIdx.x == 0) {
        token = max(min(token, vocab - 1), 0);
        finish_row(row, &outputs[blockIdx.x], last_tokens, counts, vocab, slots, uint32_t(token), 0);
    }
}
