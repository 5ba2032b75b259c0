// Everything that kernels on tensor cores do beyond plain C++: the only file with inline PTX.
//
// tests/cuda_host/cuda/ptx.cuh offers the same functions on the host, so that tests run the very
// source of the kernels there.
#pragma once

#include <cuda_runtime.h>

#include "common/bits.h"

namespace bnn_ext::cuda::ptx {

// Below 9.0 tensor cores count the bits of a xor b; from 9.0 on only those of a and b.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kXor = false;
#else
constexpr bool kXor = true;
#endif

// --- threads ------------------------------------------------------------------------------------

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ unsigned block_index() { return blockIdx.x; }
__device__ __forceinline__ unsigned grid_size() { return gridDim.x; }

__device__ __forceinline__ void sync_threads() { __syncthreads(); }

// Barriers 1...15 of `threads` threads, whole warps; those that only arrive do not wait.
__device__ __forceinline__ void sync_barrier(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive_barrier(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// --- warps --------------------------------------------------------------------------------------

__device__ __forceinline__ void sync_warp() { __syncwarp(); }

__device__ __forceinline__ uint32_t shuffle_xor(uint32_t value, int mask) {
  return __shfl_xor_sync(~0u, value, mask);
}

__device__ __forceinline__ uint32_t ballot(bool bit) { return __ballot_sync(~0u, bit); }

// --- memory -------------------------------------------------------------------------------------

using SharedAddress = uint32_t;  // in bytes

// Where the launch's dynamic shared memory begins; aligned to 1024 bytes.
__device__ __forceinline__ SharedAddress shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return static_cast<SharedAddress>(__cvta_generic_to_shared(memory));
}

// One aligned access of 4, 8 or 16 bytes.
template <typename T>
__device__ __forceinline__ T load_shared(SharedAddress address) {
  return *static_cast<const T*>(__cvta_shared_to_generic(address));
}
template <typename T>
__device__ __forceinline__ void store_shared(SharedAddress address, const T& value) {
  *static_cast<T*>(__cvta_shared_to_generic(address)) = value;
}

// One aligned load of 4, 8 or 16 bytes of global memory.
template <int count>
__device__ __forceinline__ void load_words(const void* from, Word (&words)[count]) {
  struct alignas(sizeof(words)) Vector {
    Word words[count];
  };
  const auto vector = *static_cast<const Vector*>(from);
#pragma unroll
  for (int i = 0; i < count; ++i) words[i] = vector.words[i];
}

// One aligned store of all values to global memory.
template <typename T, int count>
__device__ __forceinline__ void store_vector(T* pointer, const T (&values)[count]) {
  struct alignas(sizeof(values)) Vector {
    T values[count];
  } vector;
#pragma unroll
  for (int i = 0; i < count; ++i) vector.values[i] = values[i];
  *reinterpret_cast<Vector*>(pointer) = vector;
}

// Starts a copy from global memory; zeros in its place, and nothing read, where it is not valid.
// 7.5 copies at once.
template <int bytes>
__device__ __forceinline__ void copy_async(SharedAddress destination, const void* source,
                                           bool valid) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const int read = valid ? bytes : 0;
  if constexpr (bytes == 16)  // past the first cache, which has no use for it
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
                 "r"(read)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(destination), "l"(source),
                 "n"(bytes), "r"(read)
                 : "memory");
#else
  struct alignas(bytes) Chunk {
    Word words[bytes / 4];
  } chunk = {};
  if (valid) chunk = *static_cast<const Chunk*>(source);
  store_shared(destination, chunk);
#endif
}

// Makes a group of the thread's copies since the last one.
__device__ __forceinline__ void copy_async_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the latest `groups` groups of this thread's copies have not ended.
template <int groups>
__device__ __forceinline__ void copy_async_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

// --- tensor cores -------------------------------------------------------------------------------

// Four matrices of 8 rows of 16 bytes: lane l gives the address of row l % 8 of matrix l / 8, and
// receives word l % 4 of row l / 4 of each.
__device__ __forceinline__ void load_matrices(Word (&words)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}

// sums += popcount(a xor b), or of a and b, of 16 rows and 8 columns of 256 bits. With l the lane,
//   a[i]:    row l / 4 + 8 (i % 2), word l % 4 + 4 (i / 2)
//   b[i]:    column l / 4, word l % 4 + 4 i
//   sums[i]: row l / 4 + 8 (i / 2), column 2 (l % 4) + i % 2
template <bool xor_form>
__device__ __forceinline__ void mma(int32_t (&sums)[4], const Word (&a)[4], const Word (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define BNN_MMA(form)                                                         \
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32." form                \
      ".popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])            \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (xor_form)
    BNN_MMA("xor");
  else
    BNN_MMA("and");
#undef BNN_MMA
#else
  // 7.5 has a quarter of it: 8 rows, 8 columns, 128 bits.
  static_assert(xor_form, "7.5 has no and form");
#pragma unroll
  for (int quarter = 0; quarter < 4; ++quarter) {
    const int rows = quarter % 2, half = quarter / 2;
    asm("mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(sums[2 * rows]), "+r"(sums[2 * rows + 1])
        : "r"(a[quarter]), "r"(b[half]));
  }
#endif
}

// --- bytes --------------------------------------------------------------------------------------

// Four bytes, chosen lowest first by four bits each: 0...3 are bytes of `low`, 4...7 of `high`.
__device__ __forceinline__ Word permute_bytes(Word low, Word high, unsigned chosen) {
  return __byte_perm(low, high, chosen);
}

// --- floats, rounded once -----------------------------------------------------------------------

__device__ __forceinline__ float multiply(float x, float y) { return __fmul_rn(x, y); }
__device__ __forceinline__ float add(float x, float y) { return __fadd_rn(x, y); }
__device__ __forceinline__ float multiply_add(float x, float y, float z) {
  return __fmaf_rn(x, y, z);
}
__device__ __forceinline__ float divide(float x, float y) { return __fdiv_rn(x, y); }

}  // namespace bnn_ext::cuda::ptx
