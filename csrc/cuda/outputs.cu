#include "cuda/outputs.cuh"

namespace bnn_ext::cuda {

Tensor sums(const Product& product) {
  const Tensor output =
      new_output(product.input, product.sizes, product.conv.outputs, ScalarType::Int);
  run(product, StoreSum{mutable_data<int32_t>(output)}, output);
  return output;
}

Tensor floats(const Product& product, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& bias, ScalarType dtype) {
  const int64_t outputs = product.conv.outputs;
  const auto s = vector_operand("scale", scale, ScalarType::Float, outputs, product.input);
  const auto b = vector_operand("bias", bias, ScalarType::Float, outputs, product.input);
  StoreFused finish = {};
  finish.type = float_type("dtype", dtype);
  const auto add_step = [&](Operation operation, const std::optional<Tensor>& operand) {
    if (!operand) return;
    Step& step = finish.steps[finish.step_count++];
    step.operation = operation;
    step.channels = data<float>(operand);
  };
  add_step(Operation::kMultiply, s);
  add_step(Operation::kAdd, b);
  const Tensor output = new_output(product.input, product.sizes, outputs, dtype);
  finish.floats = output.mutable_data_ptr();
  run(product, finish, output);
  return output;
}

Tensor bits(const Product& product, const Tensor& threshold, const std::optional<Tensor>& flip) {
  const int64_t outputs = product.conv.outputs;
  const auto t = vector_operand("threshold", threshold, ScalarType::Int, outputs, product.input);
  const auto f = vector_operand("flip", flip, ScalarType::Int, word_count(outputs), product.input);
  const Tensor output =
      new_output(product.input, product.sizes, word_count(outputs), ScalarType::Int);
  run(product, StoreBits{mutable_data<Word>(output), data<int32_t>(t), data<Word>(f)}, output);
  return output;
}

namespace {

// Longer lists of steps: as many as one kernel takes, in float32, and the rest by elementwise.
std::vector<Tensor> fused_in_two(const Product& product, const std::vector<int64_t>& operations,
                                 const std::vector<Tensor>& operands,
                                 const std::optional<ScalarType>& dtype,
                                 const std::optional<Tensor>& threshold,
                                 const std::optional<Tensor>& flip) {
  const auto middle = operations.begin() + kMaxSteps;
  size_t taken = 0;
  for (auto operation = operations.begin(); operation != middle; ++operation)
    taken += operand_count(static_cast<Operation>(*operation));
  STD_TORCH_CHECK(taken <= operands.size(), "operands are too few");
  const auto rest = operands.begin() + static_cast<std::ptrdiff_t>(taken);
  const Tensor floats = fused(product, {operations.begin(), middle}, {operands.begin(), rest},
                              ScalarType::Float, std::nullopt, std::nullopt)[0];
  return elementwise(std::nullopt, floats, {middle, operations.end()}, {rest, operands.end()},
                     dtype, threshold, flip);
}

}  // namespace

std::vector<Tensor> fused(const Product& product, const std::vector<int64_t>& operations,
                          const std::vector<Tensor>& operands,
                          const std::optional<ScalarType>& dtype,
                          const std::optional<Tensor>& threshold,
                          const std::optional<Tensor>& flip) {
  if (operations.size() > kMaxSteps)
    return fused_in_two(product, operations, operands, dtype, threshold, flip);
  STD_TORCH_CHECK(dtype || threshold, "dtype or threshold must be given");
  STD_TORCH_CHECK(threshold || !flip, "flip needs a threshold");
  const Tensor& input = product.input;
  const int64_t outputs = product.conv.outputs;
  const auto t = vector_operand("threshold", threshold, ScalarType::Float, outputs, input);
  const auto f = vector_operand("flip", flip, ScalarType::Int, word_count(outputs), input);
  std::vector<int64_t> shape = product.sizes;
  shape.push_back(outputs);
  const StepOperands steps(operations, operands, shape, input);

  StoreFused finish = {};
  finish.step_count = static_cast<int>(steps.steps().size());
  std::copy(steps.steps().begin(), steps.steps().end(), finish.steps);
  std::vector<Tensor> results;
  if (dtype) {
    finish.type = float_type("dtype", *dtype);
    results.push_back(new_output(input, product.sizes, outputs, *dtype));
    finish.floats = results.back().mutable_data_ptr();
  }
  if (threshold) {
    results.push_back(new_output(input, product.sizes, word_count(outputs), ScalarType::Int));
    finish.bits = mutable_data<Word>(results.back());
    finish.threshold = data<float>(t);
    finish.flip = data<Word>(f);
  }
  run(product, finish, results[0]);
  return results;
}

}  // namespace bnn_ext::cuda
