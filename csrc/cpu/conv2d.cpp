// Packed 2-d convolution on the CPU, NHWC words, no im2col.
//
// Zero padding is exact because taps outside the input are left out: output rows and columns are
// sorted into spans that see the same kernel rows and columns, and every pair of spans becomes a
// region with its own taps. Padding by +1 or -1 convolves a padded copy.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/axis.h"
#include "cpu/dot.h"
#include "cpu/gather.h"
#include "cpu/operators.h"

namespace bnn_ext::cpu {
namespace {

struct Conv {
  Tensor input, tiles;  // these keep the memory that `dot` points to
  std::vector<Tensor> runs;
  std::vector<int64_t> shape;
  Dot dot;
};

// Outputs [begin, end) see the kernel's taps [first, last).
struct Span {
  int64_t begin, end, first, last;
};

std::vector<Span> spans(const Axis& axis) {
  std::vector<Span> result;
  result.reserve(std::min(axis.out, 2 * axis.kernel + 1));
  for (int64_t o = 0; o < axis.out; ++o) {
    int64_t first = 0, last = axis.kernel;
    while (first < last && axis.at(o, first) < 0) ++first;
    while (last > first && axis.at(o, last - 1) >= axis.size) --last;
    if (!result.empty() && result.back().first == first && result.back().last == last)
      result.back().end = o + 1;
    else
      result.push_back({o, o + 1, first, last});
  }
  return result;
}

int64_t taps(const std::vector<Span>& spans) {
  int64_t count = 0;
  for (const Span& span : spans) count += span.last - span.first;
  return count;
}

// The map with every group's channels moved to the start of a word of its own.
Tensor align_groups(const Tensor& input, int64_t channels, int64_t groups) {
  const int64_t group_channels = channels / groups;
  const int64_t group_words = word_count(group_channels);
  const int64_t pixels = input.size(0) * input.size(1) * input.size(2);
  const Tensor aligned = new_tensor(
      {input.size(0), input.size(1), input.size(2), groups * group_words}, ScalarType::Int);
  const Word* from = data<Word>(input);
  Word* to = mutable_data<Word>(aligned);
  for (int64_t pixel = 0; pixel < pixels; ++pixel, from += word_count(channels))
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t bit = 0; bit < group_channels; bit += kWordBits)
        *to++ = read_bits(from, group * group_channels + bit,
                          std::min(kWordBits, group_channels - bit));
  return aligned;
}

// The map with a border of +1 (all real bits set) or -1 (all bits clear).
Tensor pad_map(const Tensor& input, int64_t channels, const Pair& padding, int64_t pad_value) {
  const int64_t words = input.size(3);
  const int64_t height = input.size(1), width = input.size(2);
  const int64_t padded_height = height + 2 * padding[0], padded_width = width + 2 * padding[1];
  const Tensor padded =
      new_tensor({input.size(0), padded_height, padded_width, words}, ScalarType::Int);
  std::vector<Word> border(words, 0);
  if (pad_value > 0)
    for (int64_t word = 0; word < words; ++word)
      border[word] = low_bits(channels - word * kWordBits);
  const Word* from = data<Word>(input);
  Word* to = mutable_data<Word>(padded);
  for (int64_t image = 0; image < input.size(0); ++image)
    for (int64_t y = 0; y < padded_height; ++y)
      for (int64_t x = 0; x < padded_width; ++x, to += words) {
        const int64_t source_y = y - padding[0], source_x = x - padding[1];
        const bool inside = source_y >= 0 && source_y < height && source_x >= 0 && source_x < width;
        const Word* pixel = inside ? from + ((image * height + source_y) * width + source_x) * words
                                   : border.data();
        std::copy_n(pixel, words, to);
      }
  return padded;
}

// Tells the loop nest where the map lies and how large a block of weights is.
void set_map(Conv& conv, int64_t group_words, int64_t block_taps) {
  conv.dot.input = data<Word>(conv.input);
  conv.dot.image_words = conv.input.size(1) * conv.input.size(2) * conv.input.size(3);
  conv.dot.group_words = group_words;
  conv.dot.block_words = block_taps * group_words * kBlock;
}

// The region of two spans, whose steps begin here; its weights and inputs are left to be set.
Region region_of(const Dot& dot, const Span& rows, const Span& columns, int64_t out_width,
                 int64_t channels) {
  Region region = {};
  region.first_step = dot.steps.size();
  region.k =
      static_cast<int32_t>((rows.last - rows.first) * (columns.last - columns.first) * channels);
  region.height = rows.end - rows.begin;
  region.width = columns.end - columns.begin;
  region.output = rows.begin * out_width + columns.begin;
  region.output_row = out_width;
  region.output_column = 1;
  return region;
}

// Every tap is a run of words, or every row of taps.
void add_tap_regions(Conv& conv, const Axis& vertical, const Axis& horizontal,
                     int64_t in_channels) {
  Dot& dot = conv.dot;
  const int64_t channels = in_channels / dot.groups, group_words = word_count(channels);
  if (dot.groups > 1 && channels % kWordBits != 0)
    conv.input = align_groups(conv.input, in_channels, dot.groups);
  set_map(conv, group_words, vertical.kernel * horizontal.kernel);
  const int64_t pixel_words = conv.input.size(3), row_words = horizontal.size * pixel_words;

  // Words of neighbouring pixels are neighbours unless dilation or other groups lie between.
  const bool whole_rows = horizontal.dilation == 1 && dot.groups == 1;
  const std::vector<Span> row_spans = spans(vertical), column_spans = spans(horizontal);
  dot.regions.reserve(row_spans.size() * column_spans.size());
  dot.steps.reserve(taps(row_spans) * taps(column_spans) * group_words / step_words(group_words));
  for (const Span& rows : row_spans)
    for (const Span& columns : column_spans) {
      Region region = region_of(dot, rows, columns, horizontal.out, channels);
      const int64_t run_columns = whole_rows ? columns.last - columns.first : 1;
      region.tiles = data<Word>(conv.tiles);
      region.step_words = step_words(run_columns * group_words);
      if (region.k > 0) {
        for (int64_t ky = rows.first; ky < rows.last; ++ky)
          for (int64_t kx = columns.first; kx < columns.last; kx += run_columns)
            add_steps(dot.steps,
                      (ky - rows.first) * vertical.dilation * row_words +
                          (kx - columns.first) * horizontal.dilation * pixel_words,
                      (ky * horizontal.kernel + kx) * group_words, run_columns * group_words);
        region.input = vertical.at(rows.begin, rows.first) * row_words +
                       horizontal.at(columns.begin, columns.first) * pixel_words;
        region.input_row = vertical.stride * row_words;
        region.input_column = horizontal.stride * pixel_words;
      }
      region.step_count = static_cast<int64_t>(dot.steps.size()) - region.first_step;
      dot.regions.push_back(region);
    }
}

// Few channels: every row of taps is a run of bits, see gather.h.
void add_run_regions(Conv& conv, const Axis& vertical, const Axis& horizontal,
                     const Gather& gather) {
  Dot& dot = conv.dot;
  conv.input = gather_map(conv.input, gather, horizontal.out);
  set_map(conv, gather.words(), vertical.kernel);
  const int64_t column_words = conv.input.size(3), row_words = horizontal.out * column_words;

  for (const Span& columns : spans(horizontal)) {
    conv.runs.push_back(gather_tiles(conv.tiles, gather, columns.first, columns.last));
    for (const Span& rows : spans(vertical)) {
      Region region = region_of(dot, rows, columns, horizontal.out, gather.channels);
      region.tiles = data<Word>(conv.runs.back());
      region.step_words = step_words(gather.words());
      if (region.k > 0) {
        for (int64_t ky = rows.first; ky < rows.last; ++ky)
          add_steps(dot.steps, (ky - rows.first) * vertical.dilation * row_words,
                    ky * gather.words(), gather.words());
        region.input =
            vertical.at(rows.begin, rows.first) * row_words + columns.begin * column_words;
        region.input_row = vertical.stride * row_words;
        region.input_column = column_words;
      }
      region.step_count = static_cast<int64_t>(dot.steps.size()) - region.first_step;
      dot.regions.push_back(region);
    }
  }
}

Conv prepare(const Tensor& input, const Tensor& weight, int64_t in_channels, const Pair& stride,
             Pair padding, const Pair& dilation, int64_t groups, int64_t pad_value,
             const std::optional<Tensor>& tiles) {
  check_geometry(stride, "stride");
  check_geometry(padding, "padding");
  check_geometry(dilation, "dilation");
  STD_TORCH_CHECK(groups > 0 && in_channels % groups == 0, "groups must divide in_channels");
  STD_TORCH_CHECK(padding[0] >= 0 && padding[1] >= 0, "padding must not be negative");
  STD_TORCH_CHECK(pad_value >= -1 && pad_value <= 1, "pad_value must be -1, 0 or 1");
  Conv conv;
  conv.input = checked_packed(input, "input", in_channels, 4);
  const int64_t group_channels = in_channels / groups;
  checked_packed(weight, "weight", group_channels, 4);
  conv.tiles = checked_tiles(tiles, weight, groups);

  if (pad_value != 0 && (padding[0] > 0 || padding[1] > 0)) {
    conv.input = pad_map(conv.input, in_channels, padding, pad_value);
    padding = {0, 0};
  }
  Axis axes[2];
  for (int i = 0; i < 2; ++i) {
    Axis& axis = axes[i];
    axis = {conv.input.size(1 + i), weight.size(1 + i), stride[i], padding[i], dilation[i], 0};
    STD_TORCH_CHECK(axis.stride > 0 && axis.dilation > 0 && axis.kernel > 0,
                    "stride, dilation and kernel size must be positive");
    const int64_t room = axis.size + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1;
    STD_TORCH_CHECK(room >= 0, "the kernel does not fit the padded input");
    axis.out = room / axis.stride + 1;
  }
  const Axis &vertical = axes[0], &horizontal = axes[1];
  check_sums(vertical.kernel * horizontal.kernel * group_channels);
  conv.shape = {input.size(0), vertical.out, horizontal.out};

  conv.dot.images = input.size(0);
  conv.dot.positions = vertical.out * horizontal.out;
  conv.dot.groups = groups;
  conv.dot.out_channels = weight.size(0) / groups;
  const Gather gather = {groups,
                         group_channels,
                         horizontal.kernel,
                         horizontal.stride,
                         horizontal.padding,
                         horizontal.dilation};
  if (gather.pays())
    add_run_regions(conv, vertical, horizontal, gather);
  else
    add_tap_regions(conv, vertical, horizontal, in_channels);
  return conv;
}

}  // namespace

Tensor conv2d(const Tensor& input, const Tensor& weight, int64_t in_channels, const Pair& stride,
              const Pair& padding, const Pair& dilation, int64_t groups, int64_t pad_value,
              const std::optional<Tensor>& tiles) {
  const Conv conv =
      prepare(input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles);
  return dot_sums(conv.dot, conv.shape);
}

Tensor conv2d_float(const Tensor& input, const Tensor& weight, int64_t in_channels,
                    const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                    int64_t pad_value, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& bias, ScalarType dtype,
                    const std::optional<Tensor>& tiles) {
  const Conv conv =
      prepare(input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles);
  return dot_float(conv.dot, conv.shape, scale, bias, dtype);
}

Tensor conv2d_bits(const Tensor& input, const Tensor& weight, int64_t in_channels,
                   const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                   int64_t pad_value, const Tensor& threshold, const std::optional<Tensor>& flip,
                   const std::optional<Tensor>& tiles) {
  const Conv conv =
      prepare(input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles);
  return dot_bits(conv.dot, conv.shape, threshold, flip);
}

std::vector<Tensor> conv2d_fused(
    const Room& room, const Tensor& input, const Tensor& weight, int64_t in_channels,
    const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
    int64_t pad_value, const std::vector<int64_t>& operations, const std::vector<Tensor>& operands,
    const std::optional<ScalarType>& dtype, const std::optional<Tensor>& threshold,
    const std::optional<Tensor>& flip, const std::optional<Tensor>& tiles) {
  const Conv conv =
      prepare(input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles);
  return dot_fused(room, conv.dot, conv.shape, operations, operands, dtype, threshold, flip);
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&bnn_ext::cpu::conv2d));
  m.impl("conv2d_float", TORCH_BOX(&bnn_ext::cpu::conv2d_float));
  m.impl("conv2d_fused", TORCH_BOX(&bnn_ext::cpu::WithoutRoom<&bnn_ext::cpu::conv2d_fused>::call));
  m.impl("conv2d_bits", TORCH_BOX(&bnn_ext::cpu::conv2d_bits));
}
