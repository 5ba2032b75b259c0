// Packing of real values and unpacking to ±1: what one CPU level offers.
#pragma once

#include <type_traits>

#include "common/bits.h"

namespace bnn_ext::cpu {

constexpr int64_t kPackLanes = 16;  // values that a level compares at a time

// HalfBits precision as it lies in memory; a level converts it to float on the way.
struct HalfBits {
  static constexpr uint16_t kInfinity = 0x7c00;
  uint16_t bits;
};
struct BFloat16Bits {
  static constexpr uint16_t kInfinity = 0x7f80;
  uint16_t bits;
};

// What values of type T are compared with.
template <typename T>
using ThresholdOf = std::conditional_t<std::is_same_v<T, int32_t>, int32_t, float>;

// A matrix of values to pack. Either the channels of a row are neighbours (as in NHWC), `step`
// leading from row to row, or the rows are (as in NCHW), `step` leading from channel to channel.
template <typename T>
struct PackTile {
  const T* input;
  int64_t rows, channels, step;
  const ThresholdOf<T>* threshold;  // [channels], or null for 0
  const Word* flip;                 // [word_count(channels)], or null for all 0
  Word* out;                        // word_count(channels) for each row
  int64_t out_step;                 // words from row to row
};

// Packs input >= threshold, or input <= threshold where flip is set. No tail bits are set.
template <typename T>
struct PackKernelsOf {
  void (*rows)(const PackTile<T>& tile);     // channels are neighbours
  void (*columns)(const PackTile<T>& tile);  // rows are neighbours
};

struct PackKernels {
  PackKernelsOf<float> float32;
  PackKernelsOf<HalfBits> float16;
  PackKernelsOf<BFloat16Bits> bfloat16;
  PackKernelsOf<int32_t> int32;

  // out[r][i] = bit i of row r ? plus : minus, for [rows][word_count(channels)] words, in values of
  // 8, 16 or 32 bits.
  void (*unpack8)(const Word* words, int64_t rows, int64_t channels, uint8_t plus, uint8_t minus,
                  uint8_t* out);
  void (*unpack16)(const Word* words, int64_t rows, int64_t channels, uint16_t plus, uint16_t minus,
                   uint16_t* out);
  void (*unpack32)(const Word* words, int64_t rows, int64_t channels, uint32_t plus, uint32_t minus,
                   uint32_t* out);
};

}  // namespace bnn_ext::cpu
