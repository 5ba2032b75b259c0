#include "cuda/gemm_sm80_run.cuh"

namespace bnn_ext::cuda {

template void run_mma(const Product&, const StoreFused&, const Device&, const Tensor&);

}  // namespace bnn_ext::cuda
