// The three results of linear and conv2d: int32 sums, floats, packed bits.
//
// One thread computes one sum, one warp the 32 output channels of a packed word. `Operation` has
// `outputs` (channels) and `sum(row, channel)`; a row is a row of linear's input or a pixel.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/arguments.cuh"
#include "cuda/launch.cuh"

namespace bnn_ext::cuda {

// An operation on raw pointers, the operands that own them, and the leading sizes of its result.
template <typename Operation>
struct Call {
  Operation operation;
  Tensor input;
  Tensor weight;
  std::vector<int64_t> sizes;
};

struct StoreSum {
  int32_t* output;

  __device__ void operator()(Place at, int64_t channels, int32_t sum) const {
    if (at.channel < channels) output[at.row * channels + at.channel] = sum;
  }
};

// sum * scale + bias in float, each step rounded (never fused), then rounded once to T.
template <typename T>
struct StoreFloat {
  T* output;
  const float* scale;  // one per channel, or null
  const float* bias;   // one per channel, or null

  __device__ void operator()(Place at, int64_t channels, int32_t sum) const {
    if (at.channel >= channels) return;
    float value = static_cast<float>(sum);
    if (scale != nullptr) value = __fmul_rn(value, scale[at.channel]);
    if (bias != nullptr) value = __fadd_rn(value, bias[at.channel]);
    output[at.row * channels + at.channel] = static_cast<T>(value);
  }
};

struct StoreBits {
  Word* output;
  const int32_t* threshold;  // one per channel
  const Word* flip;          // packed, or null

  __device__ void operator()(Place at, int64_t channels, int32_t sum) const {
    const bool bit =
        at.channel < channels &&
        threshold_bit(sum, threshold[at.channel], flip != nullptr && get_bit(flip, at.channel));
    store_bits(output, at, channels, bit);
  }
};

template <typename Operation, typename Store>
__global__ void sums_kernel(Operation operation, Store store, int64_t count) {
  const int64_t channels = operation.outputs;
  for (int64_t i = first_index(); i < count; i += index_stride()) {
    const Place at = place(i, channels);
    store(at, channels, at.channel < channels ? operation.sum(at.row, at.channel) : 0);
  }
}

template <typename Operation, typename Store>
void launch_sums(const Call<Operation>& call, const Tensor& output, Store store) {
  const int64_t count = place_count(product(call.sizes), call.operation.outputs);
  launch(sums_kernel<Operation, Store>, count, output, call.operation, store);
}

template <typename Operation>
Tensor sums(const Call<Operation>& call) {
  const Tensor output = new_output(call.input, call.sizes, call.operation.outputs, ScalarType::Int);
  launch_sums(call, output, StoreSum{mutable_data<int32_t>(output)});
  return output;
}

template <typename Operation>
Tensor floats(const Call<Operation>& call, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& bias, ScalarType dtype) {
  const int64_t outputs = call.operation.outputs;
  const auto s = vector_operand("scale", scale, ScalarType::Float, outputs, call.input);
  const auto b = vector_operand("bias", bias, ScalarType::Float, outputs, call.input);
  const Tensor output = new_output(call.input, call.sizes, outputs, dtype);
  const auto store_as = [&](auto zero) {
    using T = decltype(zero);
    launch_sums(call, output,
                StoreFloat<T>{mutable_data<T>(output), data<float>(s), data<float>(b)});
  };
  switch (dtype) {
    case ScalarType::Float:
      store_as(float{});
      break;
    case ScalarType::Half:
      store_as(torch::headeronly::Half{});
      break;
    case ScalarType::BFloat16:
      store_as(torch::headeronly::BFloat16{});
      break;
    default:
      STD_TORCH_CHECK(false, "dtype must be Float, Half or BFloat16, found ", dtype);
  }
  return output;
}

template <typename Operation>
Tensor bits(const Call<Operation>& call, const Tensor& threshold,
            const std::optional<Tensor>& flip) {
  const int64_t outputs = call.operation.outputs;
  const auto t = vector_operand("threshold", threshold, ScalarType::Int, outputs, call.input);
  const auto f = vector_operand("flip", flip, ScalarType::Int, word_count(outputs), call.input);
  const Tensor output = new_output(call.input, call.sizes, word_count(outputs), ScalarType::Int);
  launch_sums(call, output, StoreBits{mutable_data<Word>(output), data<int32_t>(t), data<Word>(f)});
  return output;
}

}  // namespace bnn_ext::cuda
