// Sums of real inputs with the signs of packed weights, for convolutions.
//
//   sum(row, output) = sum of x(row, k) * sign(output, k) over the taps and channels k
//
// A row is a pixel. A block makes 32 output channels of a few rows. A lane has a channel; the warps
// share the words of its weights, and add up what they found in a fixed order. Floats are added
// four at a time, as the CPU does, so no sum depends on the batch; uint8 gives int32 sums, exactly.
#pragma once

#include <type_traits>

#include "cuda/stream.cuh"

namespace bnn_ext::cuda {

constexpr int kSignedThreads = 256;
constexpr int kSignedWarps = kSignedThreads / 32;
constexpr int kSignedRows = 8;  // of a block, at most
static_assert(kSignedWarps >= kSignedRows, "a warp finishes a row");

template <typename In>
using SumOf = std::conditional_t<std::is_same_v<In, uint8_t>, int32_t, float>;

template <int kRows>
constexpr int kSignedSharedBytes = kSignedWarps * kRows * 32 * sizeof(float);

struct SignedSums {
  const void* input;
  int64_t strides[4];  // in elements: image, channel, y, x
  const Word* weight;  // [outputs][kernel y][kernel x][words of group_inputs]
  Window window;
  int64_t rows;  // pixels of all images
  int64_t group_inputs;
  int64_t group_outputs;
  int64_t outputs;
  int64_t pad_value;
};

__device__ __forceinline__ float add_product(float x, float sign, float sum) {
  return ptx::multiply_add(x, sign, sum);  // the product is exact
}
__device__ __forceinline__ int32_t add_product(int32_t x, int32_t sign, int32_t sum) {
  return x * sign + sum;
}

// Four neighbouring channels, those past the `count` that are left as zeros.
template <bool kVector, typename In, typename Sum>
__device__ __forceinline__ void load_four(const In* from, int64_t stride, int64_t count,
                                          Sum (&x)[4]) {
  if constexpr (kVector) {
    In values[4];
    load_values(from, values);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = static_cast<Sum>(values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = i < count ? static_cast<Sum>(from[i * stride]) : Sum{0};
  }
}

__device__ __forceinline__ Pixel next_pixel(const Window& window, Pixel at) {
  if (++at.x < window.output.x) return at;
  at.x = 0;
  if (++at.y < window.output.y) return at;
  at.y = 0;
  ++at.n;
  return at;
}

// kVector: the channels of a group are neighbours and can be loaded four at a time.
// Finish: called as finish(row, channel, outputs, sum) by whole warps, channels past the end
// included.
template <typename In, int kRows, bool kVector, typename Finish>
__global__ void __launch_bounds__(kSignedThreads, /*blocks=*/2)
    signed_sums_kernel(__grid_constant__ const SignedSums problem, const Finish finish) {
  using Sum = SumOf<In>;
  const int warp = ptx::thread_index() / 32, lane = ptx::thread_index() % 32;
  const int64_t blocks = word_count(problem.outputs);  // side by side
  const int64_t first_row = ptx::block_index() / blocks * kRows;
  const int64_t channel = ptx::block_index() % blocks * kWordBits + lane;
  // Channels past the end repeat the last one.
  const int64_t output = channel < problem.outputs ? channel : problem.outputs - 1;
  const Window& window = problem.window;
  const Pixel first_pixel = window.output_pixel(first_row);
  const int64_t first_input = output / problem.group_outputs * problem.group_inputs;
  const In* input = static_cast<const In*>(problem.input) + first_input * problem.strides[1];
  const int64_t words = word_count(problem.group_inputs);
  const int64_t count = window.kernel.y * window.kernel.x * words;
  const Word* weight = problem.weight + output * count;
  const Cursor stride(kSignedWarps, words);
  Cursor at(warp, words);  // (tap, word)
  Sum sums[kRows] = {};
  for (int64_t i = warp; i < count; i += kSignedWarps, at.advance(stride, words)) {
    Word signs = weight[i];
    const int64_t first = at.column * kWordBits, left = problem.group_inputs - first;
    const int64_t tap_y = at.row / window.kernel.x, tap_x = at.row % window.kernel.x;
    const In* from[kRows];  // null in the padding
    Pixel pixel = first_pixel;
#pragma unroll
    for (int row = 0; row < kRows; ++row, pixel = next_pixel(window, pixel)) {
      const int64_t y = pixel.y * window.stride.y - window.padding.y + tap_y * window.dilation.y;
      const int64_t x = pixel.x * window.stride.x - window.padding.x + tap_x * window.dilation.x;
      const bool inside = 0 <= y && y < window.input.y && 0 <= x && x < window.input.x &&
                          first_row + row < problem.rows;
      from[row] = inside ? input + pixel.n * problem.strides[0] + y * problem.strides[2] +
                               x * problem.strides[3] + first * problem.strides[1]
                         : nullptr;
    }
    const int64_t end = left < kWordBits ? left : kWordBits;
    for (int64_t k = 0; k < end; k += 4, signs >>= 4) {
      Sum sign[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) sign[j] = (signs >> j & 1) != 0 ? Sum{1} : Sum{-1};
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        Sum x[4];
        if (from[row] != nullptr) {
          const int64_t stride = kVector ? 1 : problem.strides[1];
          load_four<kVector>(from[row] + k * stride, stride, end - k, x);
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j)
            x[j] = k + j < end ? static_cast<Sum>(problem.pad_value) : Sum{0};
        }
        Sum four = x[0] * sign[0];
#pragma unroll
        for (int j = 1; j < 4; ++j) four = add_product(x[j], sign[j], four);
        sums[row] += four;
      }
    }
  }

  const ptx::SharedAddress found = ptx::shared_memory();  // [warp][row][lane]
#pragma unroll
  for (int row = 0; row < kRows; ++row)
    ptx::store_shared(found + ((warp * kRows + row) * 32 + lane) * 4, sums[row]);
  ptx::sync_threads();
  if (warp >= kRows || first_row + warp >= problem.rows) return;
  Sum sum = 0;
#pragma unroll
  for (int other = 0; other < kSignedWarps; ++other)
    sum += ptx::load_shared<Sum>(found + ((other * kRows + warp) * 32 + lane) * 4);
  finish(first_row + warp, channel, problem.outputs, sum);
}

// --- results ------------------------------------------------------------------------------------

// sum * scale + bias, each step rounded, then rounded once to T.
template <typename T>
struct StoreValue {
  T* output;
  const float* scale;  // one per channel, or null
  const float* bias;   // one per channel, or null

  __device__ void operator()(int64_t row, int64_t channel, int64_t outputs, float sum) const {
    if (channel >= outputs) return;
    if (scale != nullptr) sum = ptx::multiply(sum, scale[channel]);
    if (bias != nullptr) sum = ptx::add(sum, bias[channel]);
    output[row * outputs + channel] = static_cast<T>(sum);
  }
};

struct StoreInteger {
  int32_t* output;

  __device__ void operator()(int64_t row, int64_t channel, int64_t outputs, int32_t sum) const {
    if (channel < outputs) output[row * outputs + channel] = sum;
  }
};

template <typename Sum>
struct StoreComparison {
  Word* output;
  const Sum* threshold;  // one per channel
  const Word* flip;      // packed, or null

  __device__ void operator()(int64_t row, int64_t channel, int64_t outputs, Sum sum) const {
    const bool bit = channel < outputs && threshold_bit(sum, threshold[channel],
                                                        flip != nullptr && get_bit(flip, channel));
    const Word word = ptx::ballot(bit);
    if (channel % kWordBits == 0) output[row * word_count(outputs) + channel / kWordBits] = word;
  }
};

}  // namespace bnn_ext::cuda
