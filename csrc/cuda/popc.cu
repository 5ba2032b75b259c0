// The path for any product on any GPU: one thread per sum, one warp for the 32 channels of a word.
#include "cuda/launch.cuh"
#include "cuda/path.cuh"

namespace bnn_ext::cuda {
namespace {

template <typename Operation, typename Finish>
__global__ void __launch_bounds__(kBlockThreads)
    sums_kernel(const __grid_constant__ Operation operation, const __grid_constant__ Finish finish,
                int64_t count) {
  const int64_t channels = operation.outputs;
  for (int64_t i = first_index(); i < count; i += index_stride()) {
    const Place at = place(i, channels);
    store_place(finish, at, channels,
                at.channel < channels ? operation.sum(at.row, at.channel) : 0);
  }
}

}  // namespace

template <typename Finish>
void run_popc(const Product& product, const Finish& finish, const Tensor& output) {
  const int64_t count = place_count(product.rows, product.conv.outputs);
  if (const auto linear = as_linear(product.conv))
    launch(sums_kernel<Linear, Finish>, count, output, *linear, finish);
  else
    launch(sums_kernel<Conv2d, Finish>, count, output, product.conv, finish);
}

template void run_popc(const Product&, const StoreSum&, const Tensor&);
template void run_popc(const Product&, const StoreBits&, const Tensor&);
template void run_popc(const Product&, const StoreFused&, const Tensor&);

}  // namespace bnn_ext::cuda
