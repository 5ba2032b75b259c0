// The table that corrects sums for padding (Correction in epilogue.cuh), what tile_weight gives on
// CUDA: popcounts[y][x][channel] of a weight over the taps 0...y x 0...x.
#pragma once

#include "cuda/index.cuh"
#include "cuda/ptx.cuh"

namespace bnn_ext::cuda {

struct PopcountTable {
  static constexpr int kThreads = 128;

  const Word* weight;  // [outputs][kernel_y][kernel_x][tap_words]
  int32_t* popcounts;  // [kernel_y][kernel_x][outputs]
  int64_t outputs;
  int64_t kernel_y;
  int64_t kernel_x;
  int64_t tap_words;
};

inline unsigned block_count(const PopcountTable& table) {
  constexpr int64_t most = int64_t{1} << 30, warps = PopcountTable::kThreads / 32;
  const int64_t blocks = (table.outputs + warps - 1) / warps;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

// A warp computes the popcounts of a channel; its first lane reads again what it has written.
__device__ __forceinline__ void fill(const PopcountTable& table) {
  constexpr int warps = PopcountTable::kThreads / 32;
  const int lane = ptx::thread_index() % 32;
  const int64_t first = int64_t{ptx::block_index()} * warps + ptx::thread_index() / 32;
  for (int64_t channel = first; channel < table.outputs;
       channel += int64_t{ptx::grid_size()} * warps) {
    const Word* words = table.weight + channel * table.kernel_y * table.kernel_x * table.tap_words;
    int32_t* popcounts = table.popcounts + channel;
    for (int64_t y = 0; y < table.kernel_y; ++y) {
      int32_t line = 0;  // of the taps 0...x of this line
      for (int64_t x = 0; x < table.kernel_x; ++x, words += table.tap_words) {
        int32_t own = 0;
        for (int64_t i = lane; i < table.tap_words; i += 32) own += popcount(words[i]);
        for (int mask = 1; mask < 32; mask *= 2) own += ptx::shuffle_xor(own, mask);
        line += own;
        int32_t* place = popcounts + (y * table.kernel_x + x) * table.outputs;
        if (lane == 0) *place = line + (y > 0 ? place[-table.kernel_x * table.outputs] : 0);
      }
    }
  }
}

}  // namespace bnn_ext::cuda
