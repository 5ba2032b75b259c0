// Sequences of operators of the CPU.
#include "common/sequence.h"

#include <torch/csrc/stable/library.h>

#include "cpu/operators.h"

namespace bnn_ext::cpu {
namespace {

#include "common/sequence_operators.inl"

std::vector<Tensor> run_sequence(const std::vector<Tensor>& inputs,
                                 const std::vector<Tensor>& constants, const std::string& program) {
  return sequence::run(kSequenceOperators, inputs, constants, program);
}

}  // namespace
}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("sequence", TORCH_BOX(&bnn_ext::cpu::run_sequence));
}
