// The results of linear and conv2d: int32 sums, floats, packed bits, floats and bits after steps.
#pragma once

#include "cuda/operators.cuh"
#include "cuda/path.cuh"
#include "cuda/step_operands.cuh"

namespace bnn_ext::cuda {

Tensor sums(const Product& product);

// sum * scale + bias, each rounded to float32, then rounded to `dtype`.
Tensor floats(const Product& product, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& bias, ScalarType dtype);

Tensor bits(const Product& product, const Tensor& threshold, const std::optional<Tensor>& flip);

// Floats if there is a dtype, then bits if there is a threshold.
std::vector<Tensor> fused(const Product& product, const std::vector<int64_t>& operations,
                          const std::vector<Tensor>& operands,
                          const std::optional<ScalarType>& dtype,
                          const std::optional<Tensor>& threshold,
                          const std::optional<Tensor>& flip);

}  // namespace bnn_ext::cuda
