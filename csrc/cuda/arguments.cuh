// Tensor arguments -> checked, contiguous operands of a kernel.
//
// The wrappers in bnn_ext/ops report wrong arguments in full; these checks keep a direct call of
// torch.ops.bnn_ext from reading what is not there.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "cuda/stream.cuh"

namespace bnn_ext::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string device_name(const Tensor& tensor) {
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return tensor.is_cpu() ? "the CPU" : "another device";
}

// The kernels run where `input` is; the dispatcher also comes here if only another argument is
// CUDA.
inline void check_cuda(const Tensor& input) {
  STD_TORCH_CHECK(input.is_cuda(),
                  "input must be on a CUDA device like the other arguments, found ",
                  device_name(input));
}

// `tensor` in contiguous form, once its dtype is right and it lies on the CUDA device of `input`.
inline Tensor operand(const char* name, const Tensor& tensor, ScalarType dtype,
                      const Tensor& input) {
  check_cuda(input);
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == input.get_device_index(), name,
                  " must be on ", device_name(input), " like the input, found ",
                  device_name(tensor));
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", dtype, ", found ",
                  tensor.scalar_type());
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// An operand whose last dimension holds exactly `bits` packed bits.
inline Tensor packed_operand(const char* name, const Tensor& tensor, int64_t bits,
                             const Tensor& input) {
  STD_TORCH_CHECK(bits >= 0, name, " must hold at least 0 bits, found ", bits);
  const int64_t words = tensor.dim() > 0 ? tensor.size(tensor.dim() - 1) : -1;
  STD_TORCH_CHECK(words == word_count(bits), name, " must have ", word_count(bits),
                  " words in its last dimension to hold ", bits, " bits, found ", words);
  return operand(name, tensor, ScalarType::Int, input);
}

// An operand that is absent, or a vector of `length` elements.
inline std::optional<Tensor> vector_operand(const char* name, const std::optional<Tensor>& tensor,
                                            ScalarType dtype, int64_t length, const Tensor& input) {
  if (!tensor) return std::nullopt;
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == length, name, " must be a vector of ",
                  length, " elements, found ", tensor->dim(), " dimensions and ", tensor->numel(),
                  " elements");
  return operand(name, *tensor, dtype, input);
}

inline void check_rank(const char* name, const Tensor& tensor, int64_t rank) {
  STD_TORCH_CHECK(tensor.dim() == rank, name, " must have ", rank, " dimensions, found ",
                  tensor.dim());
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

// Whether 16 bytes at a time can be accessed; so can what is not there.
inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
}

// All sizes but the last.
inline std::vector<int64_t> leading_sizes(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end() - 1);
}

inline int64_t product(const std::vector<int64_t>& sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) product *= size;
  return product;
}

// An uninitialized tensor beside `input`: the leading sizes, then `last`.
inline Tensor new_output(const Tensor& input, std::vector<int64_t> sizes, int64_t last,
                         ScalarType dtype) {
  sizes.push_back(last);
  return torch::stable::new_empty(input, sizes, dtype);
}

inline Extent extent(const char* name, const std::vector<int64_t>& values, int64_t least) {
  STD_TORCH_CHECK(values.size() == 2 && values[0] >= least && values[1] >= least, name,
                  " must be two integers that are at least ", least);
  return {values[0], values[1]};
}

// The window has a size and fits the padded map at least once.
inline void check_fits(const Window& window) {
  const auto fits = [](int64_t size, int64_t kernel, int64_t padding, int64_t dilation) {
    return kernel >= 1 && window_count(size, kernel, 1, padding, dilation) >= 1;
  };
  const Window& w = window;
  STD_TORCH_CHECK(fits(w.input.y, w.kernel.y, w.padding.y, w.dilation.y) &&
                      fits(w.input.x, w.kernel.x, w.padding.x, w.dilation.x),
                  "a kernel of ", w.kernel.y, "x", w.kernel.x, " with dilation ", w.dilation.y,
                  ", ", w.dilation.x, " does not fit the input's ", w.input.y, "x", w.input.x,
                  " padded by ", w.padding.y, ", ", w.padding.x);
}

// The window of a convolution of an input with weights [out, kh, kw, words], once it fits.
inline Window convolution_window(Extent input, const Tensor& weight,
                                 const std::vector<int64_t>& stride,
                                 const std::vector<int64_t>& padding,
                                 const std::vector<int64_t>& dilation) {
  Window window = {};
  window.input = input;
  window.kernel = {weight.size(1), weight.size(2)};
  window.stride = extent("stride", stride, 1);
  window.padding = extent("padding", padding, 0);
  window.dilation = extent("dilation", dilation, 1);
  check_fits(window);
  window.output = {window_count(window.input.y, window.kernel.y, window.stride.y, window.padding.y,
                                window.dilation.y),
                   window_count(window.input.x, window.kernel.x, window.stride.x, window.padding.x,
                                window.dilation.x)};
  return window;
}

}  // namespace bnn_ext::cuda
