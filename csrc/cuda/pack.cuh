// Kernels between values and packed words; pack.cu starts them.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "cuda/stream.cuh"

namespace bnn_ext::cuda {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// What a value is compared as: int32_t stays, floats become float.
template <typename T>
using Compared = std::conditional_t<std::is_same_v<T, int32_t>, int32_t, float>;

// Values of a lane: those of one access.
template <typename T>
constexpr int kPackValues = kVectorBytes / sizeof(T);

// Contiguous rows [rows][channels], of a multiple of kPackValues channels, aligned to 16 bytes.
template <typename T>
struct PackRows {
  const T* input;
  const Compared<T>* threshold;  // one per channel, aligned too, or null: compare with 0
  const Word* flip;              // packed, or null
  int64_t rows;
  int64_t channels;
  Word* output;
};

template <typename T>
__global__ void pack_rows_kernel(PackRows<T> pack) {
  constexpr int kValues = kPackValues<T>;
  const int64_t columns = lane_count<kValues>(pack.channels), count = pack.rows * columns;
  const Cursor stride(item_stride(), columns);
  Cursor at(first_item(), columns);
  for (int64_t item = first_item(); warp_has_items(item, count);
       item += item_stride(), at.advance(stride, columns)) {
    const int64_t channel = at.column * kValues;
    Word bits = 0;
    if (at.row < pack.rows && channel < pack.channels) {
      T loaded[kValues];
      load_values(pack.input + at.row * pack.channels + channel, loaded);
      Compared<T> values[kValues], threshold[kValues] = {};
#pragma unroll
      for (int i = 0; i < kValues; ++i) values[i] = static_cast<Compared<T>>(loaded[i]);
      if (pack.threshold != nullptr) load_values(pack.threshold + channel, threshold);
      const Word flip = pack.flip != nullptr ? pack.flip[channel / kWordBits] : 0;
      bits = compare_values(values, threshold, flip >> (channel % kWordBits));
    }
    const Word word = join_bits<kValues>(bits, channel);
    if (at.row < pack.rows && channel % kWordBits == 0)
      pack.output[at.row * word_count(pack.channels) + channel / kWordBits] = word;
  }
}

// Rows that are nearer to one another than their channels, as those of an NCHW map seen as NHWC,
// or that are short. A thread makes a whole word; neighbouring threads are neighbouring rows.
template <typename T>
__global__ void pack_columns_kernel(Pack<T, Compared<T>> pack, int64_t channels, Word* output) {
  const int64_t words = word_count(channels);
  const int64_t images = pack.layout.sizes[0], pixels = pack.layout.sizes[1] * pack.layout.sizes[2];
  const int64_t count = images * words * pixels;  // pixels turn fastest, then words
  const int64_t channel_stride = pack.layout.strides[3];
  for (int64_t item = first_item(); item < count; item += item_stride()) {
    const int64_t pixel = item % pixels, plane = item / pixels;
    const int64_t word = plane % words, row = plane / words * pixels + pixel;
    const int64_t first = word * kWordBits;
    const T* input = pack.input + pack.layout.offset(row, first);
    const Word flip = pack.flip != nullptr ? pack.flip[word] : 0;
    Word bits = 0;
#pragma unroll
    for (int i = 0; i < kWordBits; ++i) {
      if (first + i >= channels) continue;
      const auto value = static_cast<Compared<T>>(input[i * channel_stride]);
      const auto threshold = pack.threshold != nullptr ? pack.threshold[first + i] : 0;
      bits |= Word{threshold_bit<Compared<T>>(value, threshold, (flip >> i & 1) != 0)} << i;
    }
    output[row * words + word] = bits;
  }
}

// +1 and -1; a thread writes kValues neighbouring channels of a row, in one access if it can.
template <typename T, int kValues>
__global__ void unpack_kernel(const Word* packed, int64_t rows, int64_t channels, T* output) {
  const int64_t columns = channels / kValues, count = rows * columns;
  const Cursor stride(item_stride(), columns);
  Cursor at(first_item(), columns);
  for (int64_t item = first_item(); item < count;
       item += item_stride(), at.advance(stride, columns)) {
    const int64_t channel = at.column * kValues;
    const Word word = packed[at.row * word_count(channels) + channel / kWordBits];
    T values[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      values[i] = static_cast<T>((word >> (channel % kWordBits + i) & 1) != 0 ? 1.0f : -1.0f);
    store_values(output + at.row * channels + channel, values);
  }
}

// Joins `positions` packed rows into one: feature = position * channels + channel. A thread makes a
// word, of one position, of two, or of many short ones.
__global__ void flatten_kernel(const Word* packed, int64_t rows, int64_t positions,
                               int64_t channels, Word* output) {
  const int64_t features = positions * channels, columns = word_count(features);
  const int64_t words = word_count(channels), count = rows * columns;
  for (int64_t item = first_item(); item < count; item += item_stride()) {
    const int64_t first = item % columns * kWordBits;
    const int64_t end = features - first < kWordBits ? features - first : kWordBits;
    int64_t channel = first % channels;
    const Word* position = packed + (item / columns * positions + first / channels) * words;
    Word joined = 0;
    for (int64_t bit = 0; bit < end; position += words) {
      const int64_t left = channels - channel;
      const int64_t bits = left < end - bit ? left : end - bit;
      joined |= read_bits(position, channel, bits) << bit;
      bit += bits;
      channel = 0;
    }
    output[item] = joined;
  }
}

}  // namespace bnn_ext::cuda
