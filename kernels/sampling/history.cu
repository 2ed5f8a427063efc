// What a slot knows of its sequence: the last token, which tokens it has seen, and the changes to its logits.
#include "sampling.cuh"

// last_tokens[slot] = token. One thread.
extern "C" __global__ void set_last_token(uint32_t* last_tokens, unsigned slot, unsigned token) {
    after_previous();
    last_tokens[slot] = token;
}

// Marks tokens u32 [count] in a slot's row of counts u16 [slots, vocab]: as part of the prompt, or, where `generated`,
// counts them. Tokens outside the vocabulary are passed over. The host has cleared the row. Grid: a thread a token.
extern "C" __global__ void mark_tokens(
    uint16_t* counts, const uint32_t* tokens, unsigned slot, int count, int vocab, int generated
) {
    after_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count || tokens[i] >= uint32_t(vocab)) return;
    if (generated) {
        count_token(counts + size_t(slot) * vocab, tokens[i]);
    } else {
        mark_prompt(counts + size_t(slot) * vocab, tokens[i]);
    }
}

// edited[r] = the row's logits after penalties, then bias, then the ban of tokens that may not come yet, and then of those
// that the slot's mask leaves out: logits and
// edited f32 [R, vocab]. Rows that ask for none of these are left alone. Tokens of a slot's bias are distinct.
// counts u16 [slots, vocab], bias (u32, f32) and bans u32 [slots, MAX_EDITS], masks u32 [slots, (vocab + 31) / 32]: a bit
// for each token, 1 may come. Grid: (R, slices of `slice` tokens).
// Moves 10 bytes a token of the rows concerned.
extern "C" __global__ void __launch_bounds__(256) edit_logits(
    float* edited, const float* logits, const SampleRow* rows, const uint16_t* counts, const uint2* bias,
    const uint32_t* bans, const uint32_t* masks, int vocab, int slots, int slice
) {
    after_previous();
    SampleRow row = rows[blockIdx.x];
    if (!is_edited(row, slots)) return;
    int begin = blockIdx.y * slice, end = min(begin + slice, vocab);
    const float* from = logits + size_t(blockIdx.x) * vocab;
    float* to = edited + size_t(blockIdx.x) * vocab;
    const uint16_t* seen = counts + size_t(row.slot) * vocab;
    bool penalised = row.flags & HAS_PENALTIES;
    for (int i = begin + threadIdx.x; i < end; i += blockDim.x) {
        float logit = from[i];
        if (penalised) {
            uint32_t state = seen[i];
            if (state && row.repetition != 1.f) {
                logit = logit > 0.f ? __fdiv_rn(logit, row.repetition) : __fmul_rn(logit, row.repetition);
            }
            // Rounded after each step, as the CPU does.
            float count = float(state & COUNT_MASK);
            if (count > 0.f) {
                logit = __fsub_rn(logit, __fadd_rn(row.presence, __fmul_rn(row.frequency, count)));
            }
        }
        to[i] = logit;
    }
    __syncthreads();
    const uint2* pairs = bias + size_t(row.slot) * MAX_EDITS;
    for (uint32_t i = threadIdx.x; i < min(row.bias_count, uint32_t(MAX_EDITS)); i += blockDim.x) {
        uint2 pair = pairs[i];
        if (pair.x >= uint32_t(begin) && pair.x < uint32_t(end)) to[pair.x] += __uint_as_float(pair.y);
    }
    const float never = __uint_as_float(0xff800000u);
    if (row.flags & HAS_BANS) {
        __syncthreads();
        const uint32_t* banned = bans + size_t(row.slot) * MAX_EDITS;
        for (uint32_t i = threadIdx.x; i < min(row.ban_count, uint32_t(MAX_EDITS)); i += blockDim.x) {
            uint32_t token = banned[i];
            if (token >= uint32_t(begin) && token < uint32_t(end)) to[token] = never;
        }
    }
    if (row.flags & HAS_MASK) {
        __syncthreads();
        const uint32_t* mask = masks + size_t(row.slot) * ((vocab + 31) / 32);
        for (int i = begin + threadIdx.x; i < end; i += blockDim.x) {
            if (!(mask[i / 32] >> (i % 32) & 1)) to[i] = never;
        }
    }
}
