// The operators of CUDA as C++ functions.
#pragma once

#include <optional>
#include <vector>

#include "cuda/arguments.cuh"

namespace bnn_ext::cuda {

#include "common/operators.inl"

}  // namespace bnn_ext::cuda
