// What linear and conv2d compute, once its arguments are checked: sums of products of ±1.
#pragma once

#include "cuda/arguments.cuh"

namespace bnn_ext::cuda {

// A linear layer is a convolution of maps of one pixel with a kernel of one tap.
struct Product {
  Conv2d conv;
  int64_t rows;                // of the result
  std::vector<int64_t> sizes;  // of the result, without its channels
  Tensor input;                // the memory of conv.input and conv.weight
  Tensor weight;
  std::optional<Tensor> tiles;  // tile_weight(weight), if at hand
};

// The same as rows of features times rows of weights, if each output pixel is that of its one tap.
inline std::optional<Linear> as_linear(const Conv2d& conv) {
  const Window& w = conv.window;
  const bool one_tap = w.kernel.y == 1 && w.kernel.x == 1 && w.stride.y == 1 && w.stride.x == 1 &&
                       w.padding.y == 0 && w.padding.x == 0 && conv.groups == 1;
  if (!one_tap) return std::nullopt;
  return Linear{conv.input, conv.weight, conv.inputs, conv.outputs};
}

// Height and width of the kernels of weights [out, words] or [out, kh, kw, words].
inline std::vector<int64_t> kernel_size(const Tensor& weight) {
  if (weight.dim() == 2) return {1, 1};
  return {weight.size(1), weight.size(2)};
}

// The result of tile_weight; the weight is contiguous.
Tensor popcount_table(const Tensor& weight);

// `tiles` in contiguous form, if given.
inline std::optional<Tensor> tiles_operand(const std::optional<Tensor>& tiles, const Tensor& weight,
                                           const Tensor& input) {
  if (!tiles) return std::nullopt;
  const std::vector<int64_t> kernel = kernel_size(weight);
  check_rank("tiles", *tiles, 3);
  STD_TORCH_CHECK(tiles->size(0) == kernel[0] && tiles->size(1) == kernel[1] &&
                      tiles->size(2) == weight.size(0),
                  "tiles must be tile_weight(weight) of a weight on CUDA, with shape ", kernel[0],
                  ", ", kernel[1], ", ", weight.size(0), ", found ", tiles->size(0), ", ",
                  tiles->size(1), ", ", tiles->size(2));
  return operand("tiles", *tiles, ScalarType::Int, input);
}

}  // namespace bnn_ext::cuda
