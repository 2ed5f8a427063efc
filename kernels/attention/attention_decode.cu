// Attention of rows that have one query each, over the paged cache. Costs the bytes of the rows' keys and values.
//
// A row's context is cut into chunks whose length depends on that context alone, and a chunk's tokens are always
// walked and merged in the same order: a row's result is bit for bit the same alone and in any batch.
//
// qkv [tokens, (q_heads + 2 kv_heads) * D], of which q is read; keys, values as attention.cuh says; out [tokens,
// q_heads * D]. items [n][2] = (row, chunk) in any order; first_item [rows] counts a row's items before its first;
// item_count [1] = n. partials: for each item and q head D + 4 floats: o, then m and l; counters
// [rows][kv_heads][head tiles], zero before and after. sliding_window: tokens that a query sees, or 0 for all.
//
// Grid: any number of blocks of 128 threads; a block walks (item, kv head, tile of 8 q heads of the group) in stride.
// Its warps take the chunk's cache blocks in turn, each with an online softmax of its own; the warps' results are
// merged in shared memory, the chunks' by the block that finishes a row's last chunk.
//
// Tensor cores without shared memory for K and V. S^T = K Q^T (16 keys x 8 heads) contracts over D in an order that
// gives every thread 8 adjacent elements of a key: one 16-byte load is the A operand of two products, and Q is loaded
// the same way. O^T = V^T P^T (16 dims x 8 heads): a thread's 16-byte load is 8 dims of one key; two keys' registers
// are interleaved into pairs of keys, so that row g of product j is dim 8 g + 2 j and row g + 8 the one after it.
// Heads are columns 2t, 2t + 1 of a thread in S^T and O^T alike: rescaling needs no exchange.
#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int HEADS = 8;  // q heads of a tile

// A cache block's keys: thread (g, t) holds dims 32 s + 8 t .. + 7 of keys g and g + 8.
template <typename C, int D>
struct Keys {
    using Raw = typename CachePiece<C>::Eight;
    Raw at[2][D / 32];

    __device__ __forceinline__ void load(const C* thread_keys) {
#pragma unroll
        for (int s = 0; s < D / 32; s++) {
#pragma unroll
            for (int r = 0; r < 2; r++) at[r][s] = load_once(thread_keys + r * 8 * D + s * 32, Raw());
        }
    }
};

// N-th pair of dims of a piece.
__device__ __forceinline__ uint32_t& word(uint4& x, int n) { return n == 0 ? x.x : n == 1 ? x.y : n == 2 ? x.z : x.w; }
__device__ __forceinline__ uint32_t& word(uint2& x, int n) { return n == 0 ? x.x : x.y; }

// What a thread holds of a cache block's values: one piece of each of its keys 2t, 2t + 1, 2t + 8, 2t + 9, as it lies in
// memory.
template <typename Piece, typename Raw>
struct Values {
    Raw at[4];

    template <int D, typename C>
    __device__ __forceinline__ void load(const C* from) {
#pragma unroll
        for (int n = 0; n < 4; n++) at[n] = load_once(from + ((n & 1) + (n >> 1) * 8) * D, Raw());
    }

    // Zeroes keys outside from .. to: what a slot outside the context holds may be no number.
    __device__ __forceinline__ void hide(int from, int to) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const int key = (threadIdx.x & 3) * 2 + (n & 1) + (n >> 1) * 8;
            if (key < from || key >= to) at[n] = Raw();
        }
    }

    template <typename T>
    __device__ __forceinline__ void multiply(float (*o)[4], uint32_t p0, uint32_t p1) {
        Piece wide[4];
#pragma unroll
        for (int n = 0; n < 4; n++) wide[n] = widen<T, Piece>(at[n]);
#pragma unroll
        for (int j = 0; j < int(sizeof(Piece) / 4); j++) {
            uint32_t a = word(wide[0], j), b = word(wide[1], j), c = word(wide[2], j), d = word(wide[3], j);
            mma<T>(o[j], __byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632), __byte_perm(c, d, 0x5410),
                   __byte_perm(c, d, 0x7632), p0, p1);
        }
    }
};

// The result of some keys for the tile's heads. m is in units of log2.
template <int D>
struct alignas(16) Shared {
    float o[WARPS][HEADS][D + 4];
    float m[WARPS][HEADS];
    float l[WARPS][HEADS];
    float weights[HEADS][MAX_CHUNKS];
    int last;
};

// One row's queries, keys and values, as one block sees them.
template <typename T, typename C>
struct Row {
    const T* q;             // of the tile's first head
    const C* keys;          // of the kv head, in cache block 0
    const C* values;
    const uint32_t* table;
    int64_t block_stride;   // elements from a cache block to the next
    int heads;              // of the tile
    int seen_from, seen_to; // visible tokens of the chunk; the rest of their cache blocks is masked
    float scale_log2;
};

// Takes scores of keys outside from .. to out of the softmax.
__device__ __forceinline__ void hide(float (&s)[4], int from, int to) {
    const int g = (threadIdx.x & 31) >> 2;
    if (g < from || g >= to) s[0] = s[1] = NOTHING;
    if (g + 8 < from || g + 8 >= to) s[2] = s[3] = NOTHING;
}

// Turns scores into weights relative to the highest score so far, for heads 2t and 2t + 1; what was summed before
// counts `shrink` times. Every block that is walked has a visible key, so the new maximum is a number.
__device__ __forceinline__ void soften(float (&s)[4], float (&m)[2], float (&l)[2], float (&shrink)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float highest = fmaxf(s[h], s[h + 2]);
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 4));
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 8));
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 16));
        highest = fmaxf(highest, m[h]);
        shrink[h] = fast_exp2(m[h] - highest);
        m[h] = highest;
        s[h] = fast_exp2(s[h] - highest);
        s[h + 2] = fast_exp2(s[h + 2] - highest);
        l[h] = l[h] * shrink[h] + s[h] + s[h + 2];
    }
}

// Attention of a warp's share of a chunk, left in `shared`: cache blocks seen_from / 16 + warp, + 4, ..
template <typename T, typename C, int D>
__device__ __forceinline__ void attend(const Row<T, C>& row, Shared<D>& shared, uint4* q_shared) {
    constexpr int STEPS = D / 32, WIDE = D / 64, TILES = D / 16;
    constexpr bool NARROW = D % 64 != 0;
    constexpr bool Q_SHARED = D > 96;  // registers would not hold it
    static_assert(D % 64 == 0 || D % 64 == 32, "a narrow piece is 32 dims");
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;

    const int end = (row.seen_to + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    int block = row.seen_from / BLOCK_TOKENS + warp;
    const bool any = block < end && row.seen_from < row.seen_to;
    uint32_t id = any ? row.table[block] : 0;
    uint32_t next_id = any && block + WARPS < end ? row.table[block + WARPS] : 0;

    const C* thread_keys = row.keys + g * D + t * 8;
    const C* thread_values = row.values + 2 * t * D;
    after_previous();
    Keys<C, D> keys;
    if (any) keys.load(thread_keys + id * row.block_stride);

    uint4 q[Q_SHARED ? 1 : STEPS];
    if constexpr (Q_SHARED) {
        for (int s = warp; s < STEPS; s += WARPS) {
            q_shared[s * 32 + lane] =
                g < row.heads ? *reinterpret_cast<const uint4*>(row.q + g * D + s * 32 + t * 8) : uint4();
        }
        __syncthreads();
    } else {
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            q[s] = g < row.heads ? *reinterpret_cast<const uint4*>(row.q + g * D + s * 32 + t * 8) : uint4();
        }
    }

    float o[TILES][4];
#pragma unroll
    for (int n = 0; n < TILES; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.f;
    float m[2] = {NOTHING, NOTHING}, l[2] = {0.f, 0.f};  // of heads 2t and 2t + 1

    if (any) {
        for (; block < end; block += WARPS) {
            Values<uint4, typename CachePiece<C>::Eight> wide[WIDE];
            Values<uint2, typename CachePiece<C>::Four> narrow;
            const C* from = thread_values + id * row.block_stride;
#pragma unroll
            for (int c = 0; c < WIDE; c++) wide[c].template load<D>(from + c * 64 + g * 8);
            if constexpr (NARROW) narrow.template load<D>(from + WIDE * 64 + g * 4);

            float s[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
            for (int n = 0; n < STEPS; n++) {
                const uint4 a = widen<T, uint4>(keys.at[0][n]), b = widen<T, uint4>(keys.at[1][n]);
                const uint4 x = Q_SHARED ? q_shared[n * 32 + lane] : q[Q_SHARED ? 0 : n];
                mma<T>(s, a.x, b.x, a.y, b.y, x.x, x.y);
                mma<T>(s, a.z, b.z, a.w, b.w, x.z, x.w);
            }
            // The next block's keys arrive while this one's values are waited for and used.
            if (block + WARPS < end) keys.load(thread_keys + next_id * row.block_stride);
            id = next_id;
            next_id = block + 2 * WARPS < end ? row.table[block + 2 * WARPS] : 0;

#pragma unroll
            for (int n = 0; n < 4; n++) s[n] *= row.scale_log2;
            const int token = block * BLOCK_TOKENS;
            if (token < row.seen_from || token + BLOCK_TOKENS > row.seen_to) {
                const int from = row.seen_from - token, to = row.seen_to - token;
                hide(s, from, to);
#pragma unroll
                for (int c = 0; c < WIDE; c++) wide[c].hide(from, to);
                if constexpr (NARROW) narrow.hide(from, to);
            }

            float shrink[2];
            soften(s, m, l, shrink);
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                o[n][0] *= shrink[0];
                o[n][1] *= shrink[1];
                o[n][2] *= shrink[0];
                o[n][3] *= shrink[1];
            }
            const uint32_t p0 = transpose(pack<T>(s[0], s[1])), p1 = transpose(pack<T>(s[2], s[3]));
#pragma unroll
            for (int c = 0; c < WIDE; c++) wide[c].template multiply<T>(o + c * 4, p0, p1);
            if constexpr (NARROW) narrow.template multiply<T>(o + WIDE * 4, p0, p1);
        }
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
        l[h] += __shfl_xor_sync(~0u, l[h], 4);
        l[h] += __shfl_xor_sync(~0u, l[h], 8);
        l[h] += __shfl_xor_sync(~0u, l[h], 16);
        if (g == 0) shared.m[warp][2 * t + h] = m[h];
        if (g == 0) shared.l[warp][2 * t + h] = l[h];
#pragma unroll
        for (int n = 0; n < TILES; n += 2) {  // two products hold four adjacent dims
            const int dim = n < WIDE * 4 ? n / 4 * 64 + g * 8 + n % 4 * 2 : WIDE * 64 + g * 4;
            *reinterpret_cast<float4*>(&shared.o[warp][2 * t + h][dim]) =
                make_float4(o[n][h], o[n][h + 2], o[n + 1][h], o[n + 1][h + 2]);
        }
    }
}

// The warps' results as one: to `out` where they are the whole row, else to the item's partials.
template <typename T, int D>
__device__ __forceinline__ void merge_warps(const Shared<D>& shared, int heads, T* out, float* partials) {
    for (int i = threadIdx.x; i < heads * (D / 4); i += WARPS * 32) {
        const int head = i / (D / 4), dim = i % (D / 4) * 4;
        float m = NOTHING, l = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) m = fmaxf(m, shared.m[w][head]);
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float share = weight(shared.m[w][head], m);
            const float4 o = *reinterpret_cast<const float4*>(&shared.o[w][head][dim]);
            l += share * shared.l[w][head];
            sum = make_float4(sum.x + share * o.x, sum.y + share * o.y, sum.z + share * o.z, sum.w + share * o.w);
        }
        if (partials == nullptr) {
            const float inverse = 1.f / l;
            store4(out + head * D + dim,
                   make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse));
        } else {
            float* partial = partials + head * (D + 4);
            *reinterpret_cast<float4*>(partial + dim) = sum;
            if (dim == 0) *reinterpret_cast<float2*>(partial + D) = make_float2(m, l);
        }
    }
}

// The partials of all of a row's chunks as its result, in the order of the chunks.
template <typename T, int D>
__device__ __forceinline__ void merge_chunks(Shared<D>& shared, int heads, int chunks, const float* partials,
                                             int64_t item_stride, T* out) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    for (int head = warp; head < heads; head += WARPS) {
        float2 ml = make_float2(NOTHING, 0.f);
        if (lane < chunks) {
            ml = __ldcg(reinterpret_cast<const float2*>(partials + lane * item_stride + head * (D + 4) + D));
        }
        const float share = weight(ml.x, warp_max(ml.x));
        shared.weights[head][lane] = share / warp_sum(share * ml.y);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < heads * (D / 4); i += WARPS * 32) {
        const int head = i / (D / 4), dim = i % (D / 4) * 4;
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 4
        for (int chunk = 0; chunk < chunks; chunk++) {
            const float share = shared.weights[head][chunk];
            const float4 o =
                __ldcg(reinterpret_cast<const float4*>(partials + chunk * item_stride + head * (D + 4) + dim));
            sum = make_float4(sum.x + share * o.x, sum.y + share * o.y, sum.z + share * o.z, sum.w + share * o.w);
        }
        store4(out + head * D + dim, sum);
    }
}

template <typename T, typename C, int D>
__device__ __forceinline__ void attention_decode(T* out, float* partials, uint32_t* counters, const T* qkv,
                                                 const C* keys, const C* values, const uint32_t* cu_seqlens_q,
                                                 const uint32_t* context_lens, const uint32_t* block_tables,
                                                 const uint32_t* table_offsets, const uint2* items,
                                                 const uint32_t* first_item, const uint32_t* item_count, int q_heads,
                                                 int kv_heads, int sliding_window, float scale) {
    __shared__ Shared<D> shared;
    __shared__ uint4 q_shared[D];
    const int group = q_heads / kv_heads, tiles = (group + HEADS - 1) / HEADS;
    const int64_t item_stride = int64_t(q_heads) * (D + 4);
    const uint32_t work = *item_count * kv_heads * tiles;
    if (8 * work <= gridDim.x) let_next_begin();  // as of the fewest rows
    for (uint32_t i = blockIdx.x; i < work; i += gridDim.x) {
        const int tile = i % tiles, kv_head = i / tiles % kv_heads;
        const uint2 item = items[i / tiles / kv_heads];
        const int index = item.x, chunk = item.y;
        const int context = context_lens[index], tokens = chunk_tokens(context);
        const int chunks = (context + tokens - 1) / tokens;
        const int first_head = kv_head * group + tile * HEADS;
        const int64_t token = cu_seqlens_q[index];

        Row<T, C> row;
        row.q = qkv + token * (q_heads + 2 * kv_heads) * D + first_head * D;
        row.keys = keys + kv_head * BLOCK_TOKENS * D;
        row.values = values + kv_head * BLOCK_TOKENS * D;
        row.table = block_tables + table_offsets[index];
        row.block_stride = int64_t(kv_heads) * BLOCK_TOKENS * D;
        row.heads = min(HEADS, group - tile * HEADS);
        row.seen_from = chunk * tokens;
        if (sliding_window > 0) row.seen_from = max(row.seen_from, context - sliding_window);
        row.seen_to = min((chunk + 1) * tokens, context);
        row.scale_log2 = scale * 1.4426950408889634f;
        attend<T, C, D>(row, shared, q_shared);
        __syncthreads();

        T* row_out = out + token * q_heads * D + first_head * D;
        if (chunks == 1) {
            merge_warps<T, D>(shared, row.heads, row_out, nullptr);
        } else {
            float* row_partials = partials + first_item[index] * item_stride + first_head * (D + 4);
            merge_warps<T, D>(shared, row.heads, row_out, row_partials + chunk * item_stride);
            __threadfence();  // the partials before the count
            __syncthreads();
            if (threadIdx.x == 0) {
                uint32_t* counter = counters + (int64_t(index) * kv_heads + kv_head) * tiles + tile;
                shared.last = atomicAdd(counter, 1) == uint32_t(chunks - 1);
                if (shared.last) *counter = 0;  // all chunks have counted: ready for the next launch
                __threadfence();
            }
            __syncthreads();
            if (shared.last) {
                merge_chunks<T, D>(shared, row.heads, chunks, row_partials, item_stride, row_out);
            }
        }
        __syncthreads();  // the next item writes `shared`
    }
    after_previous();  // without work too: this kernel must not end before the one before it
}

// Blocks per multiprocessor are what registers allow without spilling.
#define ATTENTION_DECODE(NAME, T, C, D, BLOCKS)                                                                        \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) attention_decode_##NAME##_d##D(                   \
        T* out, float* partials, uint32_t* counters, const T* qkv, const C* keys, const C* values,                     \
        const uint32_t* cu_seqlens_q, const uint32_t* context_lens, const uint32_t* block_tables,                      \
        const uint32_t* table_offsets, const uint2* items, const uint32_t* first_item, const uint32_t* item_count,     \
        int q_heads, int kv_heads, int sliding_window, float scale) {                                                  \
        attention_decode<T, C, D>(out, partials, counters, qkv, keys, values, cu_seqlens_q, context_lens,              \
                                  block_tables, table_offsets, items, first_item, item_count, q_heads, kv_heads,       \
                                  sliding_window, scale);                                                              \
    }

#define ATTENTION_DECODES(T)                  \
    ATTENTION_DECODE(T, T, T, 64, 4)          \
    ATTENTION_DECODE(T, T, T, 96, 4)          \
    ATTENTION_DECODE(T, T, T, 128, 4)         \
    ATTENTION_DECODE(T, T, T, 256, 2)         \
    ATTENTION_DECODE(T##_fp8, T, fp8, 64, 4)  \
    ATTENTION_DECODE(T##_fp8, T, fp8, 128, 4)

ATTENTION_DECODES(bf16)
ATTENTION_DECODES(f16)
