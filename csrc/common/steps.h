// What the steps of the fused operators are called, in arguments and kernels of every device.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bnn_ext {

enum class FloatType { kFloat, kHalf, kBFloat16 };
constexpr size_t size_of(FloatType type) { return type == FloatType::kFloat ? 4 : 2; }

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
  kFloat16 = 7,      // the float16 nearest to y
  kBFloat16 = 8,     // the bfloat16 nearest to y
};
constexpr int64_t kOperations = 9;

constexpr size_t operand_count(Operation operation) {
  if (operation == Operation::kFloat16 || operation == Operation::kBFloat16) return 0;
  return operation == Operation::kMultiplyAdd ? 2 : 1;
}

}  // namespace bnn_ext
