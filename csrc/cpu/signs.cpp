// Signs in training on the CPU, and the gradients that stand in for theirs, each in one pass.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/operators.h"

namespace bnn_ext::cpu {
namespace {

constexpr int64_t kTask = 1 << 12;   // values, a multiple of kDrawn
constexpr int64_t kGrain = 1 << 15;  // values that are worth a thread

// float32 values side by side in memory, in whatever order of dimensions.
void check_dense(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, name, " must be float32");
  std::vector<int64_t> dimensions;
  for (int64_t i = 0; i < tensor.dim(); ++i)
    if (tensor.size(i) != 1) dimensions.push_back(i);
  std::sort(dimensions.begin(), dimensions.end(),
            [&](int64_t a, int64_t b) { return tensor.stride(a) < tensor.stride(b); });
  int64_t stride = 1;
  for (const int64_t i : dimensions) {
    STD_TORCH_CHECK(tensor.numel() == 0 || tensor.stride(i) == stride, name,
                    " must lie in memory without gaps");
    stride *= tensor.size(i);
  }
}

// Calls `kernel` on pieces of `like`, with their first position, size and part of a new tensor
// that has its shape and layout.
template <typename Kernel>
Tensor each_piece(const Tensor& like, const Kernel& kernel) {
  const Tensor out = new_tensor(shape_of(like), strides_of(like), ScalarType::Float);
  float* const to = mutable_data<float>(out);
  const int64_t count = like.numel(), tasks = (count + kTask - 1) / kTask;
  torch::stable::parallel_for(0, tasks, grain_for(tasks, count, kGrain),
                              [&](int64_t begin, int64_t end) {
                                const int64_t first = begin * kTask;
                                kernel(first, std::min(end * kTask, count) - first, to + first);
                              });
  return out;
}

using Gradient = void (*)(const float* x, const float* grad, int64_t count, float* out);

Tensor gradient(Gradient kernel, const Tensor& grad, const Tensor& input) {
  check_dense(input, "input");
  check_dense(grad, "grad");
  STD_TORCH_CHECK(shape_of(grad) == shape_of(input) && strides_of(grad) == strides_of(input),
                  "grad must have the shape and strides of input");
  const float* const x = data<float>(input);
  const float* const g = data<float>(grad);
  return each_piece(input, [=](int64_t first, int64_t count, float* out) {
    kernel(x + first, g + first, count, out);
  });
}

}  // namespace

Tensor sign(const Tensor& input) {
  check_dense(input, "input");
  const float* const x = data<float>(input);
  const auto kernel = kernels().sign.sign;
  return each_piece(
      input, [=](int64_t first, int64_t count, float* out) { kernel(x + first, count, out); });
}

Tensor stochastic_sign(const Tensor& input, const Tensor& seed) {
  check_dense(input, "input");
  STD_TORCH_CHECK(seed.dim() == 0, "seed must have no dimension");
  const auto key = static_cast<uint64_t>(*data<int64_t>(checked(seed, "seed", ScalarType::Long)));
  const float* const x = data<float>(input);
  const auto kernel = kernels().sign.draw;
  return each_piece(input, [=](int64_t first, int64_t count, float* out) {
    kernel(x + first, first, count, key, out);
  });
}

Tensor straight_through(const Tensor& grad, const Tensor& input) {
  return gradient(kernels().sign.straight_through, grad, input);
}

Tensor piecewise_quadratic(const Tensor& grad, const Tensor& input) {
  return gradient(kernels().sign.piecewise_quadratic, grad, input);
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("sign", TORCH_BOX(&bnn_ext::cpu::sign));
  m.impl("stochastic_sign", TORCH_BOX(&bnn_ext::cpu::stochastic_sign));
  m.impl("straight_through", TORCH_BOX(&bnn_ext::cpu::straight_through));
  m.impl("piecewise_quadratic", TORCH_BOX(&bnn_ext::cpu::piecewise_quadratic));
}
