// Max-pool of packed maps on the CPU: or of the words in a window; and in `minimum` channels.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/tensor.h"

namespace bnn_ext::cpu {
namespace {

using Pair = std::vector<int64_t>;

struct Axis {
  int64_t size, kernel, stride, padding, dilation, out;

  int64_t at(int64_t o, int64_t tap) const { return o * stride - padding + tap * dilation; }

  // The taps of output `o` that lie inside the input: [first, last).
  int64_t first(int64_t o) const {
    return std::max<int64_t>(0, (dilation - 1 - at(o, 0)) / dilation);
  }
  int64_t last(int64_t o) const {
    return std::min(kernel, (size - at(o, 0) + dilation - 1) / dilation);
  }
};

Tensor max_pool2d(const Tensor& input, const Pair& kernel_size, const Pair& stride,
                  const Pair& padding, const Pair& dilation, bool ceil_mode,
                  const std::optional<Tensor>& minimum) {
  STD_TORCH_CHECK(input.dim() == 4, "input must have 4 dimensions");
  STD_TORCH_CHECK(
      kernel_size.size() == 2 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
      "kernel_size, stride, padding and dilation must have 2 elements");
  const int64_t words = input.size(3);
  const Tensor source = checked(input, "input", ScalarType::Int);
  const auto minima = checked_vector(minimum, "minimum", words, ScalarType::Int);

  Axis axes[2];
  for (int i = 0; i < 2; ++i) {
    Axis& axis = axes[i];
    axis = {input.size(1 + i), kernel_size[i], stride[i], padding[i], dilation[i], 0};
    STD_TORCH_CHECK(axis.kernel > 0 && axis.stride > 0 && axis.dilation > 0 && axis.padding >= 0 &&
                        2 * axis.padding <= axis.kernel,
                    "kernel_size, stride and dilation must be positive, padding at most half of "
                    "kernel_size");
    const int64_t room = axis.size + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1 +
                         (ceil_mode ? axis.stride - 1 : 0);
    STD_TORCH_CHECK(axis.size > 0 && room >= 0, "the window does not fit the padded input");
    axis.out = room / axis.stride + 1;
    // torch's rule: the last window starts inside the input or its left padding.
    if (ceil_mode && (axis.out - 1) * axis.stride >= axis.size + axis.padding) --axis.out;
  }
  const Axis &vertical = axes[0], &horizontal = axes[1];
  const Tensor out =
      new_tensor({input.size(0), vertical.out, horizontal.out, words}, ScalarType::Int);

  const Word* from = data<Word>(source);
  const Word* lowest = data<Word>(minima);
  Word* to = mutable_data<Word>(out);
  const int64_t rows = input.size(0) * vertical.out;
  const int64_t work = out.numel() * vertical.kernel * horizontal.kernel;
  torch::stable::parallel_for(
      0, rows, grain_for(rows, work, 1 << 14), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const Word* image = from + row / vertical.out * vertical.size * horizontal.size * words;
          const int64_t oy = row % vertical.out;
          const int64_t first_y = vertical.first(oy), last_y = vertical.last(oy);
          for (int64_t ox = 0; ox < horizontal.out; ++ox) {
            const int64_t first_x = horizontal.first(ox), last_x = horizontal.last(ox);
            Word* bits = to + (row * horizontal.out + ox) * words;
            std::fill(bits, bits + words, Word{0});
            // Complementing the minimum channels before and after turns their and into an or.
            for (int64_t ky = first_y; ky < last_y; ++ky)
              for (int64_t kx = first_x; kx < last_x; ++kx) {
                const Word* pixel =
                    image + (vertical.at(oy, ky) * horizontal.size + horizontal.at(ox, kx)) * words;
                for (int64_t word = 0; word < words; ++word)
                  bits[word] |= pixel[word] ^ (lowest ? lowest[word] : 0);
              }
            if (lowest)
              for (int64_t word = 0; word < words; ++word) bits[word] ^= lowest[word];
          }
        }
      });
  return out;
}

}  // namespace
}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&bnn_ext::cpu::max_pool2d));
}
