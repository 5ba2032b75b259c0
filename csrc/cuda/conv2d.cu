// conv2d, conv2d_float, conv2d_bits and conv2d_fused: convolutions of packed NHWC maps.
#include <torch/csrc/stable/library.h>

#include "cuda/operators.cuh"
#include "cuda/outputs.cuh"

namespace bnn_ext::cuda {
namespace {

using Integers = std::vector<int64_t>;

Product checked(const Tensor& input, const Tensor& weight, int64_t in_channels,
                const Integers& stride, const Integers& padding, const Integers& dilation,
                int64_t groups, int64_t pad_value, const std::optional<Tensor>& tiles) {
  check_rank("input", input, 4);
  check_rank("weight", weight, 4);
  STD_TORCH_CHECK(groups >= 1 && in_channels % groups == 0 && weight.size(0) % groups == 0,
                  "groups must divide the ", in_channels, " input and ", weight.size(0),
                  " output channels, found ", groups);
  STD_TORCH_CHECK(-1 <= pad_value && pad_value <= 1, "pad_value must be -1, 0 or 1, found ",
                  pad_value);
  const Tensor x = packed_operand("input", input, in_channels, input);
  const Tensor w = packed_operand("weight", weight, in_channels / groups, input);

  const Window window = convolution_window({x.size(1), x.size(2)}, w, stride, padding, dilation);
  const Conv2d conv = {data<Word>(x), data<Word>(w), window,   in_channels,
                       w.size(0),     groups,        pad_value};
  const std::vector<int64_t> sizes = {x.size(0), window.output.y, window.output.x};
  return {conv, product(sizes), sizes, x, w, tiles_operand(tiles, w, input)};
}

}  // namespace

Tensor conv2d(const Tensor& input, const Tensor& weight, int64_t in_channels,
              const Integers& stride, const Integers& padding, const Integers& dilation,
              int64_t groups, int64_t pad_value, const std::optional<Tensor>& tiles) {
  return sums(
      checked(input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles));
}

Tensor conv2d_float(const Tensor& input, const Tensor& weight, int64_t in_channels,
                    const Integers& stride, const Integers& padding, const Integers& dilation,
                    int64_t groups, int64_t pad_value, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& bias, ScalarType dtype,
                    const std::optional<Tensor>& tiles) {
  return floats(
      checked(input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles),
      scale, bias, dtype);
}

Tensor conv2d_bits(const Tensor& input, const Tensor& weight, int64_t in_channels,
                   const Integers& stride, const Integers& padding, const Integers& dilation,
                   int64_t groups, int64_t pad_value, const Tensor& threshold,
                   const std::optional<Tensor>& flip, const std::optional<Tensor>& tiles) {
  return bits(
      checked(input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles),
      threshold, flip);
}

std::vector<Tensor> conv2d_fused(
    const Room& /*room*/, const Tensor& input, const Tensor& weight, int64_t in_channels,
    const Integers& stride, const Integers& padding, const Integers& dilation, int64_t groups,
    int64_t pad_value, const Integers& operations, const std::vector<Tensor>& operands,
    const std::optional<ScalarType>& dtype, const std::optional<Tensor>& threshold,
    const std::optional<Tensor>& flip, const std::optional<Tensor>& tiles) {
  return fused(
      checked(input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles),
      operations, operands, dtype, threshold, flip);
}

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CUDA, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("conv2d_float", TORCH_BOX(&conv2d_float));
  m.impl("conv2d_bits", TORCH_BOX(&conv2d_bits));
  m.impl("conv2d_fused", TORCH_BOX(&WithoutRoom<&conv2d_fused>::call));
}

}  // namespace bnn_ext::cuda
