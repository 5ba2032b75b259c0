// Selecting channels of packed maps: what one CPU level offers.
#pragma once

#include "common/bits.h"

namespace bnn_ext::cpu {

constexpr int64_t kSelectPositions = 32;  // positions that are joined at a time

// One word of each of these positions.
typedef Word WordColumn[kSelectPositions];

// Neighbouring bits of one word, which go to neighbouring bits of one output word.
struct Term {
  int64_t source;      // a column
  int64_t left_shift;  // to the right if negative
  Word mask;           // after the shift
};

struct SelectKernels {
  // out[position] = or of the terms, shifted and masked; fastest where those that shift to the
  // same side come in a row.
  void (*join)(const WordColumn* columns, const Term* terms, int64_t term_count, WordColumn& out);
};

}  // namespace bnn_ext::cpu
