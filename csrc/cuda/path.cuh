// Which kernels compute a product. Each path gives the same results; a test may force one.
//
//   popc   one thread per sum (popc.cu): any product on any GPU
//   gemv   up to 8 rows, the weights read once (gemv.cuh): any GPU
//   mma    tensor cores by mma.sync (gemm_sm80.cuh): 7.5, 8.x and 9.0
//   wgmma  tensor cores by wgmma (gemm_sm90.cuh): 9.0
#pragma once

#include <string>

#include "cuda/epilogue.cuh"
#include "cuda/product.cuh"

namespace bnn_ext::cuda {

enum class Path { kAuto, kPopc, kGemv, kMma, kWgmma };

// The path that is forced, or kAuto; the environment variable BNN_EXT_CUDA_PATH gives the first.
// An unknown name is a std::invalid_argument.
const char* path_name();
void set_path(const std::string& name);

// A device as far as paths look at it.
struct Device {
  int capability;  // 10 * major + minor
  int processors;
};
Device device_of(const Tensor& tensor);

// Computes sums and finishes them; `output` is any of the results. Finish is one of epilogue.cuh.
template <typename Finish>
void run(const Product& product, const Finish& finish, const Tensor& output);

template <typename Finish>
void run_popc(const Product& product, const Finish& finish, const Tensor& output);

template <typename Finish>
void run_gemv(const Product& product, const Finish& finish, const Tensor& output);

template <typename Finish>
void run_mma(const Product& product, const Finish& finish, const Device& device,
             const Tensor& output);

template <typename Finish>
void run_wgmma(const Product& product, const Finish& finish, const Device& device,
               const Tensor& output);

}  // namespace bnn_ext::cuda
