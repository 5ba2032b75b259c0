// Epilogues of the fused operators: from their arguments to what kernels take.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "cpu/operators.h"

namespace bnn_ext::cpu {

FloatType float_type(ScalarType dtype, const char* name);

// The values with room behind them: a whole word's can be read from any of them on.
template <typename T>
std::vector<T> padded(const T* values, int64_t count) {
  std::vector<T> result(values, values + count);
  result.resize(count + kWordBits);
  return result;
}

// Checks the arguments, allocates the results, and keeps what the epilogue points to.
class FusedOutputs {
 public:
  // `shape` is that of the outputs. The floats lie in `room` if they fit, which may be an operand:
  // kernels read each value of a map before they write that of the result. Without `whole_words`,
  // several tiles share a word of bits: the bits are packed when all values are there.
  FusedOutputs(const Room& room, const std::vector<int64_t>& shape,
               const std::vector<int64_t>& operations, const std::vector<Tensor>& operands,
               const std::optional<ScalarType>& dtype, const std::optional<Tensor>& threshold,
               const std::optional<Tensor>& flip, bool whole_words = true);
  FusedOutputs(const FusedOutputs&) = delete;  // the epilogue points into it

  const Epilogue& epilogue() const { return epilogue_; }

  // Once kernels have written them: floats if there is a dtype, then bits if there is a threshold.
  std::vector<Tensor> results() const;

 private:
  const float* keep_vector(const Tensor& operand);
  Map keep_map(const Tensor& operand, const std::vector<int64_t>& shape);

  bool needs_padding_;  // of vectors, since kernels read whole words of them
  std::vector<std::vector<float>> padded_;
  std::vector<Tensor> tensors_;
  std::vector<Operand> operands_;
  std::optional<Tensor> thresholds_, flips_, floats_, bits_;
  bool wants_floats_;
  Epilogue epilogue_ = {};
};

}  // namespace bnn_ext::cpu
