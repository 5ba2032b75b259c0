// linear, linear_float and linear_bits: dot products of packed rows. CUDA reads the weight itself;
// `tiles` is for the CPU.
#include <torch/csrc/stable/library.h>

#include "cuda/outputs.cuh"

namespace bnn_ext::cuda {
namespace {

Call<Linear> call(const Tensor& input, const Tensor& weight, int64_t in_features) {
  check_rank("weight", weight, 2);
  const Tensor x = packed_operand("input", input, in_features, input);
  const Tensor w = packed_operand("weight", weight, in_features, input);
  const Linear operation = {data<Word>(x), data<Word>(w), in_features, w.size(0)};
  return {operation, x, w, leading_sizes(x)};
}

Tensor linear(const Tensor& input, const Tensor& weight, int64_t in_features,
              const std::optional<Tensor>& /*tiles*/) {
  return sums(call(input, weight, in_features));
}

Tensor linear_float(const Tensor& input, const Tensor& weight, int64_t in_features,
                    const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                    ScalarType dtype, const std::optional<Tensor>& /*tiles*/) {
  return floats(call(input, weight, in_features), scale, bias, dtype);
}

Tensor linear_bits(const Tensor& input, const Tensor& weight, int64_t in_features,
                   const Tensor& threshold, const std::optional<Tensor>& flip,
                   const std::optional<Tensor>& /*tiles*/) {
  return bits(call(input, weight, in_features), threshold, flip);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CUDA, m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_float", TORCH_BOX(&linear_float));
  m.impl("linear_bits", TORCH_BOX(&linear_bits));
}

}  // namespace bnn_ext::cuda
