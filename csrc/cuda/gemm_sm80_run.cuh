// The path by mma.sync: which tile, which chunks. One .cu file for each finish, to compile them
// side by side.
#pragma once

#include "cuda/gemm_sm80.cuh"
#include "cuda/launch.cuh"
#include "cuda/path.cuh"

namespace bnn_ext::cuda {

template <typename Tile, int chunk, typename Finish>
__global__ void __launch_bounds__(Tile::threads, 2)
    gemm_sm80_kernel(const __grid_constant__ Gemm gemm, const __grid_constant__ Finish finish) {
  multiply<Tile, chunk, ptx::kXor>(gemm, finish);
}

template <typename Tile, typename Finish>
void run_tile(const Product& product, const Finish& finish, const int32_t* popcounts,
              const Tensor& output) {
  const Conv2d& conv = product.conv;
  const Gemm gemm = make_gemm(conv, product.rows, popcounts, Tile::rows, Tile::columns);
  const auto start = [&](auto* kernel) {
    launch_blocks(kernel, gemm.row_tiles * gemm.column_tiles * conv.groups, Tile::threads,
                  Tile::shared_bytes, output, gemm, finish);
  };
  switch (chunk_bytes(conv)) {
    case 16:
      return start(gemm_sm80_kernel<Tile, 16, Finish>);
    case 8:
      return start(gemm_sm80_kernel<Tile, 8, Finish>);
    default:
      return start(gemm_sm80_kernel<Tile, 4, Finish>);
  }
}

template <typename Finish>
void run_mma(const Product& product, const Finish& finish, const Device& device,
             const Tensor& output) {
  const Conv2d& conv = product.conv;
  std::optional<Tensor> popcounts;  // kept until the kernel is in the stream
  const bool and_form = device.capability >= 90;
  if (and_form || make_correction(conv, nullptr).pad_value >= 0)
    popcounts = product.tiles ? *product.tiles : popcount_table(product.weight);

  const auto time = [&](int64_t rows, int64_t columns) {
    return tile_time(product.rows, conv.outputs / conv.groups, conv.groups, rows, columns,
                     device.processors);
  };
  const double large = time(LargeTile::rows, LargeTile::columns);
  const double medium = time(MediumTile::rows, MediumTile::columns);
  const double small = time(SmallTile::rows, SmallTile::columns);
  if (large <= medium && large <= small)
    run_tile<LargeTile>(product, finish, data<int32_t>(popcounts), output);
  else if (medium <= small)
    run_tile<MediumTile>(product, finish, data<int32_t>(popcounts), output);
  else
    run_tile<SmallTile>(product, finish, data<int32_t>(popcounts), output);
}

}  // namespace bnn_ext::cuda
