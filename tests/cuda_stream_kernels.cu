// Kernels that memory bounds, for test_cuda_machine_code.py.
#include "cuda/elementwise.cuh"
#include "cuda/gemv.cuh"
#include "cuda/pack.cuh"
#include "cuda/pool.cuh"
#include "cuda/select_channels.cuh"
#include "cuda/signed_sums.cuh"
#include "cuda/signed_tables.cuh"

namespace bnn_ext::cuda {

struct StoreSums {
  int32_t* output;

  __device__ void operator()(Place at, int64_t channels, int32_t sum) const {
    if (at.channel < channels) output[at.row * channels + at.channel] = sum;
  }
};

template __global__ void pack_rows_kernel(PackRows<float>);
template __global__ void pack_rows_kernel(PackRows<BFloat16>);
template __global__ void unpack_kernel<float, 4>(const Word*, int64_t, int64_t, float*);
template __global__ void unpack_kernel<int8_t, 16>(const Word*, int64_t, int64_t, int8_t*);
template __global__ void max_pool2d_kernel<4>(MaxPool2d, Word*, int64_t);
template __global__ void float_pool_kernel<Maximum, 4>(Maximum, const float*, Window, int64_t,
                                                       float*, int64_t);
template __global__ void float_pool_kernel<Average, 4>(Average, const float*, Window, int64_t,
                                                       float*, int64_t);
template __global__ void elementwise_kernel<8>(__grid_constant__ const Elementwise);
template __global__ void select_channels_kernel<4>(__grid_constant__ const SelectChannels);
template __global__ void gemv_kernel<1, 4>(const Linear, int, const StoreSums);
template __global__ void gemv_kernel<kGemvRows, 4>(const Linear, int, const StoreSums);
template __global__ void signed_sums_kernel<float, 1, true>(__grid_constant__ const SignedSums,
                                                            const StoreValue<float>);
template __global__ void signed_sums_kernel<float, kSignedRows, true>(
    __grid_constant__ const SignedSums, const StoreValue<float>);
template __global__ void signed_tables_kernel<float, true>(__grid_constant__ const SignedTables,
                                                           const StoreValue<float>);
template __global__ void signed_tables_kernel<Half, true>(__grid_constant__ const SignedTables,
                                                          const StoreValue<Half>);

}  // namespace bnn_ext::cuda
