// The path for few rows: see gemv.cuh.
#include "cuda/gemv.cuh"
#include "cuda/launch.cuh"
#include "cuda/path.cuh"

namespace bnn_ext::cuda {
namespace {

template <typename Finish>
struct StorePlaces {
  Finish finish;

  __device__ __forceinline__ void operator()(Place at, int64_t channels, int32_t sum) const {
    store_place(finish, at, channels, sum);
  }
};

}  // namespace

template <typename Finish>
void run_gemv(const Product& product, const Finish& finish, const Tensor& output) {
  const Linear linear = *as_linear(product.conv);
  const int rows = static_cast<int>(product.rows);
  const auto start = [&](auto* kernel) {
    launch_blocks(kernel, word_count(linear.outputs), kGemvThreads, kGemvSharedBytes, output,
                  linear, rows, StorePlaces<Finish>{finish});
  };
  const bool aligned = is_aligned(linear.input) && is_aligned(linear.weight) &&
                       word_count(linear.features) * sizeof(Word) % kVectorBytes == 0;
  const auto start_rows = [&](auto kernel_rows) {
    constexpr int most = decltype(kernel_rows)::value;
    if (aligned)
      start(gemv_kernel<most, 4, StorePlaces<Finish>>);
    else
      start(gemv_kernel<most, 1, StorePlaces<Finish>>);
  };
  if (rows == 1)
    start_rows(std::integral_constant<int, 1>());
  else if (rows <= 4)
    start_rows(std::integral_constant<int, 4>());
  else
    start_rows(std::integral_constant<int, kGemvRows>());
}

template void run_gemv(const Product&, const StoreSum&, const Tensor&);
template void run_gemv(const Product&, const StoreBits&, const Tensor&);
template void run_gemv(const Product&, const StoreFused&, const Tensor&);

}  // namespace bnn_ext::cuda
