// Attention of rows that have several queries by Hopper's warpgroup products. For files `*_sm90a.cu` alone.
//
// A block of 384 threads has a tile of at most 128 queries of a head. A warp lets the tensor memory accelerator copy K and V,
// tiles of 128 keys, into a ring of four stages; two warpgroups multiply, each with 64 of the queries: while one computes its
// softmax the other has the tensor cores, as in FlashAttention 3. Where K and V come from, a source says.
// Source: Shah et al., FlashAttention-3, 2024.
#pragma once

#include "attention.cuh"
#include "wgmma.cuh"

constexpr int WARPGROUP = 128;
constexpr int THREADS = 3 * WARPGROUP;
constexpr int WARPS = 8;  // that multiply
constexpr int QUERIES = 128;
constexpr int KEYS = 128;
constexpr int STAGES = 4;  // K, V, K, V

template <int D>
struct Tile {
    static constexpr int PIECES = D / 8;  // 16-byte pieces of a head
    static constexpr int PANEL_BYTES = KEYS * 128;
    static constexpr int BYTES = KEYS * D * 2;

    // Where a row's piece lies: panels of 64 columns, swizzled.
    __device__ static __forceinline__ uint32_t offset(int row, int piece) {
        return (piece >> 3) * PANEL_BYTES + row * 128 + (((piece & 7) ^ (row & 7)) << 4);
    }
};

// Keys that some query of a tile sees, and their tiles.
struct Seen {
    int from, to;
    int begin, end;

    // For queries from `position` on.
    __device__ __forceinline__ Seen(int position, int queries, int window)
        : from(max(0, position - window + 1)), to(position + queries), begin(from / KEYS), end((to + KEYS - 1) / KEYS) {}
};

// Where q, and K and V of two tiles lie in shared memory: keys of DK elements, values of DV.
template <int DK, int DV>
struct Memory {
    static constexpr int PAIR_BYTES = Tile<DK>::BYTES + Tile<DV>::BYTES;
    uint32_t q;
    __device__ __forceinline__ uint32_t stage(int at) const {
        return q + Tile<DK>::BYTES + at / 2 % 2 * PAIR_BYTES + at % 2 * Tile<DK>::BYTES;
    }
};

// The warp that copies: tiles of K and V in turn, each by all lanes of `source`.
template <int DK, int DV, typename Source>
__device__ __forceinline__ void copy_all(const Source& source, const Seen& seen, const Memory<DK, DV>& memory,
                                         const Ring<STAGES>& ring) {
    const int count = 2 * (seen.end - seen.begin);
    for (int at = 0; at < count; at++) {
        ring.wait_empty(at);
        source.copy(at & 1, seen, seen.begin + at / 2, memory.stage(at), ring.filled(at));
    }
}

// Zeroes what no query sees of a tile of V: what lies there may be no number, and a weight of zero does not make it one.
template <int D>
__device__ __forceinline__ void clean_values(const Seen& seen, int token, char* v) {
    using S = Tile<D>;
    for (int i = threadIdx.x - WARPGROUP; i < KEYS * S::PIECES; i += 2 * WARPGROUP) {
        const int row = i / S::PIECES;
        if (token + row < seen.from || token + row >= seen.to) {
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
// over. `shared` is memory.q as a pointer.
template <typename T, int DK, int DV>
__device__ __forceinline__ void multiply_all(State<DV>& state, const Seen& seen, const Memory<DK, DV>& memory, char* shared,
                                             const Ring<STAGES>& ring, uint32_t q, int first, int window,
                                             float scale_log2) {
    const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
    const int query = first + warp * 16 + (lane >> 2);
#pragma unroll
    for (int i = 0; i < DV / 2; i++) state.o[i] = 0.f;
    state.highest[0] = state.highest[1] = -INFINITY;
    state.sum[0] = state.sum[1] = 0.f;
    for (int tile = seen.begin; tile < seen.end; tile++) {
        const int at = 2 * (tile - seen.begin), token = tile * KEYS, last_token = token + KEYS - 1;
        const bool sees = token <= first + 63 && last_token + window > first;
        ring.wait_full(at);
        float s[KEYS / 2];
        if (sees) {
            multiply_keys<T, DK>(s, q, memory.stage(at));
            wait_for_products();
            settle(s);
        }
        if (lane == 0) ring.release(at);
        uint32_t p[KEYS / 16][4];
        if (sees) {
            if (last_token > first || token + window <= first + 63) hide(s, query, token + (lane & 3) * 2, window);
            soften<DV>(s, state, scale_log2);
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) p[n][i] = pack<T>(s[8 * n + 2 * i], s[8 * n + 2 * i + 1]);
            }
        }
        ring.wait_full(at + 1);
        if (token < seen.from || last_token >= seen.to) {
            clean_values<DV>(seen, token, shared + (memory.stage(at + 1) - memory.q));
        }
        if (sees) {
            multiply_values<T, DV>(state, p, memory.stage(at + 1));
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

// A tile of at most 128 queries, the first at `position` of its sequence, with q and out at their rows of one head.
template <typename T, int DK, int DV, typename Source>
__device__ __forceinline__ void attend(const Source& source, T* out, int64_t out_stride, const T* q, int64_t q_stride,
                                       int position, int queries, int window, float scale) {
    using S = Tile<DK>;
    extern __shared__ char unaligned[];
    __shared__ uint64_t barriers[2 * STAGES];
    const uint32_t start = shared_address(unaligned);
    const Memory<DK, DV> memory{(start + 1023) & ~1023u};
    char* shared = unaligned + (memory.q - start);
    const Seen seen(position, queries, window);
    const Ring<STAGES> ring(shared_address(barriers), 1, WARPS);
    if (threadIdx.x < WARPGROUP) {
        keep_registers<40>();
        if (threadIdx.x < 32) copy_all(source, seen, memory, ring);
    } else {
        take_registers<232>();
        const int group = __shfl_sync(~0u, threadIdx.x / WARPGROUP - 1, 0), thread = threadIdx.x % WARPGROUP;
        const int own = group * 64;  // this warpgroup's first query of the tile
        const uint32_t own_q = memory.q + own * 128;
#pragma unroll 4
        for (int i = thread; i < 64 * S::PIECES; i += WARPGROUP) {
            const int row = i / S::PIECES, piece = i % S::PIECES;
            const bool wanted = own + row < queries;
            cp_async(own_q + S::offset(row, piece), q + (wanted ? own + row : 0) * q_stride + piece * 8, wanted);
        }
        cp_async_commit();
        cp_async_wait<0>();
        show_to_products();
        sync_warpgroup(1 + group);
        State<DV> state;
        multiply_all<T>(state, seen, memory, shared, ring, own_q, position + own, window, scale * 1.4426950408889634f);
        sync_warpgroup(1 + group);  // nobody multiplies with q any more
        write<T, DV>(state, shared + own * 128, out + own * out_stride, out_stride, queries - own);
    }
}
