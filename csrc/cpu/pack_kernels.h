// Packing of real values: what one CPU level offers.
#pragma once

#include "common/bits.h"

namespace bnn_ext::cpu {

struct PackKernels {
  // Packs n comparisons x >= threshold (<= where flip is set). A null threshold is 0, a null flip
  // all 0. Writes word_count(n) words with zero tail bits.
  void (*compare_float)(const float* x, int64_t n, const float* threshold, const Word* flip,
                        Word* out);
  void (*compare_int)(const int32_t* x, int64_t n, const int32_t* threshold, const Word* flip,
                      Word* out);

  // The same for channels that lie apart, as in NCHW: one word of up to 32 `channels` for each of
  // `pixels` neighbouring values, `below` being that word of flip.
  void (*compare_columns_float)(const float* x, int64_t channel_step, int64_t pixels,
                                int64_t channels, const float* threshold, Word below, Word* out,
                                int64_t out_step);
  void (*compare_columns_int)(const int32_t* x, int64_t channel_step, int64_t pixels,
                              int64_t channels, const int32_t* threshold, Word below, Word* out,
                              int64_t out_step);
};

}  // namespace bnn_ext::cpu
