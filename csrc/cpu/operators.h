// The operators of the CPU as C++ functions.
#pragma once

#include <optional>
#include <vector>

#include "cpu/tensor.h"

namespace bnn_ext::cpu {

#include "common/operators.inl"

}  // namespace bnn_ext::cpu
