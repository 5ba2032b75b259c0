// The instructions that Hopper alone has (sm_90a): mbarriers, TMA, wgmma, setmaxnreg.
//
// As in ptx.cuh, each function is one instruction, and tests/cuda_host has its twin in plain C++.
//
// Memory is reached through two proxies: TMA and wgmma use the async proxy, loads, stores and
// cp.async the generic one. What TMA wrote may be read through either once its mbarrier's phase is
// over. What a thread wrote through the generic proxy, wgmma sees only if the thread then ran
// fence_proxy_async, after waiting for its copies, and only after that arrived where others wait
// (PTX ISA, "Async proxy"). The other way round reads that have ended need no fence.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/ptx.cuh"

namespace bnn_ext::cuda::ptx {

// --- mbarrier -----------------------------------------------------------------------------------

// 8 bytes of shared memory. A phase ends when all arrivals and all announced bytes have come; the
// next one has the other parity, and the first one has parity 0.
constexpr uint32_t kMbarrierBytes = 8;

// Others may use it once this thread has run fence_proxy_async and met them at a barrier.
__device__ __forceinline__ void mbarrier_init(SharedAddress barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(SharedAddress barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and announces `bytes` that TMA loads will bring within this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(SharedAddress barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Until the phase of this parity is over.
__device__ __forceinline__ void mbarrier_wait(SharedAddress barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred over;\n"
      "wait: mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@!over bra wait;}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- TMA ----------------------------------------------------------------------------------------

using TensorMap = CUtensorMap;

// Loads the box of `map` that begins at element `x` of row `y`; its bytes count in `barrier`.
__device__ __forceinline__ void tma_load_2d(SharedAddress destination, const TensorMap& map,
                                            int32_t x, int32_t y, SharedAddress barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(destination),
      "l"(&map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// --- registers ----------------------------------------------------------------------------------

// The registers of each thread of this warpgroup, from more to fewer; all four warps must call.
template <int kRegisters>
__device__ __forceinline__ void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// From fewer to more: waits until other warpgroups have let go of enough.
template <int kRegisters>
__device__ __forceinline__ void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// --- wgmma --------------------------------------------------------------------------------------

// Before the first wgmma, and after other instructions have touched its sums.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most `kPending` of the committed groups run.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define BNN_SUMS_4(d, t) "+r"(d[t][0]), "+r"(d[t][1]), "+r"(d[t][2]), "+r"(d[t][3])
#define BNN_SUMS_32(d, t)                                                             \
  BNN_SUMS_4(d, t), BNN_SUMS_4(d, t + 1), BNN_SUMS_4(d, t + 2), BNN_SUMS_4(d, t + 3), \
      BNN_SUMS_4(d, t + 4), BNN_SUMS_4(d, t + 5), BNN_SUMS_4(d, t + 6), BNN_SUMS_4(d, t + 7)

#define BNN_NAMES_32                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BNN_NAMES_64                                                                             \
  BNN_NAMES_32                                                                                   \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BNN_NAMES_128                                                                            \
  BNN_NAMES_64                                                                                   \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "   \
  "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, "   \
  "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define BNN_WGMMA(n, sums, a, b, add)      \
  "{.reg .pred add; setp.ne.b32 add, " add \
  ", 0;\n"                                 \
  "wgmma.mma_async.sync.aligned.m64n" #n "k256.s32.b1.b1.and.popc {" sums "}, " a ", " b ", add;}"

// sums = popcount(a & b), or sums += that if `add`, of 64 rows and 64, 128 or 256 columns of 256
// bits; `a` and `b` are matrix descriptors. Begun only: `sums` may be read after a wait. Each warp
// has 16 of the rows, and of these what mma gives:
//   sums[t][i]: row l / 4 + 8 (i / 2), column 8 t + 2 (l % 4) + i % 2
__device__ __forceinline__ void wgmma(int32_t (&sums)[8][4], uint64_t a, uint64_t b, int32_t add) {
  asm volatile(BNN_WGMMA(64, BNN_NAMES_32, "%32", "%33", "%34")
               : BNN_SUMS_32(sums, 0)
               : "l"(a), "l"(b), "r"(add));
}

__device__ __forceinline__ void wgmma(int32_t (&sums)[16][4], uint64_t a, uint64_t b, int32_t add) {
  asm volatile(BNN_WGMMA(128, BNN_NAMES_64, "%64", "%65", "%66")
               : BNN_SUMS_32(sums, 0), BNN_SUMS_32(sums, 8)
               : "l"(a), "l"(b), "r"(add));
}

__device__ __forceinline__ void wgmma(int32_t (&sums)[32][4], uint64_t a, uint64_t b, int32_t add) {
  asm volatile(BNN_WGMMA(256, BNN_NAMES_128, "%128", "%129", "%130")
               : BNN_SUMS_32(sums, 0), BNN_SUMS_32(sums, 8), BNN_SUMS_32(sums, 16),
                 BNN_SUMS_32(sums, 24)
               : "l"(a), "l"(b), "r"(add));
}

#undef BNN_SUMS_4
#undef BNN_SUMS_32
#undef BNN_NAMES_32
#undef BNN_NAMES_64
#undef BNN_NAMES_128
#undef BNN_WGMMA

}  // namespace bnn_ext::cuda::ptx
