// Columns in another order: inputs for weights whose columns were sorted, and such weights, made dense, back in their own.
//
// Elements have two bytes; rows are `packs` packs of eight of them. An order, u32 [8 packs], names each column once.
#include "lantern.cuh"

using Values = Pack<uint16_t, 8>;
using Places = Pack<uint32_t, 8>;

// dst[r, c] = src[r, order[c]], read from the cache: for few rows, or wide ones. Grid: (rows, blocks over the row's packs),
// a thread a pack. 4 bytes an element, and 4 of the order.
extern "C" __global__ void __launch_bounds__(256)
    gather_columns(Values* dst, const uint16_t* src, const uint32_t* order, int packs) {
    if (gridDim.x <= FEWEST_ROWS) let_next_begin();
    int pack = blockIdx.y * blockDim.x + threadIdx.x;
    Places from = {};
    if (pack < packs) from = reinterpret_cast<const Places*>(order)[pack];
    after_previous();
    if (pack >= packs) return;
    const uint16_t* row = src + size_t(blockIdx.x) * packs * 8;
    Values out;
#pragma unroll
    for (int i = 0; i < 8; i++) out.at[i] = row[from.at[i]];
    dst[size_t(blockIdx.x) * packs + pack] = out;
}

// The same by way of shared memory, which holds a row. Grid: a block a row.
extern "C" __global__ void __launch_bounds__(256)
    gather_columns_of_rows(Values* dst, const Values* src, const uint32_t* order, int packs) {
    extern __shared__ uint4 shared_row[];
    Values* row = reinterpret_cast<Values*>(shared_row);
    const uint16_t* elements = reinterpret_cast<const uint16_t*>(shared_row);
    after_previous();
    size_t first = size_t(blockIdx.x) * packs;
    for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) row[pack] = src[first + pack];
    __syncthreads();
    for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
        Places from = reinterpret_cast<const Places*>(order)[pack];
        Values out;
#pragma unroll
        for (int i = 0; i < 8; i++) out.at[i] = elements[from.at[i]];
        dst[first + pack] = out;
    }
}

// x[r, order[c]] = x[r, c], in place, by way of shared memory, which holds a row. Grid: a block a row. 4 bytes an element,
// and 4 of the order from the cache.
extern "C" __global__ void __launch_bounds__(256) scatter_columns(Values* x, const uint32_t* order, int packs) {
    extern __shared__ uint4 shared_row[];
    const Values* row = reinterpret_cast<const Values*>(shared_row);
    uint16_t* elements = reinterpret_cast<uint16_t*>(shared_row);
    after_previous();
    size_t first = size_t(blockIdx.x) * packs;
    for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
        Values in = x[first + pack];
        Places to = reinterpret_cast<const Places*>(order)[pack];
#pragma unroll
        for (int i = 0; i < 8; i++) elements[to.at[i]] = in.at[i];
    }
    __syncthreads();
    for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) x[first + pack] = row[pack];
}
