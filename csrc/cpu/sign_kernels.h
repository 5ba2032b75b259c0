// Signs in training, drawn ones, and the gradients that stand in for theirs: what one CPU level
// offers.
#pragma once

#include <cstdint>

namespace bnn_ext::cpu {

// Numbers that are drawn at a time: more than compilers unroll, which would keep them from vectors.
constexpr int64_t kDrawn = 128;

struct SignKernels {
  // out = x >= 0 ? 1 : -1.
  void (*sign)(const float* x, int64_t count, float* out);

  // out = x > u ? 1 : -1 for u uniform on the 2^24 multiples of 2^-23 in [-1, 1). What is drawn for
  // a value depends on the seed and on its position alone; `first`, of x[0], divides by kDrawn.
  void (*draw)(const float* x, int64_t first, int64_t count, uint64_t seed, float* out);

  // out = |x| <= 1 ? grad : 0.
  void (*straight_through)(const float* x, const float* grad, int64_t count, float* out);

  // out = |x| < 1 ? grad * (2 - 2 |x|) : 0.
  void (*piecewise_quadratic)(const float* x, const float* grad, int64_t count, float* out);
};

}  // namespace bnn_ext::cpu
