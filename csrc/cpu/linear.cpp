// Packed linear layers on the CPU: one "image" whose windows are the rows of the input.
#include <torch/csrc/stable/library.h>

#include "cpu/dot.h"
#include "cpu/operators.h"

namespace bnn_ext::cpu {
namespace {

struct Linear {
  Tensor input, tiles;  // keep the memory that `dot` points to
  std::vector<int64_t> shape;
  Dot dot;
};

Linear prepare(const Tensor& input, const Tensor& weight, int64_t in_features,
               const std::optional<Tensor>& tiles) {
  Linear linear;
  linear.input = checked_packed(input, "input", in_features, -1);
  checked_packed(weight, "weight", in_features, 2);
  check_sums(in_features);
  linear.tiles = checked_tiles(tiles, weight, 1);
  linear.shape = shape_of(input);
  linear.shape.pop_back();
  int64_t rows = 1;
  for (const int64_t size : linear.shape) rows *= size;

  const int64_t words = word_count(in_features);
  Dot& dot = linear.dot;
  dot.input = data<Word>(linear.input);
  dot.images = 1;
  dot.image_words = rows * words;
  dot.positions = rows;
  dot.groups = 1;
  dot.group_words = 0;
  dot.out_channels = weight.size(0);
  dot.block_words = words * kBlock;
  add_steps(dot.steps, 0, 0, words);
  Region region = {};
  region.tiles = data<Word>(linear.tiles);
  region.step_count = dot.steps.size();
  region.step_words = step_words(words);
  region.k = static_cast<int32_t>(in_features);
  region.height = 1;
  region.width = rows;
  region.input_column = words;
  region.output_column = 1;
  dot.regions = {region};
  return linear;
}

}  // namespace

Tensor linear(const Tensor& input, const Tensor& weight, int64_t in_features,
              const std::optional<Tensor>& tiles) {
  const Linear linear = prepare(input, weight, in_features, tiles);
  return dot_sums(linear.dot, linear.shape);
}

Tensor linear_float(const Tensor& input, const Tensor& weight, int64_t in_features,
                    const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                    ScalarType dtype, const std::optional<Tensor>& tiles) {
  const Linear linear = prepare(input, weight, in_features, tiles);
  return dot_float(linear.dot, linear.shape, scale, bias, dtype);
}

Tensor linear_bits(const Tensor& input, const Tensor& weight, int64_t in_features,
                   const Tensor& threshold, const std::optional<Tensor>& flip,
                   const std::optional<Tensor>& tiles) {
  const Linear linear = prepare(input, weight, in_features, tiles);
  return dot_bits(linear.dot, linear.shape, threshold, flip);
}

std::vector<Tensor> linear_fused(const Room& room, const Tensor& input, const Tensor& weight,
                                 int64_t in_features, const std::vector<int64_t>& operations,
                                 const std::vector<Tensor>& operands,
                                 const std::optional<ScalarType>& dtype,
                                 const std::optional<Tensor>& threshold,
                                 const std::optional<Tensor>& flip,
                                 const std::optional<Tensor>& tiles) {
  const Linear linear = prepare(input, weight, in_features, tiles);
  return dot_fused(room, linear.dot, linear.shape, operations, operands, dtype, threshold, flip);
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("linear", TORCH_BOX(&bnn_ext::cpu::linear));
  m.impl("linear_float", TORCH_BOX(&bnn_ext::cpu::linear_float));
  m.impl("linear_fused", TORCH_BOX(&bnn_ext::cpu::WithoutRoom<&bnn_ext::cpu::linear_fused>::call));
  m.impl("linear_bits", TORCH_BOX(&bnn_ext::cpu::linear_bits));
}
