// The loop nest that linear and conv2d share: windows of packed words times tiled weights.
//
// A problem is a list of regions: rectangles of output positions that see the same taps. A
// zero-padded convolution therefore has one region for its interior and others for its borders,
// where the taps that fall outside are simply left out.
#pragma once

#include <limits>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/operators.h"

namespace bnn_ext::cpu {

// height x width windows; their inputs and outputs lie at constant distances.
struct Region {
  const Word* tiles;
  int64_t first_step, step_count, step_words;
  int32_t k;  // real bits in a window
  int64_t height, width;
  int64_t input, input_row, input_column;     // words from the start of the image
  int64_t output, output_row, output_column;  // positions in the image
};

struct Dot {
  const Word* input;
  int64_t images;
  int64_t image_words;  // input words of one image
  int64_t positions;    // output positions of one image
  int64_t groups;
  int64_t group_words;   // input words from one group to the next
  int64_t out_channels;  // in one group
  int64_t block_words;   // words of one block of 16 channels
  std::vector<Step> steps;
  std::vector<Region> regions;
};

// The given tiles, checked, or new ones.
Tensor checked_tiles(const std::optional<Tensor>& tiles, const Tensor& weight, int64_t groups);

// Sums of `k` signs are int32.
inline void check_sums(int64_t k) {
  STD_TORCH_CHECK(k <= std::numeric_limits<int32_t>::max(), "a sum of ", k, " signs overflows");
}

// The largest step that runs of `words` consecutive words can be cut into.
inline int64_t step_words(int64_t words) { return words % 4 == 0 ? 4 : words % 2 == 0 ? 2 : 1; }

// Appends the steps of `words` words that start at `input` and, in weights, at word `weight`.
inline void add_steps(std::vector<Step>& steps, int64_t input, int64_t weight, int64_t words) {
  const int64_t length = step_words(words);
  for (int64_t word = 0; word < words; word += length)
    steps.push_back({input + word, (weight + word) * kBlock});
}

inline int64_t channels_of(const Dot& dot) { return dot.groups * dot.out_channels; }

// The outputs, [positions, channels_of(dot)] each. `shape` is the shape of the result without its
// last dimension.
Tensor dot_sums(const Dot& dot, std::vector<int64_t> shape);
Tensor dot_float(const Dot& dot, std::vector<int64_t> shape, const std::optional<Tensor>& scale,
                 const std::optional<Tensor>& bias, ScalarType dtype);
Tensor dot_bits(const Dot& dot, std::vector<int64_t> shape, const Tensor& threshold,
                const std::optional<Tensor>& flip);

// Floats if there is a dtype, then bits if there is a threshold.
std::vector<Tensor> dot_fused(const Room& room, const Dot& dot, std::vector<int64_t> shape,
                              const std::vector<int64_t>& operations,
                              const std::vector<Tensor>& operands,
                              const std::optional<ScalarType>& dtype,
                              const std::optional<Tensor>& threshold,
                              const std::optional<Tensor>& flip);

}  // namespace bnn_ext::cpu
