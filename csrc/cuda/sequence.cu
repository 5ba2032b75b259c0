// Sequences of operators of CUDA. Their kernels follow one another on the current stream, and a
// CUDA graph may capture them.
#include <torch/csrc/stable/library.h>

#include "common/sequence.h"
#include "cuda/operators.cuh"

namespace bnn_ext::cuda {
namespace {

#include "common/sequence_operators.inl"

std::vector<Tensor> run_sequence(const std::vector<Tensor>& inputs,
                                 const std::vector<Tensor>& constants, const std::string& program) {
  return sequence::run(kSequenceOperators, inputs, constants, program);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CUDA, m) { m.impl("sequence", TORCH_BOX(&run_sequence)); }

}  // namespace bnn_ext::cuda
