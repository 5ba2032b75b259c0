// Dot products of packed words: what one CPU level offers.
//
// Weights come in tiles: blocks of 16 output channels, [block][k][16], one 32-bit word each, so
// that a vector lane is an output channel. An input word is broadcast to all lanes; no sum is ever
// taken across lanes, and a threshold compare yields packed output bits as a mask.
#pragma once

#include "common/bits.h"

namespace bnn_ext::cpu {

constexpr int64_t kBlock = 16;                           // output channels in a block
constexpr int64_t kTileBlocks = 4;                       // blocks in a tile: whole output words
constexpr int64_t kTileChannels = kTileBlocks * kBlock;  // row length of a tile of sums
constexpr int64_t kTileWindows = 32;                     // windows that share a pass over weights

// A few consecutive words of a window that meet as many consecutive weights.
struct Step {
  int64_t input;   // words from the start of the window
  int64_t weight;  // words from the start of the block
};

// sums[window][channel] = k - 2 popcount(window xor weight(channel))
struct DotTile {
  const Word* const* windows;  // where each window starts
  int64_t window_count;        // at most kTileWindows
  const Step* steps;
  int64_t step_count;
  int64_t step_words;    // words in each step: 1, 2 or 4
  const Word* weight;    // first block
  int64_t block_stride;  // words between blocks
  int64_t blocks;        // at most kTileBlocks
  int32_t k;             // real bits in a window
  int32_t* const* sums;  // where those of each window go: kTileChannels, aligned to 64 bytes

  // A large result lies in no cache: so its lines are asked for some time before they are written.
  const char* const* results;  // where those of each window will go, or null
  int64_t result_size;         // bytes per channel

  void prefetch_result(int64_t window, int64_t channel) const {
    __builtin_prefetch(results[window] + channel * result_size, 1);
  }
};

struct DotKernels {
  void (*dot)(const DotTile& tile);

  // Inner steps on registers only, `iterations` times: the level's speed limits. Both return the
  // multiply-accumulates done. `plain` takes every word's xor, popcount and addition by itself.
  int64_t (*register_peak)(int64_t iterations);
  int64_t (*plain_peak)(int64_t iterations);
};

}  // namespace bnn_ext::cpu
