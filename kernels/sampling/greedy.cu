// The largest logit of each row: the answer of greedy rows, and what all others are measured from.
#include "sampling.cuh"

// Of each row of logits (or of edited, where the row's were changed) f32 [R, vocab] the largest finite logit and its
// first token; NaN is passed over. best u64 [R] gets both; greedy rows are finished: output, last token, count.
// status 1: the largest is not finite. Grid: (R, slices of `slice` tokens); the last block of a row to end sums up, and
// leaves partial u64 [R] and tickets u32 [R] zero, as it found them. Reads 4 bytes a token.
extern "C" __global__ void __launch_bounds__(256) greedy(
    SampleOutput* outputs, u64* best, u64* partial, uint32_t* tickets, uint32_t* last_tokens, uint16_t* counts,
    const float* logits, const float* edited, const SampleRow* rows, int vocab, int slots, int slice
) {
    after_previous();
    __shared__ u64 scratch[32];
    SampleRow row = rows[blockIdx.x];
    const float* from = (is_edited(row, slots) ? edited : logits) + size_t(blockIdx.x) * vocab;
    int begin = blockIdx.y * slice, end = min(begin + slice, vocab);
    // Plain comparisons while scanning: ids only grow in a thread, so the first of equals stays.
    float top = __uint_as_float(0xff800000u);
    int at = -1;
    if (vocab % 4 == 0) {
#pragma unroll 4
        for (int i = begin + int(threadIdx.x) * 4; i < end; i += 256 * 4) {
            Pack<float, 4> four = *reinterpret_cast<const Pack<float, 4>*>(from + i);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (four.at[j] > top) top = four.at[j], at = i + j;
            }
        }
    } else {
#pragma unroll 8
        for (int i = begin + int(threadIdx.x); i < end; i += 256) {
            float logit = from[i];
            if (logit > top) top = logit, at = i;
        }
    }
    u64 key = block_max(at < 0 ? 0 : ranked(top, uint32_t(at)), scratch);
    if (threadIdx.x != 0) return;
    if (gridDim.y > 1) {
        atomicMax(&partial[blockIdx.x], key);
        __threadfence();
        if (atomicAdd(&tickets[blockIdx.x], 1u) + 1 != gridDim.y) return;
        __threadfence();
        key = atomicExch(&partial[blockIdx.x], 0ull);
        tickets[blockIdx.x] = 0;
    }
    float max = key ? from_ordered(uint32_t(key >> 32)) : 0.f;
    uint32_t status = key && isfinite(max) ? 0 : 1;
    best[blockIdx.x] = status ? 0 : key;
    // Rows without a finite logit are finished here too, whatever they asked for.
    if (status || is_greedy(row)) {
        uint32_t token = status ? 0 : ~uint32_t(key);
        finish_row(row, &outputs[blockIdx.x], last_tokens, counts, vocab, slots, token, status);
    }
}
