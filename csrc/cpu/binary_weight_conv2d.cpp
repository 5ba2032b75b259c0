// 2-d convolution of real maps with binary weights on the CPU.
//
// Every pixel of an input row becomes tables once, for all kernel taps and output channels. A ring
// of table rows holds what the windows of one output row see; the next output row replaces only the
// rows that it no longer sees. Padding has tables as well: of zeros, so that it adds nothing, or of
// sums of +1 or -1. Any strides of the input will do, since its values are read one by one.
#include <torch/csrc/stable/library.h>

#include "common/permuted.h"
#include "cpu/operators.h"
#include "cpu/real.h"

namespace bnn_ext::cpu {
namespace {

constexpr int64_t kRingBytes = 256 << 10;  // of tables: wide maps are cut into columns
constexpr int64_t kLeastColumns = 12;

struct Axis {
  int64_t size, kernel, stride, padding, dilation;

  int64_t span() const { return dilation * (kernel - 1) + 1; }  // of a window
  int64_t out() const { return (size + 2 * padding - span()) / stride + 1; }
};

struct Conv {
  Tensor input, tiles;  // keep the memory that is pointed to
  Axis vertical, horizontal;
  int64_t groups, group_channels, group_out;
  int64_t pad_value;

  std::vector<int64_t> shape() const { return {input.size(0), vertical.out(), horizontal.out()}; }
  int64_t out() const { return groups * group_out; }
};

Conv prepare(const Tensor& input, const Tensor& weight, int64_t in_channels, const Pair& stride,
             const Pair& padding, const Pair& dilation, int64_t groups, int64_t pad_value,
             const std::optional<Tensor>& tiles) {
  STD_TORCH_CHECK(input.is_cpu() && input.dim() == 4, "input must be [N, C, H, W] on the CPU");
  STD_TORCH_CHECK(input.size(1) == in_channels, "input must have ", in_channels, " channels");
  check_geometry(stride, "stride");
  check_geometry(padding, "padding");
  check_geometry(dilation, "dilation");
  STD_TORCH_CHECK(groups > 0 && in_channels % groups == 0, "groups must divide in_channels");
  STD_TORCH_CHECK(pad_value >= -1 && pad_value <= 1, "pad_value must be -1, 0 or 1");
  Conv conv = {};
  conv.input = input;
  conv.groups = groups;
  conv.group_channels = in_channels / groups;
  conv.pad_value = pad_value;
  checked_packed(weight, "weight", conv.group_channels, 4);
  conv.tiles = checked_tiles(tiles, weight, groups);
  conv.group_out = weight.size(0) / groups;
  for (int i = 0; i < 2; ++i) {
    Axis& axis = i == 0 ? conv.vertical : conv.horizontal;
    axis = {input.size(2 + i), weight.size(1 + i), stride[i], padding[i], dilation[i]};
    STD_TORCH_CHECK(axis.stride > 0 && axis.padding >= 0 && axis.dilation > 0 && axis.kernel > 0,
                    "stride, dilation and kernel size must be positive, padding not negative");
    STD_TORCH_CHECK(axis.size + 2 * axis.padding >= axis.span(),
                    "the kernel does not fit the padded input");
  }
  check_signed_sums(input, conv.vertical.kernel * conv.horizontal.kernel * conv.group_channels);
  return conv;
}

// The tables of the input rows that the windows of one output row see, for a range of columns.
//
// Rows and columns are counted from the padding's first one; layout [group][slot][pixel][quad].
template <typename In>
class Ring {
  using T = SumOf<In>;

 public:
  Ring(const Conv& conv, const Kernels& level, int64_t most_pixels)
      : conv_(conv),
        kernel_(signed_sums<T>(level)),
        pixel_(quad_count(conv.group_channels) * level.real.table_size),
        row_(most_pixels * pixel_),
        group_(conv.vertical.span() * row_),
        tables_(conv.groups * group_),
        converted_(std::is_same_v<In, T> ? 0 : conv.input.size(1) * most_pixels) {}

  // Starts over with the columns [first, first + pixels) of an image, from `row` on.
  void start(int64_t image, int64_t first, int64_t pixels, int64_t row) {
    image_ = data<In>(conv_.input) + image * conv_.input.stride(0);
    first_ = first;
    pixels_ = pixels;
    next_ = row;
  }

  // Holds the rows up to `end` from now on, and drops those that are too far above.
  void advance(int64_t end) {
    for (next_ = std::max(next_, end - conv_.vertical.span()); next_ < end; ++next_) fill(next_);
  }

  const T* tables(int64_t group) const { return tables_.get() + group * group_; }
  int64_t offset(int64_t row, int64_t column) const {  // of a row and a column of the range
    return row % conv_.vertical.span() * row_ + column * pixel_;
  }

 private:
  void fill(int64_t row) {
    T* to = tables_.get() + offset(row, 0);
    const int64_t y = row - conv_.vertical.padding;
    if (y < 0 || y >= conv_.vertical.size) return pad(to, pixels_);
    const int64_t x = first_ - conv_.horizontal.padding;
    const int64_t left = std::clamp<int64_t>(-x, 0, pixels_);
    const int64_t inside = std::clamp<int64_t>(conv_.horizontal.size - x - left, 0, pixels_ - left);
    pad(to, left);
    copy(y, x + left, inside, to + left * pixel_);
    pad(to + (left + inside) * pixel_, pixels_ - left - inside);
  }

  void pad(T* to, int64_t pixels) const {
    const T value = static_cast<T>(conv_.pad_value);
    for (int64_t group = 0; group < conv_.groups; ++group)
      kernel_.make_tables(&value, 0, conv_.group_channels, 0, pixels, to + group * group_);
  }

  void copy(int64_t y, int64_t x, int64_t pixels, T* to) const {
    int64_t channel_step = conv_.input.stride(1), pixel_step = conv_.input.stride(3);
    const In* in = image_ + y * conv_.input.stride(2) + x * pixel_step;
    const T* from;
    if constexpr (std::is_same_v<In, T>) {
      from = in;
    } else {
      T* converted = converted_.get();
      for (int64_t c = 0; c < conv_.input.size(1); ++c)
        for (int64_t p = 0; p < pixels; ++p)
          converted[c * pixels + p] = static_cast<T>(in[c * channel_step + p * pixel_step]);
      from = converted;
      channel_step = pixels;
      pixel_step = 1;
    }
    for (int64_t group = 0; group < conv_.groups; ++group)
      kernel_.make_tables(from + group * conv_.group_channels * channel_step, channel_step,
                          conv_.group_channels, pixel_step, pixels, to + group * group_);
  }

  const Conv& conv_;
  const SignedSumKernels<T>& kernel_;
  const int64_t pixel_, row_, group_;  // values of each
  const Buffer<T> tables_, converted_;
  const In* image_ = nullptr;
  int64_t first_ = 0, pixels_ = 0, next_ = 0;
};

// Columns of output whose windows have tables for at most kRingBytes.
int64_t most_columns(const Conv& conv, const Kernels& level) {
  const int64_t tables = conv.groups * quad_count(conv.group_channels) * conv.vertical.span();
  const int64_t bytes = std::max<int64_t>(1, tables * level.real.table_size * sizeof(float));
  const Axis& axis = conv.horizontal;
  const int64_t columns = (kRingBytes / bytes - axis.span()) / axis.stride + 1;
  return std::min(axis.out(), std::max(columns, kLeastColumns));
}

template <typename In, typename Store>
void run(const Conv& conv, const Store& store) {
  using T = SumOf<In>;
  const Kernels& level = kernels();
  const Axis &vertical = conv.vertical, &horizontal = conv.horizontal;
  const int64_t height = vertical.out(), width = horizontal.out();
  const int64_t columns = most_columns(conv, level);
  const int64_t pieces = (width + columns - 1) / columns;
  const int64_t most_pixels = (columns - 1) * horizontal.stride + horizontal.span();

  const int64_t blocks = (conv.group_out + kBlock - 1) / kBlock;
  const int64_t words = word_count(conv.group_channels);
  const int64_t block_words = vertical.kernel * horizontal.kernel * words * kBlock;
  const int64_t sums_stride = conv.groups * blocks * kBlock;

  const int64_t tasks = conv.input.size(0) * pieces * height;  // rows turn fastest
  const int64_t work = conv.input.size(0) * height * width * conv.out() * vertical.kernel *
                       horizontal.kernel * conv.group_channels;
  torch::stable::parallel_for(
      0, tasks, grain_for(tasks, work, kGrainSums), [&](int64_t begin, int64_t end) {
        Ring<In> ring(conv, level, most_pixels);
        const Buffer<T> sums(columns * sums_stride);
        std::vector<TableTap> taps(vertical.kernel * horizontal.kernel);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t y = task % height, piece = task / height % pieces;
          const int64_t image = task / height / pieces;
          const int64_t first = width * piece / pieces, last = width * (piece + 1) / pieces;
          const int64_t row = y * vertical.stride;
          if (task == begin || y == 0)
            ring.start(image, first * horizontal.stride,
                       (last - first - 1) * horizontal.stride + horizontal.span(), row);
          ring.advance(row + vertical.span());

          for (int64_t ky = 0, tap = 0; ky < vertical.kernel; ++ky)
            for (int64_t kx = 0; kx < horizontal.kernel; ++kx, ++tap)
              taps[tap] = {ring.offset(row + ky * vertical.dilation, kx * horizontal.dilation),
                           tap * words * kBlock};
          if (conv.group_channels == 0) std::fill_n(sums.get(), (last - first) * sums_stride, T{0});
          for (int64_t group = 0; group < conv.groups && conv.group_channels > 0; ++group) {
            SignedSums<T> problem;
            problem.tables = ring.tables(group);
            problem.row_stride = ring.offset(0, horizontal.stride);
            problem.taps = taps.data();
            problem.tap_count = taps.size();
            problem.tap_quads = quad_count(conv.group_channels);
            problem.weight = data<Word>(conv.tiles) + group * blocks * block_words;
            problem.block_stride = block_words;
            problem.rows = last - first;
            problem.blocks = blocks;
            problem.more = false;
            problem.sums = sums.get() + group * blocks * kBlock;
            problem.sums_stride = sums_stride;
            signed_sums<T>(level).add(problem);
          }
          for (int64_t group = 1; group < conv.groups; ++group)  // close the gaps between them
            for (int64_t i = 0; i < last - first; ++i)
              std::copy_n(sums.get() + i * sums_stride + group * blocks * kBlock, conv.group_out,
                          sums.get() + i * sums_stride + group * conv.group_out);
          store({(image * height + y) * width + first, last - first, 0, conv.out(), sums.get(),
                 sums_stride});
        }
      });
}

}  // namespace

Tensor binary_weight_conv2d(const Tensor& input, const Tensor& weight, int64_t in_channels,
                            const Pair& stride, const Pair& padding, const Pair& dilation,
                            int64_t groups, int64_t pad_value, const std::optional<Tensor>& scale,
                            const std::optional<Tensor>& bias, const std::optional<Tensor>& tiles) {
  const Conv conv =
      prepare(input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles);
  const Tensor nhwc =
      signed_sum_values(input, conv.shape(), conv.out(), scale, bias,
                        [&](auto value, const auto& store) { run<decltype(value)>(conv, store); });
  return permuted(nhwc, {0, 3, 1, 2});
}

Tensor binary_weight_conv2d_bits(const Tensor& input, const Tensor& weight, int64_t in_channels,
                                 const Pair& stride, const Pair& padding, const Pair& dilation,
                                 int64_t groups, int64_t pad_value, const Tensor& threshold,
                                 const std::optional<Tensor>& flip,
                                 const std::optional<Tensor>& tiles) {
  const Conv conv =
      prepare(input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles);
  return signed_sum_bits(input, conv.shape(), conv.out(), threshold, flip,
                         [&](auto value, const auto& store) { run<decltype(value)>(conv, store); });
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("binary_weight_conv2d", TORCH_BOX(&bnn_ext::cpu::binary_weight_conv2d));
  m.impl("binary_weight_conv2d_bits", TORCH_BOX(&bnn_ext::cpu::binary_weight_conv2d_bits));
}
