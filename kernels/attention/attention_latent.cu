// Attention of queries over latents that serve all heads as keys and values (multi-head latent attention, absorbed form).
// Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.
//
// q [tokens, heads, 576]: what a head's query makes of the key matrix in 512 elements, then 64 rotated ones. The cache of a
// layer: latents [blocks][16 slots][576], of which the first 512 elements are the value too. out [tokens, heads, 512].
// Other arrays as the other attention kernels have them: decode takes rows of one query in chunks of their context, as
// attention_decode.cu says, with 512 + 4 floats a partial, and leaves it to merge to make one of them, for partials are a
// good part of what is read; prefill takes tiles of tile_queries queries of rows of several, causal.
//
// Queries and heads are one list of rows, head fastest: a block takes ROWS (16 or 32) neighbours of it, for the latents that
// they see are almost the same. 128 threads walk over cache blocks, which arrive by asynchronous copies two or three ahead. A warp
// multiplies a quarter of the 576 elements (every fourth sixteen), its q in registers; the quarters are added in shared
// memory, where the softmax is taken once; then a warp sums the weighted values of a quarter of the 512 elements.
//
// Grid: decode any, merge (rows, heads), prefill n * ceil(tile_queries * heads / ROWS). Cost: 2176 flops a query, head and
// visible token; for few heads the bytes of the latents, 1152 a token.
#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;
constexpr int LATENT = 512;
static_assert(THREADS * 4 == LATENT, "merge takes four elements a thread");
constexpr int WIDTH = 576;
constexpr int ROW_BYTES = WIDTH * 2;
constexpr int STAGE_BYTES = BLOCK_TOKENS * ROW_BYTES;
constexpr int STEPS = WIDTH / 16 / WARPS;      // products of a warp over the elements of a latent
constexpr int PAIRS = LATENT / 16 / WARPS;     // sixteens of elements that a warp sums

// Stages of the ring of cache blocks: as many blocks as registers allow fit a multiprocessor.
template <int ROWS>
constexpr int STAGES = ROWS == 16 ? 3 : 4;

// What follows the stages in shared memory: for ROWS rows.
template <int ROWS>
struct Shared {
    float scores[WARPS][ROWS * BLOCK_TOKENS];
    uint16_t weights[ROWS][BLOCK_TOKENS];
    float shrink[ROWS];
    float highest[ROWS];
    float sum[ROWS];
};

// Rows of the list that a block works on.
template <typename T>
struct Work {
    const T* q;             // of the first row; the others follow
    int rows;               // that there are, of ROWS
    const T* latents;
    const uint32_t* table;
    int from, to;           // tokens that are walked; `from` is a multiple of 16
    int limit;              // tokens that this thread's row sees: those below
    float scale_log2;
};

// Of a thread: o of rows g and g + 8 of each sixteen rows, elements 64 j + 16 warp + 8 n + 2t and the next.
template <int ROWS>
using Sums = float[ROWS / 16][PAIRS][2][4];

// Pieces of a row are permuted by the row's number, for rows r .. r + 7 of one piece to fall into different banks: a row is
// nine times all banks long. Pieces a multiple of 8 apart stay that far apart.
__device__ __forceinline__ uint32_t offset(int row, int piece) { return row * ROW_BYTES + (piece ^ (row & 7)) * 16; }

// Starts copying a cache block: eight threads a token.
template <typename T>
__device__ __forceinline__ void copy_block(const Work<T>& work, int block, uint32_t id, uint32_t stage) {
    const int key = threadIdx.x >> 3, piece = threadIdx.x & 7;
    // Latents that none sees become zeros: what lies there may be no number.
    const bool wanted = block * BLOCK_TOKENS + key < work.to;
    const T* from = work.latents + (int64_t(id) * BLOCK_TOKENS + key) * WIDTH + piece * 8;
    const uint32_t to = stage + offset(key, piece);
#pragma unroll
    for (int i = 0; i < WIDTH / 64; i++) cp_async(to + i * 128, from + i * 64, wanted);
}

// This warp's quarter of q as operands; q goes by way of the stages from `memory` on.
template <typename T, int ROWS>
__device__ __forceinline__ void load_q(uint32_t (&q)[ROWS / 16][STEPS][4], uint32_t memory) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
    for (int m = 0; m < ROWS / 16; m++) {
#pragma unroll
        for (int n = 0; n < STEPS; n++) {
            load_matrices(q[m][n], memory + offset(m * 16 + (lane & 15), 2 * warp + (lane >> 4)) + n * 128);
        }
    }
}

template <typename T, int ROWS>
__device__ __forceinline__ void copy_q(const Work<T>& work, uint32_t memory) {
#pragma unroll
    for (int r = 0; r < ROWS; r += THREADS / 8) {
        const int row = r + (threadIdx.x >> 3), piece = threadIdx.x & 7;
        const bool wanted = row < work.rows;
        const T* from = work.q + int64_t(wanted ? row : 0) * WIDTH + piece * 8;
#pragma unroll
        for (int i = 0; i < WIDTH / 64; i++) cp_async(memory + offset(row, piece) + i * 128, from + i * 64, wanted);
    }
}

// Where column `column` (even) of a row of scores lies: rows g of a product and rows that are read together fall into
// different banks.
__device__ __forceinline__ int score_at(int row, int column) {
    return row * BLOCK_TOKENS + ((column >> 2) ^ (row & 2)) * 4 + (column & 3);
}

// This warp's part of the scores of a block's tokens.
template <typename T, int ROWS>
__device__ __forceinline__ void multiply_keys(float* scores, const uint32_t (&q)[ROWS / 16][STEPS][4], uint32_t stage) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const uint32_t from = stage + offset((lane & 7) + (lane >> 4) * 8, 2 * warp + ((lane >> 3) & 1));
    float s[ROWS / 16][2][4] = {};
#pragma unroll
    for (int n = 0; n < STEPS; n++) {
        uint32_t b[4];
        load_matrices(b, from + n * 128);
#pragma unroll
        for (int m = 0; m < ROWS / 16; m++) {
            mma<T>(s[m][0], q[m][n][0], q[m][n][1], q[m][n][2], q[m][n][3], b[0], b[1]);
            mma<T>(s[m][1], q[m][n][0], q[m][n][1], q[m][n][2], q[m][n][3], b[2], b[3]);
        }
    }
#pragma unroll
    for (int m = 0; m < ROWS / 16; m++) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                *reinterpret_cast<float2*>(scores + score_at(m * 16 + r * 8 + g, n * 8 + 2 * t)) =
                    make_float2(s[m][n][2 * r], s[m][n][2 * r + 1]);
            }
        }
    }
}

// Turns the scores of this thread's row and few of the tokens into weights relative to the row's highest score so far.
template <typename T, int ROWS>
__device__ __forceinline__ void soften(Shared<ROWS>& shared, const Work<T>& work, int token, float& highest, float& sum) {
    constexpr int EACH = ROWS / 8, LANES = BLOCK_TOKENS / EACH;  // scores of a thread, threads of a row
    const int row = threadIdx.x / LANES, column = threadIdx.x % LANES * EACH;
    float s[EACH] = {};
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
#pragma unroll
        for (int i = 0; i < EACH; i += 2) {
            const float2 part = *reinterpret_cast<const float2*>(&shared.scores[w][score_at(row, column + i)]);
            s[i] += part.x, s[i + 1] += part.y;
        }
    }
    float most = highest;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        if (token + column + i >= work.limit) s[i] = NOTHING;
        most = fmaxf(most, s[i]);
    }
#pragma unroll
    for (int lane = 1; lane < LANES; lane <<= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, lane));
    // A row may see none of the tokens so far: infinity minus infinity would be no number. A block of which a row sees
    // nothing shrinks by exactly 1, so that its bits do not depend on the rows beside it.
    const float base = most == NOTHING ? 0.f : most * work.scale_log2;
    const float shrink = most == NOTHING ? 1.f : fast_exp2((highest - most) * work.scale_log2);
    highest = most;
    sum *= shrink;
#pragma unroll
    for (int i = 0; i < EACH; i += 2) {
        const float low = fast_exp2(fmaf(s[i], work.scale_log2, -base));
        const float high = fast_exp2(fmaf(s[i + 1], work.scale_log2, -base));
        sum += low + high;
        *reinterpret_cast<uint32_t*>(&shared.weights[row][column + i]) = pack<T>(low, high);
    }
    if (column == 0) shared.shrink[row] = shrink;
}

// Adds the weighted values of a block.
template <typename T, int ROWS>
__device__ __forceinline__ void multiply_values(Sums<ROWS>& o, const Shared<ROWS>& shared, uint32_t stage) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2;
    const uint32_t from = stage + offset(lane & 15, 2 * warp + (lane >> 4));
    uint32_t p[ROWS / 16][4];
#pragma unroll
    for (int m = 0; m < ROWS / 16; m++) {
        load_matrices(p[m], shared_address(&shared.weights[m * 16 + (lane & 15)][(lane >> 4) * 8]));
        const float low = shared.shrink[m * 16 + g], high = shared.shrink[m * 16 + g + 8];
        if (__any_sync(~0u, low != 1.f || high != 1.f)) {
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    o[m][j][n][0] *= low, o[m][j][n][1] *= low;
                    o[m][j][n][2] *= high, o[m][j][n][3] *= high;
                }
            }
        }
    }
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        uint32_t b[4];
        load_transposed(b, from + j * 128);
#pragma unroll
        for (int m = 0; m < ROWS / 16; m++) {
            mma<T>(o[m][j][0], p[m][0], p[m][1], p[m][2], p[m][3], b[0], b[1]);
            mma<T>(o[m][j][1], p[m][0], p[m][1], p[m][2], p[m][3], b[2], b[3]);
        }
    }
}

// Leaves o of the rows, unscaled, in `o`; each row's highest score (in log2) and sum of weights in `shared`.
template <typename T, int ROWS>
__device__ __forceinline__ void attend(Sums<ROWS>& o, char* memory, Shared<ROWS>& shared, const Work<T>& work) {
    constexpr int EACH = ROWS / 8, LANES = BLOCK_TOKENS / EACH;
    const uint32_t base = shared_address(memory);
    int block = work.from / BLOCK_TOKENS;
    const int end = (work.to + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    auto id_of = [&](int at) { return work.table[min(at, end - 1)]; };

    // q goes by way of the last stages.
    constexpr int AHEAD = STAGES<ROWS> - 1;
    uint32_t ids[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) ids[i] = id_of(block + i);
    copy_q<T, ROWS>(work, base + 2 * STAGE_BYTES);
    copy_block(work, block, ids[0], base);
    cp_async_commit();
    if (block + 1 < end) copy_block(work, block + 1, ids[1], base + STAGE_BYTES);
    cp_async_commit();
    uint32_t id = id_of(block + AHEAD);
    cp_async_wait<1>();
    __syncthreads();
    uint32_t q[ROWS / 16][STEPS][4];
    load_q<T, ROWS>(q, base + 2 * STAGE_BYTES);
    if constexpr (AHEAD == 3) {
        __syncthreads();
        if (block + 2 < end) copy_block(work, block + 2, ids[2], base + 2 * STAGE_BYTES);
        cp_async_commit();
    }

#pragma unroll
    for (int m = 0; m < ROWS / 16; m++) {
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
#pragma unroll
            for (int n = 0; n < 2; n++) o[m][j][n][0] = o[m][j][n][1] = o[m][j][n][2] = o[m][j][n][3] = 0.f;
        }
    }
    float highest = NOTHING, sum = 0.f;
    uint32_t stage = base, free_stage = base + AHEAD * STAGE_BYTES;
    for (; block < end; block++) {
        // This block is here, and everyone is done with the last one, whose stage is copied to.
        cp_async_wait<AHEAD - 1>();
        __syncthreads();
        if (block + AHEAD < end) copy_block(work, block + AHEAD, id, free_stage);
        cp_async_commit();
        id = id_of(block + AHEAD + 1);
        multiply_keys<T, ROWS>(shared.scores[threadIdx.x >> 5], q, stage);
        __syncthreads();
        soften<T, ROWS>(shared, work, block * BLOCK_TOKENS, highest, sum);
        __syncthreads();
        multiply_values<T, ROWS>(o, shared, stage);
        free_stage = stage;
        stage = stage == base + AHEAD * STAGE_BYTES ? base : stage + STAGE_BYTES;
    }
    cp_async_wait<0>();
#pragma unroll
    for (int lane = 1; lane < LANES; lane <<= 1) sum += __shfl_xor_sync(~0u, sum, lane);
    if (threadIdx.x % LANES == 0) {
        shared.highest[threadIdx.x / LANES] = highest * work.scale_log2;
        shared.sum[threadIdx.x / LANES] = sum;
    }
    __syncthreads();
}

// Calls `put(row, element, low, high)` for each two elements of this thread's of rows that there are.
template <int ROWS, typename Put>
__device__ __forceinline__ void each_pair(const Sums<ROWS>& o, int rows, Put put) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int m = 0; m < ROWS / 16; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = m * 16 + r * 8 + g;
            if (row >= rows) continue;
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    put(row, 64 * j + 16 * warp + 8 * n + 2 * t, o[m][j][n][2 * r], o[m][j][n][2 * r + 1]);
                }
            }
        }
    }
}

template <typename T, int ROWS>
__device__ __forceinline__ void write_rows(const Sums<ROWS>& o, const Shared<ROWS>& shared, int rows, T* out) {
    each_pair<ROWS>(o, rows, [&](int row, int element, float low, float high) {
        const float inverse = 1.f / shared.sum[row];
        *reinterpret_cast<uint32_t*>(out + int64_t(row) * LATENT + element) = pack<T>(low * inverse, high * inverse);
    });
}

template <int ROWS>
__device__ __forceinline__ void write_partials(const Sums<ROWS>& o, const Shared<ROWS>& shared, int rows, float* partials) {
    each_pair<ROWS>(o, rows, [&](int row, int element, float low, float high) {
        *reinterpret_cast<float2*>(partials + row * (LATENT + 4) + element) = make_float2(low, high);
    });
    const int row = threadIdx.x;
    if (row < rows) {
        *reinterpret_cast<float2*>(partials + row * (LATENT + 4) + LATENT) =
            make_float2(shared.highest[row], shared.sum[row]);
    }
}

template <typename T, int ROWS>
__device__ __forceinline__ void latent_decode(T* out, float* partials, const T* q, const T* latents,
                                              const uint32_t* cu_seqlens_q, const uint32_t* context_lens,
                                              const uint32_t* block_tables, const uint32_t* table_offsets,
                                              const uint2* items, const uint32_t* first_item, const uint32_t* item_count,
                                              int heads, float scale) {
    extern __shared__ __align__(128) char memory[];
    Shared<ROWS>& shared = *reinterpret_cast<Shared<ROWS>*>(memory + STAGES<ROWS> * STAGE_BYTES);
    const int tiles = (heads + ROWS - 1) / ROWS;
    const int64_t item_stride = int64_t(heads) * (LATENT + 4);
    const uint32_t count = *item_count * tiles;
    for (uint32_t i = blockIdx.x; i < count; i += gridDim.x) {
        const int tile = i % tiles, index = items[i / tiles].x, chunk = items[i / tiles].y, head = tile * ROWS;
        const int context = context_lens[index], tokens = chunk_tokens(context);
        const int chunks = (context + tokens - 1) / tokens;
        const int64_t row = int64_t(cu_seqlens_q[index]) * heads + head;
        Work<T> work;
        work.q = q + row * WIDTH;
        work.rows = min(ROWS, heads - head);
        work.latents = latents;
        work.table = block_tables + table_offsets[index];
        work.from = chunk * tokens;
        work.to = work.limit = min((chunk + 1) * tokens, context);
        work.scale_log2 = scale * 1.4426950408889634f;
        Sums<ROWS> o;
        attend<T, ROWS>(o, memory, shared, work);
        if (chunks == 1) {
            write_rows<T, ROWS>(o, shared, work.rows, out + row * LATENT);
        } else {
            float* row_partials = partials + first_item[index] * item_stride + int64_t(head) * (LATENT + 4);
            write_partials<ROWS>(o, shared, work.rows, row_partials + chunk * item_stride);
        }
        __syncthreads();  // the next item writes `memory`
    }
}

// The partials of all of a row's chunks as its result, in the order of the chunks, where there are several.
template <typename T>
__device__ __forceinline__ void latent_merge(T* out, const float* partials, const uint32_t* cu_seqlens_q,
                                             const uint32_t* context_lens, const uint32_t* first_item) {
    const int index = blockIdx.x, head = blockIdx.y, heads = gridDim.y, lane = threadIdx.x & 31;
    const int context = context_lens[index], tokens = chunk_tokens(context);
    const int64_t token = cu_seqlens_q[index];
    if (cu_seqlens_q[index + 1] - token != 1 || context <= tokens) return;
    const int chunks = (context + tokens - 1) / tokens;
    const int64_t stride = int64_t(heads) * (LATENT + 4);
    const float* from = partials + first_item[index] * stride + int64_t(head) * (LATENT + 4);
    float2 ml = make_float2(NOTHING, 0.f);
    if (lane < chunks) ml = *reinterpret_cast<const float2*>(from + lane * stride + LATENT);
    float share = weight(ml.x, warp_max(ml.x));
    share /= warp_sum(share * ml.y);
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (int chunk = 0; chunk < chunks; chunk++) {
        const float w = __shfl_sync(~0u, share, chunk);
        const float4 o = *reinterpret_cast<const float4*>(from + chunk * stride + threadIdx.x * 4);
        sum = make_float4(sum.x + w * o.x, sum.y + w * o.y, sum.z + w * o.z, sum.w + w * o.w);
    }
    store4(out + (token * heads + head) * LATENT + threadIdx.x * 4, sum);
}

template <typename T, int ROWS>
__device__ __forceinline__ void latent_prefill(T* out, const T* q, const T* latents, const uint32_t* cu_seqlens_q,
                                               const uint32_t* context_lens, const uint32_t* block_tables,
                                               const uint32_t* table_offsets, const uint4* tiles, int tile_queries,
                                               int heads, float scale) {
    extern __shared__ __align__(128) char memory[];
    Shared<ROWS>& shared = *reinterpret_cast<Shared<ROWS>*>(memory + STAGES<ROWS> * STAGE_BYTES);
    const int parts = (tile_queries * heads + ROWS - 1) / ROWS;
    const uint4 tile = tiles[blockIdx.x / parts];  // never of several parts
    if (tile.x == ~0u) return;  // fills a recorded grid
    const int first_token = cu_seqlens_q[tile.x], q_len = int(cu_seqlens_q[tile.x + 1]) - first_token;
    // The part of the tile that sees most comes first.
    const int first = int(tile.y) * heads + (parts - 1 - blockIdx.x % parts) * ROWS;
    const int rows = min(ROWS, min(q_len, int(tile.y) + tile_queries) * heads - first);
    if (rows <= 0) return;
    const int before = int(context_lens[tile.x]) - q_len;  // position of the row's first query
    Work<T> work;
    work.q = q + (int64_t(first_token) * heads + first) * WIDTH;
    work.rows = rows;
    work.latents = latents;
    work.table = block_tables + table_offsets[tile.x];
    work.from = 0;
    work.to = before + (first + rows - 1) / heads + 1;
    work.limit = before + (first + min(int(threadIdx.x) / (THREADS / ROWS), rows - 1)) / heads + 1;
    work.scale_log2 = scale * 1.4426950408889634f;
    Sums<ROWS> o;
    attend<T, ROWS>(o, memory, shared, work);
    write_rows<T, ROWS>(o, shared, rows, out + (int64_t(first_token) * heads + first) * LATENT);
}

#define DECODE(T, ROWS)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, ROWS == 16 ? 3 : 2) attention_latent_decode##ROWS##_##T(                      \
        T* out, float* partials, const T* q, const T* latents, const uint32_t* cu_seqlens_q,                           \
        const uint32_t* context_lens, const uint32_t* block_tables, const uint32_t* table_offsets, const uint2* items, \
        const uint32_t* first_item, const uint32_t* item_count, int heads, float scale) {                              \
        after_previous();                                                                                              \
        latent_decode<T, ROWS>(out, partials, q, latents, cu_seqlens_q, context_lens, block_tables, table_offsets,     \
                               items, first_item, item_count, heads, scale);                            \
    }

#define PREFILL(T, ROWS)                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_latent_prefill##ROWS##_##T(                     \
        T* out, const T* q, const T* latents, const uint32_t* cu_seqlens_q, const uint32_t* context_lens,              \
        const uint32_t* block_tables, const uint32_t* table_offsets, const uint4* tiles, int tile_queries, int heads,  \
        float scale) {                                                                                                 \
        after_previous();                                                                                              \
        latent_prefill<T, ROWS>(out, q, latents, cu_seqlens_q, context_lens, block_tables, table_offsets, tiles,       \
                                tile_queries, heads, scale);                                                           \
    }

#define MERGE(T)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_latent_merge_##T(                                  \
        T* out, const float* partials, const uint32_t* cu_seqlens_q, const uint32_t* context_lens,                     \
        const uint32_t* first_item) {                                                                                  \
        after_previous();                                                                                              \
        latent_merge<T>(out, partials, cu_seqlens_q, context_lens, first_item);                                        \
    }

#define LATENT_ATTENTION(T) \
    DECODE(T, 16)           \
    DECODE(T, 32)           \
    MERGE(T)                \
    PREFILL(T, 32)

LATENT_ATTENTION(bf16)
LATENT_ATTENTION(f16)
