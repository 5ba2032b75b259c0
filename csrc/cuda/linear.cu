// linear, linear_float, linear_bits and linear_fused: dot products of packed rows.
#include <torch/csrc/stable/library.h>

#include "cuda/operators.cuh"
#include "cuda/outputs.cuh"

namespace bnn_ext::cuda {
namespace {

Product checked(const Tensor& input, const Tensor& weight, int64_t in_features,
                const std::optional<Tensor>& tiles) {
  check_rank("weight", weight, 2);
  const Tensor x = packed_operand("input", input, in_features, input);
  const Tensor w = packed_operand("weight", weight, in_features, input);
  const Window one_pixel = {{1, 1}, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 1}};
  const Conv2d conv = {data<Word>(x), data<Word>(w), one_pixel, in_features, w.size(0), 1, 0};
  const std::vector<int64_t> sizes = leading_sizes(x);
  return {conv, product(sizes), sizes, x, w, tiles_operand(tiles, w, input)};
}

}  // namespace

Tensor linear(const Tensor& input, const Tensor& weight, int64_t in_features,
              const std::optional<Tensor>& tiles) {
  return sums(checked(input, weight, in_features, tiles));
}

Tensor linear_float(const Tensor& input, const Tensor& weight, int64_t in_features,
                    const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                    ScalarType dtype, const std::optional<Tensor>& tiles) {
  return floats(checked(input, weight, in_features, tiles), scale, bias, dtype);
}

Tensor linear_bits(const Tensor& input, const Tensor& weight, int64_t in_features,
                   const Tensor& threshold, const std::optional<Tensor>& flip,
                   const std::optional<Tensor>& tiles) {
  return bits(checked(input, weight, in_features, tiles), threshold, flip);
}

std::vector<Tensor> linear_fused(const Room& /*room*/, const Tensor& input, const Tensor& weight,
                                 int64_t in_features, const std::vector<int64_t>& operations,
                                 const std::vector<Tensor>& operands,
                                 const std::optional<ScalarType>& dtype,
                                 const std::optional<Tensor>& threshold,
                                 const std::optional<Tensor>& flip,
                                 const std::optional<Tensor>& tiles) {
  return fused(checked(input, weight, in_features, tiles), operations, operands, dtype, threshold,
               flip);
}

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CUDA, m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_float", TORCH_BOX(&linear_float));
  m.impl("linear_bits", TORCH_BOX(&linear_bits));
  m.impl("linear_fused", TORCH_BOX(&WithoutRoom<&linear_fused>::call));
}

}  // namespace bnn_ext::cuda
