// The kernels that memory bounds, whole, against loops over plain numbers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cuda/elementwise.cuh"
#include "cuda/gemv.cuh"
#include "cuda/pack.cuh"
#include "cuda/pool.cuh"
#include "cuda/select_channels.cuh"
#include "cuda/signed_sums.cuh"
#include "cuda/signed_tables.cuh"
#include "cuda_host/checks.h"

using namespace bnn_ext;
using namespace bnn_ext::checks;
using namespace bnn_ext::cuda;
using emulator::Buffer;

namespace {

const std::vector<int64_t> kSizes = {1, 3, 8, 20, 31, 32, 33, 40, 63, 64, 65, 96, 128, 129, 160};
constexpr Word kGarbage = 0xdeadbeef;

// Threads that stride over items, of a grid too small for them as well.
template <typename Kernel>
void run(const Kernel& kernel) {
  static uint64_t seed = 0;
  emulator::launch({static_cast<unsigned>(pick(1, 2)), kStreamThreads, 0}, ++seed, kernel);
}

template <typename T>
std::vector<T> choose(int64_t count, const std::vector<T>& values) {
  std::vector<T> chosen;
  for (int64_t i = 0; i < count; ++i)
    chosen.push_back(values[pick(0, static_cast<int64_t>(values.size()) - 1)]);
  return chosen;
}

// The bits of floats; all NaNs are alike.
std::vector<uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<uint32_t> bits(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    std::memcpy(&bits[i], &values[i], 4);
    if (values[i] != values[i]) bits[i] = 0x7fc00000;
  }
  return bits;
}

template <typename T>
std::vector<float> floats(const std::vector<T>& values) {
  return std::vector<float>(values.begin(), values.end());
}

// ±1: value >= threshold, or <= where a flip is set.
template <typename T>
int compared(T value, T threshold, bool flip) {
  return (flip ? value <= threshold : value >= threshold) ? 1 : -1;
}

// --- places and vectors -------------------------------------------------------------------------

void test_cursor() {
  for (int round = 0; round < 200; ++round) {
    const int64_t columns = pick(1, 40), first = pick(0, 100), step = pick(1, 200);
    Cursor at(first, columns);
    const Cursor stride(step, columns);
    for (int64_t item = first; item < first + 20 * step; item += step) {
      check_equal("row of an item", at.row, item / columns);
      check_equal("column of an item", at.column, item % columns);
      at.advance(stride, columns);
    }
  }
  const Cursor far((int64_t{1} << 40) + 5, int64_t{1} << 33);
  check_equal("row of a far item", far.row, 128);
  check_equal("column of a far item", far.column, 5);
}

// --- packing ------------------------------------------------------------------------------------

template <typename T>
void test_pack(const std::vector<T>& values) {
  using Threshold = Compared<T>;
  for (const int64_t channels : kSizes) {
    for (const bool columns : {false, true}) {
      if (!columns && channels % kPackValues<T> != 0) continue;
      const int64_t n = pick(1, 2), h = pick(1, 3), w = pick(1, 5), rows = n * h * w;
      // Contiguous, or NCHW seen as NHWC.
      Layout layout = {{n, h, w, channels}, {h * w * channels, w * channels, channels, 1}};
      if (columns) layout = {{n, h, w, channels}, {h * w * channels, w, 1, h * w}};
      const std::vector<T> x = choose(rows * channels, values);
      const std::vector<Threshold> bounds = [&] {
        const std::vector<T> chosen = choose(channels, values);
        return std::vector<Threshold>(chosen.begin(), chosen.end());
      }();
      const std::vector<int> flips = random_signs(channels);
      const Buffer<T> input(x);
      const Buffer<Threshold> threshold(bounds);
      const Buffer<Word> flip(packed(flips, channels));
      const int mode = static_cast<int>(pick(0, 2));
      std::vector<int> expected;
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t c = 0; c < channels; ++c)
          expected.push_back(compared(static_cast<Threshold>(x[layout.offset(row, c)]),
                                      mode > 0 ? bounds[c] : Threshold{0},
                                      mode > 1 && flips[c] > 0));
      Buffer<Word> output(rows * word_count(channels), kGarbage);
      const Threshold* const t = mode > 0 ? threshold.data() : nullptr;
      const Word* const f = mode > 1 ? flip.data() : nullptr;
      if (columns)
        run([&] { pack_columns_kernel<T>({input.data(), layout, t, f}, channels, output.data()); });
      else
        run([&] { pack_rows_kernel<T>({input.data(), t, f, rows, channels, output.data()}); });
      check_equal(columns ? "pack of columns" : "pack of rows", output.values(),
                  packed(expected, channels));
    }
  }
}

template <typename T, int kValues>
void test_unpack() {
  for (const int64_t channels : kSizes) {
    if (channels % kValues != 0) continue;
    const int64_t rows = pick(1, 9);
    const std::vector<int> signs = random_signs(rows * channels);
    const Buffer<Word> words(packed(signs, channels));
    Buffer<T> output(rows * channels, T(7));
    run([&] { unpack_kernel<T, kValues>(words.data(), rows, channels, output.data()); });
    check_equal("unpack", bits_of(floats(output.values())), bits_of(floats(signs)));
  }
}

void test_flatten() {
  for (const int64_t channels : kSizes) {
    for (const int64_t positions : {1, 2, 7, 33}) {
      const int64_t rows = pick(1, 4), features = positions * channels;
      const std::vector<int> signs = random_signs(rows * features);
      const Buffer<Word> words(packed(signs, channels));
      Buffer<Word> output(rows * word_count(features), kGarbage);
      run([&] { flatten_kernel(words.data(), rows, positions, channels, output.data()); });
      check_equal("flatten", output.values(), packed(signs, features));
    }
  }
}

// --- channels -----------------------------------------------------------------------------------

// Runs that go up, down or jump, so that words have many, few or one.
std::vector<int32_t> random_index(int64_t channels, int64_t count) {
  std::vector<int32_t> index;
  while (static_cast<int64_t>(index.size()) < count) {
    int64_t channel = pick(0, channels - 1);
    const int64_t step = pick({-1, 1, 1, 1, 3});
    for (int64_t length = pick(1, 70); length > 0; --length, channel += step)
      if (0 <= channel && channel < channels && static_cast<int64_t>(index.size()) < count)
        index.push_back(static_cast<int32_t>(channel));
  }
  return index;
}

template <int kWords>
void test_select_channels() {
  for (int round = 0; round < 30; ++round) {
    const int64_t rows = pick({1, 5, 32, 33, 70}), parts = pick(1, 4);
    const int64_t outputs = kWords > 1 ? 128 * pick(1, 2) - pick(0, 31) : pick(kSizes);
    SelectChannels select = {};
    std::vector<std::unique_ptr<Buffer<Word>>> inputs;
    std::vector<std::vector<int>> signs;
    std::vector<std::pair<int64_t, int64_t>> places;  // (input, channel) of each channel
    int64_t all = 0;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t channels = i == 1 ? 0 : pick(kSizes);  // one input is empty
      signs.push_back(random_signs(rows * channels));
      inputs.push_back(std::make_unique<Buffer<Word>>(channels > 0 ? packed(signs[i], channels)
                                                                   : std::vector<Word>()));
      all += channels;
      select.inputs[i] = {inputs[i]->data(), word_count(channels), all};
      for (int64_t c = 0; c < channels; ++c) places.push_back({i, c});
    }
    const std::vector<int32_t> chosen = random_index(all, outputs);
    std::vector<int> expected;
    for (int64_t row = 0; row < rows; ++row)
      for (const int32_t channel : chosen) {
        const auto [i, c] = places[channel];
        const int64_t channels = static_cast<int64_t>(signs[i].size()) / rows;
        expected.push_back(signs[i][row * channels + c]);
      }
    const Buffer<int32_t> index(chosen);
    Buffer<Word> output(rows * word_count(outputs), kGarbage);
    select.input_count = static_cast<int>(parts);
    select.index = index.data();
    select.outputs = outputs;
    select.rows = rows;
    select.output = output.data();
    run([&] { select_channels_kernel<kWords>(select); });
    check_equal("select_channels", output.values(), packed(expected, outputs));
  }
}

// --- elementwise --------------------------------------------------------------------------------

float step_of(Operation operation, float y, float x, float addend) {
  switch (operation) {
    case Operation::kMultiply:
      return y * x;
    case Operation::kAdd:
      return y + x;
    case Operation::kPrelu:
      return y > 0 ? y : y * x;
    case Operation::kMaximum:
      return y < x ? x : y;
    case Operation::kMinimum:
      return y > x ? x : y;
    case Operation::kMultiplyAdd:
      return std::fma(y, x, addend);
    case Operation::kDivide:
      return y / x;
    case Operation::kFloat16:
      return static_cast<float>(Half(y));
    case Operation::kBFloat16:
      return static_cast<float>(BFloat16(y));
  }
  return y;
}

template <typename T>
constexpr FloatType kTypeOf = std::is_same_v<T, float>  ? FloatType::kFloat
                              : std::is_same_v<T, Half> ? FloatType::kHalf
                                                        : FloatType::kBFloat16;

std::vector<float> finite_floats(int64_t count) {
  std::vector<float> values(count);
  for (float& value : values) value = std::normal_distribution<float>()(generator);
  return values;
}

std::vector<float> random_floats(int64_t count) {
  std::vector<float> values = finite_floats(count);
  for (int64_t i = 0; i < count; i += 13)
    values[i] = choose<float>(1, {0, -0.0f, NAN, INFINITY})[0];
  return values;
}

template <typename T>
std::vector<T> rounded(const std::vector<float>& values) {
  return std::vector<T>(values.begin(), values.end());
}

template <typename In, typename Out, int kValues>
void test_elementwise() {
  for (const int64_t channels : kSizes) {
    if (channels % kValues != 0) continue;
    const int64_t rows = pick(1, 9), count = rows * channels;
    const std::vector<In> x = rounded<In>(random_floats(count));
    std::vector<float> y = floats(x);
    const Buffer<In> input(x);
    Elementwise fused = {};
    fused.input = input.data();
    fused.input_type = kTypeOf<In>;
    fused.rows = rows;
    fused.channels = channels;

    std::vector<std::unique_ptr<Buffer<float>>> vectors;
    std::vector<std::unique_ptr<Buffer<Out>>> maps;
    for (fused.step_count = 0; fused.step_count < kMaxSteps; ++fused.step_count) {
      Step& step = fused.steps[fused.step_count];
      step.operation = static_cast<Operation>(fused.step_count % kOperations);
      const std::vector<float> operand = random_floats(channels), addend = random_floats(channels);
      const std::vector<Out> map = rounded<Out>(random_floats(count));
      const size_t operands = operand_count(step.operation);
      const bool is_map = operands == 1 && pick(0, 1);
      if (is_map) {
        maps.push_back(std::make_unique<Buffer<Out>>(map));
        step.map = maps.back()->data();
        step.map_type = kTypeOf<Out>;
      } else if (operands > 0) {
        vectors.push_back(std::make_unique<Buffer<float>>(operand));
        step.channels = vectors.back()->data();
      }
      if (operands == 2) {
        vectors.push_back(std::make_unique<Buffer<float>>(addend));
        step.addend = vectors.back()->data();
      }
      for (int64_t i = 0; i < count; ++i)
        y[i] = step_of(step.operation, y[i],
                       is_map ? static_cast<float>(map[i]) : operand[i % channels],
                       addend[i % channels]);
    }

    const std::vector<float> bounds = random_floats(channels);
    const std::vector<int> flips = random_signs(channels);
    const Buffer<float> threshold(bounds);
    const Buffer<Word> flip(packed(flips, channels));
    for (int mode = 1; mode < 4; ++mode) {  // floats, bits, both
      Buffer<Out> stored(count, Out(7));
      Buffer<Word> bits(rows * word_count(channels), kGarbage);
      fused.floats = mode & 1 ? stored.data() : nullptr;
      fused.type = kTypeOf<Out>;
      fused.bits = mode & 2 ? bits.data() : nullptr;
      fused.threshold = mode & 2 ? threshold.data() : nullptr;
      fused.flip = mode == 3 ? flip.data() : nullptr;
      run([&] { elementwise_kernel<kValues>(fused); });
      const std::vector<float> kept = mode & 1 ? floats(rounded<Out>(y)) : y;
      if (mode & 1) check_equal("elementwise", bits_of(floats(stored.values())), bits_of(kept));
      if (mode & 2) {
        std::vector<int> expected;
        for (int64_t i = 0; i < count; ++i)
          expected.push_back(
              compared(kept[i], bounds[i % channels], mode == 3 && flips[i % channels] > 0));
        check_equal("elementwise bits", bits.values(), packed(expected, channels));
      }
    }
  }
}

// --- pools --------------------------------------------------------------------------------------

// A random pool that fits its padded map.
Window random_pool(bool ceil_mode) {
  for (;;) {
    Window w = {};
    w.input = {pick(1, 7), pick(1, 7)};
    w.kernel = {pick(1, 4), pick(1, 4)};
    w.stride = {pick(1, 3), pick(1, 3)};
    w.padding = {pick(0, w.kernel.y / 2), pick(0, w.kernel.x / 2)};
    w.dilation = {pick(1, 3), pick(1, 3)};
    if (w.dilation.y * (w.kernel.y - 1) >= w.input.y + 2 * w.padding.y ||
        w.dilation.x * (w.kernel.x - 1) >= w.input.x + 2 * w.padding.x)
      continue;
    w.output = {
        pool_count(w.input.y, w.kernel.y, w.stride.y, w.padding.y, w.dilation.y, ceil_mode),
        pool_count(w.input.x, w.kernel.x, w.stride.x, w.padding.x, w.dilation.x, ceil_mode)};
    return w;
  }
}

// Calls visit(index of a value) for the taps of an output pixel inside the map; returns how many of
// all lie before the end of the padding.
template <typename Visit>
int64_t visit_window(const Window& w, int64_t pixel, int64_t channels, int64_t channel,
                     const Visit& visit) {
  const int64_t n = pixel / w.output.x / w.output.y, left = pixel % w.output.x * w.stride.x;
  const int64_t top = pixel / w.output.x % w.output.y * w.stride.y;
  int64_t padded = 0;
  for (int64_t ky = 0; ky < w.kernel.y; ++ky)
    for (int64_t kx = 0; kx < w.kernel.x; ++kx) {
      const int64_t y = top + ky * w.dilation.y, x = left + kx * w.dilation.x;  // in the padded map
      padded += y < w.input.y + 2 * w.padding.y && x < w.input.x + 2 * w.padding.x;
      const int64_t in_y = y - w.padding.y, in_x = x - w.padding.x;
      if (0 <= in_y && in_y < w.input.y && 0 <= in_x && in_x < w.input.x)
        visit(((n * w.input.y + in_y) * w.input.x + in_x) * channels + channel);
    }
  return padded;
}

template <int kWords>
void test_max_pool2d() {
  for (int round = 0; round < 40; ++round) {
    const Window w = random_pool(pick(0, 1));
    const int64_t images = pick(1, 2), channels = kWords * 32 * pick(1, 2), words = channels / 32;
    const int64_t pixels = images * w.output.y * w.output.x;
    const bool with_minimum = pick(0, 1);
    const std::vector<int> x = random_signs(images * w.input.y * w.input.x * channels);
    const std::vector<int> lowest = random_signs(channels);
    std::vector<int> expected;
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      for (int64_t c = 0; c < channels; ++c) {
        const int direction = with_minimum && lowest[c] > 0 ? -1 : 1;
        int best = -1;
        visit_window(w, pixel, channels, c,
                     [&](int64_t index) { best = std::max(best, direction * x[index]); });
        expected.push_back(direction * best);
      }
    const Buffer<Word> input(packed(x, channels)), minimum(packed(lowest, channels));
    Buffer<Word> output(pixels * words, kGarbage);
    const MaxPool2d pool = {input.data(), with_minimum ? minimum.data() : nullptr, w, words};
    run([&] { max_pool2d_kernel<kWords>(pool, output.data(), pixels * words / kWords); });
    check_equal("max_pool2d", output.values(), packed(expected, channels));
  }
}

template <int kValues>
void test_float_pools() {
  for (int round = 0; round < 40; ++round) {
    Window w = random_pool(pick(0, 1));
    const int64_t images = pick(1, 2), channels = kValues * pick(1, 5);
    const int64_t count = images * w.output.y * w.output.x * channels;
    const std::vector<float> x = random_floats(images * w.input.y * w.input.x * channels);
    const Buffer<float> input(x);
    std::vector<float> expected;
    for (int64_t i = 0; i < count; ++i) {
      float best = -INFINITY;
      visit_window(w, i / channels, channels, i % channels, [&](int64_t index) {
        if (x[index] > best || std::isnan(x[index])) best = x[index];
      });
      expected.push_back(best);
    }
    Buffer<float> output(count, 7.0f);
    run([&] {
      float_pool_kernel<Maximum, kValues>({}, input.data(), w, channels, output.data(),
                                          count / kValues);
    });
    check_equal("max_pool2d_float", bits_of(output.values()), bits_of(expected));

    if (w.dilation.y > 1 || w.dilation.x > 1) continue;  // average pools have none
    const bool count_padding = pick(0, 1);
    const int64_t divisor_override = pick({0, 0, 1, 7});
    expected.clear();
    for (int64_t i = 0; i < count; ++i) {
      float sum = 0;
      int64_t inside = 0;
      const int64_t padded =
          visit_window(w, i / channels, channels, i % channels, [&](int64_t index) {
            sum += x[index];
            ++inside;
          });
      const int64_t divisor = count_padding ? padded : std::max<int64_t>(inside, 1);
      expected.push_back(sum / static_cast<float>(divisor_override ? divisor_override : divisor));
    }
    run([&] {
      float_pool_kernel<Average, kValues>({count_padding, divisor_override}, input.data(), w,
                                          channels, output.data(), count / kValues);
    });
    check_equal("avg_pool2d", bits_of(output.values()), bits_of(expected));
  }
}

// --- few rows -----------------------------------------------------------------------------------

struct StoreSums {
  int32_t* output;

  void operator()(Place at, int64_t channels, int32_t sum) const {
    if (at.channel < channels) output[at.row * channels + at.channel] = sum;
  }
};

template <int kRows, int kWords>
void test_gemv() {
  for (const int64_t features : {1, 33, 100, 128, 256, 1000, 4096, 4200, 9000}) {
    if (word_count(features) % kWords != 0) continue;
    const int64_t outputs = pick({1, 5, 31, 32, 33, 70});
    const int rows = static_cast<int>(pick(1, kRows));
    const std::vector<int> x = random_signs(rows * features), w = random_signs(outputs * features);
    std::vector<int32_t> expected;
    for (int64_t i = 0; i < rows * outputs; ++i) {
      int32_t sum = 0;
      for (int64_t k = 0; k < features; ++k)
        sum += x[i / outputs * features + k] * w[i % outputs * features + k];
      expected.push_back(sum);
    }
    const Buffer<Word> input(packed(x, features)), weight(packed(w, features));
    Buffer<int32_t> output(rows * outputs, 7);
    const Linear linear = {input.data(), weight.data(), features, outputs};
    emulator::launch({static_cast<unsigned>(word_count(outputs)), kGemvThreads, kGemvSharedBytes},
                     features,
                     [&] { gemv_kernel<kRows, kWords>(linear, rows, StoreSums{output.data()}); });
    check_equal("gemv", output.values(), expected);
  }
}

// --- sums of real inputs ------------------------------------------------------------------------

// Values, with scale and bias or without, or integers; then bits. launch(finish) runs the kernel.
template <typename In, typename Sum, typename Launch>
void check_finishes(const std::vector<Sum>& expected, int64_t outputs, const Launch& launch) {
  const int64_t count = static_cast<int64_t>(expected.size()), rows = count / outputs;
  if constexpr (std::is_same_v<Sum, int32_t>) {
    Buffer<int32_t> output(count, 7);
    launch(StoreInteger{output.data()});
    check_equal("signed sums", output.values(), expected);
  } else {
    const std::vector<float> factors = random_floats(outputs), addends = random_floats(outputs);
    const Buffer<float> scale(factors), bias(addends);
    const bool affine = pick(0, 1);
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i) {
      float value = expected[i];
      if (affine) value = value * factors[i % outputs] + addends[i % outputs];
      values.push_back(static_cast<float>(static_cast<In>(value)));
    }
    Buffer<In> output(count, In(7));
    launch(StoreValue<In>{output.data(), affine ? scale.data() : nullptr,
                          affine ? bias.data() : nullptr});
    check_equal("signed sums", bits_of(floats(output.values())), bits_of(values));
  }

  // Some thresholds are sums: compared with them, a sum must be exact.
  std::vector<Sum> bounds(expected.begin(), expected.begin() + outputs);
  for (Sum& bound : bounds)
    if (pick(0, 1)) bound = static_cast<Sum>(pick(-300, 300));
  const std::vector<int> flips = random_signs(outputs);
  const Buffer<Sum> threshold(bounds);
  const Buffer<Word> flip(packed(flips, outputs));
  const bool with_flip = pick(0, 1);
  std::vector<int> comparisons;
  for (int64_t i = 0; i < count; ++i)
    comparisons.push_back(
        compared(expected[i], bounds[i % outputs], with_flip && flips[i % outputs] > 0));
  Buffer<Word> bits(rows * word_count(outputs), kGarbage);
  launch(StoreComparison<Sum>{bits.data(), threshold.data(), with_flip ? flip.data() : nullptr});
  check_equal("bits of signed sums", bits.values(), packed(comparisons, outputs));
}

// Convolutions of whole numbers, of which all sums are exact; of any strides if not kVector.
template <typename In, int kRows, bool kVector>
void test_signed_sums() {
  using Sum = SumOf<In>;
  const bool whole = std::is_same_v<In, uint8_t>;
  for (int round = 0; round < 8; ++round) {
    Window w = random_pool(false);
    w.padding = {w.padding.y + pick(0, 2), w.padding.x + pick(0, 2)};
    w.output = {window_count(w.input.y, w.kernel.y, w.stride.y, w.padding.y, w.dilation.y),
                window_count(w.input.x, w.kernel.x, w.stride.x, w.padding.x, w.dilation.x)};
    const int64_t images = pick(1, 2), groups = pick({1, 1, 2, 3});
    const int64_t group_inputs = kVector ? 4 * pick(1, 20) : pick({1, 3, 31, 32, 33, 70});
    const int64_t group_outputs = pick({1, 2, 11, 32, 33}), outputs = groups * group_outputs;
    const int64_t inputs = groups * group_inputs, pixels = w.input.y * w.input.x;
    std::vector<In> x;
    for (int64_t i = 0; i < images * pixels * inputs; ++i)
      x.push_back(static_cast<In>(static_cast<float>(pick(whole ? 0 : -100, 100))));
    const std::vector<int> signs = random_signs(outputs * w.kernel.y * w.kernel.x * group_inputs);
    const int64_t rows = images * w.output.y * w.output.x;
    SignedSums problem = {};
    const bool last = kVector || pick(0, 1);  // channels last, or NCHW
    const int64_t strides[2][4] = {{pixels * inputs, pixels, w.input.x, 1},
                                   {pixels * inputs, 1, w.input.x * inputs, inputs}};
    std::copy_n(strides[last], 4, problem.strides);
    problem.pad_value = pick(-1, 1);

    std::vector<Sum> expected;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t o = 0; o < outputs; ++o) {
        Sum sum = 0;
        const int64_t n = row / w.output.x / w.output.y, top = row / w.output.x % w.output.y;
        for (int64_t k = 0; k < w.kernel.y * w.kernel.x * group_inputs; ++k) {
          const int64_t tap = k / group_inputs;
          const int64_t y = top * w.stride.y - w.padding.y + tap / w.kernel.x * w.dilation.y;
          const int64_t x_ =
              row % w.output.x * w.stride.x - w.padding.x + tap % w.kernel.x * w.dilation.x;
          const bool inside = 0 <= y && y < w.input.y && 0 <= x_ && x_ < w.input.x;
          const int64_t c = o / group_outputs * group_inputs + k % group_inputs;
          const Sum value =
              inside ? static_cast<Sum>(x[n * problem.strides[0] + c * problem.strides[1] +
                                          y * problem.strides[2] + x_ * problem.strides[3]])
                     : static_cast<Sum>(problem.pad_value);
          sum += value * signs[o * w.kernel.y * w.kernel.x * group_inputs + k];
        }
        expected.push_back(sum);
      }

    const Buffer<In> input(x);
    const Buffer<Word> weight(packed(signs, group_inputs));
    problem.input = input.data();
    problem.weight = weight.data();
    problem.window = w;
    problem.rows = rows;
    problem.group_inputs = group_inputs;
    problem.group_outputs = group_outputs;
    problem.outputs = outputs;
    const emulator::Shape shape = {
        static_cast<unsigned>((rows + kRows - 1) / kRows * word_count(outputs)), kSignedThreads,
        kSignedSharedBytes<kRows>};
    check_finishes<In>(expected, outputs, [&](const auto& finish) {
      emulator::launch(shape, round,
                       [&] { signed_sums_kernel<In, kRows, kVector>(problem, finish); });
    });
  }
}

// --- sums of real inputs from tables ------------------------------------------------------------

// The sums in the order of the kernel, four products at a time.
template <typename Sum>
std::vector<Sum> sums_by_parts(const std::vector<Sum>& x, const std::vector<int>& signs,
                               int64_t rows, int64_t outputs, int64_t features) {
  std::vector<Sum> sums;
  for (int64_t i = 0; i < rows * outputs; ++i) {
    Sum parts[8] = {};
    for (int64_t k = 0; k < features; k += 4) {
      Sum four = 0;
      for (int64_t j = k; j < std::min(k + 4, features); ++j) {
        const Sum product = x[i / outputs * features + j] * signs[i % outputs * features + j];
        four = j == k ? product : four + product;
      }
      parts[k / 128 % 8] += four;
    }
    sums.push_back(std::accumulate(parts, parts + 8, Sum{0}));
  }
  return sums;
}

template <typename In>
void test_signed_tables(const std::vector<int64_t>& all_features) {
  using Sum = SumOf<In>;
  uint64_t seed = 0;
  for (const int64_t features : all_features) {
    const int64_t rows = pick(1, 8), outputs = pick({1, 10, 31, 32, 33, 129});
    std::vector<In> x;
    if constexpr (std::is_same_v<In, uint8_t>)
      for (int64_t i = 0; i < rows * features; ++i) x.push_back(static_cast<In>(pick(0, 255)));
    else
      x = rounded<In>(pick(0, 3) ? finite_floats(rows * features) : random_floats(rows * features));
    const std::vector<int> signs = random_signs(outputs * features);
    const std::vector<Sum> expected =
        sums_by_parts(std::vector<Sum>(x.begin(), x.end()), signs, rows, outputs, features);

    // At addresses that are no multiples of more than an element, now and then.
    const int64_t odd = pick(0, 1);
    x.insert(x.begin(), odd, In(1));
    std::vector<Word> words;
    if (features > 0) words = packed(signs, features);
    words.insert(words.begin(), odd, kGarbage);
    const Buffer<In> input(x);
    const Buffer<Word> weight(words);
    SignedTables problem = {input.data() + odd, weight.data() + odd, rows, features, outputs, 1};
    problem.groups = static_cast<int>(pick({1, 2, 4}));
    check_equal("vectors", problem.has_vectors<In>(),
                !odd && word_count(features) % 4 == 0 && features % 4 == 0);
    const emulator::Shape shape = {
        static_cast<unsigned>(problem.blocks()), problem.groups * kTableGroupThreads,
        static_cast<uint32_t>(signed_tables_shared_bytes(problem.groups))};
    check_finishes<In>(expected, outputs, [&](const auto& finish) {
      emulator::launch(shape, ++seed, [&] {
        if (problem.has_vectors<In>())
          signed_tables_kernel<In, true>(problem, finish);
        else
          signed_tables_kernel<In, false>(problem, finish);
      });
    });
  }
}

// Eight lanes that access 16 bytes each at a time do so in all banks.
template <typename Address>
void check_banks(const char* what, const Address& address) {
  for (int first = 0; first < 32; first += 8) {
    int64_t banks = 0;
    for (int lane = first; lane < first + 8; ++lane) banks |= 1 << address(lane) / 16 % 8;
    check_equal(what, banks, 0xff);
  }
}

void test_layout_of_tables() {
  std::vector<int64_t> places(kTableStageBytes / 16);
  for (int channel = 0; channel < 32; ++channel)
    for (int part = 0; part < kTableParts; ++part)
      ++places[table_weight_offset(channel, part) / 16];
  check_equal("places of weights", places, std::vector<int64_t>(places.size(), 1));
  for (int part = 0; part < kTableParts; ++part) {
    check_banks("banks of weights that are read",
                [&](int lane) { return table_weight_offset(lane, part); });
    check_banks("banks of weights that are written", [&](int lane) {
      return table_weight_offset(part * 4 + lane / kTableParts, lane % kTableParts);
    });
  }
  for (const int other : {0, 1})
    check_banks("banks of tables", [&](int lane) {
      return lane / 2 * kTableBytes + (first_quarter(lane) ^ other) * 16;
    });
}

// Groups of a block on a GPU of 132 processors.
void test_groups_of_tables() {
  const auto groups = [](int64_t rows, int64_t outputs, int shared_bytes) {
    return with_groups({nullptr, nullptr, rows, 4096, outputs, 0}, 132, shared_bytes).groups;
  };
  check_equal("groups for 1 x 4096", groups(1, 4096, 227 << 10), 1);
  check_equal("groups for 1 x 8192", groups(1, 8192, 227 << 10), 2);
  check_equal("groups for 1 x 16384", groups(1, 16384, 227 << 10), 4);
  check_equal("groups for 8 x 4096", groups(8, 4096, 227 << 10), 4);
  check_equal("groups for 1 x 16384 in 64 KiB", groups(1, 16384, 64 << 10), 2);
  check_equal("groups for 99 x 10", groups(99, 10, 227 << 10), 1);
}

void test_signed_tables() {
  test_layout_of_tables();
  test_groups_of_tables();
  test_signed_tables<float>({0, 1, 3, 31, 70, 128, 129, 784, 1024, 1028, 3200, 5120});
  test_signed_tables<Half>({5, 1056, 5120});
  test_signed_tables<BFloat16>({2, 384, 5120});
  test_signed_tables<uint8_t>({128, 1023, 5120});
}

}  // namespace

// With a first argument only the tests of tables, without the ptx function that it names.
int main(int argc, char** argv) {
  if (argc > 1) {
    emulator::left_out() = argv[1];
    test_signed_tables();
    return 0;
  }
  test_cursor();
  test_pack<float>({-2.0f, -1e-45f, -0.0f, 0.0f, 1e-45f, 0.5f, 0.5f, 3.0f, NAN});
  test_pack<Half>({Half(-2.0f), Half(-0.0f), Half(0.0f), Half(0.5f), Half(3.0f), Half(NAN)});
  test_pack<BFloat16>({BFloat16(-2.0f), BFloat16(-0.0f), BFloat16(0.5f), BFloat16(NAN)});
  test_pack<int32_t>({std::numeric_limits<int32_t>::min(), -1, 0, 1, 16777216, 16777217});
  test_unpack<float, 4>();
  test_unpack<BFloat16, 8>();
  test_unpack<Half, 1>();
  test_unpack<int32_t, 4>();
  test_unpack<int8_t, 16>();
  test_flatten();
  test_select_channels<1>();
  test_select_channels<4>();
  test_elementwise<float, float, 8>();
  test_elementwise<Half, BFloat16, 8>();
  test_elementwise<BFloat16, Half, 1>();
  test_max_pool2d<1>();
  test_max_pool2d<4>();
  test_float_pools<1>();
  test_float_pools<4>();
  test_gemv<1, 4>();
  test_gemv<8, 4>();
  test_gemv<8, 1>();
  test_signed_sums<float, 8, true>();
  test_signed_sums<float, 1, false>();
  test_signed_sums<Half, 8, false>();
  test_signed_sums<BFloat16, 1, true>();
  test_signed_sums<uint8_t, 8, true>();
  test_signed_sums<uint8_t, 8, false>();
  test_signed_tables();
  std::cout << "all kernels that memory bounds are right" << std::endl;
  return 0;
}
