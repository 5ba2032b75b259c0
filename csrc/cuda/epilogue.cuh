// From popcounts to results: int32 sums, floats after elementwise steps, packed bits.
//
// Kernels on tensor cores leave in a warp 16 rows x 8 t columns of popcounts, in registers
//   sums[t][i]: row lane / 4 + 8 (i / 2), column 8 t + 2 (lane % 4) + i % 2,
// and call to_dots and store_warp_tile. Kernels that compute one sum per thread, the 32 channels of
// a packed word in a warp, call store_place.
//
// A finish computes what becomes of a sum. It offers
//   Word store(const Cells&, const int32_t (&dots)[4]): stores values, returns the cells' bits;
//   Word* bits: where words of them go, or null; flip: packed, whether they compare downwards.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/index.cuh"
#include "cuda/ptx.cuh"
#include "cuda/steps.cuh"

namespace bnn_ext::cuda {

// --- popcounts to dot products ------------------------------------------------------------------

// The taps of a window that lie in the map: rows top...bottom - 1, columns left...right - 1.
struct Taps {
  int32_t top;
  int32_t bottom;
  int32_t left;
  int32_t right;

  BNN_HOST_DEVICE int32_t count() const { return (bottom - top) * (right - left); }
};

// The taps that lie in the map, along one axis: tap i at `origin` + i * dilation.
BNN_HOST_DEVICE inline void valid_taps(int32_t origin, int32_t size, int32_t kernel,
                                       int32_t dilation, int32_t& begin, int32_t& end) {
  const int32_t before = origin < 0 ? (-origin + dilation - 1) / dilation : 0;
  const int32_t inside = origin < size ? (size - origin + dilation - 1) / dilation : 0;
  begin = before < kernel ? before : kernel;
  end = inside < kernel ? inside : kernel;
  if (end < begin) end = begin;
}

// Kernels count bits with zeros in the place of taps in the padding. With a the bits of the input
// and b those of the weight over all taps, D the popcount of b over the taps in the padding, I the
// number of these taps, C the channels of a tap and K = C * all taps:
//
//   dot = K - 2 pop(a xor b)                         + (pad_value + 1) (2 D - C I)
//       = K - 2 pop(a) - 2 pop(b) + 4 pop(a and b)   + (pad_value + 1) (2 D - C I)
//
// Unsigned arithmetic, since parts may leave int32 where the dot itself does not.
struct Correction {
  // popcounts[y][x][channel]: of a weight over the taps 0...y x 0...x, as tile_weight makes it.
  // Not read, and may be null, for the xor form where pad_value is -1.
  const int32_t* popcounts;
  int64_t outputs;  // channels of all groups
  int32_t kernel_y;
  int32_t kernel_x;
  int32_t channels;
  int32_t pad_value;  // -1 where nothing is padded, too

  BNN_HOST_DEVICE uint32_t bits() const {
    return static_cast<uint32_t>(kernel_y) * kernel_x * channels;
  }

  BNN_HOST_DEVICE Taps all_taps() const { return {0, kernel_y, 0, kernel_x}; }
};

// Columns of a result: `count` of them are there from `first` on, further ones are not (they are
// another group's, or past the last one).
struct Columns {
  int64_t first;
  int count;
  int64_t all;  // length of a row of results
};

// Adds factor * (popcount of the column's weight over the taps 0...y - 1 x 0...x - 1) to the sums
// of one of the lane's two rows.
template <int half, int blocks>
__device__ __forceinline__ void add_popcounts(const Correction& correction, int32_t y, int32_t x,
                                              uint32_t factor, const Columns& columns,
                                              int32_t (&sums)[blocks][4]) {
  if (y == 0 || x == 0) return;
  const int own = 2 * (ptx::thread_index() % 4);
  const int64_t tap = (y - 1) * int64_t{correction.kernel_x} + x - 1;
  const int32_t* popcounts = correction.popcounts + tap * correction.outputs + columns.first + own;
#pragma unroll
  for (int t = 0; t < blocks; ++t) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
      if (8 * t + own + j < columns.count)
        sums[t][2 * half + j] += factor * static_cast<uint32_t>(popcounts[8 * t + j]);
  }
}

// Corrects one row, whose window has these taps in the map. With S the popcounts of all taps of the
// weight and V those of the taps in the map, D is S - V: so much of each is added, and of V, which
// is four corners of the table, only those that are there. With the pad_value 0 that is V alone.
template <bool xor_form, int half, int blocks>
__device__ __forceinline__ void correct(const Correction& correction, const Taps& taps,
                                        const Columns& columns, int32_t (&sums)[blocks][4]) {
  const int32_t outside = correction.all_taps().count() - taps.count();
  const uint32_t weight = correction.pad_value + 1, of_all = 2 * weight - (xor_form ? 0 : 2);
  if (xor_form && outside == 0) return;
#pragma unroll
  for (int t = 0; t < blocks; ++t) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
      sums[t][2 * half + j] -= weight * static_cast<uint32_t>(correction.channels) * outside;
  }
  if (of_all != 0)
    add_popcounts<half>(correction, correction.kernel_y, correction.kernel_x, of_all, columns,
                        sums);
  if (weight == 0) return;
#pragma unroll 1
  for (int corner = 0; corner < 4; ++corner) {
    const bool bottom = corner / 2 == 0, right = corner % 2 == 0;
    add_popcounts<half>(correction, bottom ? taps.bottom : taps.top, right ? taps.right : taps.left,
                        bottom == right ? 0 - 2 * weight : 2 * weight, columns, sums);
  }
}

// Popcounts to dot products, in place. `taps` and `input_popcounts` belong to the lane's two rows;
// the latter are used by the and form alone.
template <bool xor_form, int blocks>
__device__ __forceinline__ void to_dots(const Correction& correction, const Taps (&taps)[2],
                                        const int32_t (&input_popcounts)[2], const Columns& columns,
                                        int32_t (&sums)[blocks][4]) {
#pragma unroll
  for (int t = 0; t < blocks; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t sum = sums[t][i], input = input_popcounts[i / 2];
      sums[t][i] = correction.bits() + (xor_form ? 0 - 2 * sum : 4 * sum - 2 * input);
    }
  }
  correct<xor_form, 0>(correction, taps[0], columns, sums);
  correct<xor_form, 1>(correction, taps[1], columns, sums);
}

// --- finishes -----------------------------------------------------------------------------------

// Two neighbouring columns of two rows, in the order of an accumulator: dots[2 row + column].
struct Cells {
  int64_t rows[2];
  int64_t column;   // the first of the two
  int64_t columns;  // length of a row of results
  bool valid_rows[2];
  bool valid_columns[2];
  Word flips;  // bits 0 and 1: of the two columns

  BNN_HOST_DEVICE bool valid(int i) const { return valid_rows[i / 2] && valid_columns[i % 2]; }
  BNN_HOST_DEVICE int64_t index(int i) const { return rows[i / 2] * columns + column + i % 2; }
};

// As one store per row where both columns are there and the row begins at an even index.
template <typename T>
__device__ __forceinline__ void store_cells(T* output, const Cells& cells, const T (&values)[4]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const T pair[2] = {values[2 * row], values[2 * row + 1]};
    if (cells.columns % 2 == 0 && cells.valid(2 * row) && cells.valid(2 * row + 1)) {
      ptx::store_vector(output + cells.index(2 * row), pair);
      continue;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j)
      if (cells.valid(2 * row + j)) output[cells.index(2 * row + j)] = pair[j];
  }
}

// Orders turned round: x <= y is turned(x, true) >= turned(y, true), and NaN compares false.
__device__ __forceinline__ int32_t turned(int32_t x, bool down) { return down ? ~x : x; }
__device__ __forceinline__ float turned(float x, bool down) { return down ? -x : x; }

// The bits that compare with a threshold per channel; those of columns that are not there mean
// nothing. Without branches, which would cost more than the comparisons.
template <typename T>
__device__ __forceinline__ Word threshold_bits(const Cells& cells, const T (&values)[4],
                                               const T* threshold) {
  Word bits = 0;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const bool down = cells.flips >> j & 1;
    const T bound = turned(cells.valid_columns[j] ? threshold[cells.column + j] : T{}, down);
#pragma unroll
    for (int row = 0; row < 2; ++row)
      bits |= Word{turned(values[2 * row + j], down) >= bound} << (2 * row + j);
  }
  return bits;
}

struct StoreSum {
  static constexpr Word* bits = nullptr;
  static constexpr const Word* flip = nullptr;

  int32_t* output;

  __device__ __forceinline__ Word store(const Cells& cells, const int32_t (&dots)[4]) const {
    store_cells(output, cells, dots);
    return 0;
  }
};

struct StoreBits {
  Word* bits;
  const int32_t* threshold;  // one per channel
  const Word* flip;          // packed, or null

  __device__ __forceinline__ Word store(const Cells& cells, const int32_t (&dots)[4]) const {
    return threshold_bits(cells, dots, threshold);
  }
};

// Steps in float, each rounded once; values rounded to `type`; bits of these.
struct StoreFused {
  Step steps[kMaxSteps];
  int step_count;
  void* floats;  // or null
  FloatType type;
  Word* bits;              // or null
  const float* threshold;  // one per channel; used with `bits`
  const Word* flip;        // packed, or null

  __device__ __forceinline__ Word store(const Cells& cells, const int32_t (&dots)[4]) const {
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = static_cast<float>(dots[i]);
    for (int i = 0; i < step_count; ++i) apply(steps[i], cells, y);
    if (floats != nullptr) {
      if (type == FloatType::kFloat) store_as<float>(cells, y);
      if (type == FloatType::kHalf) store_as<torch::headeronly::Half>(cells, y);
      if (type == FloatType::kBFloat16) store_as<torch::headeronly::BFloat16>(cells, y);
    }
    return bits != nullptr ? threshold_bits(cells, y, threshold) : 0;
  }

 private:
  template <typename T>
  __device__ __forceinline__ void store_as(const Cells& cells, float (&y)[4]) const {
    T values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = static_cast<T>(y[i]);
      y[i] = static_cast<float>(values[i]);
    }
    store_cells(static_cast<T*>(floats), cells, values);
  }

  __device__ __forceinline__ static void load_channels(const float* channels, const Cells& cells,
                                                       float (&values)[4]) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
      values[j] = values[2 + j] = cells.valid_columns[j] ? channels[cells.column + j] : 0.0f;
  }

  __device__ __forceinline__ static void load_map(const void* map, FloatType type,
                                                  const Cells& cells, float (&values)[4]) {
    if (type == FloatType::kFloat) load_map_of<float>(map, cells, values);
    if (type == FloatType::kHalf) load_map_of<torch::headeronly::Half>(map, cells, values);
    if (type == FloatType::kBFloat16) load_map_of<torch::headeronly::BFloat16>(map, cells, values);
  }

  template <typename T>
  __device__ __forceinline__ static void load_map_of(const void* map, const Cells& cells,
                                                     float (&values)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      values[i] =
          cells.valid(i) ? static_cast<float>(static_cast<const T*>(map)[cells.index(i)]) : 0.0f;
  }

  __device__ __forceinline__ static void apply(const Step& step, const Cells& cells,
                                               float (&y)[4]) {
    float x[4] = {}, addend[4] = {};
    if (step.map != nullptr)
      load_map(step.map, step.map_type, cells, x);
    else if (step.channels != nullptr)
      load_channels(step.channels, cells, x);
    if (step.addend != nullptr) load_channels(step.addend, cells, addend);
    apply_operation(step.operation, x, addend, y);
  }
};

// --- storing ------------------------------------------------------------------------------------

// Rows of a result: 16 of them from `first` on, those from `end` on are not there.
struct Rows {
  int64_t first;
  int64_t end;
};

// What a warp holds of 16 rows and 8 * blocks columns, which begin at a whole word.
template <int blocks, typename Finish>
__device__ __forceinline__ void store_warp_tile(const Finish& finish, const Rows& rows,
                                                const Columns& columns,
                                                const int32_t (&dots)[blocks][4]) {
  static_assert(blocks % 4 == 0, "whole words");
  constexpr int words = blocks / 4;
  const int lane = ptx::thread_index() % 32;
  Cells cells;
  cells.columns = columns.all;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    cells.rows[half] = rows.first + lane / 4 + 8 * half;
    cells.valid_rows[half] = cells.rows[half] < rows.end;
  }
  // Lanes with an even number collect words of the first of their rows, the others of the second.
  Word kept[words];
  const bool second = lane % 2 == 1;
  const int shift = 2 * (lane % 4);  // of this lane's columns in 8
#pragma unroll
  for (int word = 0; word < words; ++word) {
    const int left = columns.count - 32 * word;
    const int64_t index = columns.first / kWordBits + word;
    const Word flips = finish.flip != nullptr && left > 0 ? finish.flip[index] >> shift : 0;
    Word own[2] = {0, 0};  // of each row
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int column = 8 * t + shift;
      cells.column = columns.first + 32 * word + column;
      cells.valid_columns[0] = column < left;
      cells.valid_columns[1] = column + 1 < left;
      cells.flips = flips >> 8 * t;
      const Word four = finish.store(cells, dots[4 * word + t]);
      own[0] |= (four & 3) << 8 * t;
      own[1] |= (four >> 2) << 8 * t;
    }
    if (finish.bits == nullptr) continue;
    kept[word] = (second ? own[1] : own[0]) << shift;
    kept[word] |= ptx::shuffle_xor((second ? own[0] : own[1]) << shift, 1);
    kept[word] |= ptx::shuffle_xor(kept[word], 2);
    if (left < kWordBits) kept[word] &= low_bits(left > 0 ? left : 0);
  }
  if (finish.bits == nullptr) return;

  // The two lanes of a row that now hold the same words store half of them each.
  constexpr int stored = words > 1 ? words / 2 : 1;
  const bool upper = lane % 4 >= 2;
  const bool there = second ? cells.valid_rows[1] : cells.valid_rows[0];
  if (!there || (upper && words == 1)) return;
  Word half[stored];
#pragma unroll
  for (int i = 0; i < stored; ++i) half[i] = upper ? kept[words - stored + i] : kept[i];
  const int first = upper ? stored : 0;
  const int left = static_cast<int>(word_count(columns.count)) - first;
  const int64_t index = (second ? cells.rows[1] : cells.rows[0]) * word_count(columns.all) +
                        columns.first / kWordBits + first;
  if (left >= stored && index % stored == 0) {
    ptx::store_vector(finish.bits + index, half);
    return;
  }
#pragma unroll
  for (int i = 0; i < stored; ++i)
    if (i < left) finish.bits[index + i] = half[i];
}

// One sum per lane, the channels of a word in a warp, all lanes of which must call.
template <typename Finish>
__device__ __forceinline__ void store_place(const Finish& finish, Place at, int64_t channels,
                                            int32_t dot) {
  const bool valid = at.channel < channels;
  const bool flip = valid && finish.flip != nullptr && get_bit(finish.flip, at.channel);
  const Cells cells = {{at.row, at.row}, at.channel,     channels,
                       {valid, false},   {valid, false}, Word{flip}};
  const bool bit = valid && finish.store(cells, {dot, 0, 0, 0}) & 1;
  if (finish.bits == nullptr) return;
  const Word word = ptx::ballot(bit);
  if (at.channel % kWordBits == 0) finish.bits[word_index(at, channels)] = word;
}

}  // namespace bnn_ext::cuda
