// Random problems for kernels of matrix products, and what their results are with every finish:
// from sums one by one (Conv2d::sum, which cuda_index_test.cpp compares with loops over ±1).
#pragma once

#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>

#include "cuda/gather.cuh"
#include "cuda/popcounts.cuh"
#include "cuda_host/checks.h"

namespace bnn_ext::problems {

using namespace bnn_ext::checks;
using namespace bnn_ext::cuda;
using emulator::Buffer;
using torch::headeronly::BFloat16;
using torch::headeronly::Half;

inline uint64_t seed = 0;

// --- random problems ----------------------------------------------------------------------------

struct Problem {
  Conv2d conv;
  int64_t rows;
  Buffer<Word> input, weight;
  Buffer<int32_t> popcounts;

  Problem(Conv2d given, int64_t batch)
      : conv(given),
        rows(batch * given.window.output.y * given.window.output.x),
        input(
            packed(random_signs(batch * given.window.input.y * given.window.input.x * given.inputs),
                   given.inputs)),
        weight(packed(random_signs(given.outputs * given.window.kernel.y * given.window.kernel.x *
                                   (given.inputs / given.groups)),
                      given.inputs / given.groups)),
        popcounts(given.window.kernel.y * given.window.kernel.x * given.outputs, -1) {
    conv.input = input.data();
    conv.weight = weight.data();
    const Extent kernel = conv.window.kernel;
    const int64_t words = word_count(conv.inputs / conv.groups);
    const PopcountTable table = {weight.data(), popcounts.data(), conv.outputs,
                                 kernel.y,      kernel.x,         words};
    emulator::launch({block_count(table), PopcountTable::kThreads, 0}, ++seed,
                     [&] { fill(table); });
    for (int64_t y = 0; y < kernel.y; ++y)
      for (int64_t x = 0; x < kernel.x; ++x)
        for (int64_t channel = 0; channel < conv.outputs; ++channel) {
          int32_t expected = 0;
          for (int64_t tap_y = 0; tap_y <= y; ++tap_y)
            for (int64_t word = 0; word < (x + 1) * words; ++word)
              expected += __builtin_popcount(
                  conv.weight[(channel * kernel.y + tap_y) * kernel.x * words + word]);
          check_equal("popcount over taps",
                      popcounts.data()[(y * kernel.x + x) * conv.outputs + channel], expected);
        }
  }

  std::vector<int32_t> sums() const {
    std::vector<int32_t> sums;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t channel = 0; channel < conv.outputs; ++channel)
        sums.push_back(conv.sum(row, channel));
    return sums;
  }
};

inline Conv2d convolution(int64_t inputs, int64_t outputs, int64_t groups, Window window,
                          int64_t pad_value) {
  const Window& w = window;
  window.output = {window_count(w.input.y, w.kernel.y, w.stride.y, w.padding.y, w.dilation.y),
                   window_count(w.input.x, w.kernel.x, w.stride.x, w.padding.x, w.dilation.x)};
  return {nullptr, nullptr, window, inputs, outputs, groups, pad_value};
}

// A linear layer as the operators describe it: maps of one pixel.
inline Conv2d linear(int64_t features, int64_t outputs) {
  return convolution(features, outputs, 1, {{1, 1}, {}, {1, 1}, {1, 1}, {0, 0}, {1, 1}}, 0);
}

inline Conv2d random_convolution() {
  for (;;) {
    Window w = {};
    w.input = {pick(1, 8), pick(1, 8)};
    w.kernel = {pick(1, 4), pick(1, 4)};
    w.stride = {pick(1, 3), pick(1, 3)};
    w.padding = {pick(0, 4), pick(0, 4)};
    w.dilation = {pick(1, 3), pick(1, 3)};
    if (w.dilation.y * (w.kernel.y - 1) >= w.input.y + 2 * w.padding.y ||
        w.dilation.x * (w.kernel.x - 1) >= w.input.x + 2 * w.padding.x)
      continue;
    const int64_t groups = pick({1, 1, 2, 3});
    const int64_t inputs = groups == 1 ? pick({1, 31, 33, 64, 70, 100, 128, 200, 256})
                                       : groups * pick({32, 64, 96, 128});
    const int64_t outputs = groups == 1 ? pick(1, 150) : groups * pick({32, 64, 96});
    return convolution(inputs, outputs, groups, w, pick(-1, 1));
  }
}

// --- finishes -----------------------------------------------------------------------------------

inline const int32_t kGarbage = 0x5eadbeef;

template <typename Run>
void check_sums(const Run& run, const Problem& problem, const std::vector<int32_t>& sums) {
  Buffer<int32_t> output(sums.size(), kGarbage);
  run(problem, StoreSum{output.data()});
  check_equal("sums", output.values(), sums);
}

inline std::vector<Word> random_flip(int64_t channels) {
  return packed(random_signs(channels), channels);
}

template <typename Run>
void check_bits(const Run& run, const Problem& problem, const std::vector<int32_t>& sums) {
  const int64_t outputs = problem.conv.outputs;
  std::vector<int32_t> thresholds;
  for (int64_t i = 0; i < outputs; ++i)
    thresholds.push_back(pick(0, 9) ? sums[pick(0, static_cast<int64_t>(sums.size()) - 1)]
                                    : std::numeric_limits<int32_t>::min());
  const bool flips = pick(0, 1);
  const Buffer<int32_t> threshold(thresholds);
  const Buffer<Word> flip(random_flip(outputs));
  std::vector<int> signs;
  for (size_t i = 0; i < sums.size(); ++i) {
    const int64_t channel = static_cast<int64_t>(i) % outputs;
    const bool down = flips && get_bit(flip.data(), channel);
    signs.push_back((down ? sums[i] <= thresholds[channel] : sums[i] >= thresholds[channel]) ? 1
                                                                                             : -1);
  }
  Buffer<Word> output(problem.rows * word_count(outputs), kGarbage);
  run(problem, StoreBits{output.data(), threshold.data(), flips ? flip.data() : nullptr});
  check_equal("bits", output.values(), packed(signs, outputs));
}

inline float round_to(FloatType type, float value) {
  if (type == FloatType::kHalf) return static_cast<Half>(value);
  if (type == FloatType::kBFloat16) return static_cast<BFloat16>(value);
  return value;
}

inline float random_float() {
  if (pick(0, 30) == 0) return NAN;
  return std::ldexp(static_cast<float>(pick(-(1 << 20), 1 << 20)), pick(-24, -14));
}

// Values of a type, in memory and as floats.
struct Values {
  Buffer<float> floats;
  Buffer<Half> halfs;
  Buffer<BFloat16> bfloats;
  FloatType type;

  Values(FloatType given, size_t size)
      : floats(size, 0.0f), halfs(size, Half{}), bfloats(size, BFloat16{}), type(given) {}

  void* data() {
    if (type == FloatType::kHalf) return halfs.data();
    if (type == FloatType::kBFloat16) return bfloats.data();
    return floats.data();
  }
  float& operator[](size_t i) { return floats.data()[i]; }
  // After writing floats, of values that the type can hold.
  void store(size_t size) {
    for (size_t i = 0; i < size; ++i) {
      halfs.data()[i] = static_cast<Half>(floats.data()[i]);
      bfloats.data()[i] = static_cast<BFloat16>(floats.data()[i]);
    }
  }
  float read(size_t i) {
    if (type == FloatType::kHalf) return halfs.data()[i];
    if (type == FloatType::kBFloat16) return bfloats.data()[i];
    return floats.data()[i];
  }
};

inline bool same(float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); }

template <typename Run>
void check_fused(const Run& run, const Problem& problem, const std::vector<int32_t>& sums) {
  const int64_t outputs = problem.conv.outputs;
  const auto random_type = [] { return static_cast<FloatType>(pick(0, 2)); };
  StoreFused finish = {};
  finish.step_count = static_cast<int>(pick(0, kMaxSteps));
  finish.type = random_type();
  const int results = static_cast<int>(pick(1, 3));  // floats, bits, both
  const bool floats = results & 1, bits = results & 2, flips = pick(0, 1);

  std::vector<std::unique_ptr<Values>> kept;
  const auto make = [&](FloatType type, size_t size) {
    kept.push_back(std::make_unique<Values>(type, size));
    for (size_t i = 0; i < size; ++i) (*kept.back())[i] = round_to(type, random_float());
    kept.back()->store(size);
    return kept.back().get();
  };
  std::vector<float> y(sums.begin(), sums.end());
  for (int s = 0; s < finish.step_count; ++s) {
    Step& step = finish.steps[s];
    step.operation = static_cast<Operation>(pick(0, kOperations - 1));
    const size_t count = operand_count(step.operation);
    const bool map = count == 1 && pick(0, 1);
    Values* operand = make(map ? random_type() : FloatType::kFloat, map ? sums.size() : outputs);
    Values* addend = make(FloatType::kFloat, outputs);
    step.map = map ? operand->data() : nullptr;
    step.map_type = operand->type;
    step.channels = map || count == 0 ? nullptr : operand->floats.data();
    step.addend = count == 2 ? addend->floats.data() : nullptr;
    for (size_t i = 0; i < y.size(); ++i) {
      const float x = (*operand)[map ? i : i % outputs], v = y[i];
      switch (step.operation) {
        case Operation::kMultiply:
          y[i] = v * x;
          break;
        case Operation::kAdd:
          y[i] = v + x;
          break;
        case Operation::kPrelu:
          y[i] = v > 0 ? v : v * x;
          break;
        case Operation::kMaximum:
          y[i] = v < x ? x : v;
          break;
        case Operation::kMinimum:
          y[i] = v > x ? x : v;
          break;
        case Operation::kMultiplyAdd:
          y[i] = std::fma(v, x, (*addend)[i % outputs]);
          break;
        case Operation::kDivide:
          y[i] = v / x;
          break;
        case Operation::kFloat16:
          y[i] = round_to(FloatType::kHalf, v);
          break;
        case Operation::kBFloat16:
          y[i] = round_to(FloatType::kBFloat16, v);
          break;
      }
    }
  }
  if (floats)
    for (float& value : y) value = round_to(finish.type, value);

  Values* threshold = make(FloatType::kFloat, outputs);
  for (int64_t i = 0; i < outputs; ++i)
    (*threshold)[i] = y[pick(0, static_cast<int64_t>(y.size()) - 1)];
  const Buffer<Word> flip(random_flip(outputs));
  std::vector<int> signs;
  for (size_t i = 0; i < y.size(); ++i) {
    const float bound = (*threshold)[i % outputs];
    const bool down = flips && get_bit(flip.data(), static_cast<int64_t>(i) % outputs);
    signs.push_back((down ? y[i] <= bound : y[i] >= bound) ? 1 : -1);
  }

  Values values(finish.type, sums.size());
  Buffer<Word> words(problem.rows * word_count(outputs), kGarbage);
  if (floats) finish.floats = values.data();
  if (bits) finish.bits = words.data();
  finish.threshold = threshold->floats.data();
  finish.flip = flips ? flip.data() : nullptr;
  run(problem, finish);
  for (size_t i = 0; floats && i < y.size(); ++i)
    if (!same(values.read(i), y[i])) {
      std::cout << "float " << i << " is " << values.read(i) << ", expected " << y[i] << std::endl;
      std::exit(1);
    }
  if (bits) check_equal("bits of floats", words.values(), packed(signs, outputs));
}

// `run(problem, finish)` is a kernel that computes all results.
template <typename Run>
void check_all(const Run& run, const Problem& problem) {
  const std::vector<int32_t> sums = problem.sums();
  check_sums(run, problem, sums);
  check_bits(run, problem, sums);
  check_fused(run, problem, sums);
}

}  // namespace bnn_ext::problems
