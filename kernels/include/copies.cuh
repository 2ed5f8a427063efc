// Copies to shared memory that go on while the thread computes, of zeros where `there` is false: nothing is read then. What
// `cp_async_wait` has waited for, the thread that asked for it sees; others do after a barrier.
#pragma once

#include "lantern.cuh"

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

// 16 bytes past the L1 cache, of a row whose next pieces are read too.
__device__ __forceinline__ void cp_async_once(uint32_t to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

// 16 bytes past the L1 cache.
__device__ __forceinline__ void cp_async(uint32_t to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// 8 bytes, through the L1 cache.
__device__ __forceinline__ void cp_async_half(uint32_t to, const void* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(there ? 8 : 0) : "memory");
}

// 16 bytes through the L1 cache, for what another block of the multiprocessor reads soon.
__device__ __forceinline__ void cp_async_cached(uint32_t to, const void* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the newest `PENDING` groups are under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
