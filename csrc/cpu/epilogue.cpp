// The arguments of fused operators: checked, and as kernels take them.
#include "cpu/epilogue.h"

#include "cpu/operators.h"

namespace bnn_ext::cpu {

FloatType float_type(ScalarType dtype, const char* name) {
  switch (dtype) {
    case ScalarType::Float:
      return FloatType::kFloat;
    case ScalarType::Half:
      return FloatType::kHalf;
    case ScalarType::BFloat16:
      return FloatType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float16 or bfloat16");
  }
}

FusedOutputs::FusedOutputs(const Room& room, const std::vector<int64_t>& shape,
                           const std::vector<int64_t>& operations,
                           const std::vector<Tensor>& operands,
                           const std::optional<ScalarType>& dtype,
                           const std::optional<Tensor>& threshold,
                           const std::optional<Tensor>& flip, bool whole_words)
    : needs_padding_(!whole_words || shape.back() % kWordBits != 0), wants_floats_(dtype) {
  STD_TORCH_CHECK(dtype || threshold, "dtype or threshold must be given");
  STD_TORCH_CHECK(threshold || !flip, "flip needs a threshold");
  const int64_t channels = epilogue_.channels = shape.back();
  thresholds_ = checked_vector(threshold, "threshold", channels, ScalarType::Float);
  flips_ = checked_vector(flip, "flip", word_count(channels), ScalarType::Int);

  operands_.reserve(operations.size());
  tensors_.reserve(operands.size() + 1);
  size_t used = 0;
  for (const int64_t number : operations) {
    STD_TORCH_CHECK(0 <= number && number < kOperations, "unknown operation ", number);
    Operand step = {};
    step.operation = static_cast<Operation>(number);
    const size_t count = operand_count(step.operation);
    STD_TORCH_CHECK(used + count <= operands.size(), "operands are too few");
    const Tensor* const own = operands.data() + used;
    if (count == 2) step.addend = keep_vector(own[1]);
    if (count == 2 || (count == 1 && own->dim() == 1))
      step.channels = keep_vector(*own);
    else if (count == 1)
      step.map = keep_map(*own, shape);
    operands_.push_back(step);
    used += count;
  }
  STD_TORCH_CHECK(used == operands.size(), "operands are too many");
  epilogue_.operands = operands_.data();
  epilogue_.operand_count = operands_.size();

  if (dtype || !whole_words) {
    const ScalarType type = dtype.value_or(ScalarType::Float);
    const bool fits = room && room->is_cpu() && room->is_contiguous() &&
                      room->scalar_type() == type && shape_of(*room) == shape;
    floats_ = fits ? *room : new_tensor(shape, type);
    epilogue_.floats = floats_->mutable_data_ptr();
    epilogue_.type = float_type(floats_->scalar_type(), "dtype");
  }
  if (threshold && whole_words) {
    std::vector<int64_t> bits_shape = shape;
    bits_shape.back() = word_count(channels);
    bits_ = new_tensor(bits_shape, ScalarType::Int);
    epilogue_.bits = mutable_data<Word>(*bits_);
    epilogue_.threshold = keep_vector(*thresholds_);
    epilogue_.flip = data<Word>(flips_);
  }
}

const float* FusedOutputs::keep_vector(const Tensor& operand) {
  const Tensor vector = *checked_vector(operand, "operand", epilogue_.channels, ScalarType::Float);
  if (!needs_padding_) {
    tensors_.push_back(vector);
    return data<float>(vector);
  }
  padded_.push_back(padded(data<float>(vector), epilogue_.channels));
  return padded_.back().data();
}

Map FusedOutputs::keep_map(const Tensor& operand, const std::vector<int64_t>& shape) {
  STD_TORCH_CHECK(shape_of(operand) == shape, "operand must have the output's shape");
  tensors_.push_back(checked(operand, "operand", operand.scalar_type()));
  return {tensors_.back().const_data_ptr(), float_type(operand.scalar_type(), "operand")};
}

std::vector<Tensor> FusedOutputs::results() const {
  std::vector<Tensor> results;
  if (wants_floats_) results.push_back(*floats_);
  if (thresholds_) results.push_back(bits_ ? *bits_ : pack(*floats_, thresholds_, flips_));
  return results;
}

}  // namespace bnn_ext::cpu
