// The steps of a fused operator: from its arguments to what kernels take.
#pragma once

#include <algorithm>

#include "cuda/arguments.cuh"
#include "cuda/steps.cuh"

namespace bnn_ext::cuda {

inline FloatType float_type(const char* name, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return FloatType::kFloat;
    case ScalarType::Half:
      return FloatType::kHalf;
    case ScalarType::BFloat16:
      return FloatType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be Float, Half or BFloat16, found ", dtype);
  }
}

// Checked steps, and the operands that they point to.
class StepOperands {
 public:
  // `sizes` are those of the values, whose last dimension are channels; they lie beside `input`.
  StepOperands(const std::vector<int64_t>& operations, const std::vector<Tensor>& operands,
               const std::vector<int64_t>& sizes, const Tensor& input) {
    size_t used = 0;
    for (const int64_t number : operations) {
      STD_TORCH_CHECK(0 <= number && number < kOperations, "operations must be numbers below ",
                      kOperations, ", found ", number);
      Step step = {};
      step.operation = static_cast<Operation>(number);
      const size_t count = operand_count(step.operation);
      STD_TORCH_CHECK(used + count <= operands.size(), "operands are too few");
      const Tensor* const own = operands.data() + used;
      if (count == 2) step.addend = keep_vector(own[1], sizes.back(), input);
      if (count == 2 || (count == 1 && own->dim() == 1))
        step.channels = keep_vector(*own, sizes.back(), input);
      else if (count == 1)
        keep_map(*own, sizes, input, step);
      steps_.push_back(step);
      used += count;
    }
    STD_TORCH_CHECK(used == operands.size(), "operands are too many");
  }

  const std::vector<Step>& steps() const { return steps_; }

 private:
  const float* keep_vector(const Tensor& tensor, int64_t channels, const Tensor& input) {
    kept_.push_back(*vector_operand("operand", tensor, ScalarType::Float, channels, input));
    return data<float>(kept_.back());
  }

  void keep_map(const Tensor& tensor, const std::vector<int64_t>& sizes, const Tensor& input,
                Step& step) {
    step.map_type = float_type("operand", tensor.scalar_type());
    STD_TORCH_CHECK(
        std::equal(sizes.begin(), sizes.end(), tensor.sizes().begin(), tensor.sizes().end()),
        "operand must be a vector of channels or have the output's shape");
    kept_.push_back(operand("operand", tensor, tensor.scalar_type(), input));
    step.map = kept_.back().const_data_ptr();
  }

  std::vector<Step> steps_;
  std::vector<Tensor> kept_;
};

}  // namespace bnn_ext::cuda
