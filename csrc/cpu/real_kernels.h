// Sums of real values, each with the sign of a packed weight: what one CPU level offers.
//
// Inputs go four at a time: a table holds the signed sums of such a quad, and the four weight bits
// of an output channel choose one of them. Weights come in the tiles of dot_kernels.h, a lane being
// an output channel: one permutation of a table by 16 nibbles adds 64 products.
//
//   table[bits] = ((s0 x0 + s1 x1) + s2 x2) + s3 x3,   s = +1 where the bit is set, else -1
//
// A sum adds its quads one after the other in the order of the inputs, at every level: so it is the
// same float at every level, in every batch and with any number of threads. Integers sum exactly.
#pragma once

#include "cpu/dot_kernels.h"

namespace bnn_ext::cpu {

constexpr int64_t kQuad = 4;                       // inputs of a table
constexpr int64_t kWordQuads = kWordBits / kQuad;  // nibbles in a word of weights

constexpr int64_t quad_count(int64_t channels) { return (channels + kQuad - 1) / kQuad; }

// Consecutive tables that meet consecutive weights. Offsets from a window's first table, in values,
// and from the first word of a block.
struct TableTap {
  int64_t tables;
  int64_t weight;
};

// sums[row][channel] = or += the signed sum of window(row) by weight(channel)
template <typename T>
struct SignedSums {
  const T* tables;     // of window 0
  int64_t row_stride;  // values between the tables of neighbouring windows
  const TableTap* taps;
  int64_t tap_count;
  int64_t tap_quads;     // tables in each tap, at least one
  const Word* weight;    // first block
  int64_t block_stride;  // words between blocks
  int64_t rows, blocks;  // at least one
  bool more;             // adds to the sums that are there, not to zeros
  T* sums;               // [rows][16 * blocks]
  int64_t sums_stride;   // values between rows
};

template <typename T>
struct SignedSumKernels {
  // Writes the tables of `pixels` pixels, quad_count(channels) each; the quad at the end takes
  // zeros for channels that there are not.
  void (*make_tables)(const T* input, int64_t channel_step, int64_t channels, int64_t pixel_step,
                      int64_t pixels, T* tables);

  void (*add)(const SignedSums<T>& problem);
};

struct RealKernels {
  int64_t table_size;  // values in a table, aligned to as many; half of the sums may do, since the
                       // others are their negatives
  SignedSumKernels<float> floats;
  SignedSumKernels<int32_t> ints;

  // values = values * scale + bias, each rounded to float; scale and bias may be null.
  void (*finish)(float* values, int64_t n, const float* scale, const float* bias);
};

}  // namespace bnn_ext::cpu
