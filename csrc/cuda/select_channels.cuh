// Any choice of channels of packed rows; select_channels.cu starts it.
//
// A warp makes a few neighbouring output words of 32 rows, a lane for each row. All lanes walk
// through the same runs: bits whose channels are neighbours in one input, moved together.
#pragma once

#include <cassert>

#include "cuda/stream.cuh"

namespace bnn_ext::cuda {

constexpr int kMostInputs = 128;  // a launch's parameters have 4 KiB

struct SelectInput {
  const Word* words;  // [rows][word_count(channels)]
  int64_t word_count;
  int64_t end_channel;  // counted through all inputs
};

struct SelectChannels {
  SelectInput inputs[kMostInputs];
  int input_count;
  const int32_t* index;  // [outputs]
  int64_t outputs;
  int64_t rows;
  Word* output;

  // The input of a channel, which a wrong index must not read past.
  __device__ int input_of(int64_t channel) const {
    assert(0 <= channel && channel < inputs[input_count - 1].end_channel);
    int which = 0;
    while (channel >= inputs[which].end_channel) ++which;
    return which;
  }

  __device__ bool continues(int64_t bit) const {
    const int64_t channel = index[bit], before = index[bit - 1];
    return channel == before + 1 && input_of(channel) == input_of(before);
  }
};

template <int kWords>
__global__ void select_channels_kernel(__grid_constant__ const SelectChannels select) {
  const int lane = ptx::thread_index() % 32;
  const int64_t words = word_count(select.outputs), groups = words / kWords;
  const int64_t count = (select.rows + 31) / 32 * groups * 32;
  for (int64_t item = first_item(); item < count; item += item_stride()) {
    const int64_t group = item / 32 % groups, row = item / 32 / groups * 32 + lane;
    Word selected[kWords] = {};
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int64_t first = (group * kWords + i) * kWordBits;
      const int64_t left = select.outputs - first;
      const int end = static_cast<int>(left < kWordBits ? left : kWordBits);
      Word starts = ptx::ballot(lane < end && (lane == 0 || !select.continues(first + lane)));
      while (starts != 0) {
        const int start = popcount((starts & -starts) - 1);
        starts &= starts - 1;
        const int next = starts != 0 ? popcount((starts & -starts) - 1) : end;
        if (row >= select.rows) continue;
        const int64_t channel = select.index[first + start];
        const int which = select.input_of(channel);
        const SelectInput& input = select.inputs[which];
        const int64_t first_channel = which > 0 ? select.inputs[which - 1].end_channel : 0;
        selected[i] |=
            read_bits(input.words + row * input.word_count, channel - first_channel, next - start)
            << start;
      }
    }
    if (row < select.rows) store_values(select.output + row * words + group * kWords, selected);
  }
}

}  // namespace bnn_ext::cuda
