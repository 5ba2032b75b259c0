// What the pools of packed and of real maps share: the windows of torch's pools.
#pragma once

#include <array>

#include "cpu/operators.h"

namespace bnn_ext::cpu {

struct Axis {
  int64_t size, kernel, stride, padding, dilation, out;

  int64_t at(int64_t o, int64_t tap) const { return o * stride - padding + tap * dilation; }
};

// Height and width of an NHWC map. The wrappers in bnn_ext/ops raise friendlier errors first.
inline std::array<Axis, 2> pool_axes(const Tensor& input, const Pair& kernel_size,
                                     const Pair& stride, const Pair& padding, const Pair& dilation,
                                     bool ceil_mode) {
  STD_TORCH_CHECK(input.dim() == 4, "input must have 4 dimensions");
  check_geometry(kernel_size, "kernel_size");
  check_geometry(stride, "stride");
  check_geometry(padding, "padding");
  check_geometry(dilation, "dilation");
  std::array<Axis, 2> axes;
  for (int i = 0; i < 2; ++i) {
    Axis& axis = axes[i];
    axis = {input.size(1 + i), kernel_size[i], stride[i], padding[i], dilation[i], 0};
    STD_TORCH_CHECK(axis.kernel > 0 && axis.stride > 0 && axis.dilation > 0 && axis.padding >= 0 &&
                        2 * axis.padding <= axis.kernel,
                    "kernel_size, stride and dilation must be positive, padding at most half of "
                    "kernel_size");
    const int64_t room = axis.size + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1 +
                         (ceil_mode ? axis.stride - 1 : 0);
    STD_TORCH_CHECK(axis.size > 0 && room >= 0, "the window does not fit the padded input");
    axis.out = room / axis.stride + 1;
    // torch's rule: the last window starts inside the input or its left padding.
    if (ceil_mode && (axis.out - 1) * axis.stride >= axis.size + axis.padding) --axis.out;
  }
  return axes;
}

}  // namespace bnn_ext::cpu
