// max_pool2d of packed maps; max_pool2d_float, avg_pool2d and global_avg_pool2d of real ones.
#include <torch/csrc/stable/library.h>

#include "cuda/arguments.cuh"
#include "cuda/launch.cuh"
#include "cuda/operators.cuh"
#include "cuda/pool.cuh"

namespace bnn_ext::cuda {
namespace {

using Integers = std::vector<int64_t>;

// The windows of an NHWC map; `output` is their number.
Window pool_window(const Tensor& input, const Integers& kernel_size, const Integers& stride,
                   const Integers& padding, const Integers& dilation, bool ceil_mode) {
  check_rank("input", input, 4);
  Window window = {};
  window.input = {input.size(1), input.size(2)};
  window.kernel = extent("kernel_size", kernel_size, 1);
  window.stride = extent("stride", stride, 1);
  window.padding = extent("padding", padding, 0);
  window.dilation = extent("dilation", dilation, 1);
  STD_TORCH_CHECK(
      2 * window.padding.y <= window.kernel.y && 2 * window.padding.x <= window.kernel.x,
      "padding must be at most half of kernel_size, found ", window.padding.y, ", ",
      window.padding.x);
  Window roomy = window;  // with ceil_mode a window may stick out by less than a stride
  if (ceil_mode)
    roomy.input = {window.input.y + window.stride.y - 1, window.input.x + window.stride.x - 1};
  check_fits(roomy);
  window.output = {pool_count(window.input.y, window.kernel.y, window.stride.y, window.padding.y,
                              window.dilation.y, ceil_mode),
                   pool_count(window.input.x, window.kernel.x, window.stride.x, window.padding.x,
                              window.dilation.x, ceil_mode)};
  return window;
}

Tensor new_map(const Tensor& input, const Window& window, ScalarType dtype) {
  return new_output(input, {input.size(0), window.output.y, window.output.x}, input.size(3), dtype);
}

template <typename Pooling>
Tensor float_pool(const Tensor& input, const Window& window, const Pooling& pooling) {
  const Tensor x = operand("input", input, ScalarType::Float, input);
  const Tensor output = new_map(x, window, ScalarType::Float);
  const bool vectors = x.size(3) % 4 == 0 && is_aligned(data<float>(x));
  const int64_t items = output.numel() / (vectors ? 4 : 1);
  launch_stream(vectors ? float_pool_kernel<Pooling, 4> : float_pool_kernel<Pooling, 1>, items,
                output, pooling, data<float>(x), window, x.size(3), mutable_data<float>(output),
                items);
  return output;
}

}  // namespace

Tensor max_pool2d(const Tensor& input, const Integers& kernel_size, const Integers& stride,
                  const Integers& padding, const Integers& dilation, bool ceil_mode,
                  const std::optional<Tensor>& minimum) {
  const Window window = pool_window(input, kernel_size, stride, padding, dilation, ceil_mode);
  const Tensor x = operand("input", input, ScalarType::Int, input);
  const int64_t words = x.size(3);
  const auto lowest = vector_operand("minimum", minimum, ScalarType::Int, words, input);
  const Tensor output = new_map(x, window, ScalarType::Int);
  const MaxPool2d pool = {data<Word>(x), data<Word>(lowest), window, words};
  const bool vectors = words % 4 == 0 && is_aligned(pool.input) && is_aligned(pool.minimum);
  const int64_t items = output.numel() / (vectors ? 4 : 1);
  launch_stream(vectors ? max_pool2d_kernel<4> : max_pool2d_kernel<1>, items, output, pool,
                mutable_data<Word>(output), items);
  return output;
}

Tensor max_pool2d_float(const Tensor& input, const Integers& kernel_size, const Integers& stride,
                        const Integers& padding, const Integers& dilation, bool ceil_mode) {
  return float_pool(input, pool_window(input, kernel_size, stride, padding, dilation, ceil_mode),
                    Maximum{});
}

Tensor avg_pool2d(const Tensor& input, const Integers& kernel_size, const Integers& stride,
                  const Integers& padding, bool ceil_mode, bool count_include_pad,
                  const std::optional<int64_t>& divisor_override) {
  STD_TORCH_CHECK(divisor_override.value_or(1) > 0, "divisor_override must be positive, found ",
                  divisor_override.value_or(1));
  return float_pool(input, pool_window(input, kernel_size, stride, padding, {1, 1}, ceil_mode),
                    Average{count_include_pad, divisor_override.value_or(0)});
}

Tensor global_avg_pool2d(const Tensor& input) {
  check_rank("input", input, 4);
  return avg_pool2d(input, {input.size(1), input.size(2)}, /*stride=*/{1, 1}, /*padding=*/{0, 0},
                    /*ceil_mode=*/false, /*count_include_pad=*/true, std::nullopt);
}

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CUDA, m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  m.impl("max_pool2d_float", TORCH_BOX(&max_pool2d_float));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d));
  m.impl("global_avg_pool2d", TORCH_BOX(&global_avg_pool2d));
}

}  // namespace bnn_ext::cuda
