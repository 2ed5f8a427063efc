// Copies blocks of the KV cache, and zeroes memory.
#include "lantern.cuh"

// Copies block pairs[2 i] to block pairs[2 i + 1] in every plane (K or V of a layer): a plane holds `blocks` blocks of
// `packs` 16-byte packs, one after another. No block is both read and written, or written twice, in one call; a pair
// with a block outside is passed over. Grid: (pairs, planes). Moves twice the bytes of the blocks.
extern "C" __global__ void __launch_bounds__(256) copy_blocks(uint4* cache, const uint32_t* pairs, int blocks, int packs) {
    after_previous();
    uint32_t from = pairs[2 * blockIdx.x], to = pairs[2 * blockIdx.x + 1];
    if (from >= uint32_t(blocks) || to >= uint32_t(blocks)) return;
    uint4* plane = cache + size_t(blockIdx.y) * blocks * packs;
    const uint4* source = plane + size_t(from) * packs;
    uint4* target = plane + size_t(to) * packs;
#pragma unroll 4
    for (int i = threadIdx.x; i < packs; i += 256) target[i] = source[i];
}

// Zeroes `count` words. Grid: any of 256 threads.
extern "C" __global__ void __launch_bounds__(256) zero_words(uint32_t* x, int count) {
    after_previous();
    for (int i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) x[i] = 0;
}
