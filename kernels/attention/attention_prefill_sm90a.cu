// Attention of rows that have several queries, as attention_prefill.cu has it, by Hopper's warpgroup products: for long
// steps, heads of 64 and 128, and a cache of the model's own type.
//
// The parameters are those of that file, but that keys and values are tensor maps of them: rows of D elements, taken in boxes
// of 16 rows and 64 columns. Tiles are of 128 queries and undivided, so that nothing is left in partials. Grid: n * q_heads
// blocks of 384 threads, heads fastest. A warp lets the tensor memory accelerator copy K and V, tiles of 128 keys, into a ring
// of four stages; two warpgroups multiply, each with 64 of the queries: while one computes its softmax the other has the
// tensor cores, as in FlashAttention 3.
// Source: Shah et al., FlashAttention-3, 2024.
#include "attention.cuh"
#include "wgmma.cuh"

constexpr int WARPGROUP = 128;
constexpr int THREADS = 3 * WARPGROUP;
constexpr int WARPS = 8;  // that multiply
constexpr int QUERIES = 128;
constexpr int KEYS = 128;
constexpr int BOX_BYTES = BLOCK_TOKENS * 128;
constexpr int STAGES = 4;  // K, V, K, V

template <int D>
struct Tile {
    static constexpr int PIECES = D / 8;  // 16-byte pieces of a head
    static constexpr int PANEL_BYTES = KEYS * 128;
    static constexpr int BYTES = KEYS * D * 2;  // of K, of V, and of q

    // Where a row's piece lies: panels of 64 columns, swizzled.
    __device__ static __forceinline__ uint32_t offset(int row, int piece) {
        return (piece >> 3) * PANEL_BYTES + row * 128 + (((piece & 7) ^ (row & 7)) << 4);
    }
};

// What a block works on.
struct Work {
    const TensorMap* keys;
    const TensorMap* values;
    int kv_heads, kv_head;
    char* stages;
    const uint32_t* table;
    int from, to;  // keys that some query of the tile sees
    int begin, end;  // their tiles
};

template <int D>
using Stages = Ring<STAGES, Tile<D>::BYTES>;

// Starts copying tile `tile` of K or V to a stage: whole cache blocks, as far as some query sees something of them.
template <int D>
__device__ __forceinline__ void copy_tile(const Work& work, const TensorMap& map, int tile, uint32_t to, uint32_t barrier) {
    constexpr int BLOCKS = KEYS / BLOCK_TOKENS, PANELS = D / 64;
    const int lane = threadIdx.x & 31, block = lane % BLOCKS, panel = lane / BLOCKS;
    const int first = max(0, (work.from - tile * KEYS) / BLOCK_TOKENS);
    const int last = min(BLOCKS, (work.to - tile * KEYS + BLOCK_TOKENS - 1) / BLOCK_TOKENS);
    if (lane == 0) expect_bytes(barrier, (last - first) * PANELS * BOX_BYTES);
    __syncwarp();
    if (panel < PANELS && block >= first && block < last) {
        const int row = (work.table[tile * BLOCKS + block] * work.kv_heads + work.kv_head) * BLOCK_TOKENS;
        copy_box(to + panel * Tile<D>::PANEL_BYTES + block * BOX_BYTES, map, panel * 64, row, barrier);
    }
}

// The warp that copies: tiles of K and V in turn.
template <int D>
__device__ __forceinline__ void copy_all(const Work& work, const Stages<D>& ring) {
    const int count = 2 * (work.end - work.begin);
    for (int at = 0; at < count; at++) {
        ring.wait_empty(at);
        const TensorMap& map = at & 1 ? *work.values : *work.keys;
        copy_tile<D>(work, map, work.begin + at / 2, ring.stage(at), ring.filled(at));
    }
}

// Zeroes what no query sees of a tile of V: what lies there may be no number, and a weight of zero does not make it one.
template <int D>
__device__ __forceinline__ void clean_values(const Work& work, int token, char* v) {
    using S = Tile<D>;
    for (int i = threadIdx.x - WARPGROUP; i < KEYS * S::PIECES; i += 2 * WARPGROUP) {
        const int row = i / S::PIECES;
        if (token + row < work.from || token + row >= work.to) {
            *reinterpret_cast<uint4*>(v + S::offset(row, i % S::PIECES)) = make_uint4(0, 0, 0, 0);
        }
    }
    show_to_products();
    sync_both();
}

// A warpgroup's softmax and result so far. A thread has rows g (index 0) and g + 8 (1) of its warp's 16 queries.
template <int D>
struct State {
    float o[D / 2];
    float highest[2];
    float sum[2];  // this thread's part
};

// Hides keys after a query and before its window. `query` is the position of this thread's first row, `token` that of its
// first key.
__device__ __forceinline__ void hide(float (&s)[KEYS / 2], int query, int token, int window) {
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        const int own = query + ((i >> 1) & 1) * 8, key = token + (i >> 2) * 8 + (i & 1);
        if (key > own || key + window <= own) s[i] = -INFINITY;
    }
}

// Turns scores into weights relative to the highest score so far, and rescales what was summed before.
template <int D>
__device__ __forceinline__ void soften(float (&s)[KEYS / 2], State<D>& state, float scale_log2) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float highest = state.highest[r];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) highest = fmaxf(highest, fmaxf(s[4 * n + 2 * r], s[4 * n + 2 * r + 1]));
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
        // A query may see none of the keys so far: infinity minus infinity would be no number.
        const bool none = highest == -INFINITY;
        const float base = none ? 0.f : highest * scale_log2;
        const float shrink = none ? 1.f : fast_exp2((state.highest[r] - highest) * scale_log2);
        state.highest[r] = highest;
        float sum = state.sum[r] * shrink;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 4 * n + 2 * r; i < 4 * n + 2 * r + 2; i++) {
                s[i] = fast_exp2(fmaf(s[i], scale_log2, -base));
                sum += s[i];
            }
        }
        state.sum[r] = sum;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            state.o[4 * n + 2 * r] *= shrink;
            state.o[4 * n + 2 * r + 1] *= shrink;
        }
    }
}

// s = the scores of 64 queries at `q` and a tile of keys at `k`.
template <typename T, int D>
__device__ __forceinline__ void multiply_keys(float (&s)[KEYS / 2], uint32_t q, uint32_t k) {
    begin_products();
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        // Sixteen columns are 32 bytes of a panel.
        const uint32_t at = (n / 4) * Tile<D>::PANEL_BYTES + (n % 4) * 32;
        multiply<T>(s, describe(q + at, 0), describe(k + at, 0), n > 0);
    }
    commit_products();
}

// Adds the weighted values of a tile. The weights' registers are the A operand as they are.
template <typename T, int D>
__device__ __forceinline__ void multiply_values(State<D>& state, const uint32_t (&p)[KEYS / 16][4], uint32_t v) {
    begin_products();
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) add_product<T>(state.o, p[n], describe(v + n * 16 * 128, Tile<D>::PANEL_BYTES));
    commit_products();
}

// A warpgroup that multiplies: 64 queries from `first` on, q of which lies at `q`. Tiles that none of them sees are passed
// over.
template <typename T, int D>
__device__ __forceinline__ void multiply_all(State<D>& state, const Work& work, const Stages<D>& ring, uint32_t q,
                                             int first, int window, float scale_log2) {
    const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
    const int query = first + warp * 16 + (lane >> 2);
#pragma unroll
    for (int i = 0; i < D / 2; i++) state.o[i] = 0.f;
    state.highest[0] = state.highest[1] = -INFINITY;
    state.sum[0] = state.sum[1] = 0.f;
    for (int tile = work.begin; tile < work.end; tile++) {
        const int at = 2 * (tile - work.begin), token = tile * KEYS, last_token = token + KEYS - 1;
        const bool sees = token <= first + 63 && last_token + window > first;
        ring.wait_full(at);
        float s[KEYS / 2];
        if (sees) {
            multiply_keys<T, D>(s, q, ring.stage(at));
            wait_for_products();
            settle(s);
        }
        if (lane == 0) ring.release(at);
        uint32_t p[KEYS / 16][4];
        if (sees) {
            if (last_token > first || token + window <= first + 63) hide(s, query, token + (lane & 3) * 2, window);
            soften<D>(s, state, scale_log2);
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) p[n][i] = pack<T>(s[8 * n + 2 * i], s[8 * n + 2 * i + 1]);
            }
        }
        ring.wait_full(at + 1);
        if (token < work.from || last_token >= work.to) {
            clean_values<D>(work, token, work.stages + (at + 1) % STAGES * Tile<D>::BYTES);
        }
        if (sees) {
            multiply_values<T, D>(state, p, ring.stage(at + 1));
            wait_for_products();
            settle(state.o);
        }
        if (lane == 0) ring.release(at + 1);
    }
}

// Writes a warpgroup's queries, `queries` of them, by way of the shared memory where its q was: whole rows of `out` then.
template <typename T, int D>
__device__ __forceinline__ void write(const State<D>& state, char* q, T* out, int64_t out_stride, int queries) {
    using S = Tile<D>;
    const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = state.sum[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float inverse = 1.f / sum;
        const int row = warp * 16 + r * 8 + g;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            *reinterpret_cast<uint32_t*>(q + S::offset(row, n) + t * 4) =
                pack<T>(state.o[4 * n + 2 * r] * inverse, state.o[4 * n + 2 * r + 1] * inverse);
        }
    }
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < 16 * S::PIECES; i += 32) {
        const int row = warp * 16 + i / S::PIECES, piece = i % S::PIECES;
        if (row < queries) {
            *reinterpret_cast<uint4*>(out + row * out_stride + piece * 8) =
                *reinterpret_cast<const uint4*>(q + S::offset(row, piece));
        }
    }
}

template <typename T, int D>
__device__ __forceinline__ void attention_prefill(T* out, const T* qkv, const TensorMap& keys, const TensorMap& values,
                                                  const uint32_t* cu_seqlens_q, const uint32_t* context_lens,
                                                  const uint32_t* block_tables, const uint32_t* table_offsets,
                                                  const uint4* tiles, int q_heads, int kv_heads, int sliding_window,
                                                  float scale) {
    using S = Tile<D>;
    extern __shared__ char unaligned[];
    __shared__ uint64_t barriers[2 * STAGES];
    const uint32_t start = shared_address(unaligned);
    const uint32_t q_shared = (start + 1023) & ~1023u;
    char* shared = unaligned + (q_shared - start);

    const int head = blockIdx.x % q_heads, kv_head = head / (q_heads / kv_heads);
    const uint4 tile = tiles[blockIdx.x / q_heads];
    if (tile.x == ~0u) return;  // fills a recorded grid
    const int first_token = cu_seqlens_q[tile.x], q_len = int(cu_seqlens_q[tile.x + 1]) - first_token;
    const int first_query = tile.y, queries = min(QUERIES, q_len - first_query);
    const int position = int(context_lens[tile.x]) - q_len + first_query;  // of the tile's first query
    const int window = sliding_window > 0 ? sliding_window : 1 << 30;

    Work work;
    work.keys = &keys;
    work.values = &values;
    work.kv_heads = kv_heads;
    work.kv_head = kv_head;
    work.stages = shared + S::BYTES;
    work.table = block_tables + table_offsets[tile.x];
    work.from = max(0, position - window + 1);
    work.to = position + queries;
    work.begin = work.from / KEYS;
    work.end = (work.to + KEYS - 1) / KEYS;

    const Stages<D> ring(q_shared + S::BYTES, shared_address(barriers), 1, WARPS);
    if (threadIdx.x < WARPGROUP) {
        keep_registers<40>();
        if (threadIdx.x < 32) copy_all<D>(work, ring);
    } else {
        take_registers<232>();
        const int group = __shfl_sync(~0u, threadIdx.x / WARPGROUP - 1, 0), thread = threadIdx.x % WARPGROUP;
        const int own = group * 64;  // this warpgroup's first query of the tile
        const int64_t q_stride = int64_t(q_heads + 2 * kv_heads) * D;
        const T* q = qkv + (first_token + first_query + own) * q_stride + head * D;
        const uint32_t own_q = q_shared + own * 128;
#pragma unroll 4
        for (int i = thread; i < 64 * S::PIECES; i += WARPGROUP) {
            const int row = i / S::PIECES, piece = i % S::PIECES;
            const bool wanted = own + row < queries;
            cp_async(own_q + S::offset(row, piece), q + (wanted ? row : 0) * q_stride + piece * 8, wanted);
        }
        cp_async_commit();
        cp_async_wait<0>();
        show_to_products();
        sync_warpgroup(1 + group);
        State<D> state;
        multiply_all<T, D>(state, work, ring, own_q, position + own, window, scale * 1.4426950408889634f);
        sync_warpgroup(1 + group);  // nobody multiplies with q any more
        const int64_t out_stride = int64_t(q_heads) * D;
        write<T, D>(state, shared + own * 128, out + (first_token + first_query + own) * out_stride + head * D,
                    out_stride, queries - own);
    }
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
