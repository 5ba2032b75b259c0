// What linear layers and convolutions of real inputs with binary weights share.
#pragma once

#include <memory>
#include <new>
#include <type_traits>

#include "cpu/dot.h"

namespace bnn_ext::cpu {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kGrainSums = 1 << 20;  // multiply-accumulates that are worth waking a thread

// Sums of integers are exact; all floats are summed in float32.
template <typename In>
using SumOf = std::conditional_t<std::is_same_v<In, uint8_t>, int32_t, float>;

// Integer sums fit into int32.
inline void check_signed_sums(const Tensor& input, int64_t k) {
  if (input.scalar_type() == ScalarType::Byte)
    STD_TORCH_CHECK(k <= std::numeric_limits<int32_t>::max() / 255, "a sum of ", k,
                    " signed uint8 values overflows");
}

template <typename T>
const SignedSumKernels<T>& signed_sums(const Kernels& level) {
  if constexpr (std::is_same_v<T, float>)
    return level.real.floats;
  else
    return level.real.ints;
}

// Uninitialized values that start at a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : values_(static_cast<T*>(::operator new(size * sizeof(T), kAlignment))) {}
  T* get() const { return values_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(T* values) const { ::operator delete(values, kAlignment); }
  };
  std::unique_ptr<T[], Delete> values_;
};

// Sums of output positions from `position` on: `count` channels from `first` on, a multiple of 32.
template <typename T>
struct Sums {
  int64_t position, positions;
  int64_t first, count;
  T* values;       // may be overwritten
  int64_t stride;  // from position to position
};

// What becomes of sums. Calls come from several threads, each result exactly once.

struct StoreInts {
  int32_t* out;
  int64_t channels;

  void operator()(const Sums<int32_t>& sums) const {
    for (int64_t i = 0; i < sums.positions; ++i)
      std::copy_n(sums.values + i * sums.stride, sums.count,
                  out + (sums.position + i) * channels + sums.first);
  }
};

template <typename T>
struct StoreFloats {
  T* out;
  int64_t channels;
  const float *scale, *bias;
  const Kernels& level;

  void operator()(const Sums<float>& sums) const {
    for (int64_t i = 0; i < sums.positions; ++i) {
      float* values = sums.values + i * sums.stride;
      level.real.finish(values, sums.count, scale ? scale + sums.first : nullptr,
                        bias ? bias + sums.first : nullptr);
      std::copy_n(values, sums.count,  // rounds to T
                  out + (sums.position + i) * channels + sums.first);
    }
  }
};

template <typename T>
struct StoreBits {
  Word* out;
  int64_t channels;
  const T* threshold;
  const Word* flip;
  const Kernels& level;

  void operator()(const Sums<T>& sums) const {
    const int64_t words = word_count(channels), word = sums.first / kWordBits;
    const PackTile<T> tile = {sums.values,
                              sums.positions,
                              sums.count,
                              sums.stride,
                              threshold + sums.first,
                              flip ? flip + word : nullptr,
                              out + sums.position * words + word,
                              words};
    if constexpr (std::is_same_v<T, float>)
      level.pack.float32.rows(tile);
    else
      level.pack.int32.rows(tile);
  }
};

// Calls f with a value of the type of the input.
template <typename F>
void with_input_type(const Tensor& input, const F& f) {
  switch (input.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Byte:
      return f(uint8_t{});
    default:
      STD_TORCH_CHECK(false, "input must be float32, float16, bfloat16 or uint8");
  }
}

// The two kinds of output, [..., channels] with `shape` first. run(In{}, store) computes all sums.
template <typename Run>
Tensor signed_sum_values(const Tensor& input, std::vector<int64_t> shape, int64_t channels,
                         const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                         const Run& run) {
  const bool integer = input.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(!integer || (!scale && !bias), "uint8 input gives sums, without scale and bias");
  const auto scales = checked_vector(scale, "scale", channels, ScalarType::Float);
  const auto biases = checked_vector(bias, "bias", channels, ScalarType::Float);
  shape.push_back(channels);
  const Tensor out = new_tensor(shape, integer ? ScalarType::Int : input.scalar_type());
  with_input_type(input, [&](auto value) {
    using In = decltype(value);
    if constexpr (std::is_same_v<In, uint8_t>)
      run(value, StoreInts{mutable_data<int32_t>(out), channels});
    else
      run(value, StoreFloats<In>{mutable_data<In>(out), channels, data<float>(scales),
                                 data<float>(biases), kernels()});
  });
  return out;
}

template <typename Run>
Tensor signed_sum_bits(const Tensor& input, std::vector<int64_t> shape, int64_t channels,
                       const Tensor& threshold, const std::optional<Tensor>& flip, const Run& run) {
  const bool integer = input.scalar_type() == ScalarType::Byte;
  const Tensor thresholds = *checked_vector(threshold, "threshold", channels,
                                            integer ? ScalarType::Int : ScalarType::Float);
  const auto flips = checked_vector(flip, "flip", word_count(channels), ScalarType::Int);
  shape.push_back(word_count(channels));
  const Tensor out = new_tensor(shape, ScalarType::Int);
  with_input_type(input, [&](auto value) {
    using Sum = SumOf<decltype(value)>;
    run(value, StoreBits<Sum>{mutable_data<Word>(out), channels, data<Sum>(thresholds),
                              data<Word>(flips), kernels()});
  });
  return out;
}

}  // namespace bnn_ext::cpu
