// What the kernels share that memory bounds: each operand moves once, in accesses of 16 bytes.
//
// A row of channels is cut into words of 32, and a word into lanes of kValues neighbouring
// channels; a warp holds neighbouring lanes, of one word or of several. The lanes of a row past
// its last channel are idle. With kValues = 1 these are the places of index.cuh.
#pragma once

#include "cuda/index.cuh"
#include "cuda/ptx.cuh"

namespace bnn_ext::cuda {

constexpr int kVectorBytes = 16;
constexpr int kStreamThreads = 256;

// --- vectors ------------------------------------------------------------------------------------

// Neighbouring values in accesses of 16 bytes, or in one if they are fewer bytes; they lie at a
// multiple of that.
template <typename T, int count>
struct Accesses {
  static constexpr int kBytes = sizeof(T) * count < kVectorBytes ? sizeof(T) * count : kVectorBytes;
  static constexpr int kValues = kBytes / sizeof(T);
  static_assert(count % kValues == 0, "whole accesses");
  struct alignas(kBytes) Access {
    T values[kValues];
  };
};

template <typename T, int count>
__device__ __forceinline__ void load_values(const T* from, T (&values)[count]) {
  using All = Accesses<T, count>;
#pragma unroll
  for (int first = 0; first < count; first += All::kValues) {
    const auto access = *reinterpret_cast<const typename All::Access*>(from + first);
#pragma unroll
    for (int i = 0; i < All::kValues; ++i) values[first + i] = access.values[i];
  }
}

template <typename T, int count>
__device__ __forceinline__ void store_values(T* to, const T (&values)[count]) {
  using All = Accesses<T, count>;
#pragma unroll
  for (int first = 0; first < count; first += All::kValues) {
    T access[All::kValues];
#pragma unroll
    for (int i = 0; i < All::kValues; ++i) access[i] = values[first + i];
    ptx::store_vector(to + first, access);
  }
}

// --- places -------------------------------------------------------------------------------------

// Where an item of a matrix of `columns` stands. A thread strides over items by whole grids: the
// division is done once, for its first item and for the stride, and then it counts on.
struct Cursor {
  int64_t row;
  int64_t column;

  BNN_HOST_DEVICE Cursor(int64_t item, int64_t columns)
      : row(item / columns), column(item % columns) {}

  BNN_HOST_DEVICE void advance(const Cursor& stride, int64_t columns) {
    row += stride.row;
    column += stride.column;
    if (column < columns) return;
    column -= columns;
    ++row;
  }
};

// This thread's first item, and how far it is to the next.
__device__ __forceinline__ int64_t first_item() {
  return int64_t{ptx::block_index()} * kStreamThreads + ptx::thread_index();
}
__device__ __forceinline__ int64_t item_stride() {
  return int64_t{ptx::grid_size()} * kStreamThreads;
}

// Whether any lane of this thread's warp has an item: then all stay, to take part in collectives.
__device__ __forceinline__ bool warp_has_items(int64_t item, int64_t count) {
  return item / 32 * 32 < count;
}

template <int kValues>
BNN_HOST_DEVICE constexpr int64_t lane_count(int64_t channels) {
  return word_count(channels) * (kWordBits / kValues);
}

// --- bits ---------------------------------------------------------------------------------------

// The word whose kValues bits from `channel` on are this lane's; every lane of it receives it.
template <int kValues>
__device__ __forceinline__ Word join_bits(Word bits, int64_t channel) {
  Word word = bits << (channel % kWordBits);
#pragma unroll
  for (int distance = 1; distance < kWordBits / kValues; distance *= 2)
    word |= ptx::shuffle_xor(word, distance);
  return word;
}

// Bits of kValues neighbouring channels: value >= threshold or, where the bit of `flip`, which
// begins at the first of them, is set, value <= threshold.
template <typename T, int kValues>
__device__ __forceinline__ Word compare_values(const T (&values)[kValues],
                                               const T (&threshold)[kValues], Word flip) {
  Word bits = 0;
#pragma unroll
  for (int i = 0; i < kValues; ++i)
    bits |= Word{threshold_bit(values[i], threshold[i], (flip >> i & 1) != 0)} << i;
  return bits;
}

}  // namespace bnn_ext::cuda
