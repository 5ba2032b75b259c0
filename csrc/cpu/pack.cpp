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
// With channel_step != 1 this is an NCHW map that is read as NHWC, without a copy of all of it.
struct Rows {
  int64_t count, inner, outer_step, inner_step, channels, channel_step;
};

constexpr int64_t kStage = 32;  // pixels that are transposed at a time
constexpr int64_t kGrain = 1 << 15;

// A float32 row is compared where it lies; every other row passes through a buffer.
template <typename T, typename Value, typename Compare>
void pack_rows(const T* input, const Rows& rows, const Compare& compare, Word* out) {
  const int64_t words = word_count(rows.channels);
  const bool in_place = std::is_same_v<T, Value> && rows.channel_step == 1;
  const int64_t blocks = (rows.count + kStage - 1) / kStage;
  torch::stable::parallel_for(
      0, blocks, grain_for(blocks, rows.count * rows.channels, kGrain),
      [&](int64_t begin, int64_t end) {
        std::vector<Value> stage(in_place ? 0 : kStage * rows.channels);
        for (int64_t block = begin; block < end; ++block) {
          const int64_t first = block * kStage, last = std::min(rows.count, first + kStage);
          const auto start = [&](int64_t row) {
            return input + row / rows.inner * rows.outer_step + row % rows.inner * rows.inner_step;
          };
          if (in_place) {
            if constexpr (std::is_same_v<T, Value>)
              for (int64_t row = first; row < last; ++row)
                compare(start(row), rows.channels, out + row * words);
            continue;
          }
          if (rows.channel_step == 1) {
            for (int64_t row = first; row < last; ++row)
              for (int64_t c = 0; c < rows.channels; ++c)
                stage[(row - first) * rows.channels + c] = static_cast<Value>(start(row)[c]);
          } else {
            for (int64_t c = 0; c < rows.channels; ++c)
              for (int64_t row = first; row < last; ++row)
                stage[(row - first) * rows.channels + c] =
                    static_cast<Value>(start(row)[c * rows.channel_step]);
          }
          for (int64_t row = first; row < last; ++row)
            compare(stage.data() + (row - first) * rows.channels, rows.channels, out + row * words);
        }
      });
}

// Describes a tensor's rows without copying it if its outer dimensions step like one or two loops.
std::optional<Rows> rows_of(const Tensor& input) {
  const int64_t rank = input.dim();
  Rows rows = {1, 1, 0, 0, input.size(-1), input.size(-1) > 1 ? input.stride(-1) : 1};
  int64_t loops = 0;
  for (int64_t i = rank - 2; i >= 0; --i) {  // innermost first
    const int64_t size = input.size(i), stride = input.stride(i);
    rows.count *= size;
    if (size == 1) continue;
    if (loops == 0) {
      rows.inner = size;
      rows.inner_step = stride;
      loops = 1;
    } else if (loops == 1 && stride == rows.inner * rows.inner_step) {
      rows.inner *= size;
    } else if (loops == 1) {
      rows.outer_step = stride;
      loops = 2;
    } else if (stride == rows.outer_step * (rows.count / size / rows.inner)) {
      // one more dimension that continues the outer loop
    } else {
      return std::nullopt;
    }
  }
  return rows;
}

template <typename T, typename Value>
void pack_as(const Tensor& input, const Rows& rows, const std::optional<Tensor>& threshold,
             const std::optional<Tensor>& flip, Word* out) {
  const Kernels& level = kernels();
  const Value* t = data<Value>(threshold);
  const Word* f = data<Word>(flip);
  pack_rows<T, Value>(
      data<T>(input), rows,
      [&](const Value* x, int64_t n, Word* to) {
        if constexpr (std::is_same_v<Value, float>)
          level.compare_float(x, n, t, f, to);
        else
          level.compare_int(x, n, t, f, to);
      },
      out);
}

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
  const Tensor out = new_tensor(input, shape, ScalarType::Int);
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
  const Tensor out = new_tensor(packed, shape, dtype);
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
  const Tensor out = new_tensor(packed, {images, out_words}, ScalarType::Int);
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
