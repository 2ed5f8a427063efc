// Hopper's matrix product of a warpgroup (four warps, the first a multiple of four) and what goes with it. For files
// `*_sm90a.cu` alone.
//
// Operands lie in shared memory as rows of 64 elements, 128 bytes, row r's sixteen-byte piece p at place p ^ (r % 8): the
// swizzle of 128 bytes, from a multiple of 1024. Wider rows are panels of 64 columns, one behind the other.
// Source: PTX ISA, asynchronous warpgroup level matrix instructions.
#pragma once

#include "lantern.cuh"

#include <type_traits>

// Describes an operand at `address`. `panel_bytes` from one panel to the next, where the product goes along rows of keys
// (transposed); else it is not read.
__device__ __forceinline__ uint64_t describe(uint32_t address, uint32_t panel_bytes) {
    constexpr uint64_t SWIZZLE_128 = uint64_t(1) << 62, EIGHT_ROWS = uint64_t(1024 >> 4) << 32;
    return SWIZZLE_128 | EIGHT_ROWS | (uint64_t(panel_bytes >> 4) << 16) | ((address & 0x3ffff) >> 4);
}

// Before the first product that reads registers which were written by other instructions.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all products but the last `PENDING` groups. The registers that they write are to be passed to `settle` before
// they are read.
template <int PENDING>
__device__ __forceinline__ void wait_for_products_but() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
__device__ __forceinline__ void wait_for_products() { wait_for_products_but<0>(); }

// Keeps the compiler from using registers before products have ended.
template <int N>
__device__ __forceinline__ void settle(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// The registers of d in a product's text, and as its operands.
#define REGISTERS_32                                                                                                   \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                           \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define REGISTERS_64                                                                                                   \
    REGISTERS_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                   \
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define REGISTERS_128                                                                                                  \
    REGISTERS_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"                                   \
                 "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"                                    \
                 "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"                        \
                 "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define OPERANDS_8(d, i)                                                                                               \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),        \
        "+f"(d[i + 7])
#define OPERANDS_32(d, i) OPERANDS_8(d, i), OPERANDS_8(d, i + 8), OPERANDS_8(d, i + 16), OPERANDS_8(d, i + 24)
#define OPERANDS_64(d, i) OPERANDS_32(d, i), OPERANDS_32(d, i + 32)
#define OPERANDS_128(d, i) OPERANDS_64(d, i), OPERANDS_64(d, i + 64)

// d [64, N] = a [64, 16] b [N, 16]^T, or d + that. The thread of lane 4 g + t of warp w holds of d, for each eight columns,
// row 16 w + g, columns 2t and 2t + 1, then row 16 w + g + 8.
#define MULTIPLY(N, TYPE, REGISTERS, OPERANDS, A, B, ADDS)                                                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADDS ", 0;\n"                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" REGISTERS "}, " A ", " B          \
                 ", p, 1, 1, 0, 0;\n}"                                                                                 \
                 : OPERANDS(d, 0)                                                                                      \
                 : "l"(a), "l"(b), "r"(adds))
template <typename T>
__device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b, int adds) {
    if constexpr (std::is_same_v<T, bf16>) {
        MULTIPLY("128", "bf16", REGISTERS_64, OPERANDS_64, "%64", "%65", "%66");
    } else {
        MULTIPLY("128", "f16", REGISTERS_64, OPERANDS_64, "%64", "%65", "%66");
    }
}
template <typename T>
__device__ __forceinline__ void multiply(float (&d)[128], uint64_t a, uint64_t b, int adds) {
    if constexpr (std::is_same_v<T, bf16>) {
        MULTIPLY("256", "bf16", REGISTERS_128, OPERANDS_128, "%128", "%129", "%130");
    } else {
        MULTIPLY("256", "f16", REGISTERS_128, OPERANDS_128, "%128", "%129", "%130");
    }
}

// d [64, N] += a [64, 16] b [16, N], a in registers as `mma` of attention.cuh has it, b's rows along columns.
#define ADD_PRODUCT(N, TYPE, REGISTERS, OPERANDS, A, B)                                                                \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" REGISTERS "}, {" A "}, " B        \
                 ", 1, 1, 1, 1;"                                                                                       \
                 : OPERANDS(d, 0)                                                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
template <typename T>
__device__ __forceinline__ void add_product(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
    if constexpr (std::is_same_v<T, bf16>) {
        ADD_PRODUCT("128", "bf16", REGISTERS_64, OPERANDS_64, "%64,%65,%66,%67", "%68");
    } else {
        ADD_PRODUCT("128", "f16", REGISTERS_64, OPERANDS_64, "%64,%65,%66,%67", "%68");
    }
}
template <typename T>
__device__ __forceinline__ void add_product(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    if constexpr (std::is_same_v<T, bf16>) {
        ADD_PRODUCT("64", "bf16", REGISTERS_32, OPERANDS_32, "%32,%33,%34,%35", "%36");
    } else {
        ADD_PRODUCT("64", "f16", REGISTERS_32, OPERANDS_32, "%32,%33,%34,%35", "%36");
    }
}

// Barriers in shared memory that count arrivals; `parity` is that of the phase waited for, 0 for the first.

__device__ __forceinline__ void init_barrier(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void wait_for(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Lets copies by the tensor memory accelerator find the barriers that this thread has made.
__device__ __forceinline__ void show_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}
// Arrives, and lets the phase last until `bytes` more have been copied.
__device__ __forceinline__ void expect_bytes(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Stages of shared memory that copies fill and products read in turn. `at` counts what has been copied.
template <int STAGES>
struct Ring {
    uint32_t full, empty;

    // `barriers`: 2 * STAGES. A stage is full when `fillers` have arrived and empty when `readers` have released it.
    __device__ __forceinline__ Ring(uint32_t barriers, int fillers, int readers)
        : full(barriers), empty(barriers + STAGES * 8) {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) {
                init_barrier(full + i * 8, fillers);
                init_barrier(empty + i * 8, readers);
            }
            show_barriers();
        }
        __syncthreads();
    }
    __device__ __forceinline__ uint32_t filled(int at) const { return full + (at % STAGES) * 8; }
    __device__ __forceinline__ void wait_full(int at) const { wait_for(filled(at), (at / STAGES) & 1); }
    __device__ __forceinline__ void wait_empty(int at) const {
        wait_for(empty + (at % STAGES) * 8, ((at / STAGES) & 1) ^ 1);
    }
    __device__ __forceinline__ void release(int at) const { arrive(empty + (at % STAGES) * 8); }
};

// A tensor map as a parameter of a kernel: `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
    char bytes[128];
};
// Copies the box of a map that begins at `row` and `column` to shared memory, whose bytes `barrier` expects.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(&map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// Copies a box of `permuted` rows (maps.rs) of 64 columns, from `row`, a multiple of 32, and `column` on.
__device__ __forceinline__ void copy_permuted(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %3, %3, %4}], "
        "[%5];" ::"r"(to),
        "l"(&map), "r"(column), "r"(0), "r"(row / 32), "r"(barrier)
        : "memory");
}

// Lets products read what this thread has written to shared memory, once a barrier has told the warpgroup of it.
__device__ __forceinline__ void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of one warpgroup, of which `id` is 1 or 2, and of both.
__device__ __forceinline__ void sync_warpgroup(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }
__device__ __forceinline__ void sync_both() { asm volatile("bar.sync 3, 256;" ::: "memory"); }

// Registers that each thread of a warpgroup gives up, or gets.
template <int N>
__device__ __forceinline__ void keep_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
