// Starts kernels whose threads share a flat index, on the current stream of a tensor's device.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>

#include "cuda/stream.cuh"

namespace bnn_ext::cuda {

constexpr int64_t kBlockThreads = 256;
constexpr int kProcessorThreads = 2048;  // at most, on any GPU

// A kernel strides over its work by whole grids. The stride is a multiple of 32, so a warp stays
// on neighbouring indices and, if their number is a multiple of 32, leaves the loop as one.
__device__ inline int64_t first_index() {
  return int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
}
__device__ inline int64_t index_stride() { return int64_t{gridDim.x} * kBlockThreads; }

// Writes the word of the 32 places that a warp holds; every lane must call.
__device__ inline void store_bits(Word* output, Place at, int64_t channels, bool bit) {
  const Word word = __ballot_sync(~0u, bit);
  if (at.channel % kWordBits == 0) output[word_index(at, channels)] = word;
}

// Runs kernel(arguments...) on the current stream of the device of `output`; no blocks is no
// launch.
template <typename... Parameters, typename... Arguments>
void launch_blocks(void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes,
                   const torch::stable::Tensor& output, const Arguments&... arguments) {
  if (blocks == 0) return;
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "the result is too large");
  const int32_t device = output.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  if (shared_bytes > 48 * 1024)  // what a kernel may have without asking
    STD_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes,
           static_cast<cudaStream_t>(stream)>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Runs kernel(arguments..., count) over `count` indices.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t count, const torch::stable::Tensor& output,
            const Arguments&... arguments) {
  const int64_t blocks = std::min<int64_t>((count + kBlockThreads - 1) / kBlockThreads,
                                           std::numeric_limits<int32_t>::max());
  launch_blocks(kernel, blocks, kBlockThreads, 0, output, arguments..., count);
}

// Runs kernel(arguments...), whose threads stride over `items` (stream.cuh), with as many blocks as
// the device holds at a time.
template <typename... Parameters, typename... Arguments>
void launch_stream(void (*kernel)(Parameters...), int64_t items,
                   const torch::stable::Tensor& output, const Arguments&... arguments) {
  int processors = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount,
                                        output.get_device_index()));
  const int64_t resident = int64_t{processors} * (kProcessorThreads / kStreamThreads);
  const int64_t blocks = (items + kStreamThreads - 1) / kStreamThreads;
  launch_blocks(kernel, std::min(blocks, resident), kStreamThreads, 0, output, arguments...);
}

}  // namespace bnn_ext::cuda
