// Sums of linear for up to 8 rows: each weight is read once, in accesses of 16 bytes.
//
// A block of 8 warps makes the 32 output channels of a packed word, for all rows. A warp reads the
// weights of 4 of them, its lanes neighbouring words, and keeps 4 sums for each row; the lanes add
// up what they found, and a warp finishes each row with a lane for each channel:
//
//   sum = features - 2 popcount(input xor weight)
#pragma once

#include "cuda/stream.cuh"

namespace bnn_ext::cuda {

constexpr int kGemvRows = 8;
constexpr int kGemvThreads = 256;
constexpr int kGemvChannels = 4;  // of a warp
constexpr int kGemvSharedBytes = kGemvRows * kWordBits * sizeof(int32_t);
static_assert(kGemvThreads / 32 * kGemvChannels == kWordBits, "a block makes one word of bits");
static_assert(kGemvThreads / 32 >= kGemvRows, "a warp finishes a row");

// Adds each of `total` values over the lanes of a warp; lane l returns the sum of values[l %
// total].
template <int total, int count>
__device__ __forceinline__ int32_t add_lanes(const int32_t (&values)[count]) {
  static_assert(total <= 32 && (total & (total - 1)) == 0);
  if constexpr (count == 1) {
    int32_t sum = values[0];
#pragma unroll
    for (int distance = total; distance < 32; distance *= 2)
      sum += static_cast<int32_t>(ptx::shuffle_xor(sum, distance));
    return sum;
  } else {
    // Half of the values go to the other lane, in exchange for the other half of its own.
    constexpr int kHalf = count / 2;
    const bool upper = (ptx::thread_index() & kHalf) != 0;
    int32_t sums[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const int32_t kept = upper ? values[i + kHalf] : values[i];
      const int32_t given = upper ? values[i] : values[i + kHalf];
      sums[i] = kept + static_cast<int32_t>(ptx::shuffle_xor(given, kHalf));
    }
    return add_lanes<total>(sums);
  }
}

// kRows >= rows. kWords of an access are 4 where rows begin at multiples of 16 bytes, else 1.
// Store: called as store(Place, outputs, sum) by whole warps, channels past the end included.
template <int kRows, int kWords, typename Store>
__global__ void __launch_bounds__(kGemvThreads)
    gemv_kernel(const Linear linear, int rows, const Store store) {
  const int warp = ptx::thread_index() / 32, lane = ptx::thread_index() % 32;
  const int64_t words = word_count(linear.features);
  const int64_t first_channel = int64_t{ptx::block_index()} * kWordBits;

  const Word* weight[kGemvChannels];
#pragma unroll
  for (int c = 0; c < kGemvChannels; ++c) {
    const int64_t channel = first_channel + warp * kGemvChannels + c;
    // Those past the end repeat the last one.
    weight[c] = linear.weight + (channel < linear.outputs ? channel : linear.outputs - 1) * words;
  }
  int32_t differences[kRows * kGemvChannels] = {};
  for (int64_t word = lane * kWords; word < words; word += 32 * kWords) {
    Word w[kGemvChannels][kWords];
#pragma unroll
    for (int c = 0; c < kGemvChannels; ++c) load_values(weight[c] + word, w[c]);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row >= rows) continue;
      Word x[kWords];
      load_values(linear.input + row * words + word, x);
#pragma unroll
      for (int c = 0; c < kGemvChannels; ++c)
#pragma unroll
        for (int i = 0; i < kWords; ++i)
          differences[row * kGemvChannels + c] += popcount(x[i] ^ w[c][i]);
    }
  }

  const int32_t total = add_lanes<kRows * kGemvChannels>(differences);
  const ptx::SharedAddress totals = ptx::shared_memory();  // [kRows][32]
  if (lane < kRows * kGemvChannels) {
    const int row = lane / kGemvChannels, channel = warp * kGemvChannels + lane % kGemvChannels;
    ptx::store_shared(totals + (row * 32 + channel) * 4, total);
  }
  ptx::sync_threads();
  if (warp >= rows) return;
  const auto sum = static_cast<int32_t>(
      linear.features - 2 * int64_t{ptx::load_shared<int32_t>(totals + (warp * 32 + lane) * 4)});
  store(Place{warp, first_channel + lane}, linear.outputs, sum);
}

}  // namespace bnn_ext::cuda
