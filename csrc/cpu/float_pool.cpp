// Pools of real NHWC maps on the CPU, with the very floats of torch's pools.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/operators.h"
#include "cpu/pool.h"

namespace bnn_ext::cpu {
namespace {

constexpr int64_t kGrain = 1 << 16;  // floats read that are worth a thread

// Where one output's taps lie inside the input.
struct Span {
  int64_t first, taps;
};

Span span_inside(const Axis& axis, int64_t o) {
  const auto taps_below = [&](int64_t position) {  // of the input
    const int64_t room = position - axis.at(o, 0);
    return std::clamp<int64_t>((room + axis.dilation - 1) / axis.dilation, 0, axis.kernel);
  };
  const int64_t outside = taps_below(0);
  return {axis.at(o, outside), taps_below(axis.size) - outside};
}

// Calls `pool(window, y, x, out)` for every output pixel, rows in parallel.
template <typename Pool>
Tensor pool_map(const Tensor& input, const std::array<Axis, 2>& axes, Pool pool) {
  const Tensor source = checked(input, "input", ScalarType::Float);
  const Axis &vertical = axes[0], &horizontal = axes[1];
  const int64_t channels = input.size(3), row_step = horizontal.size * channels;
  const Tensor out =
      new_tensor({input.size(0), vertical.out, horizontal.out, channels}, ScalarType::Float);
  std::vector<Span> columns;
  for (int64_t x = 0; x < horizontal.out; ++x) columns.push_back(span_inside(horizontal, x));

  const float* from = data<float>(source);
  float* to = mutable_data<float>(out);
  const int64_t rows = input.size(0) * vertical.out, row_size = horizontal.out * channels;
  const int64_t work = rows * row_size * vertical.kernel * horizontal.kernel;
  torch::stable::parallel_for(
      0, rows, grain_for(rows, work, kGrain), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t y = row % vertical.out;
          const Span span = span_inside(vertical, y);
          const float* line = from + (row / vertical.out * vertical.size + span.first) * row_step;
          for (int64_t x = 0; x < horizontal.out; ++x) {
            const Window window = {line + columns[x].first * channels, span.taps,
                                   vertical.dilation * row_step, columns[x].taps,
                                   horizontal.dilation * channels};
            pool(window, y, x, to + row * row_size + x * channels);
          }
        }
      });
  return out;
}

// The taps of a window that torch counts with the padding: those up to its end.
int64_t padded_taps(const Axis& axis, int64_t o) {
  return std::min(axis.kernel, axis.size + axis.padding - axis.at(o, 0));
}

}  // namespace

Tensor max_pool2d_float(const Tensor& input, const Pair& kernel_size, const Pair& stride,
                        const Pair& padding, const Pair& dilation, bool ceil_mode) {
  const auto axes = pool_axes(input, kernel_size, stride, padding, dilation, ceil_mode);
  const int64_t channels = input.size(3);
  const auto maximum = kernels().pool.maximum;
  return pool_map(input, axes, [=](const Window& window, int64_t, int64_t, float* out) {
    maximum(window, channels, out);
  });
}

Tensor avg_pool2d(const Tensor& input, const Pair& kernel_size, const Pair& stride,
                  const Pair& padding, bool ceil_mode, bool count_include_pad,
                  const std::optional<int64_t>& divisor_override) {
  STD_TORCH_CHECK(divisor_override.value_or(1) > 0, "divisor_override must be positive");
  const auto axes = pool_axes(input, kernel_size, stride, padding, /*dilation=*/{1, 1}, ceil_mode);
  const int64_t channels = input.size(3);
  const auto average = kernels().pool.average;
  return pool_map(input, axes, [&](const Window& window, int64_t y, int64_t x, float* out) {
    // A window of padding alone gives 0, whatever it is divided by.
    const int64_t taps = std::max<int64_t>(window.rows * window.columns, 1);
    const int64_t counted =
        count_include_pad ? padded_taps(axes[0], y) * padded_taps(axes[1], x) : taps;
    average(window, channels, static_cast<float>(divisor_override.value_or(counted)), out);
  });
}

Tensor global_avg_pool2d(const Tensor& input) {
  STD_TORCH_CHECK(input.dim() == 4, "input must have 4 dimensions");
  return avg_pool2d(input, {input.size(1), input.size(2)}, /*stride=*/{1, 1}, /*padding=*/{0, 0},
                    /*ceil_mode=*/false, /*count_include_pad=*/true, std::nullopt);
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("max_pool2d_float", TORCH_BOX(&bnn_ext::cpu::max_pool2d_float));
  m.impl("avg_pool2d", TORCH_BOX(&bnn_ext::cpu::avg_pool2d));
  m.impl("global_avg_pool2d", TORCH_BOX(&bnn_ext::cpu::global_avg_pool2d));
}
