#include "cuda/gemm_sm90_run.cuh"

namespace bnn_ext::cuda {

template void run_wgmma(const Product&, const StoreBits&, const Device&, const Tensor&);

}  // namespace bnn_ext::cuda
