// The gradient of a 2-d convolution to its weights on the CPU, the input being signs.
//
// A weight's gradient sums real gradients over images and output positions, each with the sign of
// the input that the weight met there. Inputs come packed by image, so those that a tap meets along
// a row of outputs are words of a row of the map, and taps that fall outside are left out. A few
// output channels and positions at a time become tables, for all taps and input channels.
#include <torch/csrc/stable/library.h>

#include "common/permuted.h"
#include "cpu/axis.h"
#include "cpu/operators.h"
#include "cpu/real.h"

namespace bnn_ext::cpu {
namespace {

constexpr int64_t kTileRows = 12;      // output channels that share a pass over the inputs
constexpr int64_t kTileTables = 1536;  // tables at a time: 96 KiB at most
constexpr int64_t kMostImages = kTileTables / kTileRows / kWordQuads * kWordBits;  // at a time

struct Conv {
  const Tensor& grad;
  Tensor tiles;  // of the input, its channels in the place of a weight's output channels
  int64_t images, groups;
  int64_t in, out;  // channels of a group
  Axis vertical, horizontal;

  int64_t taps() const { return vertical.kernel * horizontal.kernel; }
};

Conv prepare(const Tensor& grad, const Tensor& input, const Pair& kernel_size, const Pair& stride,
             const Pair& padding, const Pair& dilation, int64_t groups) {
  STD_TORCH_CHECK(grad.is_cpu() && grad.dim() == 4 && grad.scalar_type() == ScalarType::Float,
                  "grad must be float32 [N, out, H', W'] on the CPU");
  const Tensor packed = checked_packed(input, "input", grad.size(0), 4);
  check_geometry(kernel_size, "kernel_size");
  check_geometry(stride, "stride");
  check_geometry(padding, "padding");
  check_geometry(dilation, "dilation");
  STD_TORCH_CHECK(groups > 0 && packed.size(0) % groups == 0 && grad.size(1) % groups == 0,
                  "groups must divide the channels of input and grad");
  Conv conv = {grad,
               checked_tiles(std::nullopt, packed, groups),
               grad.size(0),
               groups,
               packed.size(0) / groups,
               grad.size(1) / groups,
               {},
               {}};
  for (int i = 0; i < 2; ++i) {
    Axis& axis = i == 0 ? conv.vertical : conv.horizontal;
    axis = {packed.size(1 + i), kernel_size[i], stride[i],
            padding[i],         dilation[i],    grad.size(2 + i)};
    STD_TORCH_CHECK(axis.stride > 0 && axis.padding >= 0 && axis.dilation > 0 && axis.kernel > 0,
                    "stride, dilation and kernel size must be positive, padding not negative");
    const int64_t span = axis.dilation * (axis.kernel - 1) + 1;
    const int64_t room = axis.size + 2 * axis.padding - span;
    STD_TORCH_CHECK(room >= 0 && axis.out == room / axis.stride + 1,
                    "grad does not have the size of the convolution's output");
  }
  return conv;
}

// Sums of one tile of rows, that is output channels, and of some input channels.
class Tile {
 public:
  Tile(const Conv& conv, const Kernels& level, int64_t most_channels)
      : conv_(conv),
        kernel_(level.real.floats),
        table_size_(level.real.table_size),
        step_(strides_of(conv.grad)),
        words_(word_count(conv.images)),
        most_images_(std::clamp<int64_t>(conv.images, 1, kMostImages)),
        columns_(std::clamp<int64_t>(kTileTables / kTileRows / quad_count(most_images_), 1,
                                     conv.horizontal.out)),
        row_stride_(columns_ * quad_count(most_images_) * table_size_),
        sums_stride_(conv.taps() * most_channels),
        tables_(kTileRows * row_stride_),
        sums_(kTileRows * sums_stride_),
        taps_(columns_) {}

  // Writes the gradients of `rows` output channels from `row` on to the `channels` input channels
  // of their group from `channel` on.
  void run(int64_t row, int64_t rows, int64_t channel, int64_t channels, float* out) {
    const int64_t group_blocks = (conv_.in + kBlock - 1) / kBlock;
    const int64_t block = row / conv_.out * group_blocks + channel / kBlock;
    SignedSums<float> problem;
    problem.tables = tables_.get();
    problem.row_stride = row_stride_;
    problem.taps = taps_.data();
    problem.block_stride = conv_.vertical.size * conv_.horizontal.size * words_ * kBlock;
    problem.rows = rows;
    problem.blocks = (channels + kBlock - 1) / kBlock;
    problem.more = true;
    problem.sums_stride = sums_stride_;

    std::fill_n(sums_.get(), rows * sums_stride_, 0.0f);
    const Word* const weight = data<Word>(conv_.tiles) + block * problem.block_stride;
    for (int64_t y = 0; y < conv_.vertical.out; ++y)
      for (int64_t x = 0; x < conv_.horizontal.out; x += columns_)
        for (int64_t image = 0; image < conv_.images; image += most_images_)
          add(problem, row, y, x, image, weight);

    for (int64_t r = 0; r < rows; ++r)
      for (int64_t tap = 0; tap < conv_.taps(); ++tap)
        std::copy_n(sums_.get() + r * sums_stride_ + tap * problem.blocks * kBlock, channels,
                    out + ((row + r) * conv_.taps() + tap) * conv_.in + channel);
  }

 private:
  // Adds what some images give in a piece of a row of outputs.
  void add(SignedSums<float>& problem, int64_t row, int64_t y, int64_t x, int64_t image,
           const Word* weight) {
    const Axis &vertical = conv_.vertical, &horizontal = conv_.horizontal;
    const int64_t columns = std::min(columns_, horizontal.out - x);
    const int64_t images = std::min(most_images_, conv_.images - image);
    const float* const grad =
        data<float>(conv_.grad) + image * step_[0] + row * step_[1] + y * step_[2] + x * step_[3];
    for (int64_t r = 0; r < problem.rows; ++r)
      kernel_.make_tables(grad + r * step_[1], step_[0], images, step_[3], columns,
                          tables_.get() + r * row_stride_);
    problem.tap_quads = quad_count(images);
    for (int64_t ky = 0; ky < vertical.kernel; ++ky) {
      const int64_t map_y = vertical.at(y, ky);
      if (map_y < 0 || map_y >= vertical.size) continue;
      problem.weight = weight + (map_y * horizontal.size * words_ + image / kWordBits) * kBlock;
      for (int64_t kx = 0; kx < horizontal.kernel; ++kx) {
        problem.tap_count = 0;
        for (int64_t column = 0; column < columns; ++column) {
          const int64_t map_x = horizontal.at(x + column, kx);
          if (map_x >= 0 && map_x < horizontal.size)
            taps_[problem.tap_count++] = {column * problem.tap_quads * table_size_,
                                          map_x * words_ * kBlock};
        }
        if (problem.tap_count == 0) continue;
        problem.sums = sums_.get() + (ky * horizontal.kernel + kx) * problem.blocks * kBlock;
        kernel_.add(problem);
      }
    }
  }

  const Conv& conv_;
  const SignedSumKernels<float>& kernel_;
  const int64_t table_size_;
  const std::vector<int64_t> step_;  // from a gradient to the next one of each dimension
  const int64_t words_, most_images_, columns_, row_stride_, sums_stride_;
  const Buffer<float> tables_, sums_;
  std::vector<TableTap> taps_;
};

}  // namespace

Tensor conv2d_weight_gradient(const Tensor& grad, const Tensor& input, const Pair& kernel_size,
                              const Pair& stride, const Pair& padding, const Pair& dilation,
                              int64_t groups) {
  const Conv conv = prepare(grad, input, kernel_size, stride, padding, dilation, groups);
  const Tensor nhwc =
      new_tensor({groups * conv.out, kernel_size[0], kernel_size[1], conv.in}, ScalarType::Float);
  float* const out = mutable_data<float>(nhwc);
  const Kernels& level = kernels();

  const int64_t chunks = (conv.in + kTileChannels - 1) / kTileChannels;
  const int64_t row_tiles = (conv.out + kTileRows - 1) / kTileRows;
  const int64_t tasks = groups * row_tiles * chunks;  // chunks of input channels turn fastest
  const int64_t work = nhwc.numel() * conv.images * conv.vertical.out * conv.horizontal.out;
  torch::stable::parallel_for(
      0, tasks, grain_for(tasks, work, kGrainSums), [&](int64_t begin, int64_t end) {
        Tile tile(conv, level, std::min(chunks, end - begin) * kTileChannels);
        while (begin < end) {  // the chunks of this range that belong to one tile of rows
          const int64_t chunk = begin % chunks, row_tile = begin / chunks % row_tiles;
          const int64_t group = begin / chunks / row_tiles;
          const int64_t count = std::min(chunks - chunk, end - begin);
          begin += count;
          const int64_t row = row_tile * kTileRows, channel = chunk * kTileChannels;
          tile.run(group * conv.out + row, std::min(kTileRows, conv.out - row), channel,
                   std::min(count * kTileChannels, conv.in - channel), out);
        }
      });
  return permuted(nhwc, {0, 3, 1, 2});
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("conv2d_weight_gradient", TORCH_BOX(&bnn_ext::cpu::conv2d_weight_gradient));
}
