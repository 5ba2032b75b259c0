// The path by wgmma: tensor maps, and which tiles. One .cu file for each finish, to compile them
// side by side.
#pragma once

#include <cudaTypedefs.h>

#include "cuda/gemm_sm90.cuh"
#include "cuda/launch.cuh"
#include "cuda/path.cuh"

namespace bnn_ext::cuda {
namespace sm90 {

// The driver's function, found at run time: its library is not there where CUDA is only built.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    STD_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                    cudaEnableDefault, &found));
    STD_TORCH_CHECK(found == cudaDriverEntryPointSuccess, "the CUDA driver has no tensor maps");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

inline ptx::TensorMap tensor_map(const MatrixMap& matrix) {
  ptx::TensorMap map;
  const uint32_t steps[2] = {1, 1};
  const CUresult result =
      tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_INT32, 2, const_cast<Word*>(matrix.words),
                           matrix.sizes, &matrix.row_bytes, matrix.box, steps,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with error ",
                  static_cast<int>(result));
  return map;
}

template <typename Shape, typename Finish>
void run_shape(Gemm gemm, const Finish& finish, const Device& device, const Tensor& output) {
  if (gemm.source == Source::kTma) gemm.a_map = tensor_map(a_matrix<Shape>(gemm));
  if (gemm.source == Source::kTma || gemm.source == Source::kGather16)
    gemm.b_map = tensor_map(b_matrix<Shape>(gemm));
  const int blocks = std::min(gemm.schedule.count(), Shape::kBlocks * device.processors);
  launch_blocks(gemm_sm90_kernel<Shape, Finish>, blocks, Shape::kThreads, Memory<Shape>::kBytes,
                output, gemm, finish);
}

}  // namespace sm90

template <typename Finish>
void run_wgmma(const Product& product, const Finish& finish, const Device& device,
               const Tensor& output) {
  const Tensor popcounts = product.tiles ? *product.tiles : popcount_table(product.weight);
  const auto make = [&](auto shape) {
    return sm90::make_gemm<decltype(shape)>(product.conv, product.rows, data<int32_t>(popcounts));
  };
  const sm90::Gemm large = make(sm90::Large{}), medium = make(sm90::Medium{});
  const sm90::Gemm small = make(sm90::Small{});
  const double large_time = sm90::time<sm90::Large>(large, device.processors);
  const double medium_time = sm90::time<sm90::Medium>(medium, device.processors);
  const double small_time = sm90::time<sm90::Small>(small, device.processors);
  if (large_time <= medium_time && large_time <= small_time)
    sm90::run_shape<sm90::Large>(large, finish, device, output);
  else if (medium_time <= small_time)
    sm90::run_shape<sm90::Medium>(medium, finish, device, output);
  else
    sm90::run_shape<sm90::Small>(small, finish, device, output);
}

}  // namespace bnn_ext::cuda
