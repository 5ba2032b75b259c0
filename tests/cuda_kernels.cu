// Kernels for test_cuda_machine_code.py, which compiles them without all that surrounds them in
// csrc/cuda/*.cu.
#include "cuda/gemm_sm80.cuh"

namespace bnn_ext::cuda {

template <typename Tile, int chunk, typename Finish>
__global__ void __launch_bounds__(Tile::threads, 2)
    kernel(const __grid_constant__ Gemm gemm, const __grid_constant__ Finish finish) {
  multiply<Tile, chunk, ptx::kXor>(gemm, finish);
}

#define KERNEL(Tile, chunk, Finish)                                                  \
  template __global__ void kernel<Tile, chunk, Finish>(const __grid_constant__ Gemm, \
                                                       const __grid_constant__ Finish)
KERNEL(LargeTile, 16, StoreBits);
KERNEL(LargeTile, 16, StoreFused);
KERNEL(LargeTile, 8, StoreSum);
KERNEL(LargeTile, 4, StoreFused);
KERNEL(MediumTile, 16, StoreFused);
KERNEL(SmallTile, 16, StoreFused);

}  // namespace bnn_ext::cuda
