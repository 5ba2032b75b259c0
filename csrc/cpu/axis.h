// One of the two axes of a convolution.
#pragma once

#include <cstdint>

namespace bnn_ext::cpu {

struct Axis {
  int64_t size, kernel, stride, padding, dilation, out;

  // Where output `o` meets the kernel's tap.
  int64_t at(int64_t o, int64_t tap) const { return o * stride - padding + tap * dilation; }
};

}  // namespace bnn_ext::cpu
