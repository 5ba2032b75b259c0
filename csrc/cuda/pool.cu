// max_pool2d: the or of the packed words in each window.
#include <torch/csrc/stable/library.h>

#include "cuda/arguments.cuh"
#include "cuda/launch.cuh"

namespace bnn_ext::cuda {
namespace {

using Integers = std::vector<int64_t>;

Tensor max_pool2d(const Tensor& input, const Integers& kernel_size, const Integers& stride,
                  const Integers& padding, const Integers& dilation, bool ceil_mode,
                  const std::optional<Tensor>& minimum) {
  check_rank("input", input, 4);
  const Tensor x = operand("input", input, ScalarType::Int, input);
  const int64_t words = x.size(3);
  const auto lowest = vector_operand("minimum", minimum, ScalarType::Int, words, input);

  Window window = {};
  window.input = {x.size(1), x.size(2)};
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

  const Tensor output =
      new_output(x, {x.size(0), window.output.y, window.output.x}, words, ScalarType::Int);
  const MaxPool2d operation = {data<Word>(x), data<Word>(lowest), window, words};
  launch(words_kernel<MaxPool2d>, output.numel(), output, operation, mutable_data<Word>(output));
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CUDA, m) { m.impl("max_pool2d", TORCH_BOX(&max_pool2d)); }

}  // namespace bnn_ext::cuda
