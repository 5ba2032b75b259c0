// The little that the CPU operators need to know about tensors: checks, allocation, pointers.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/bits.h"

namespace bnn_ext::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The wrappers in bnn_ext/ops raise friendlier errors first; these keep a direct call of the
// operator from reading or writing out of bounds.
inline Tensor checked(const Tensor& tensor, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU like the input");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has the wrong dtype");
  // Asked first, since even a contiguous() that does nothing costs a call of the dispatcher.
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor checked_packed(const Tensor& tensor, const char* name, int64_t bits, int64_t rank) {
  STD_TORCH_CHECK(rank < 0 ? tensor.dim() > 0 : tensor.dim() == rank, name,
                  " has the wrong number of dimensions: ", tensor.dim());
  STD_TORCH_CHECK(bits >= 0 && tensor.size(-1) == word_count(bits), name, " must have ",
                  word_count(bits), " words in its last dimension, found ", tensor.size(-1));
  return checked(tensor, name, ScalarType::Int);
}

inline std::optional<Tensor> checked_vector(const std::optional<Tensor>& tensor, const char* name,
                                            int64_t length, ScalarType dtype) {
  if (!tensor) return std::nullopt;
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == length, name, " must have ", length,
                  " elements");
  return checked(*tensor, name, dtype);
}

// Strides, paddings and the like of a convolution or pool. Larger ones are nonsense, as from a
// damaged file, and would be counted through one by one.
inline void check_geometry(const std::vector<int64_t>& numbers, const char* name) {
  constexpr int64_t kMost = int64_t{1} << 24;
  STD_TORCH_CHECK(numbers.size() == 2, name, " must have 2 elements");
  for (const int64_t number : numbers)
    STD_TORCH_CHECK(number <= kMost, name, " must be at most ", kMost, ", found ", number);
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// On the CPU. torch::stable::new_empty would go through the dispatcher, which takes longer than a
// small layer.
inline Tensor new_tensor(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                         ScalarType dtype) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      shape.size(), shape.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), /*device_index=*/0, &handle));
  return Tensor(handle);
}

inline Tensor new_tensor(const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  return new_tensor(shape, strides, dtype);
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape(tensor.dim());
  for (size_t i = 0; i < shape.size(); ++i) shape[i] = tensor.size(i);
  return shape;
}

inline std::vector<int64_t> strides_of(const Tensor& tensor) {
  std::vector<int64_t> strides(tensor.dim());
  for (size_t i = 0; i < strides.size(); ++i) strides[i] = tensor.stride(i);
  return strides;
}

// A grain for parallel_for such that a thread gets at least `least` units of work, when `total`
// units are spread evenly over `tasks`.
inline int64_t grain_for(int64_t tasks, int64_t total, int64_t least) {
  if (total <= least) return tasks;
  return std::max<int64_t>(1, tasks * least / total);
}

}  // namespace bnn_ext::cpu
