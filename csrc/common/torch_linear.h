// torch's linear layer, on any device: real products between our operators.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>

namespace bnn_ext {

inline torch::stable::Tensor torch_linear(const torch::stable::Tensor& input,
                                          const torch::stable::Tensor& weight,
                                          const std::optional<torch::stable::Tensor>& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(input),
                                    torch::stable::detail::from(weight),
                                    torch::stable::detail::from(bias)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

}  // namespace bnn_ext
