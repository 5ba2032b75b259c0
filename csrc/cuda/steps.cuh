// The steps of a fused epilogue: what bnn_ext/ops/epilogue.py describes, as kernels take it.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common/steps.h"
#include "cuda/ptx.cuh"

namespace bnn_ext::cuda {

constexpr int kMaxSteps = 16;  // of one launch

// The operand, if there is one, is a value per channel or, where `map` is not null, one per result.
struct Step {
  Operation operation;
  const float* channels;
  const float* addend;  // of kMultiplyAdd, which has no map: one per channel
  const void* map;
  FloatType map_type;
};

template <typename T>
__device__ __forceinline__ float rounded_to(float y) {
  return static_cast<float>(static_cast<T>(y));
}

// One operation on every y, in float, rounded once.
template <int count>
__device__ __forceinline__ void apply_operation(Operation operation, const float (&x)[count],
                                                const float (&addend)[count], float (&y)[count]) {
  const auto each = [&](const auto& result) {
#pragma unroll
    for (int i = 0; i < count; ++i) y[i] = result(y[i], x[i], addend[i]);
  };
  switch (operation) {
    case Operation::kMultiply:
      return each([](float y, float x, float) { return ptx::multiply(y, x); });
    case Operation::kAdd:
      return each([](float y, float x, float) { return ptx::add(y, x); });
    case Operation::kPrelu:
      return each([](float y, float x, float) { return y > 0.0f ? y : ptx::multiply(y, x); });
    case Operation::kMaximum:
      return each([](float y, float x, float) { return y < x ? x : y; });
    case Operation::kMinimum:
      return each([](float y, float x, float) { return y > x ? x : y; });
    case Operation::kMultiplyAdd:
      return each([](float y, float x, float z) { return ptx::multiply_add(y, x, z); });
    case Operation::kDivide:
      return each([](float y, float x, float) { return ptx::divide(y, x); });
    case Operation::kFloat16:
      return each([](float y, float, float) { return rounded_to<torch::headeronly::Half>(y); });
    case Operation::kBFloat16:
      return each([](float y, float, float) { return rounded_to<torch::headeronly::BFloat16>(y); });
  }
}

}  // namespace bnn_ext::cuda
