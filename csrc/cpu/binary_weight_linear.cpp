// Linear layers of real inputs with binary weights on the CPU.
//
// A few rows at a time, and of their inputs as many as have tables in a near cache; the weights of
// all output channels pass by them.
#include <torch/csrc/stable/library.h>

#include "cpu/operators.h"
#include "cpu/real.h"

namespace bnn_ext::cpu {
namespace {

constexpr int64_t kTileRows = 12;      // rows that share tables
constexpr int64_t kTileTables = 1536;  // tables at a time: 96 KiB at most

struct Linear {
  Tensor input, tiles;  // keep the memory that is pointed to
  std::vector<int64_t> shape;
  int64_t rows, in_features, out;
};

Linear prepare(const Tensor& input, const Tensor& weight, int64_t in_features,
               const std::optional<Tensor>& tiles) {
  STD_TORCH_CHECK(input.dim() > 0 && input.size(-1) == in_features, "input must have ", in_features,
                  " features");
  checked_packed(weight, "weight", in_features, 2);
  check_signed_sums(input, in_features);
  Linear linear;
  linear.input = checked(input, "input", input.scalar_type());
  linear.tiles = checked_tiles(tiles, weight, 1);
  linear.shape = shape_of(input);
  linear.shape.pop_back();
  linear.rows = 1;
  for (const int64_t size : linear.shape) linear.rows *= size;
  linear.in_features = in_features;
  linear.out = weight.size(0);
  return linear;
}

template <typename In, typename Store>
void run(const Linear& linear, const Store& store) {
  using T = SumOf<In>;
  const Kernels& level = kernels();
  const SignedSumKernels<T>& kernel = signed_sums<T>(level);
  const int64_t k = linear.in_features, words = word_count(k);
  const int64_t tile_rows = std::max<int64_t>(1, std::min(kTileRows, linear.rows));
  const int64_t piece = kTileTables / tile_rows / kWordQuads * kWordBits;  // inputs at a time
  const int64_t row_stride = quad_count(piece) * level.real.table_size;

  const int64_t chunks = (linear.out + kTileChannels - 1) / kTileChannels;
  const int64_t tasks = (linear.rows + tile_rows - 1) / tile_rows * chunks;
  torch::stable::parallel_for(
      0, tasks, grain_for(tasks, linear.rows * linear.out * k, kGrainSums),
      [&](int64_t begin, int64_t end) {
        const int64_t most_channels = std::min(chunks, end - begin) * kTileChannels;
        const Buffer<T> tables(tile_rows * row_stride), sums(tile_rows * most_channels);
        const Buffer<T> converted(std::is_same_v<In, T> ? 0 : piece);
        const TableTap tap = {0, 0};
        SignedSums<T> problem;
        problem.tables = tables.get();
        problem.row_stride = row_stride;
        problem.taps = &tap;
        problem.tap_count = 1;
        problem.block_stride = words * kBlock;
        problem.sums = sums.get();
        problem.sums_stride = most_channels;

        while (begin < end) {  // the chunks of this range that belong to one tile of rows
          const int64_t first_row = begin / chunks * tile_rows, first_chunk = begin % chunks;
          const int64_t chunk_count = std::min(chunks - first_chunk, end - begin);
          begin += chunk_count;
          const int64_t first = first_chunk * kTileChannels;
          const int64_t channels = std::min(chunk_count * kTileChannels, linear.out - first);
          problem.rows = std::min(tile_rows, linear.rows - first_row);
          problem.blocks = (channels + kBlock - 1) / kBlock;
          if (k == 0) std::fill_n(sums.get(), problem.rows * most_channels, T{0});
          for (int64_t start = 0; start < k; start += piece) {
            const int64_t count = std::min(piece, k - start);
            for (int64_t row = 0; row < problem.rows; ++row) {
              const In* x = data<In>(linear.input) + (first_row + row) * k + start;
              T* to = tables.get() + row * row_stride;
              if constexpr (std::is_same_v<In, T>) {
                kernel.make_tables(x, 1, count, 0, 1, to);
              } else {
                std::copy_n(x, count, converted.get());
                kernel.make_tables(converted.get(), 1, count, 0, 1, to);
              }
            }
            problem.more = start > 0;
            problem.tap_quads = quad_count(count);
            problem.weight = data<Word>(linear.tiles) + first_chunk * kTileBlocks * words * kBlock +
                             start / kWordBits * kBlock;
            kernel.add(problem);
          }
          store({first_row, problem.rows, first, channels, sums.get(), most_channels});
        }
      });
}

}  // namespace

Tensor binary_weight_linear(const Tensor& input, const Tensor& weight, int64_t in_features,
                            const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                            const std::optional<Tensor>& tiles) {
  const Linear linear = prepare(input, weight, in_features, tiles);
  return signed_sum_values(
      input, linear.shape, linear.out, scale, bias,
      [&](auto value, const auto& store) { run<decltype(value)>(linear, store); });
}

Tensor binary_weight_linear_bits(const Tensor& input, const Tensor& weight, int64_t in_features,
                                 const Tensor& threshold, const std::optional<Tensor>& flip,
                                 const std::optional<Tensor>& tiles) {
  const Linear linear = prepare(input, weight, in_features, tiles);
  return signed_sum_bits(
      input, linear.shape, linear.out, threshold, flip,
      [&](auto value, const auto& store) { run<decltype(value)>(linear, store); });
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("binary_weight_linear", TORCH_BOX(&bnn_ext::cpu::binary_weight_linear));
  m.impl("binary_weight_linear_bits", TORCH_BOX(&bnn_ext::cpu::binary_weight_linear_bits));
}
