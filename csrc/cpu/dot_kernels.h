// Dot products of packed words: what one CPU level offers.
//
// Weights come in tiles: blocks of 16 output channels, [block][k][16], one 32-bit word each, so
// that a vector lane is an output channel. An input word is broadcast to all lanes; no sum is ever
// taken across lanes, and a threshold compare yields packed output bits as a mask.
#pragma once

#include "common/bits.h"

namespace bnn_ext::cpu {

constexpr int64_t kBlock = 16;                           // output channels in a block
constexpr int64_t kTileBlocks = 4;                       // blocks in one call: whole output words
constexpr int64_t kTileChannels = kTileBlocks * kBlock;  // row length of a tile of sums

constexpr int64_t kMaxRows = 8;  // no level takes more windows at a time

// Steps after which a 32-bit count cannot have overflowed, whatever the operands: no K gets there.
constexpr int64_t kUnlimited = int64_t{1} << 26;

// A run of consecutive words that meets a run of consecutive weights: for a convolution, one row
// of the kernel. Offsets from a window's first word and from a block's first k.
struct Tap {
  int64_t input;
  int64_t weight;
};

// sums[row][lane] = k - 2 popcount(window(row) xor weight(lane))
struct DotTile {
  const Word* input;   // window of row 0
  int64_t row_stride;  // words between the windows of neighbouring rows
  const Tap* taps;
  int64_t tap_count;
  int64_t tap_words;     // words in each tap
  const Word* weight;    // first block
  int64_t block_stride;  // words between blocks
  int64_t rows;          // at most DotKernels::rows
  int64_t blocks;        // at most kTileBlocks
  int32_t k;             // real bits in a window
  int32_t* sums;         // [rows][kTileChannels]
};

struct DotKernels {
  int64_t rows;  // windows that share one pass over the weights

  void (*dot)(const DotTile& tile);

  // out = sums * scale + bias, each rounded to float; scale and bias may be null.
  void (*to_float)(const int32_t* sums, int64_t n, const float* scale, const float* bias,
                   float* out);

  // The inner step of dot on registers only, `iterations` times: the level's speed limit.
  // Returns the multiply-accumulates done.
  int64_t (*register_peak)(int64_t iterations);
};

}  // namespace bnn_ext::cpu
