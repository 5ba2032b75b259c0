// Convolutions of few channels: a group of C < 32 channels fills C bits of a word, so a word per
// tap would be mostly empty. Instead every output column gets the bits of its kernel row in one
// run:
//
//   bit kx * C + c of column x = channel c at input column x * stride - padding + kx * dilation
//
// A kh x kw convolution of the map is a kh x 1 convolution, of kw * C channels a group, of the
// gathered map. Taps in the padding hold 0. Where these must add nothing, the weight's bits there
// have to be 0 as well, and the tap's C bits do not count among the K of the sum.
#pragma once

#include "cpu/tensor.h"

namespace bnn_ext::cpu {

struct Gather {
  int64_t groups, channels;                   // channels in one group
  int64_t kernel, stride, padding, dilation;  // horizontal

  int64_t words() const { return word_count(kernel * channels); }  // of one column and group

  // Whether it leaves at most half of the words: less does not pay for the gathering.
  bool pays() const { return channels > 0 && 2 * words() <= kernel * word_count(channels); }
};

// Packed [N, H, W, word_count(groups * channels)] -> [N, H, width, groups * words()].
Tensor gather_map(const Tensor& input, const Gather& gather, int64_t width);

// Tiles [blocks, kh * kw, kBlock] -> [blocks, kh * words(), kBlock], of the taps [first, last)
// only.
Tensor gather_tiles(const Tensor& tiles, const Gather& gather, int64_t first, int64_t last);

}  // namespace bnn_ext::cpu
