// The first half of a draw: each slice's sum of weights, and a short list of its tokens that top_k or top_p may want.
#include "slices.cuh"
#include "weights.cuh"

// So many tokens share what top_p leaves out, when a token's part is taken for too small to matter. A guess: `draw`
// finds out.
constexpr float TAIL = 4096.f;

struct Shared {
    uint32_t groups[SLICE_BINS], counts[SLICE_BINS];
    uint32_t scratch[9], length;
    u64 sums[32];
};

// The rank up to which the slice's list would do, apart from its room.
__device__ __forceinline__ int wanted_ranks(
    Shared& shared, const SampleRow& row, const uint32_t (&bits)[SLICE_GROUPS][4]
) {
    if (row.top_k && row.top_k <= LISTED) {
        // A row's k largest are among its slices' k largest, and those are no smaller than the k-th largest of any
        // groups' largest.
#pragma unroll
        for (int group = 0; group < SLICE_GROUPS; group++) {
            uint32_t largest = max(max(bits[group][0], bits[group][1]), max(bits[group][2], bits[group][3]));
            if (largest) atomicAdd(&shared.groups[rank_of(largest)], 1u);
        }
        __syncthreads();
        return min(first_reaching(shared.groups, row.top_k, shared.scratch) + 1, SLICE_BINS);
    }
    if (row.top_k) return SLICE_BINS;
    uint32_t least = __float_as_uint((1.f - row.top_p) / TAIL);
    return min(int(rank_of(least)) + 1, SLICE_BINS);
}

// For each row that `draw` draws for, of each slice: sum and number of its weights; where the row has top_k or top_p
// also the list of its largest. slices [R, S]; lists u16 [R, S, LISTED] hold places in the slice, in any order. logits
// f32 [R, vocab], or edited where the row's were changed; best u64 [R] from the kernel `greedy`. Grid: (R, S).
// Reads 4 bytes a token.
extern "C" __global__ void __launch_bounds__(SLICE_THREADS) weigh(
    WeighedSlice* slices, uint16_t* lists, const float* logits, const float* edited, const u64* best,
    const SampleRow* rows, int vocab, int slots
) {
    after_previous();
    __shared__ Shared shared;
    SampleRow row = rows[blockIdx.x];
    u64 key = best[blockIdx.x];
    if (!key || is_greedy(row)) return;
    float max = from_ordered(uint32_t(key >> 32));
    const float* from = (is_edited(row, slots) ? edited : logits) + size_t(blockIdx.x) * vocab;
    size_t slice = size_t(blockIdx.x) * gridDim.y + blockIdx.y;
    bool by_weight = is_by_weight(row);
    if (by_weight) {
        for (int i = threadIdx.x; i < SLICE_BINS; i += SLICE_THREADS) shared.groups[i] = 0, shared.counts[i] = 0;
        if (threadIdx.x == 0) shared.length = 0;
    }
    Pack<float, 4> loaded[SLICE_GROUPS];
#pragma unroll
    for (int group = 0; group < SLICE_GROUPS; group++) {
        loaded[group] = slice_logits(from, blockIdx.y * SLICE, group, vocab);
    }
    uint32_t bits[SLICE_GROUPS][4];
    u64 sum = 0, kept = 0;
#pragma unroll
    for (int group = 0; group < SLICE_GROUPS; group++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            bits[group][j] = weight_bits(row, loaded[group].at[j], max);
            sum += fixed(bits[group][j]);
            kept += bits[group][j] != 0;
        }
    }
    // Also lets every thread see the cleared bins.
    sum = block_sum(sum, shared.sums);
    if (!by_weight) {
        if (threadIdx.x == 0) slices[slice] = WeighedSlice{sum, 0, 0, 0, 0};
        return;
    }
    kept = block_sum(kept, shared.sums);
    int limit = wanted_ranks(shared, row, bits);
#pragma unroll
    for (int group = 0; group < SLICE_GROUPS; group++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            // Rank of bits 0: far above.
            if (rank_of(bits[group][j]) < uint32_t(limit)) atomicAdd(&shared.counts[rank_of(bits[group][j])], 1u);
        }
    }
    __syncthreads();
    limit = min(limit, first_reaching(shared.counts, LISTED + 1, shared.scratch));
    uint16_t* list = lists + slice * LISTED;
#pragma unroll
    for (int group = 0; group < SLICE_GROUPS; group++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            bool wanted = rank_of(bits[group][j]) < uint32_t(limit);
            uint32_t place = take_place(wanted, &shared.length);
            if (wanted) list[place] = uint16_t(place_in_slice(group, j));
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        slices[slice] = WeighedSlice{sum, uint32_t(kept), shared.length, uint32_t(limit), 0};
    }
}
