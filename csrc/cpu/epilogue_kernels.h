// What becomes of a tile of sums or of real values: what one CPU level offers.
#pragma once

#include "common/steps.h"
#include "cpu/dot_kernels.h"

namespace bnn_ext::cpu {

// A value for each output: [positions, all channels] of `type`.
struct Map {
  const void* values;
  FloatType type;
};

// The operand, if there is one, is a value per output channel or, where `map` has values, a value
// per output.
struct Operand {
  Operation operation;
  const float* channels;  // a whole word's are readable from any on
  const float* addend;    // of kMultiplyAdd, which has no map: like `channels`
  Map map;
};

struct Epilogue {
  Map input;         // what the steps start from where it has values, else the sums of the tile
  int64_t channels;  // of all groups: the length of a row of outputs
  const Operand* operands;
  int64_t operand_count;
  void* floats;  // [positions, channels] of `type`, or null
  FloatType type;
  Word* bits;              // [positions, words] of the values as stored, or null
  const float* threshold;  // a whole word's are readable from any on; used with `bits`
  const Word* flip;        // or null
};

// Integer thresholds: bit = (sum >= threshold) ^ invert.
struct Thresholds {
  const int32_t* threshold;  // readable up to a multiple of kBlock
  const Word* invert;        // tail bits 0
  int64_t channels;
  Word* bits;  // [positions, words]
};

struct SumTile {
  const int32_t* sums;       // [window_count][kTileChannels]; null where an epilogue has an input
  const int64_t* positions;  // output position of each window
  int64_t window_count;
  int64_t first_channel;  // counted over all groups
  int64_t channels;       // at most kTileChannels
};

struct EpilogueKernels {
  void (*floats)(const Epilogue& epilogue, const SumTile& tile);

  // Computes the tile too, so that a level may leave its sums where they are.
  void (*dot_bits)(const Thresholds& thresholds, const DotTile& tile, const SumTile& sums);
};

}  // namespace bnn_ext::cpu
