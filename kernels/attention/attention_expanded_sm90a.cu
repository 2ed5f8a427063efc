// Attention of rows that have several queries over latents that were expanded to keys and values of each head, by Hopper's
// warpgroup products: 640 flops a query, head and visible token where latents themselves take 2176 (attention_latent.cu).
// Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.
//
// q [tokens, heads * 192]: 128 elements of each head and 64 rotated ones. kv is a map of [rows, at_once * 256], of a token 128
// elements of a key and 128 of a value for each head of `first_head` .. + at_once, and rotated of [rows, 64], what is rotated of
// a token's keys, for all heads; both are taken in boxes of 128 rows and 64 columns. The rows are the tokens of cache blocks in
// the order of the block tables, from table entry `first_block` on. out [tokens, heads * 128]. Other arrays, and tiles, as
// attention_prefill.cu has them. Grid: n * at_once blocks, heads fastest.
#include "attention_sm90a.cuh"

constexpr int PLAIN = 128;
constexpr int ROTATED = 64;
constexpr int KEY = PLAIN + ROTATED;
constexpr int VALUE = 128;

struct Expanded {
    const TensorMap* kv;
    const TensorMap* rotated;
    int row, column;  // of the sequence's first token, and of the head's key

    __device__ __forceinline__ void copy(bool is_value, const Seen&, int tile, uint32_t to, uint32_t barrier) const {
        constexpr int PANEL = Tile<KEY>::PANEL_BYTES;
        if ((threadIdx.x & 31) != 0) return;
        const int from = row + tile * KEYS;
        if (is_value) {
            expect_bytes(barrier, Tile<VALUE>::BYTES);
            copy_box(to, *kv, column + PLAIN, from, barrier);
            copy_box(to + PANEL, *kv, column + PLAIN + 64, from, barrier);
        } else {
            expect_bytes(barrier, Tile<KEY>::BYTES);
            copy_box(to, *kv, column, from, barrier);
            copy_box(to + PANEL, *kv, column + 64, from, barrier);
            copy_box(to + 2 * PANEL, *rotated, 0, from, barrier);
        }
    }
};

#define ATTENTION_EXPANDED(T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_expanded_sm90a_##T(                             \
        T* out, const T* q, const __grid_constant__ TensorMap kv, const __grid_constant__ TensorMap rotated,           \
        const uint32_t* cu_seqlens_q, const uint32_t* context_lens, const uint32_t* table_offsets, const uint4* tiles, \
        int first_block, int heads, int first_head, int at_once, float scale) {                                        \
        after_previous();                                                                                              \
        const int within = blockIdx.x % at_once, head = first_head + within;                                           \
        const uint4 tile = tiles[blockIdx.x / at_once];                                                                \
        if (tile.x == ~0u) return; /* fills a recorded grid */                                                         \
        const int first_token = cu_seqlens_q[tile.x], q_len = int(cu_seqlens_q[tile.x + 1]) - first_token;             \
        const int first_query = tile.y, position = int(context_lens[tile.x]) - q_len + first_query;                    \
        const int64_t row = first_token + first_query, q_stride = int64_t(heads) * KEY;                                \
        const int64_t out_stride = int64_t(heads) * VALUE;                                                             \
        const int first_row = (int(table_offsets[tile.x]) - first_block) * BLOCK_TOKENS;                               \
        const Expanded source{&kv, &rotated, first_row, within * (PLAIN + VALUE)};                                     \
        attend<T, KEY, VALUE>(source, out + row * out_stride + head * VALUE, out_stride,                               \
                              q + row * q_stride + head * KEY, q_stride, position, min(QUERIES, q_len - first_query),  \
                              1 << 30, scale);                                                                         \
    }

ATTENTION_EXPANDED(bf16)
ATTENTION_EXPANDED(f16)
