// torch's permute without the dispatcher, on any device.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

namespace bnn_ext {

// The same memory with its dimensions in another order.
inline torch::stable::Tensor permuted(const torch::stable::Tensor& tensor,
                                      const std::vector<int64_t>& dims) {
  std::vector<int64_t> sorted = dims;
  std::sort(sorted.begin(), sorted.end());
  bool each_once = static_cast<int64_t>(dims.size()) == tensor.dim();
  for (size_t i = 0; i < sorted.size(); ++i) each_once &= sorted[i] == static_cast<int64_t>(i);
  STD_TORCH_CHECK(each_once, "dims must name each dimension once");

  std::vector<int64_t> shape, strides;
  for (const int64_t dim : dims) {
    shape.push_back(tensor.size(dim));
    strides.push_back(tensor.stride(dim));
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      tensor.get(), dims.size(), shape.data(), strides.data(), /*storage_offset=*/0, &handle));
  return torch::stable::Tensor(handle);
}

}  // namespace bnn_ext
