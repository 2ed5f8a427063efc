// Attention of rows that have several queries (prompts, chunks of them) over the paged cache, causal. Costs 4 D flops a
// query, q head and visible key; the tensor cores bound it.
//
// qkv [tokens, (q_heads + 2 kv_heads) * D], of which q is read; keys, values as attention.cuh says; out [tokens,
// q_heads * D]. tiles [n][4] = (row, first query of the tile in the row, part << 16 | parts, slot), the costliest first.
// sliding_window: tokens that a query sees, or 0 for all.
//
// Grid: n * q_heads blocks of 128 threads, heads fastest: the heads of a group run beside each other and share what
// they read through the second-level cache. A block takes 128 queries of one head, or 64, over tiles of 64 keys (32
// where D = 256), as FlashAttention 2 does: K and V double buffered by asynchronous copies, the softmax online in
// registers. With 128 queries a warp has 32 rather than 16, which halves what it reads of K and V from shared memory;
// that costs the registers for q, which is read from there again for each tile where D > 64. With 64 there are twice the
// blocks: a short chunk of a prompt has too few otherwise. A query's bits are the same either way.
//
// Few queries over a long context are too few blocks still: there the keys of a tile of 64 are divided among `parts` blocks.
// Each leaves its sums in `partials`, slot `slot + part`; the last to come there, by `counters`, which are zero before
// and after, merges them in the order of the parts. So what a query's bits are depends on `parts`, and on no race.
#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;

// The thread, asked for anew: what follows from it is then computed where it is used, not kept in scarce registers.
__device__ __forceinline__ int this_thread() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// Heads of D elements, R sixteens of queries a warp.
template <int D, int R>
struct Tile {
    static constexpr int ROWS = R;
    static constexpr int QUERIES = WARPS * 16 * ROWS;
    static constexpr int KEYS = D == 256 ? 32 : 64;
    static constexpr int PIECES = D / 8;  // 16-byte pieces of a head
    static constexpr int Q_BYTES = QUERIES * D * 2;
    static constexpr int STAGE_BYTES = KEYS * D * 2;  // of K, and of V
    static constexpr bool Q_HELD = D <= 64;           // q stays in registers
    static constexpr bool DIVIDED = ROWS == 1;        // may be one of several parts

    // Where a row's piece lies: rows r .. r + 7 of one piece fall into different banks. A row of 192 bytes moves by
    // half the banks itself, so that two bits are enough, and pieces stay below 12.
    __device__ static __forceinline__ int turn(int row) { return D == 96 ? (row >> 1) & 3 : row & 7; }
    __device__ static __forceinline__ uint32_t offset(int row, int piece) {
        return (row * PIECES + (piece ^ turn(row))) * 16;
    }
};

// What a block works on, but for its part of the keys.
template <typename C>
struct Work {
    const C* keys;    // of the kv head, in cache block 0
    const C* values;
    const uint32_t* table;
    int64_t block_stride;
    int from, to;     // keys that some query of the tile sees
};

// The cache block of which this lane has the id: lane i has the i-th of key tile `tile`.
template <typename C, int D, int R>
__device__ __forceinline__ uint32_t load_id(const Work<C>& work, int tile) {
    constexpr int BLOCKS = Tile<D, R>::KEYS / BLOCK_TOKENS;
    const int block = tile * BLOCKS + (threadIdx.x & (BLOCKS - 1));
    return work.table[min(block, (work.to - 1) / BLOCK_TOKENS)];
}

// Where the stages of K and V lie, from the first byte behind q. In the model's type: two of K, two of V. In fp8: one of
// K, the first of what is copied, one of V, the second of what is copied; there K and V lie as each thread copied them,
// which widens them itself.
template <typename C, int D, int R>
struct Stages {
    static constexpr bool WIDENS = std::is_same_v<C, fp8>;
    static constexpr uint32_t BYTES = Tile<D, R>::STAGE_BYTES;
    __device__ static __forceinline__ uint32_t copied(uint32_t stage) {
        return WIDENS ? (1 + 2 * stage) * BYTES : stage * BYTES;
    }
    __device__ static __forceinline__ uint32_t read(uint32_t stage) { return WIDENS ? 0 : stage * BYTES; }
};

// Starts copying key tile `tile` to the stage at `to`. `id` as load_id gives it.
template <typename C, int D, int R>
__device__ __forceinline__ void copy_tile(const Work<C>& work, int tile, uint32_t id, uint32_t to) {
    using S = Tile<D, R>;
    const int thread = this_thread();
#pragma unroll
    for (int i = 0; i < S::KEYS * S::PIECES / THREADS; i++) {
        const int at = thread + i * THREADS, key = at / S::PIECES, piece = at % S::PIECES;
        const int token = tile * S::KEYS + key;
        // Keys that none sees become zeros: what lies there may be no number.
        const bool wanted = token >= work.from && token < work.to;
        const uint32_t block = __shfl_sync(~0u, id, key / BLOCK_TOKENS);
        const int64_t from = block * work.block_stride + (key % BLOCK_TOKENS) * D + piece * 8;
        if constexpr (std::is_same_v<C, fp8>) {
            cp_async_half(to + at * 8, work.keys + from, wanted);
            cp_async_half(to + S::STAGE_BYTES / 2 + at * 8, work.values + from, wanted);
        } else {
            cp_async(to + S::offset(key, piece), work.keys + from, wanted);
            cp_async(to + 2 * S::STAGE_BYTES + S::offset(key, piece), work.values + from, wanted);
        }
    }
}

// Widens what this thread has copied to `from` into the stage at `k`; V follows two stages of K.
template <typename T, int D, int R>
__device__ __forceinline__ void widen_tile(uint32_t from, uint32_t k) {
    using S = Tile<D, R>;
    const int thread = this_thread();
#pragma unroll 4
    for (int i = 0; i < S::KEYS * S::PIECES / THREADS; i++) {
        const int at = thread + i * THREADS;
        const uint32_t to = k + S::offset(at / S::PIECES, at % S::PIECES);
#pragma unroll
        for (int plane = 0; plane < 2; plane++) {
            uint2 raw;
            asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];"
                         : "=r"(raw.x), "=r"(raw.y)
                         : "r"(from + plane * (S::STAGE_BYTES / 2) + at * 8)
                         : "memory");
            const uint4 wide = widen<T, uint4>(raw);
            asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to + plane * 2 * S::STAGE_BYTES), "r"(wide.x),
                         "r"(wide.y), "r"(wide.z), "r"(wide.w)
                         : "memory");
        }
    }
}

// A warp's softmax and result so far. Of each 16 queries a thread has rows g (index 0) and g + 8 (1).
template <int D, int R>
struct State {
    float o[Tile<D, R>::ROWS][D / 8][4];
    float highest[Tile<D, R>::ROWS][2];
    float sum[Tile<D, R>::ROWS][2];  // this thread's part
};

// Scores of a warp's queries and a tile of keys.
template <typename T, int D, int R>
__device__ __forceinline__ void multiply_keys(float (&s)[Tile<D, R>::ROWS][Tile<D, R>::KEYS / 8][4], uint32_t q, uint32_t k,
                                              const uint32_t (*held)[Tile<D, R>::ROWS][4]) {
    using S = Tile<D, R>;
    const int lane = threadIdx.x & 31;
    // Pieces 2 n and 2 n + 1 are the n-th step: the lane's own bit and turn are folded into one exclusive or.
    const uint32_t q_row = q + (lane & 15) * D * 2, q_turn = (lane >> 4) ^ S::turn(lane & 15);
    const uint32_t k_row = k + ((lane & 7) + (lane >> 4) * 8) * D * 2, k_turn = ((lane >> 3) & 1) ^ S::turn(lane & 7);
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        uint32_t a[S::ROWS][4];
#pragma unroll
        for (int m = 0; m < S::ROWS; m++) {
            if constexpr (S::Q_HELD) {
#pragma unroll
                for (int i = 0; i < 4; i++) a[m][i] = held[n][m][i];
            } else {
                load_matrices(a[m], q_row + m * 16 * D * 2 + ((2 * n) ^ q_turn) * 16);
            }
        }
#pragma unroll
        for (int j = 0; j < S::KEYS / 16; j++) {
            uint32_t b[4];
            load_matrices(b, k_row + j * 16 * D * 2 + ((2 * n) ^ k_turn) * 16);
#pragma unroll
            for (int m = 0; m < S::ROWS; m++) {
                mma<T>(s[m][2 * j], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                mma<T>(s[m][2 * j + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
            }
        }
    }
}

// Hides keys after a query and before its window. `position` is that of the warp's first query, `token` the first key.
template <int D, int R>
__device__ __forceinline__ void hide(float (&s)[Tile<D, R>::ROWS][Tile<D, R>::KEYS / 8][4], int position, int token,
                                     int window) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int m = 0; m < Tile<D, R>::ROWS; m++) {
#pragma unroll
        for (int n = 0; n < Tile<D, R>::KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int query = position + m * 16 + (lane >> 2) + (i >> 1) * 8;
                const int key = token + n * 8 + (lane & 3) * 2 + (i & 1);
                if (key > query || key + window <= query) s[m][n][i] = -INFINITY;
            }
        }
    }
}

// Turns scores into weights relative to the highest score so far, and rescales what was summed before.
template <int D, int R>
__device__ __forceinline__ void soften(float (&s)[Tile<D, R>::ROWS][Tile<D, R>::KEYS / 8][4], State<D, R>& state,
                                       float scale_log2) {
#pragma unroll
    for (int m = 0; m < Tile<D, R>::ROWS; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float highest = state.highest[m][r];
#pragma unroll
            for (int n = 0; n < Tile<D, R>::KEYS / 8; n++) {
                highest = fmaxf(highest, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
            }
            highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
            // A query may see none of the keys so far: infinity minus infinity would be no number. A tile of which a query
            // sees nothing shrinks by exactly 1, so that its bits do not depend on the queries beside it.
            const bool none = highest == -INFINITY;
            const float base = none ? 0.f : highest * scale_log2;
            const float shrink = none ? 1.f : fast_exp2((state.highest[m][r] - highest) * scale_log2);
            state.highest[m][r] = highest;
            float sum = state.sum[m][r] * shrink;
#pragma unroll
            for (int n = 0; n < Tile<D, R>::KEYS / 8; n++) {
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++) {
                    s[m][n][i] = fast_exp2(fmaf(s[m][n][i], scale_log2, -base));
                    sum += s[m][n][i];
                }
            }
            state.sum[m][r] = sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                state.o[m][n][2 * r] *= shrink;
                state.o[m][n][2 * r + 1] *= shrink;
            }
        }
    }
}

// Adds the weighted values of a tile. The weights' registers are the A operand as they are.
template <typename T, int D, int R>
__device__ __forceinline__ void multiply_values(State<D, R>& state,
                                                const float (&s)[Tile<D, R>::ROWS][Tile<D, R>::KEYS / 8][4], uint32_t v) {
    using S = Tile<D, R>;
    const int lane = threadIdx.x & 31;
    const uint32_t v_row = v + (lane & 15) * D * 2, v_turn = (lane >> 4) ^ S::turn(lane & 15);
#pragma unroll
    for (int n = 0; n < S::KEYS / 16; n++) {
        uint32_t a[S::ROWS][4];
#pragma unroll
        for (int m = 0; m < S::ROWS; m++) {
            a[m][0] = pack<T>(s[m][2 * n][0], s[m][2 * n][1]);
            a[m][1] = pack<T>(s[m][2 * n][2], s[m][2 * n][3]);
            a[m][2] = pack<T>(s[m][2 * n + 1][0], s[m][2 * n + 1][1]);
            a[m][3] = pack<T>(s[m][2 * n + 1][2], s[m][2 * n + 1][3]);
        }
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            uint32_t b[4];
            load_transposed(b, v_row + n * 16 * D * 2 + ((2 * j) ^ v_turn) * 16);
#pragma unroll
            for (int m = 0; m < S::ROWS; m++) {
                mma<T>(state.o[m][2 * j], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                mma<T>(state.o[m][2 * j + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
            }
        }
    }
}

// Writes a warp's queries, `queries` of them, by way of the shared memory where its q was: whole rows of `out` then.
template <typename T, int D, int R>
__device__ __forceinline__ void write(State<D, R>& state, char* q, T* out, int64_t out_stride, int queries) {
    using S = Tile<D, R>;
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < S::ROWS; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = state.sum[m][r];
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            const float inverse = 1.f / sum;
            const int row = m * 16 + r * 8 + g;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                *reinterpret_cast<uint32_t*>(q + S::offset(row, n) + t * 4) =
                    pack<T>(state.o[m][n][2 * r] * inverse, state.o[m][n][2 * r + 1] * inverse);
            }
        }
    }
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < S::ROWS * 16 * S::PIECES; i += 32) {
        const int row = i / S::PIECES, piece = i % S::PIECES;
        if (row < queries) {
            *reinterpret_cast<uint4*>(out + row * out_stride + piece * 8) =
                *reinterpret_cast<const uint4*>(q + S::offset(row, piece));
        }
    }
}

// Floats that a part of a tile leaves for one head: the result so far, then highest score and sum, each as the threads
// hold them.
template <int D, int R>
constexpr int PARTIAL = Tile<D, R>::QUERIES * (D + 8);

// Where this thread's four floats of piece `piece` of sixteen `m` lie in a partial; piece D / 8 is highest and sum.
template <int D, int R>
__device__ __forceinline__ float4* partial_at(float* partial, int m, int piece) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int sixteen = warp * Tile<D, R>::ROWS + m;
    return reinterpret_cast<float4*>(partial) + (sixteen * (D / 8 + 1) + piece) * 32 + lane;
}

template <int D, int R>
__device__ __forceinline__ void leave(const State<D, R>& state, float* partial) {
#pragma unroll
    for (int m = 0; m < Tile<D, R>::ROWS; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            const float* o = state.o[m][n];
            *partial_at<D, R>(partial, m, n) = make_float4(o[0], o[1], o[2], o[3]);
        }
        *partial_at<D, R>(partial, m, D / 8) =
            make_float4(state.highest[m][0], state.highest[m][1], state.sum[m][0], state.sum[m][1]);
    }
}

// Makes `state` that of all `parts`, whose partials lie `stride` floats apart.
template <int D, int R>
__device__ __forceinline__ void merge(State<D, R>& state, float* partials, int64_t stride, int parts, float scale_log2) {
#pragma unroll
    for (int m = 0; m < Tile<D, R>::ROWS; m++) {
        float highest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
        for (int part = 0; part < parts; part++) {
            const float4 x = __ldcg(partial_at<D, R>(partials + part * stride, m, D / 8));
            highest[0] = fmaxf(highest[0], x.x);
            highest[1] = fmaxf(highest[1], x.y);
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) state.o[m][n][0] = state.o[m][n][1] = state.o[m][n][2] = state.o[m][n][3] = 0.f;
        for (int part = 0; part < parts; part++) {
            float* partial = partials + part * stride;
            const float4 x = __ldcg(partial_at<D, R>(partial, m, D / 8));
            // A query may see nothing in a part, and nothing at all where it is none.
            const float first = weight(x.x * scale_log2, highest[0] * scale_log2);
            const float second = weight(x.y * scale_log2, highest[1] * scale_log2);
            sum[0] = fmaf(x.z, first, sum[0]);
            sum[1] = fmaf(x.w, second, sum[1]);
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const float4 o = __ldcg(partial_at<D, R>(partial, m, n));
                state.o[m][n][0] = fmaf(o.x, first, state.o[m][n][0]);
                state.o[m][n][1] = fmaf(o.y, first, state.o[m][n][1]);
                state.o[m][n][2] = fmaf(o.z, second, state.o[m][n][2]);
                state.o[m][n][3] = fmaf(o.w, second, state.o[m][n][3]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            state.highest[m][r] = highest[r];
            state.sum[m][r] = sum[r];
        }
    }
}

// Whether this block is the last of `parts` to come here. What others wrote before they came can be read then.
__device__ __forceinline__ bool comes_last(uint32_t* counter, int parts) {
    __shared__ bool last;
    __threadfence();  // what this thread wrote, before it counts
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1) == uint32_t(parts - 1);
        if (last) *counter = 0;  // all have counted: ready for the next launch
        __threadfence();
    }
    __syncthreads();
    return last;
}

template <typename T, typename C, int D, int R>
__device__ __forceinline__ void attention_prefill(T* out, float* partials, uint32_t* counters, const T* qkv,
                                                  const C* keys, const C* values, const uint32_t* cu_seqlens_q, const uint32_t* context_lens,
                                                  const uint32_t* block_tables, const uint32_t* table_offsets,
                                                  const uint4* tiles, int q_heads, int kv_heads, int sliding_window,
                                                  float scale) {
    using S = Tile<D, R>;
    using Stage = Stages<C, D, R>;
    extern __shared__ __align__(128) char shared[];  // q, then the stages of K and V
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int head = blockIdx.x % q_heads, kv_head = head / (q_heads / kv_heads);
    const uint4 tile = tiles[blockIdx.x / q_heads];
    if (tile.x == ~0u) return;  // fills a recorded grid
    const int first_token = cu_seqlens_q[tile.x], q_len = int(cu_seqlens_q[tile.x + 1]) - first_token;
    const int first_query = tile.y, queries = min(S::QUERIES, q_len - first_query);
    const int position = int(context_lens[tile.x]) - q_len + first_query;  // of the tile's first query
    const int window = sliding_window > 0 ? sliding_window : 1 << 30;
    const float scale_log2 = scale * 1.4426950408889634f;

    Work<C> work;
    work.keys = keys + kv_head * BLOCK_TOKENS * D;
    work.values = values + kv_head * BLOCK_TOKENS * D;
    work.table = block_tables + table_offsets[tile.x];
    work.block_stride = int64_t(kv_heads) * BLOCK_TOKENS * D;
    work.from = max(0, position - window + 1);
    work.to = position + queries;
    int key_tile = work.from / S::KEYS, end = (work.to + S::KEYS - 1) / S::KEYS;
    if constexpr (S::DIVIDED) {
        const int part = tile.z >> 16, parts = tile.z & 0xffff, all = end - key_tile;
        end = key_tile + all * (part + 1) / parts;
        key_tile += all * part / parts;
    }

    const uint32_t q_shared = shared_address(shared);
    const uint32_t kv_shared = q_shared + S::Q_BYTES;
    uint32_t id = load_id<C, D, R>(work, key_tile);
    const int64_t q_stride = int64_t(q_heads + 2 * kv_heads) * D;
    const T* q = qkv + (first_token + first_query) * q_stride + head * D;
#pragma unroll 4
    for (int i = threadIdx.x; i < S::QUERIES * S::PIECES; i += THREADS) {
        const int row = i / S::PIECES, piece = i % S::PIECES;
        const bool wanted = row < queries;
        cp_async(q_shared + S::offset(row, piece), q + (wanted ? row : 0) * q_stride + piece * 8, wanted);
    }
    copy_tile<C, D, R>(work, key_tile, id, kv_shared + Stage::copied(0));
    cp_async_commit();
    id = load_id<C, D, R>(work, key_tile + 1);

    State<D, R> state;
#pragma unroll
    for (int m = 0; m < S::ROWS; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++) state.o[m][n][0] = state.o[m][n][1] = state.o[m][n][2] = state.o[m][n][3] = 0.f;
        state.highest[m][0] = state.highest[m][1] = -INFINITY;
        state.sum[m][0] = state.sum[m][1] = 0.f;
    }
    const int warp_query = warp * 16 * S::ROWS;
    const int warp_first = position + warp_query, warp_last = warp_first + 16 * S::ROWS - 1;
    const uint32_t warp_q = q_shared + warp_query * D * 2;
    uint32_t held[S::Q_HELD ? D / 16 : 1][S::ROWS][4];
    if constexpr (S::Q_HELD) {
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
#pragma unroll
            for (int m = 0; m < S::ROWS; m++) {
                load_matrices(held[n][m], warp_q + S::offset(m * 16 + (lane & 15), 2 * n + (lane >> 4)));
            }
        }
    }

    for (uint32_t stage = 0; key_tile < end; key_tile++, stage ^= 1) {
        // This tile is here; everyone is done with the last one, whose stage takes the next.
        cp_async_wait<0>();
        __syncthreads();
        if (key_tile + 1 < end) {
            copy_tile<C, D, R>(work, key_tile + 1, id, kv_shared + Stage::copied(stage ^ 1));
            cp_async_commit();
            id = load_id<C, D, R>(work, key_tile + 2);
        }
        const uint32_t k = kv_shared + Stage::read(stage);
        if constexpr (Stage::WIDENS) {
            widen_tile<T, D, R>(kv_shared + Stage::copied(stage), k);
            __syncthreads();
        }
        const int token = key_tile * S::KEYS, last_token = token + S::KEYS - 1;
        const bool sees = warp_query < queries && token <= warp_last && last_token + window > warp_first;
        if (!sees) continue;
        float s[S::ROWS][S::KEYS / 8][4];
#pragma unroll
        for (int m = 0; m < S::ROWS; m++) {
#pragma unroll
            for (int n = 0; n < S::KEYS / 8; n++) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.f;
        }
        multiply_keys<T, D, R>(s, warp_q, k, held);
        if (last_token > warp_first || token + window <= warp_last) hide<D, R>(s, warp_first, token, window);
        soften<D, R>(s, state, scale_log2);
        multiply_values<T, D, R>(state, s, k + 2 * S::STAGE_BYTES);
    }
    const int parts = S::DIVIDED ? tile.z & 0xffff : 1;
    if (parts > 1) {
        cp_async_wait<0>();  // of a tile that a part without keys began to copy
        float* partial = partials + (int64_t(tile.w) * q_heads + head) * PARTIAL<D, R>;
        const int64_t stride = int64_t(q_heads) * PARTIAL<D, R>;
        leave<D, R>(state, partial + (tile.z >> 16) * stride);
        if (!comes_last(counters + int64_t(tile.w) * q_heads + head, parts)) return;
        merge<D, R>(state, partial, stride, parts, scale_log2);
    }
    const int64_t out_stride = int64_t(q_heads) * D;
    write<T, D, R>(state, shared + warp_query * D * 2,
                out + (first_token + first_query + warp_query) * out_stride + head * D, out_stride,
                queries - warp_query);
}

// Two blocks a multiprocessor: one computes its softmax while the other multiplies.
#define ATTENTION_PREFILL(NAME, T, C, D, R)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_prefill_##NAME##_d##D##_r##R(                   \
        T* out, float* partials, uint32_t* counters, const T* qkv, const C* keys, const C* values,                     \
        const uint32_t* cu_seqlens_q, const uint32_t* context_lens, const uint32_t* block_tables,                      \
        const uint32_t* table_offsets, const uint4* tiles, int q_heads, int kv_heads, int sliding_window,              \
        float scale) {                                                                                                 \
        after_previous();                                                                                              \
        attention_prefill<T, C, D, R>(out, partials, counters, qkv, keys, values, cu_seqlens_q, context_lens,          \
                                      block_tables, table_offsets, tiles, q_heads, kv_heads, sliding_window, scale);   \
    }

#define ATTENTION_PREFILLS(T)                    \
    ATTENTION_PREFILL(T, T, T, 64, 1)            \
    ATTENTION_PREFILL(T, T, T, 64, 2)            \
    ATTENTION_PREFILL(T, T, T, 96, 1)            \
    ATTENTION_PREFILL(T, T, T, 96, 2)            \
    ATTENTION_PREFILL(T, T, T, 128, 1)           \
    ATTENTION_PREFILL(T, T, T, 128, 2)           \
    ATTENTION_PREFILL(T, T, T, 256, 1)           \
    ATTENTION_PREFILL(T##_fp8, T, fp8, 64, 1)    \
    ATTENTION_PREFILL(T##_fp8, T, fp8, 64, 2)    \
    ATTENTION_PREFILL(T##_fp8, T, fp8, 128, 1)   \
    ATTENTION_PREFILL(T##_fp8, T, fp8, 128, 2)

ATTENTION_PREFILLS(bf16)
ATTENTION_PREFILLS(f16)
