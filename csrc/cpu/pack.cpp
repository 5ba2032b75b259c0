// Packing and unpacking on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/operators.h"

namespace bnn_ext::cpu {
namespace {

// Rows of `channels` values: row r starts at (r / inner) * outer_step + (r % inner) * inner_step.
// Either the channels are neighbours (channel_step 1: NHWC) or the rows are (inner_step 1: NCHW).
struct Rows {
  int64_t count, inner, outer_step, inner_step, channels, channel_step;
};

constexpr int64_t kGrain = 1 << 15;  // values that are worth a thread
constexpr int64_t kColumnRows = 64;

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

// Splits rows [begin, end) where a new outer step begins: use(first, count, offset of the first).
template <typename Use>
void for_each_run(const Rows& rows, int64_t begin, int64_t end, const Use& use) {
  int64_t outer = begin / rows.inner, inner = begin % rows.inner;
  for (int64_t row = begin; row < end; inner = 0, ++outer) {
    const int64_t count = std::min(end - row, rows.inner - inner);
    use(row, count, outer * rows.outer_step + inner * rows.inner_step);
    row += count;
  }
}

template <typename T>
void pack_as(const PackKernelsOf<T>& level, const Tensor& input, const Rows& rows,
             const std::optional<Tensor>& threshold, const std::optional<Tensor>& flip, Word* out) {
  const bool by_rows = rows.channel_step == 1;
  const int64_t words = word_count(rows.channels);
  // Rows in a task: neighbouring rows of an NCHW map share cache lines, so they stay together.
  const int64_t unit = by_rows ? 1 : kColumnRows;
  const int64_t tasks = (rows.count + unit - 1) / unit;
  torch::stable::parallel_for(0, tasks, grain_for(tasks, rows.count * rows.channels, kGrain),
                              [&](int64_t begin, int64_t end) {
                                for_each_run(rows, begin * unit, std::min(end * unit, rows.count),
                                             [&](int64_t row, int64_t count, int64_t offset) {
                                               const PackTile<T> tile = {
                                                   data<T>(input) + offset,
                                                   count,
                                                   rows.channels,
                                                   by_rows ? rows.inner_step : rows.channel_step,
                                                   data<ThresholdOf<T>>(threshold),
                                                   data<Word>(flip),
                                                   out + row * words,
                                                   words};
                                               (by_rows ? level.rows : level.columns)(tile);
                                             });
                              });
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
  const PackKernels& level = kernels().pack;
  switch (input.scalar_type()) {
    case ScalarType::Float:
      pack_as(level.float32, source, *rows, thresholds, flips, to);
      break;
    case ScalarType::Half:
      pack_as(level.float16, source, *rows, thresholds, flips, to);
      break;
    case ScalarType::BFloat16:
      pack_as(level.bfloat16, source, *rows, thresholds, flips, to);
      break;
    case ScalarType::Int:
      pack_as(level.int32, source, *rows, thresholds, flips, to);
      break;
    default:
      STD_TORCH_CHECK(false, "input must be float32, float16, bfloat16 or int32");
  }
  return out;
}

namespace {

// Writes values of T with the bits `plus` and `minus`.
template <typename T>
void unpack_as(void (*kernel)(const Word*, int64_t, int64_t, T, T, T*), const Tensor& packed,
               const Tensor& out, T plus, T minus) {
  const int64_t channels = out.size(-1), rows = out.numel() / channels;
  torch::stable::parallel_for(
      0, rows, grain_for(rows, rows * channels, kGrain), [&](int64_t begin, int64_t end) {
        kernel(data<Word>(packed) + begin * word_count(channels), end - begin, channels, plus,
               minus, mutable_data<T>(out) + begin * channels);
      });
}

Tensor unpack(const Tensor& packed, int64_t channels, ScalarType dtype) {
  const Tensor source = checked_packed(packed, "packed", channels, -1);
  std::vector<int64_t> shape = shape_of(packed);
  shape.back() = channels;
  const Tensor out = new_tensor(shape, dtype);
  if (channels == 0) return out;
  const PackKernels& level = kernels().pack;
  switch (dtype) {
    case ScalarType::Float:
      unpack_as<uint32_t>(level.unpack32, source, out, 0x3f800000, 0xbf800000);
      break;
    case ScalarType::Half:
      unpack_as<uint16_t>(level.unpack16, source, out, 0x3c00, 0xbc00);
      break;
    case ScalarType::BFloat16:
      unpack_as<uint16_t>(level.unpack16, source, out, 0x3f80, 0xbf80);
      break;
    case ScalarType::Int:
      unpack_as<uint32_t>(level.unpack32, source, out, 1, ~uint32_t{0});
      break;
    case ScalarType::Char:
      unpack_as<uint8_t>(level.unpack8, source, out, 1, 0xff);
      break;
    default:
      STD_TORCH_CHECK(false, "dtype must be float32, float16, bfloat16, int32 or int8");
  }
  return out;
}

}  // namespace

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
  if (channels % kWordBits == 0) {  // no tail bits
    std::copy_n(from, out.numel(), to);
    return out;
  }
  torch::stable::parallel_for(
      0, images, grain_for(images, images * pixels * words, kGrain / kWordBits),
      [&](int64_t begin, int64_t end) {
        for (int64_t image = begin; image < end; ++image) {
          BitWriter writer(to + image * out_words);
          const Word* pixel = from + image * pixels * words;
          for (int64_t i = 0; i < pixels; ++i, pixel += words)
            for (int64_t c = 0; c < channels; c += kWordBits)
              writer.append(pixel[c / kWordBits], std::min(kWordBits, channels - c));
          writer.finish();
        }
      });
  return out;
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("pack", TORCH_BOX(&bnn_ext::cpu::pack));
  m.impl("unpack", TORCH_BOX(&bnn_ext::cpu::unpack));
  m.impl("flatten", TORCH_BOX(&bnn_ext::cpu::flatten));
}
