// tile_weight: the popcounts of weights that correct sums for padding.
#include <torch/csrc/stable/library.h>

#include "cuda/launch.cuh"
#include "cuda/popcounts.cuh"
#include "cuda/product.cuh"

namespace bnn_ext::cuda {
namespace {

__global__ void __launch_bounds__(PopcountTable::kThreads)
    popcounts_kernel(const PopcountTable table) {
  fill(table);
}

Tensor tile_weight(const Tensor& weight, int64_t groups) {
  STD_TORCH_CHECK(weight.dim() == 2 || weight.dim() == 4,
                  "weight must have 2 or 4 dimensions, found ", weight.dim());
  STD_TORCH_CHECK(groups >= 1 && weight.size(0) % groups == 0, "groups must divide the ",
                  weight.size(0), " output channels, found ", groups);
  return popcount_table(operand("weight", weight, ScalarType::Int, weight));
}

}  // namespace

Tensor popcount_table(const Tensor& weight) {
  const std::vector<int64_t> kernel = kernel_size(weight);
  const Tensor result = new_output(weight, kernel, weight.size(0), ScalarType::Int);
  const PopcountTable table = {data<Word>(weight), mutable_data<int32_t>(result),
                               weight.size(0),     kernel[0],
                               kernel[1],          weight.size(weight.dim() - 1)};
  launch_blocks(popcounts_kernel, block_count(table), PopcountTable::kThreads, 0, result, table);
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CUDA, m) { m.impl("tile_weight", TORCH_BOX(&tile_weight)); }

}  // namespace bnn_ext::cuda
