// What one thread of each CUDA kernel computes, and every index that it needs for that.
//
// The code is plain C++ for host and device: the .cu files run it one thread per call, and
// tests/cuda_index_test.cpp runs the same functions in a loop on a machine without a GPU.
// All counts and indices are 64-bit. Maps are NHWC; a pixel is counted through the whole batch.
#pragma once

#include "common/bits.h"

namespace bnn_ext::cuda {

BNN_HOST_DEVICE inline int32_t popcount(Word word) {
#ifdef __CUDA_ARCH__
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

// --- results ------------------------------------------------------------------------------------

// The rows of a result are spread over threads with their channels rounded up to whole words: a
// warp holds the 32 channels of one packed word, and the channels past the end have idle threads.
struct Place {
  int64_t row;
  int64_t channel;
};

BNN_HOST_DEVICE inline int64_t place_count(int64_t rows, int64_t channels) {
  return rows * word_count(channels) * kWordBits;
}

BNN_HOST_DEVICE inline Place place(int64_t thread, int64_t channels) {
  const int64_t threads_per_row = word_count(channels) * kWordBits;
  return {thread / threads_per_row, thread % threads_per_row};
}

// Where the packed word of a place stands.
BNN_HOST_DEVICE inline int64_t word_index(Place at, int64_t channels) {
  return at.row * word_count(channels) + at.channel / kWordBits;
}

// --- packing ------------------------------------------------------------------------------------

// A tensor of four dimensions read in place, channels last; its row is the first three, joined.
struct Layout {
  int64_t sizes[4];
  int64_t strides[4];  // in elements

  BNN_HOST_DEVICE int64_t offset(int64_t row, int64_t channel) const {
    const int64_t i2 = row % sizes[2];
    const int64_t i1 = row / sizes[2] % sizes[1];
    const int64_t i0 = row / sizes[2] / sizes[1];
    return i0 * strides[0] + i1 * strides[1] + i2 * strides[2] + channel * strides[3];
  }
};

// Threshold is int32_t for int32_t values and float for all others.
template <typename T, typename Threshold>
struct Pack {
  const T* input;
  Layout layout;
  const Threshold* threshold;  // one per channel, or null: compare with 0
  const Word* flip;            // packed, or null

  BNN_HOST_DEVICE bool bit(int64_t row, int64_t channel) const {
    const Threshold value = static_cast<Threshold>(input[layout.offset(row, channel)]);
    if (threshold == nullptr) return sign_bit(static_cast<float>(value));
    return threshold_bit(value, threshold[channel], flip != nullptr && get_bit(flip, channel));
  }
};

// --- sums ---------------------------------------------------------------------------------------

struct Linear {
  const Word* input;   // [rows][words]
  const Word* weight;  // [outputs][words]
  int64_t features;
  int64_t outputs;

  // features - 2 popcount(input xor weight)
  BNN_HOST_DEVICE int32_t sum(int64_t row, int64_t output) const {
    const int64_t words = word_count(features);
    const Word* x = input + row * words;
    const Word* w = weight + output * words;
    int64_t differences = 0;
    for (int64_t i = 0; i < words; ++i) differences += popcount(x[i] ^ w[i]);
    return static_cast<int32_t>(features - 2 * differences);
  }
};

struct Extent {
  int64_t y;
  int64_t x;
};

struct Pixel {
  int64_t n;
  int64_t y;
  int64_t x;
};

// A window that slides over a map, for convolution and pooling alike.
struct Window {
  Extent input;  // the map
  Extent output;
  Extent kernel;
  Extent stride;
  Extent padding;
  Extent dilation;

  BNN_HOST_DEVICE Pixel output_pixel(int64_t index) const {
    return {index / output.x / output.y, index / output.x % output.y, index % output.x};
  }

  // The input pixel under tap (y, x) of an output pixel; negative if that lies in the padding.
  BNN_HOST_DEVICE int64_t source(Pixel at, int64_t tap_y, int64_t tap_x) const {
    const int64_t y = at.y * stride.y - padding.y + tap_y * dilation.y;
    const int64_t x = at.x * stride.x - padding.x + tap_x * dilation.x;
    if (y < 0 || y >= input.y || x < 0 || x >= input.x) return -1;
    return (at.n * input.y + y) * input.x + x;
  }
};

struct Conv2d {
  const Word* input;   // [n][y][x][words of inputs]
  const Word* weight;  // [outputs][kernel y][kernel x][words of group_inputs]
  Window window;
  int64_t inputs;  // channels
  int64_t outputs;
  int64_t groups;
  int64_t pad_value;  // -1, 0 or 1

  // Sums k - 2 popcount(input xor weight) over the taps. A group's channels need not begin at a
  // word of the input; those of the weight do. Padding counts as `pad_value` in every channel, so
  // zeros add nothing.
  BNN_HOST_DEVICE int32_t sum(int64_t pixel, int64_t output) const {
    const int64_t group_inputs = inputs / groups;
    const int64_t first_input = output / (outputs / groups) * group_inputs;
    const int64_t group_words = word_count(group_inputs);
    const Word* w = weight + output * window.kernel.y * window.kernel.x * group_words;
    const Pixel at = window.output_pixel(pixel);

    int64_t terms = 0, differences = 0;
    for (int64_t tap_y = 0; tap_y < window.kernel.y; ++tap_y) {
      for (int64_t tap_x = 0; tap_x < window.kernel.x; ++tap_x, w += group_words) {
        const int64_t source = window.source(at, tap_y, tap_x);
        if (source < 0 && pad_value == 0) continue;
        terms += group_inputs;
        for (int64_t i = 0; i < group_words; ++i) {
          const int64_t first = i * kWordBits;
          const int64_t count =
              first + kWordBits <= group_inputs ? kWordBits : group_inputs - first;
          Word x = pad_value > 0 ? low_bits(count) : 0;
          if (source >= 0)
            x = read_bits(input + source * word_count(inputs), first_input + first, count);
          differences += popcount(x ^ w[i]);
        }
      }
    }
    return static_cast<int32_t>(terms - 2 * differences);
  }
};

// Number of windows along one axis, if at least one fits.
BNN_HOST_DEVICE inline int64_t window_count(int64_t size, int64_t kernel, int64_t stride,
                                            int64_t padding, int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

// --- pooling ------------------------------------------------------------------------------------

// As window_count; `ceil_mode` adds a last window that sticks out, unless it would begin beyond
// the input and its left padding (the rule of torch.nn.functional.max_pool2d).
BNN_HOST_DEVICE inline int64_t pool_count(int64_t size, int64_t kernel, int64_t stride,
                                          int64_t padding, int64_t dilation, bool ceil_mode) {
  const int64_t room = ceil_mode ? stride - 1 : 0;
  const int64_t count = window_count(size + room, kernel, stride, padding, dilation);
  return ceil_mode && (count - 1) * stride >= size + padding ? count - 1 : count;
}

}  // namespace bnn_ext::cuda
