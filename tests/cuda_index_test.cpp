// Runs what each CUDA thread computes (csrc/cuda/index.cuh) in a loop on the host, and compares
// with loops over plain ±1 integers. tests/test_cuda_index.py compiles and runs it.
//
// The first difference is printed and ends the program with status 1.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include "cuda/index.cuh"
#include "cuda_host/checks.h"

using namespace bnn_ext;
using namespace bnn_ext::cuda;
using namespace bnn_ext::checks;

namespace {

const std::vector<int64_t> kSizes = {1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 100, 129};

// The kernels' way to packed words: a warp at a time, one bit per thread.
template <typename Bit>
std::vector<Word> ballots(int64_t rows, int64_t channels, const Bit& bit) {
  std::vector<Word> result(rows * word_count(channels), 0xdeadbeef);
  for (int64_t warp = 0; warp < place_count(rows, channels); warp += 32) {
    Word word = 0;
    for (int64_t lane = 0; lane < 32; ++lane) {
      const Place at = place(warp + lane, channels);
      if (at.channel < channels && bit(at)) word |= Word{1} << lane;
    }
    result.at(word_index(place(warp, channels), channels)) = word;
  }
  return result;
}

// Every (row, word, lane) is one thread's place, in this order.
void test_places() {
  for (const int64_t channels : kSizes) {
    const int64_t rows = pick(1, 4), words = (channels + 31) / 32;
    int64_t thread = 0;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t word = 0; word < words; ++word) {
        for (int64_t lane = 0; lane < 32; ++lane, ++thread) {
          const Place at = place(thread, channels);
          check_equal("row of a thread", at.row, row);
          check_equal("channel of a thread", at.channel, word * 32 + lane);
          check_equal("word of a thread", word_index(at, channels), row * words + word);
        }
      }
    }
    check_equal("number of threads", place_count(rows, channels), thread);
  }
}

// Indices past 2^32 stay whole.
void test_large_indices() {
  const int64_t rows = int64_t{1} << 33;
  const Place at = place(rows * 64 + 33, 40);
  check_equal("large row", at.row, rows);
  check_equal("channel in a large row", at.channel, 33);
  check_equal("large word index", word_index(at, 40), rows * 2 + 1);

  const Window window = {{50000, 50000}, {50000, 50000}, {3, 3}, {1, 1}, {1, 1}, {1, 1}};
  const int64_t pixel = (int64_t{7} * 50000 + 49998) * 50000 + 49997;
  check_equal("pixel under the centre", window.source(window.output_pixel(pixel), 1, 1), pixel);
  check_equal("pixel under the corner", window.source(window.output_pixel(pixel), 2, 2),
              pixel + 50001);

  const Layout layout = {{8, 50000, 50000, 3}, {7500000000, 50000, 1, 2500000000}};
  check_equal("large offset of NCHW seen as NHWC", layout.offset(pixel, 2),
              7 * 7500000000 + 49998LL * 50000 + 49997 + 2 * 2500000000);
}

// pack: NCHW seen as NHWC, every second element, fewer dimensions; thresholds, flips and NaN.
template <typename T>
void test_pack(const std::vector<T>& values) {
  for (const int64_t channels : kSizes) {
    for (int form = 0; form < 4; ++form) {
      const int64_t n = pick(1, 2), h = pick(1, 3), w = pick(1, 3), c = channels;
      Layout layout = {{n, h, w, c}, {h * w * c, w * c, c, 1}};
      if (form == 1) layout = {{n, h, w, c}, {h * w * c, w, 1, h * w}};
      if (form == 2) layout = {{n, h, w, c}, {2 * h * w * c, 2 * w * c, 2 * c, 2}};
      if (form == 3) layout = {{1, 1, w, c}, {0, 0, 1, w}};
      const int64_t rows = layout.sizes[0] * layout.sizes[1] * w;
      std::vector<T> input(form == 2 ? 2 * rows * c - 1 : rows * c), threshold(c);
      for (T& value : input) value = values[pick(0, static_cast<int64_t>(values.size()) - 1)];
      for (T& value : threshold) value = values[pick(0, static_cast<int64_t>(values.size()) - 1)];
      const std::vector<int> flips = random_signs(c);
      const std::vector<Word> flip = packed(flips, c);

      for (int mode = 0; mode < 3; ++mode) {
        const Pack<T, T> pack = {input.data(), layout, mode > 0 ? threshold.data() : nullptr,
                                 mode > 1 ? flip.data() : nullptr};
        std::vector<int> expected;
        for (int64_t i = 0; i < layout.sizes[0]; ++i)
          for (int64_t y = 0; y < layout.sizes[1]; ++y)
            for (int64_t x = 0; x < layout.sizes[2]; ++x)
              for (int64_t j = 0; j < c; ++j) {
                const T value = input[i * layout.strides[0] + y * layout.strides[1] +
                                      x * layout.strides[2] + j * layout.strides[3]];
                const T bound = mode > 0 ? threshold[j] : T{0};
                const bool down = mode > 1 && flips[j] > 0;
                expected.push_back((down ? value <= bound : value >= bound) ? 1 : -1);
              }
        const auto bit = [&](Place at) { return pack.bit(at.row, at.channel); };
        check_equal("pack", ballots(rows, c, bit), packed(expected, c));
      }
    }
  }
}

// The sums of an operation, thread by thread, and the bits that a threshold makes of them.
template <typename Operation>
void check_sums(const std::string& name, const Operation& operation, int64_t rows,
                const std::vector<int>& expected) {
  const int64_t channels = operation.outputs;
  std::vector<int> found(rows * channels, std::numeric_limits<int>::max());
  for (int64_t thread = 0; thread < place_count(rows, channels); ++thread) {
    const Place at = place(thread, channels);
    if (at.channel < channels)
      found.at(at.row * channels + at.channel) = operation.sum(at.row, at.channel);
  }
  check_equal(name, found, expected);

  std::vector<int> signs;
  for (const int sum : expected) signs.push_back(sum >= 1 ? 1 : -1);
  const auto bit = [&](Place at) {
    return threshold_bit(operation.sum(at.row, at.channel), 1, false);
  };
  check_equal(name + " bits", ballots(rows, channels, bit), packed(signs, channels));
}

void test_linear() {
  for (const int64_t features : kSizes) {
    for (const int64_t outputs : kSizes) {
      const int64_t rows = pick(1, 3);
      const std::vector<int> x = random_signs(rows * features);
      const std::vector<int> w = random_signs(outputs * features);
      std::vector<int> expected(rows * outputs, 0);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t o = 0; o < outputs; ++o)
          for (int64_t k = 0; k < features; ++k)
            expected[row * outputs + o] += x[row * features + k] * w[o * features + k];
      const std::vector<Word> input = packed(x, features), weight = packed(w, features);
      check_sums("linear", Linear{input.data(), weight.data(), features, outputs}, rows, expected);
    }
  }
}

// A random window that fits its padded map; a pool's padding is at most half of its kernel.
Window random_window(bool pool) {
  for (;;) {
    Window w = {};
    w.input = {pick(1, 7), pick(1, 7)};
    w.kernel = {pick(1, 4), pick(1, 4)};
    w.stride = {pick(1, 3), pick(1, 3)};
    w.padding = {pick(0, pool ? w.kernel.y / 2 : 4), pick(0, pool ? w.kernel.x / 2 : 4)};
    w.dilation = {pick(1, 3), pick(1, 3)};
    if (w.dilation.y * (w.kernel.y - 1) < w.input.y + 2 * w.padding.y &&
        w.dilation.x * (w.kernel.x - 1) < w.input.x + 2 * w.padding.x)
      return w;
  }
}

void test_conv2d() {
  for (int round = 0; round < 600; ++round) {
    const int64_t pad_value = pick(-1, 1), batch = pick(1, 2);
    const int64_t groups = pick({1, 1, 2, 3, 5}), group_inputs = pick(kSizes);
    const int64_t group_outputs = pick({1, 2, 7, 11, 32, 33});
    const int64_t inputs = groups * group_inputs, outputs = groups * group_outputs;
    Window w = random_window(/*pool=*/false);

    // The map with its padding written out: ±1, or 0.
    const int64_t height = w.input.y + 2 * w.padding.y, width = w.input.x + 2 * w.padding.x;
    const std::vector<int> x = random_signs(batch * w.input.y * w.input.x * inputs);
    std::vector<int> map(batch * height * width * inputs, static_cast<int>(pad_value));
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t iy = 0; iy < w.input.y; ++iy)
        for (int64_t ix = 0; ix < w.input.x; ++ix)
          for (int64_t c = 0; c < inputs; ++c)
            map[((n * height + iy + w.padding.y) * width + ix + w.padding.x) * inputs + c] =
                x[((n * w.input.y + iy) * w.input.x + ix) * inputs + c];

    const std::vector<int> kernel = random_signs(outputs * w.kernel.y * w.kernel.x * group_inputs);
    std::vector<int> expected;
    const int64_t last_y = height - w.dilation.y * (w.kernel.y - 1) - 1;
    const int64_t last_x = width - w.dilation.x * (w.kernel.x - 1) - 1;
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t top = 0; top <= last_y; top += w.stride.y)
        for (int64_t left = 0; left <= last_x; left += w.stride.x)
          for (int64_t o = 0; o < outputs; ++o) {
            int sum = 0;
            for (int64_t ky = 0; ky < w.kernel.y; ++ky)
              for (int64_t kx = 0; kx < w.kernel.x; ++kx)
                for (int64_t c = 0; c < group_inputs; ++c)
                  sum += map[((n * height + top + ky * w.dilation.y) * width + left +
                              kx * w.dilation.x) *
                                 inputs +
                             o / group_outputs * group_inputs + c] *
                         kernel[((o * w.kernel.y + ky) * w.kernel.x + kx) * group_inputs + c];
            expected.push_back(sum);
          }

    w.output = {window_count(w.input.y, w.kernel.y, w.stride.y, w.padding.y, w.dilation.y),
                window_count(w.input.x, w.kernel.x, w.stride.x, w.padding.x, w.dilation.x)};
    check_equal("conv2d height", w.output.y, last_y / w.stride.y + 1);
    check_equal("conv2d width", w.output.x, last_x / w.stride.x + 1);
    const std::vector<Word> input = packed(x, inputs), weight = packed(kernel, group_inputs);
    const Conv2d conv = {input.data(), weight.data(), w, inputs, outputs, groups, pad_value};
    check_sums("conv2d", conv, batch * w.output.y * w.output.x, expected);
  }
}

// Left edges of the windows along one axis, by sliding.
std::vector<int64_t> window_starts(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                                   int64_t dilation, bool ceil_mode) {
  std::vector<int64_t> starts;
  const int64_t end = size + padding, span = dilation * (kernel - 1) + 1;
  int64_t start = -padding;
  for (; start + span <= end; start += stride) starts.push_back(start);
  const bool whole = starts.back() + span == end;  // nothing is left for another window
  if (ceil_mode && !whole && start < size) starts.push_back(start);
  return starts;
}

void test_pool_count() {
  for (int round = 0; round < 600; ++round) {
    const bool ceil_mode = pick(0, 1);
    const Window w = random_window(/*pool=*/true);
    const auto rows =
        window_starts(w.input.y, w.kernel.y, w.stride.y, w.padding.y, w.dilation.y, ceil_mode);
    check_equal("windows of a pool",
                pool_count(w.input.y, w.kernel.y, w.stride.y, w.padding.y, w.dilation.y, ceil_mode),
                rows.size());
  }
}

}  // namespace

int main() {
  test_places();
  test_large_indices();
  test_pack<float>({-2.0f, -1e-45f, -0.0f, 0.0f, 1e-45f, 0.5f, 0.5f, 3.0f, NAN});
  test_pack<int32_t>({std::numeric_limits<int32_t>::min(), -1, 0, 1, 16777216, 16777217});
  test_linear();
  test_conv2d();
  test_pool_count();
  std::cout << "all index checks passed" << std::endl;
  return 0;
}
