// What the steps of the fused operators are called, in arguments and kernels of every device.
#pragma once

#include <cstdint>

namespace bnn_ext {

enum class FloatType { kFloat, kHalf, kBFloat16 };

// One elementwise operation on every value y, in float, rounded once. The numbers are those of
// bnn_ext/ops/epilogue.py.
enum class Operation : int64_t {
  kMultiply = 0,     // y * operand
  kAdd = 1,          // y + operand
  kPrelu = 2,        // y > 0 ? y : y * operand
  kMaximum = 3,      // y < operand ? operand : y, so that NaN stays
  kMinimum = 4,      // y > operand ? operand : y
  kMultiplyAdd = 5,  // y * operand + addend
  kDivide = 6,       // y / operand
};
constexpr int64_t kOperations = 7;

}  // namespace bnn_ext
