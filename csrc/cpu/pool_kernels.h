// Pools of real maps: what one CPU level offers.
#pragma once

#include <cstdint>

namespace bnn_ext::cpu {

// The pixels of one window that lie inside the map; steps are in floats.
struct Window {
  const float* first;
  int64_t rows, row_step, columns, column_step;
};

struct PoolKernels {
  // out[channel] = the greatest value in the window: NaN if there is one (the last of several),
  // the first of equal zeros, -infinity of none.
  void (*maximum)(const Window& window, int64_t channels, float* out);
  // out[channel] = the sum over the window, row after row, divided by `divisor`.
  void (*average)(const Window& window, int64_t channels, float divisor, float* out);
};

}  // namespace bnn_ext::cpu
