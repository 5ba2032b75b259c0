// Max-pool of packed maps on the CPU: or of the words in a window; and in `minimum` channels.
#include "cpu/pool.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "cpu/operators.h"
#include "cpu/pool.h"

namespace bnn_ext::cpu {
namespace {

// One tap of all windows in a row: `count` outputs from `output` on meet inputs from `input` on.
struct WindowTap {
  int64_t input, output, count;
};

// The taps without the outputs where they lie outside the input.
std::vector<WindowTap> taps_inside(const Axis& axis) {
  std::vector<WindowTap> taps;
  for (int64_t tap = 0; tap < axis.kernel; ++tap) {
    int64_t first = 0, last = axis.out;
    while (first < last && axis.at(first, tap) < 0) ++first;
    while (last > first && axis.at(last - 1, tap) >= axis.size) --last;
    if (first < last) taps.push_back({axis.at(first, tap), first, last - first});
  }
  return taps;
}

typedef Word Words4 __attribute__((vector_size(16)));  // the compiler knows it on any CPU

// The pixels in parts of one, two or four words.
template <typename Part>
void or_parts(const Word* input, int64_t step, int64_t count, int64_t words, Word* out) {
  constexpr int64_t kWords = sizeof(Part) / sizeof(Word);
  for (int64_t i = 0; i < count; ++i, input += step, out += words)
    for (int64_t word = 0; word < words; word += kWords) {
      Part part, joined;
      std::memcpy(&part, input + word, sizeof(Part));
      std::memcpy(&joined, out + word, sizeof(Part));
      joined |= part;
      std::memcpy(out + word, &joined, sizeof(Part));
    }
}

// Joins `count` pixels, `step` words apart, to as many neighbouring ones.
void or_pixels(const Word* input, int64_t step, int64_t count, int64_t words, Word* out) {
  if (step == words) {  // one long pixel
    words *= count;
    step = words;
    count = 1;
  }
  if (words % 4 == 0)
    or_parts<Words4>(input, step, count, words, out);
  else if (words % 2 == 0)
    or_parts<uint64_t>(input, step, count, words, out);
  else
    or_parts<Word>(input, step, count, words, out);
}

}  // namespace

Tensor max_pool2d(const Tensor& input, const Pair& kernel_size, const Pair& stride,
                  const Pair& padding, const Pair& dilation, bool ceil_mode,
                  const std::optional<Tensor>& minimum) {
  const auto axes = pool_axes(input, kernel_size, stride, padding, dilation, ceil_mode);
  const Axis &vertical = axes[0], &horizontal = axes[1];
  const int64_t words = input.size(3);
  const Tensor source = checked(input, "input", ScalarType::Int);
  const auto minima = checked_vector(minimum, "minimum", words, ScalarType::Int);
  const Tensor out =
      new_tensor({input.size(0), vertical.out, horizontal.out, words}, ScalarType::Int);

  const Word* from = data<Word>(source);
  Word* to = mutable_data<Word>(out);
  const int64_t row_words = horizontal.size * words;
  const std::vector<WindowTap> taps = taps_inside(horizontal);
  // Complementing the minimum channels before and after turns their and into an or.
  std::vector<Word> lowest(std::max(horizontal.size, horizontal.out) * words, 0);
  if (minima)
    for (size_t i = 0; i < lowest.size(); ++i) lowest[i] = data<Word>(minima)[i % words];

  const int64_t rows = input.size(0) * vertical.out, out_words = horizontal.out * words;
  const int64_t work = rows * (row_words * vertical.kernel + out_words * horizontal.kernel);
  torch::stable::parallel_for(
      0, rows, grain_for(rows, work, 1 << 14), [&](int64_t begin, int64_t end) {
        std::vector<Word> column_maxima(row_words);
        for (int64_t row = begin; row < end; ++row) {
          const Word* image = from + row / vertical.out * vertical.size * row_words;
          std::fill(column_maxima.begin(), column_maxima.end(), Word{0});
          for (int64_t ky = 0; ky < vertical.kernel; ++ky) {
            const int64_t y = vertical.at(row % vertical.out, ky);
            if (y < 0 || y >= vertical.size) continue;
            const Word* line = image + y * row_words;
            for (int64_t i = 0; i < row_words; ++i) column_maxima[i] |= line[i] ^ lowest[i];
          }
          Word* pooled = to + row * out_words;
          std::fill(pooled, pooled + out_words, Word{0});
          for (const WindowTap& tap : taps)
            or_pixels(column_maxima.data() + tap.input * words, horizontal.stride * words,
                      tap.count, words, pooled + tap.output * words);
          for (int64_t i = 0; i < out_words; ++i) pooled[i] ^= lowest[i];
        }
      });
  return out;
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&bnn_ext::cpu::max_pool2d));
}
