// What one CPU level offers: raw pointers in, raw pointers out, no tensors, no threads.
//
// Weights come in tiles: blocks of 16 output channels, [block][k][16], one 32-bit word each, so
// that a vector lane is an output channel. An input word is broadcast to all lanes; no sum is ever
// taken across lanes, and a threshold compare yields packed output bits as a mask.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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
  int64_t rows;          // at most Kernels::rows
  int64_t blocks;        // at most kTileBlocks
  int32_t k;             // real bits in a window
  int32_t* sums;         // [rows][kTileChannels]
};

struct Kernels {
  const char* name;
  int64_t rows;  // windows that share one pass over the weights

  void (*dot)(const DotTile& tile);

  // out = sums * scale + bias, each rounded to float; scale and bias may be null.
  void (*to_float)(const int32_t* sums, int64_t n, const float* scale, const float* bias,
                   float* out);

  // Packs n comparisons x >= threshold (<= where flip is set). A null threshold is 0, a null flip
  // all 0. Writes word_count(n) words with zero tail bits.
  void (*compare_float)(const float* x, int64_t n, const float* threshold, const Word* flip,
                        Word* out);
  void (*compare_int)(const int32_t* x, int64_t n, const int32_t* threshold, const Word* flip,
                      Word* out);

  // The same for channels that lie apart, as in NCHW: one word of up to 32 `channels` for each of
  // `pixels` neighbouring values, `below` being that word of flip.
  void (*compare_columns_float)(const float* x, int64_t channel_step, int64_t pixels,
                                int64_t channels, const float* threshold, Word below, Word* out,
                                int64_t out_step);
  void (*compare_columns_int)(const int32_t* x, int64_t channel_step, int64_t pixels,
                              int64_t channels, const int32_t* threshold, Word below, Word* out,
                              int64_t out_step);

  // The inner step of dot on registers only, `iterations` times: the level's speed limit.
  // Returns the multiply-accumulates done.
  int64_t (*register_peak)(int64_t iterations);
};

extern const Kernels kKernelsGeneric;
#if defined(__x86_64__)
extern const Kernels kKernelsPopcnt;
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;
extern const Kernels kKernelsAvx512Vpopcnt;
#endif

// dispatch.cpp: the level in use, chosen once: the best that this CPU runs, or the one that the
// environment variable BNN_EXT_CPU_CAPABILITY names.
const Kernels& kernels();
std::vector<std::string> supported_levels();  // slowest first
void set_level(const std::string& name);      // throws std::invalid_argument

}  // namespace bnn_ext::cpu
