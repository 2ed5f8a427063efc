// Attention of rows that have several queries, as attention_prefill.cu has it, by Hopper's warpgroup products: for long
// steps, heads of 64 and 128, and a cache of the model's own type.
//
// The parameters are those of that file, but that keys and values are tensor maps of them: rows of D elements, taken in boxes
// of 16 rows and 64 columns. Tiles are of 128 queries and undivided, so that nothing is left in partials. Grid: n * q_heads
// blocks, heads fastest.
#include "attention_sm90a.cuh"

constexpr int BOX_BYTES = BLOCK_TOKENS * 128;

// K and V of a head in the paged cache.
template <int D>
struct Cached {
    const TensorMap* keys;
    const TensorMap* values;
    int kv_heads, kv_head;
    const uint32_t* table;

    // Whole cache blocks, as far as some query sees something of them.
    __device__ __forceinline__ void copy(bool is_value, const Seen& seen, int tile, uint32_t to, uint32_t barrier) const {
        constexpr int BLOCKS = KEYS / BLOCK_TOKENS, PANELS = D / 64;
        const int lane = threadIdx.x & 31, block = lane % BLOCKS, panel = lane / BLOCKS;
        const int first = max(0, (seen.from - tile * KEYS) / BLOCK_TOKENS);
        const int last = min(BLOCKS, (seen.to - tile * KEYS + BLOCK_TOKENS - 1) / BLOCK_TOKENS);
        if (lane == 0) expect_bytes(barrier, (last - first) * PANELS * BOX_BYTES);
        __syncwarp();
        if (panel < PANELS && block >= first && block < last) {
            const int row = (table[tile * BLOCKS + block] * kv_heads + kv_head) * BLOCK_TOKENS;
            const TensorMap& map = is_value ? *values : *keys;
            copy_box(to + panel * Tile<D>::PANEL_BYTES + block * BOX_BYTES, map, panel * 64, row, barrier);
        }
    }
};

template <typename T, int D>
__device__ __forceinline__ void attention_prefill(T* out, const T* qkv, const TensorMap& keys, const TensorMap& values,
                                                  const uint32_t* cu_seqlens_q, const uint32_t* context_lens,
                                                  const uint32_t* block_tables, const uint32_t* table_offsets,
                                                  const uint4* tiles, int q_heads, int kv_heads, int sliding_window,
                                                  float scale) {
    const int head = blockIdx.x % q_heads;
    const uint4 tile = tiles[blockIdx.x / q_heads];
    if (tile.x == ~0u) return;  // fills a recorded grid
    const int first_token = cu_seqlens_q[tile.x], q_len = int(cu_seqlens_q[tile.x + 1]) - first_token;
    const int first_query = tile.y, position = int(context_lens[tile.x]) - q_len + first_query;
    const int64_t row = first_token + first_query;
    const int64_t q_stride = int64_t(q_heads + 2 * kv_heads) * D, out_stride = int64_t(q_heads) * D;
    const Cached<D> source{&keys, &values, kv_heads, head / (q_heads / kv_heads), block_tables + table_offsets[tile.x]};
    attend<T, D, D>(source, out + row * out_stride + head * D, out_stride, qkv + row * q_stride + head * D, q_stride,
                    position, min(QUERIES, q_len - first_query), sliding_window > 0 ? sliding_window : 1 << 30, scale);
}

#define ATTENTION_PREFILL(T, D)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_prefill_sm90a_##T##_d##D(                       \
        T* out, float* /* partials */, uint32_t* /* counters */, const T* qkv, const __grid_constant__ TensorMap keys, \
        const __grid_constant__ TensorMap values,                                                                      \
        const uint32_t* cu_seqlens_q, const uint32_t* context_lens, const uint32_t* block_tables,                      \
        const uint32_t* table_offsets, const uint4* tiles, int q_heads, int kv_heads, int sliding_window,              \
        float scale) {                                                                                                 \
        after_previous();                                                                                              \
        attention_prefill<T, D>(out, qkv, keys, values, cu_seqlens_q, context_lens, block_tables, table_offsets,       \
                                tiles, q_heads, kv_heads, sliding_window, scale);                                      \
    }

ATTENTION_PREFILL(bf16, 64)
ATTENTION_PREFILL(bf16, 128)
ATTENTION_PREFILL(f16, 64)
ATTENTION_PREFILL(f16, 128)
