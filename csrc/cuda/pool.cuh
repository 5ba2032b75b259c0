// Pools of packed and of real NHWC maps; pool.cu starts them. A thread makes neighbouring channels
// of one output pixel; what windows share comes from the caches.
#pragma once

#include <cmath>

#include "cuda/stream.cuh"

namespace bnn_ext::cuda {

// The taps of a window that lie inside the map along one axis: their first place and number.
struct TapRange {
  int64_t first;
  int64_t count;
};

BNN_HOST_DEVICE inline TapRange taps_inside(int64_t start, int64_t size, int64_t kernel,
                                            int64_t dilation) {
  const int64_t before = start < 0 ? (-start + dilation - 1) / dilation : 0;
  const int64_t first = start + before * dilation;
  const int64_t room = first < size ? (size - 1 - first) / dilation + 1 : 0;
  const int64_t left = kernel > before ? kernel - before : 0;
  return {first, left < room ? left : room};
}

// The window of an output pixel, without its taps in the padding.
struct PoolWindow {
  int64_t start_y, start_x;
  TapRange rows, columns;
  const Window& window;
  int64_t image;

  BNN_HOST_DEVICE PoolWindow(const Window& w, Pixel at)
      : start_y(at.y * w.stride.y - w.padding.y),
        start_x(at.x * w.stride.x - w.padding.x),
        rows(taps_inside(start_y, w.input.y, w.kernel.y, w.dilation.y)),
        columns(taps_inside(start_x, w.input.x, w.kernel.x, w.dilation.x)),
        window(w),
        image(at.n) {}

  // Calls visit(input pixel) row after row.
  template <typename Visit>
  __device__ void visit_taps(const Visit& visit) const {
    for (int64_t y = 0; y < rows.count; ++y) {
      const int64_t row = image * window.input.y + rows.first + y * window.dilation.y;
      const int64_t first = row * window.input.x + columns.first;
#pragma unroll 4
      for (int64_t x = 0; x < columns.count; ++x) visit(first + x * window.dilation.x);
    }
  }

  // The taps that torch counts with the padding: those up to its end.
  BNN_HOST_DEVICE int64_t padded_taps() const {
    const int64_t y = window.input.y + window.padding.y - start_y;
    const int64_t x = window.input.x + window.padding.x - start_x;
    return (y < window.kernel.y ? y : window.kernel.y) *
           (x < window.kernel.x ? x : window.kernel.x);
  }
};

struct MaxPool2d {
  const Word* input;    // [n][y][x][words]
  const Word* minimum;  // [words], or null
  Window window;
  int64_t words;
};

// The or of the words in each window, the and where the minimum bit is set: a maximum of
// complements, complemented.
template <int kWords>
__global__ void max_pool2d_kernel(MaxPool2d pool, Word* output, int64_t count) {
  const int64_t columns = pool.words / kWords;
  for (int64_t item = first_item(); item < count; item += item_stride()) {
    const int64_t first = item % columns * kWords;
    Word pooled[kWords] = {}, lowest[kWords] = {};
    if (pool.minimum != nullptr) load_values(pool.minimum + first, lowest);
    const PoolWindow window(pool.window, pool.window.output_pixel(item / columns));
    window.visit_taps([&](int64_t pixel) {
      Word words[kWords];
      load_values(pool.input + pixel * pool.words + first, words);
#pragma unroll
      for (int i = 0; i < kWords; ++i) pooled[i] |= words[i] ^ lowest[i];
    });
#pragma unroll
    for (int i = 0; i < kWords; ++i) pooled[i] ^= lowest[i];
    store_values(output + item * kWords, pooled);
  }
}

// NaN is greater than all numbers, and the last of several remains; so does the first of equal
// zeros. The maximum of nothing is -infinity.
struct Maximum {
  __device__ float start() const { return -INFINITY; }
  __device__ float join(float best, float value) const {
    return value > best || value != value ? value : best;
  }
  __device__ float finish(float best, const PoolWindow&) const { return best; }
};

// A sum row after row and one division; the average of padding alone is 0.
struct Average {
  bool count_include_pad;
  int64_t divisor_override;  // or 0

  __device__ float start() const { return 0.0f; }
  __device__ float join(float sum, float value) const { return ptx::add(sum, value); }
  __device__ float finish(float sum, const PoolWindow& window) const {
    const int64_t taps = window.rows.count * window.columns.count;
    int64_t divisor = count_include_pad ? window.padded_taps() : taps > 0 ? taps : 1;
    if (divisor_override > 0) divisor = divisor_override;
    return ptx::divide(sum, static_cast<float>(divisor));
  }
};

template <typename Pooling, int kValues>
__global__ void float_pool_kernel(Pooling pooling, const float* input, Window window,
                                  int64_t channels, float* output, int64_t count) {
  const int64_t columns = channels / kValues;
  for (int64_t item = first_item(); item < count; item += item_stride()) {
    const int64_t channel = item % columns * kValues;
    float pooled[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) pooled[i] = pooling.start();
    const PoolWindow taps(window, window.output_pixel(item / columns));
    taps.visit_taps([&](int64_t pixel) {
      float values[kValues];
      load_values(input + pixel * channels + channel, values);
#pragma unroll
      for (int i = 0; i < kValues; ++i) pooled[i] = pooling.join(pooled[i], values[i]);
    });
#pragma unroll
    for (int i = 0; i < kValues; ++i) pooled[i] = pooling.finish(pooled[i], taps);
    store_values(output + item * kValues, pooled);
  }
}

}  // namespace bnn_ext::cuda
