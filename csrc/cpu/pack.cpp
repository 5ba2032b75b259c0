// Packing and unpacking on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/tensor.h"

namespace bnn_ext::cpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Rows of `channels` values: row r starts at (r / inner) * outer_step + (r % inner) * inner_step.
// Either the channels are neighbours (channel_step 1: NHWC) or the rows are (inner_step 1: NCHW).
struct Rows {
  int64_t count, inner, outer_step, inner_step, channels, channel_step;
};

constexpr int64_t kGrain = 1 << 15;  // values that are worth a thread

// Describes a tensor without copying it, if its strides are those of one of the two layouts.
std::optional<Rows> rows_of(const Tensor& input) {
  Rows rows = {1, 1, 0, 0, input.size(-1), input.size(-1) > 1 ? input.stride(-1) : 1};
  int64_t outer = 1;
  for (int64_t i = input.dim() - 2; i >= 0; --i) {  // innermost first
    const int64_t size = input.size(i), stride = input.stride(i);
    rows.count *= size;
    if (size == 1) continue;
    if (rows.inner == 1) {
      rows.inner = size;
      rows.inner_step = stride;
    } else if (outer == 1 && stride == rows.inner * rows.inner_step) {
      rows.inner *= size;
    } else if (outer == 1) {
      outer = size;
      rows.outer_step = stride;
    } else if (stride == outer * rows.outer_step) {
      outer *= size;
    } else {
      return std::nullopt;
    }
  }
  if (rows.channel_step != 1 && rows.inner_step != 1) return std::nullopt;
  return rows;
}

// The kernels for float32 (also of half precision, converted on the way) or for int32.
template <typename Value>
struct Compare {
  const PackKernels& level;
  const Value* threshold;
  const Word* flip;

  void row(const Value* x, int64_t n, Word* out) const {
    if constexpr (std::is_same_v<Value, float>)
      level.compare_float(x, n, threshold, flip, out);
    else
      level.compare_int(x, n, threshold, flip, out);
  }
  // The word of channels `first` ... for `pixels` neighbouring rows.
  void columns(const Value* x, int64_t channel_step, int64_t pixels, int64_t first,
               int64_t channels, Word* out, int64_t out_step) const {
    const Value* t = threshold ? threshold + first : nullptr;
    const Word below = flip ? flip[first / kWordBits] : 0;
    if constexpr (std::is_same_v<Value, float>)
      level.compare_columns_float(x, channel_step, pixels, channels, t, below, out, out_step);
    else
      level.compare_columns_int(x, channel_step, pixels, channels, t, below, out, out_step);
  }
};

template <typename T, typename Value>
void pack_rows(const T* input, const Rows& rows, const Compare<Value>& compare, Word* out) {
  const int64_t words = word_count(rows.channels);
  torch::stable::parallel_for(
      0, rows.count, grain_for(rows.count, rows.count * rows.channels, kGrain),
      [&](int64_t begin, int64_t end) {
        std::vector<Value> converted(std::is_same_v<T, Value> ? 0 : rows.channels);
        for (int64_t row = begin; row < end; ++row) {
          const T* x =
              input + row / rows.inner * rows.outer_step + row % rows.inner * rows.inner_step;
          if constexpr (std::is_same_v<T, Value>) {
            compare.row(x, rows.channels, out + row * words);
          } else {
            std::copy(x, x + rows.channels, converted.begin());
            compare.row(converted.data(), rows.channels, out + row * words);
          }
        }
      });
}

template <typename T, typename Value>
void pack_columns(const T* input, const Rows& rows, const Compare<Value>& compare, Word* out) {
  constexpr int64_t kPixels = 64;  // rows at a time
  const int64_t words = word_count(rows.channels);
  const int64_t pieces = (rows.inner + kPixels - 1) / kPixels;
  const int64_t tasks = rows.count / rows.inner * pieces * words;
  torch::stable::parallel_for(
      0, tasks, grain_for(tasks, rows.count * rows.channels, kGrain),
      [&](int64_t begin, int64_t end) {
        std::vector<Value> converted(std::is_same_v<T, Value> ? 0 : kWordBits * kPixels);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t piece = task % pieces, word = task / pieces % words;
          const int64_t outer = task / pieces / words;
          const int64_t pixel = piece * kPixels, channel = word * kWordBits;
          const int64_t pixels = std::min(kPixels, rows.inner - pixel);
          const int64_t channels = std::min(kWordBits, rows.channels - channel);
          const T* x = input + outer * rows.outer_step + pixel + channel * rows.channel_step;
          Word* to = out + (outer * rows.inner + pixel) * words + word;
          if constexpr (std::is_same_v<T, Value>) {
            compare.columns(x, rows.channel_step, pixels, channel, channels, to, words);
          } else {
            for (int64_t c = 0; c < channels; ++c)
              std::copy(x + c * rows.channel_step, x + c * rows.channel_step + pixels,
                        converted.begin() + c * kPixels);
            compare.columns(converted.data(), kPixels, pixels, channel, channels, to, words);
          }
        }
      });
}

template <typename T, typename Value>
void pack_as(const Tensor& input, const Rows& rows, const std::optional<Tensor>& threshold,
             const std::optional<Tensor>& flip, Word* out) {
  const Compare<Value> compare = {kernels().pack, data<Value>(threshold), data<Word>(flip)};
  if (rows.channel_step == 1)
    pack_rows<T, Value>(data<T>(input), rows, compare, out);
  else
    pack_columns<T, Value>(data<T>(input), rows, compare, out);
}

}  // namespace

Tensor pack(const Tensor& input, const std::optional<Tensor>& threshold,
            const std::optional<Tensor>& flip) {
  STD_TORCH_CHECK(input.dim() > 0, "input must have at least 1 dimension");
  STD_TORCH_CHECK(input.is_cpu(), "input must be on the CPU");
  STD_TORCH_CHECK(threshold || !flip, "flip needs a threshold");
  const bool integer = input.scalar_type() == ScalarType::Int;
  const int64_t channels = input.size(-1);
  const auto thresholds = checked_vector(threshold, "threshold", channels,
                                         integer ? ScalarType::Int : ScalarType::Float);
  const auto flips = checked_vector(flip, "flip", word_count(channels), ScalarType::Int);
  std::vector<int64_t> shape = shape_of(input);
  shape.back() = word_count(channels);
  const Tensor out = new_tensor(shape, ScalarType::Int);
  if (out.numel() == 0) return out;

  auto rows = rows_of(input);
  const Tensor source = rows ? input : torch::stable::contiguous(input);
  if (!rows) rows = rows_of(source);
  Word* to = mutable_data<Word>(out);
  switch (input.scalar_type()) {
    case ScalarType::Float:
      pack_as<float, float>(source, *rows, thresholds, flips, to);
      break;
    case ScalarType::Half:
      pack_as<Half, float>(source, *rows, thresholds, flips, to);
      break;
    case ScalarType::BFloat16:
      pack_as<BFloat16, float>(source, *rows, thresholds, flips, to);
      break;
    case ScalarType::Int:
      pack_as<int32_t, int32_t>(source, *rows, thresholds, flips, to);
      break;
    default:
      STD_TORCH_CHECK(false, "input must be float32, float16, bfloat16 or int32");
  }
  return out;
}

namespace {

template <typename T>
void unpack_as(const Word* from, int64_t rows, int64_t channels, T* to) {
  const int64_t words = word_count(channels);
  const T plus = static_cast<T>(1), minus = static_cast<T>(-1);
  torch::stable::parallel_for(
      0, rows, grain_for(rows, rows * channels, kGrain), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
          for (int64_t c = 0; c < channels; ++c)
            to[row * channels + c] = get_bit(from + row * words, c) ? plus : minus;
      });
}

Tensor unpack(const Tensor& packed, int64_t channels, ScalarType dtype) {
  const Tensor source = checked_packed(packed, "packed", channels, -1);
  std::vector<int64_t> shape = shape_of(packed);
  shape.back() = channels;
  const Tensor out = new_tensor(shape, dtype);
  if (channels == 0) return out;
  const Word* from = data<Word>(source);
  const int64_t rows = out.numel() / channels;
  switch (dtype) {
    case ScalarType::Float:
      unpack_as(from, rows, channels, mutable_data<float>(out));
      break;
    case ScalarType::Half:
      unpack_as(from, rows, channels, mutable_data<Half>(out));
      break;
    case ScalarType::BFloat16:
      unpack_as(from, rows, channels, mutable_data<BFloat16>(out));
      break;
    case ScalarType::Int:
      unpack_as(from, rows, channels, mutable_data<int32_t>(out));
      break;
    case ScalarType::Char:
      unpack_as(from, rows, channels, mutable_data<int8_t>(out));
      break;
    default:
      STD_TORCH_CHECK(false, "dtype must be float32, float16, bfloat16, int32 or int8");
  }
  return out;
}

Tensor flatten(const Tensor& packed, int64_t channels) {
  STD_TORCH_CHECK(packed.dim() >= 2, "packed must have at least 2 dimensions");
  const Tensor source = checked_packed(packed, "packed", channels, -1);
  int64_t pixels = 1;
  for (int64_t i = 1; i + 1 < packed.dim(); ++i) pixels *= packed.size(i);
  const int64_t images = packed.size(0), words = word_count(channels);
  const int64_t out_words = word_count(pixels * channels);
  const Tensor out = new_tensor({images, out_words}, ScalarType::Int);
  const Word* from = data<Word>(source);
  Word* to = mutable_data<Word>(out);
  std::fill(to, to + out.numel(), Word{0});
  torch::stable::parallel_for(
      0, images, grain_for(images, images * pixels * words, kGrain / kWordBits),
      [&](int64_t begin, int64_t end) {
        for (int64_t image = begin; image < end; ++image)
          for (int64_t pixel = 0; pixel < pixels; ++pixel)
            for (int64_t word = 0; word < words; ++word) {
              const Word bits = from[(image * pixels + pixel) * words + word] &
                                low_bits(channels - word * kWordBits);
              const int64_t bit = pixel * channels + word * kWordBits;
              const int64_t shift = bit % kWordBits;
              Word* target = to + image * out_words + bit / kWordBits;
              target[0] |= bits << shift;
              const Word rest = shift ? bits >> (kWordBits - shift) : 0;
              if (rest) target[1] |= rest;  // no tail bits, so never past the end
            }
      });
  return out;
}

}  // namespace
}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("pack", TORCH_BOX(&bnn_ext::cpu::pack));
  m.impl("unpack", TORCH_BOX(&bnn_ext::cpu::unpack));
  m.impl("flatten", TORCH_BOX(&bnn_ext::cpu::flatten));
}
