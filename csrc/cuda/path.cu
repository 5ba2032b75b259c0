// The choice of a path for each product.
#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "cuda/gather.cuh"
#include "cuda/gemm_sm90.cuh"
#include "cuda/gemv.cuh"
#include "cuda/path.cuh"

namespace bnn_ext::cuda {
namespace {

constexpr const char* kNames[] = {"auto", "popc", "gemv", "mma", "wgmma"};  // as in Path

Path path_of(const std::string& name) {
  std::string known;
  for (int i = 0; i < 5; ++i) {
    if (name == kNames[i]) return static_cast<Path>(i);
    known += std::string(i > 0 ? ", " : "") + kNames[i];
  }
  throw std::invalid_argument("a CUDA path must be one of " + known + ", found '" + name + "'");
}

std::atomic<Path>& forced_path() {
  static std::atomic<Path> path = [] {
    const char* name = std::getenv("BNN_EXT_CUDA_PATH");
    return path_of(name != nullptr ? name : "auto");
  }();
  return path;
}

bool can_run(Path path, const Product& product, const Device& device) {
  switch (path) {
    case Path::kGemv:
      return as_linear(product.conv) && product.rows <= kGemvRows;
    case Path::kMma:
      return 75 <= device.capability && device.capability <= 90 && can_gather(product.conv);
    case Path::kWgmma: {
      // The code of 9.0 without the a has no wgmma.
      const bool built = std::strstr(BNN_EXT_CUDA_ARCHITECTURES, "90a") != nullptr;
      return built && device.capability == 90 && sm90::fits_wgmma(product.conv, product.rows);
    }
    default:
      return true;
  }
}

Path choose(const Product& product, const Device& device) {
  const Path forced = forced_path();
  STD_TORCH_CHECK(can_run(forced, product, device), "the path ", path_name(),
                  " was asked for, but cannot run this product on a device of capability ",
                  device.capability / 10, ".", device.capability % 10);
  if (forced != Path::kAuto) return forced;
  for (const Path path : {Path::kGemv, Path::kWgmma, Path::kMma})
    if (can_run(path, product, device)) return path;
  return Path::kPopc;
}

}  // namespace

const char* path_name() { return kNames[static_cast<int>(forced_path().load())]; }

void set_path(const std::string& name) { forced_path() = path_of(name); }

Device device_of(const Tensor& tensor) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, tensor.get_device_index()));
    return value;
  };
  return {10 * attribute(cudaDevAttrComputeCapabilityMajor) +
              attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMultiProcessorCount)};
}

template <typename Finish>
void run(const Product& product, const Finish& finish, const Tensor& output) {
  if (product.rows == 0 || product.conv.outputs == 0) return;
  const Device device = device_of(output);
  switch (choose(product, device)) {
    case Path::kGemv:
      return run_gemv(product, finish, output);
    case Path::kMma:
      return run_mma(product, finish, device, output);
    case Path::kWgmma:
      return run_wgmma(product, finish, device, output);
    default:
      return run_popc(product, finish, output);
  }
}

template void run(const Product&, const StoreSum&, const Tensor&);
template void run(const Product&, const StoreBits&, const Tensor&);
template void run(const Product&, const StoreFused&, const Tensor&);

}  // namespace bnn_ext::cuda
