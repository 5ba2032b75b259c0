// The steps of a fused epilogue: what bnn_ext/ops/epilogue.py describes, as kernels take it.
#pragma once

#include "common/steps.h"
#include "cuda/ptx.cuh"

namespace bnn_ext::cuda {

constexpr int kMaxSteps = 8;  // of one launch

// The operand is one value per channel or, where `map` is not null, one per result.
struct Step {
  Operation operation;
  const float* channels;
  const float* addend;  // of kMultiplyAdd, which has no map: one per channel
  const void* map;
  FloatType map_type;
};

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
  }
}

}  // namespace bnn_ext::cuda
