// The epilogue of the fused operators by itself, on real values, in one pass; elementwise.cu starts
// it. A lane holds kElementwiseValues neighbouring channels, or one where a row or an operand is
// not aligned to 16 bytes.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/steps.cuh"
#include "cuda/stream.cuh"

namespace bnn_ext::cuda {

constexpr int kElementwiseValues = 8;

struct Elementwise {
  const void* input;  // [rows][channels]
  FloatType input_type;
  Step steps[kMaxSteps];
  int step_count;
  void* floats;  // of `type`, or null
  FloatType type;
  Word* bits;              // packed, of the values as stored, or null
  const float* threshold;  // one per channel; used with `bits`
  const Word* flip;        // packed, or null
  int64_t rows;
  int64_t channels;
};

template <typename T, int kValues>
__device__ __forceinline__ void load_as_floats(const void* from, int64_t index,
                                               float (&y)[kValues]) {
  T values[kValues];
  load_values(static_cast<const T*>(from) + index, values);
#pragma unroll
  for (int i = 0; i < kValues; ++i) y[i] = static_cast<float>(values[i]);
}

template <int kValues>
__device__ __forceinline__ void load_floats(const void* from, FloatType type, int64_t index,
                                            float (&y)[kValues]) {
  if (type == FloatType::kFloat) load_as_floats<float>(from, index, y);
  if (type == FloatType::kHalf) load_as_floats<torch::headeronly::Half>(from, index, y);
  if (type == FloatType::kBFloat16) load_as_floats<torch::headeronly::BFloat16>(from, index, y);
}

// Rounds the values to T, in `y` too.
template <typename T, int kValues>
__device__ __forceinline__ void store_rounded(void* to, int64_t index, float (&y)[kValues]) {
  T values[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    values[i] = static_cast<T>(y[i]);
    y[i] = static_cast<float>(values[i]);
  }
  store_values(static_cast<T*>(to) + index, values);
}

template <int kValues>
__device__ __forceinline__ void store_floats(void* to, FloatType type, int64_t index,
                                             float (&y)[kValues]) {
  if (type == FloatType::kFloat) store_rounded<float>(to, index, y);
  if (type == FloatType::kHalf) store_rounded<torch::headeronly::Half>(to, index, y);
  if (type == FloatType::kBFloat16) store_rounded<torch::headeronly::BFloat16>(to, index, y);
}

template <int kValues>
__global__ void elementwise_kernel(__grid_constant__ const Elementwise fused) {
  const int64_t columns = lane_count<kValues>(fused.channels), count = fused.rows * columns;
  const Cursor stride(item_stride(), columns);
  Cursor at(first_item(), columns);
  for (int64_t item = first_item(); warp_has_items(item, count);
       item += item_stride(), at.advance(stride, columns)) {
    const int64_t channel = at.column * kValues;
    Word bits = 0;
    if (at.row < fused.rows && channel < fused.channels) {
      const int64_t index = at.row * fused.channels + channel;
      float y[kValues];
      load_floats(fused.input, fused.input_type, index, y);
#pragma unroll 1
      for (int i = 0; i < fused.step_count; ++i) {
        const Step& step = fused.steps[i];
        float x[kValues] = {}, addend[kValues] = {};
        if (step.map != nullptr)
          load_floats(step.map, step.map_type, index, x);
        else if (step.channels != nullptr)
          load_values(step.channels + channel, x);
        if (step.addend != nullptr) load_values(step.addend + channel, addend);
        apply_operation(step.operation, x, addend, y);
      }
      if (fused.floats != nullptr) store_floats(fused.floats, fused.type, index, y);
      if (fused.bits != nullptr) {
        float threshold[kValues];
        load_values(fused.threshold + channel, threshold);
        const Word flip = fused.flip != nullptr ? fused.flip[channel / kWordBits] : 0;
        bits = compare_values(y, threshold, flip >> (channel % kWordBits));
      }
    }
    if (fused.bits == nullptr) continue;
    const Word word = join_bits<kValues>(bits, channel);
    if (at.row < fused.rows && channel % kWordBits == 0)
      fused.bits[at.row * word_count(fused.channels) + channel / kWordBits] = word;
  }
}

}  // namespace bnn_ext::cuda
