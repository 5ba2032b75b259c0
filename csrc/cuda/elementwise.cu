// elementwise: the epilogue of the fused operators by itself, on real values.
#include <torch/csrc/stable/library.h>

#include "cuda/arguments.cuh"
#include "cuda/elementwise.cuh"
#include "cuda/launch.cuh"
#include "cuda/operators.cuh"
#include "cuda/step_operands.cuh"

namespace bnn_ext::cuda {
namespace {

bool has_vectors(const Elementwise& fused) {
  bool aligned = is_aligned(fused.input) && is_aligned(fused.threshold);
  for (int i = 0; i < fused.step_count; ++i) {
    const Step& step = fused.steps[i];
    aligned &= is_aligned(step.map) && is_aligned(step.channels) && is_aligned(step.addend);
  }
  return aligned && fused.channels % kElementwiseValues == 0;
}

void launch_elementwise(const Elementwise& fused, const Tensor& input) {
  if (has_vectors(fused))
    launch_stream(elementwise_kernel<kElementwiseValues>,
                  fused.rows * lane_count<kElementwiseValues>(fused.channels), input, fused);
  else
    launch_stream(elementwise_kernel<1>, fused.rows * lane_count<1>(fused.channels), input, fused);
}

}  // namespace

std::vector<Tensor> elementwise(const Room& /*room*/, const Tensor& input,
                                const std::vector<int64_t>& operations,
                                const std::vector<Tensor>& operands,
                                const std::optional<ScalarType>& dtype,
                                const std::optional<Tensor>& threshold,
                                const std::optional<Tensor>& flip) {
  check_cuda(input);
  STD_TORCH_CHECK(input.dim() > 0, "input must have at least 1 dimension, found a scalar");
  STD_TORCH_CHECK(dtype || threshold, "dtype or threshold must be given");
  STD_TORCH_CHECK(threshold || !flip, "flip needs a threshold");
  const Tensor x = operand("input", input, input.scalar_type(), input);
  const std::vector<int64_t> sizes = leading_sizes(x);
  const int64_t channels = x.size(x.dim() - 1);
  const auto t = vector_operand("threshold", threshold, ScalarType::Float, channels, x);
  const auto f = vector_operand("flip", flip, ScalarType::Int, word_count(channels), x);
  const std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  const StepOperands checked(operations, operands, shape, x);
  std::vector<Step> steps = checked.steps();

  Elementwise fused = {};
  fused.input = x.const_data_ptr();
  fused.input_type = float_type("input", x.scalar_type());
  fused.rows = product(sizes);
  fused.channels = channels;
  const auto take_steps = [&] {
    fused.step_count = static_cast<int>(std::min<size_t>(steps.size(), kMaxSteps));
    std::copy_n(steps.begin(), fused.step_count, fused.steps);
    steps.erase(steps.begin(), steps.begin() + fused.step_count);
  };
  // A longer list takes several passes, with float32 between them as between all steps.
  std::optional<Tensor> between;
  take_steps();
  while (!steps.empty()) {
    const Tensor floats = new_output(x, sizes, channels, ScalarType::Float);
    fused.floats = floats.mutable_data_ptr();
    launch_elementwise(fused, x);
    between = floats;
    fused.input = floats.const_data_ptr();
    fused.input_type = FloatType::kFloat;
    fused.floats = nullptr;
    take_steps();
  }

  std::vector<Tensor> results;
  if (dtype) {
    fused.type = float_type("dtype", *dtype);
    results.push_back(new_output(x, sizes, channels, *dtype));
    fused.floats = results.back().mutable_data_ptr();
  }
  if (threshold) {
    results.push_back(new_output(x, sizes, word_count(channels), ScalarType::Int));
    fused.bits = mutable_data<Word>(results.back());
    fused.threshold = data<float>(t);
    fused.flip = data<Word>(f);
  }
  launch_elementwise(fused, x);
  return results;
}

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CUDA, m) {
  m.impl("elementwise", TORCH_BOX(&WithoutRoom<&elementwise>::call));
}

}  // namespace bnn_ext::cuda
