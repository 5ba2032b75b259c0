// The epilogues of one CPU level; included like dot_body.inl, after pack_body.inl.
//
// The level defines before, besides kLanes:
//
//   half_to_float(from, to), float_to_half(from, to)  kLanes values of IEEE half precision
//   fused_multiply_add(y, factor, addend)  vectors: y * factor + addend, rounded once

typedef float FloatVector __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVector __attribute__((vector_size(kLanes * 4)));
typedef Word WordVector __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfVector __attribute__((vector_size(kLanes * 2)));

template <typename Vector, typename T>
inline Vector load_vector(const T* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

inline FloatVector to_floats(HalfVector halves, FloatType type) {
  if (type == FloatType::kBFloat16)
    return reinterpret_cast<FloatVector>(__builtin_convertvector(halves, WordVector) << 16);
  FloatVector values;
  half_to_float(reinterpret_cast<const uint16_t*>(&halves), reinterpret_cast<float*>(&values));
  return values;
}

template <typename T, typename Vector>
inline void store_vector(T* to, Vector vector) {
  __builtin_memcpy(to, &vector, sizeof vector);
}

inline HalfVector to_bfloat16(FloatVector values) {
  const WordVector bits = reinterpret_cast<WordVector>(values);
  const WordVector rounded =
      (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const WordVector quiet = WordVector{} + 0x7fc0u;
  return __builtin_convertvector(values == values ? rounded : quiet, HalfVector);
}

inline HalfVector to_halves(FloatVector values, FloatType type) {
  if (type == FloatType::kBFloat16) return to_bfloat16(values);
  HalfVector halves;
  float_to_half(reinterpret_cast<const float*>(&values), reinterpret_cast<uint16_t*>(&halves));
  return halves;
}

// A tile goes through the steps one by one and stays in the L1 cache meanwhile. So what to do is
// decided once for all its windows, and what a channel's step needs stays in registers.
constexpr int kRowVectors = kTileChannels / kLanes;
using Row = float[kTileChannels];  // the values of a window, any from tile.channels on

inline FloatVector vector_of(const float* row, int v) {
  return load_vector<FloatVector>(row + v * kLanes);
}

// What a map has for `channels` neighbouring outputs from `index` on: there, or in `room`.
inline const float* map_row(const Map& map, int64_t index, int64_t channels, Row& room) {
  if (map.type == FloatType::kFloat) {
    const float* from = static_cast<const float*>(map.values) + index;
    if (channels == kTileChannels) return from;
    __builtin_memcpy(room, from, channels * sizeof *from);
    return room;
  }
  const uint16_t* from = static_cast<const uint16_t*>(map.values) + index;
  uint16_t copy[kTileChannels];
  if (channels < kTileChannels) {
    __builtin_memcpy(copy, from, channels * sizeof *from);
    from = copy;
  }
  for (int v = 0; v < kRowVectors; ++v)
    store_vector(room + v * kLanes,
                 to_floats(load_vector<HalfVector>(from + v * kLanes), map.type));
  return room;
}

struct Tile {
  const Epilogue& epilogue;
  const SumTile& sums;

  // Where a window's values lie in maps.
  int64_t index(int64_t i) const {
    return sums.positions[i] * epilogue.channels + sums.first_channel;
  }
  // A value for each channel, readable up to a multiple of kBlock.
  void load(const float* channels, FloatVector (&x)[kRowVectors]) const {
#pragma GCC unroll 4
    for (int v = 0; v < kRowVectors; ++v) {
      const bool readable = v * kLanes / kBlock * kBlock < sums.channels;
      x[v] = readable ? load_vector<FloatVector>(channels + sums.first_channel + v * kLanes)
                      : FloatVector{};
    }
  }
};

// y = rule(y) for all values
template <typename Rule>
inline void apply_rule(const Tile& tile, Row* values, Rule rule) {
  for (int64_t i = 0; i < tile.sums.window_count; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kRowVectors; ++v)
      store_vector(values[i] + v * kLanes, rule(vector_of(values[i], v)));
}

// y = rule(y, x) for all values, x being the operand's
template <typename Rule>
inline void apply_rule(const Operand& operand, const Tile& tile, Row* values, Rule rule) {
  if (operand.map.values) {
    for (int64_t i = 0; i < tile.sums.window_count; ++i) {
      Row room;
      const float* x = map_row(operand.map, tile.index(i), tile.sums.channels, room);
#pragma GCC unroll 4
      for (int v = 0; v < kRowVectors; ++v)
        store_vector(values[i] + v * kLanes, rule(vector_of(values[i], v), vector_of(x, v)));
    }
    return;
  }
  FloatVector x[kRowVectors];
  tile.load(operand.channels, x);
  for (int64_t i = 0; i < tile.sums.window_count; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kRowVectors; ++v)
      store_vector(values[i] + v * kLanes, rule(vector_of(values[i], v), x[v]));
}

inline void multiply_add(const Operand& operand, const Tile& tile, Row* values) {
  FloatVector x[kRowVectors], addend[kRowVectors];
  tile.load(operand.channels, x);
  tile.load(operand.addend, addend);
  for (int64_t i = 0; i < tile.sums.window_count; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kRowVectors; ++v)
      store_vector(values[i] + v * kLanes,
                   fused_multiply_add(vector_of(values[i], v), x[v], addend[v]));
}

void apply(const Operand& operand, const Tile& tile, Row* values) {
  using V = FloatVector;
  switch (operand.operation) {
    case Operation::kMultiply:
      return apply_rule(operand, tile, values, [](V y, V x) { return y * x; });
    case Operation::kAdd:
      return apply_rule(operand, tile, values, [](V y, V x) { return y + x; });
    case Operation::kPrelu:
      return apply_rule(operand, tile, values, [](V y, V x) { return y > 0.0f ? y : y * x; });
    case Operation::kMaximum:
      return apply_rule(operand, tile, values, [](V y, V x) { return y < x ? x : y; });
    case Operation::kMinimum:
      return apply_rule(operand, tile, values, [](V y, V x) { return y > x ? x : y; });
    case Operation::kMultiplyAdd:
      return multiply_add(operand, tile, values);
    case Operation::kDivide:
      return apply_rule(operand, tile, values, [](V y, V x) { return y / x; });
    case Operation::kFloat16:
      return apply_rule(tile, values, [](V y) {
        return to_floats(to_halves(y, FloatType::kHalf), FloatType::kHalf);
      });
    case Operation::kBFloat16:
      return apply_rule(tile, values,
                        [](V y) { return to_floats(to_bfloat16(y), FloatType::kBFloat16); });
  }
}

inline void begin(const Tile& tile, Row* values) {
  for (int64_t i = 0; i < tile.sums.window_count; ++i) {
    if (tile.epilogue.input.values) {
      Row room;
      const float* from = map_row(tile.epilogue.input, tile.index(i), tile.sums.channels, room);
      for (int v = 0; v < kRowVectors; ++v)
        store_vector(values[i] + v * kLanes, vector_of(from, v));
    } else {
      const int32_t* from = tile.sums.sums + i * kTileChannels;
#pragma GCC unroll 4
      for (int v = 0; v < kRowVectors; ++v)
        store_vector(
            values[i] + v * kLanes,
            __builtin_convertvector(load_vector<IntVector>(from + v * kLanes), FloatVector));
    }
  }
}

// Rounds the values too where the result is of half precision.
inline void store(const Tile& tile, Row* values) {
  const bool whole = tile.sums.channels == kTileChannels;
  for (int64_t i = 0; i < tile.sums.window_count; ++i) {
    if (tile.epilogue.type == FloatType::kFloat) {
      float* to = static_cast<float*>(tile.epilogue.floats) + tile.index(i);
      if (whole)
        __builtin_memcpy(to, values[i], sizeof(Row));
      else
        __builtin_memcpy(to, values[i], tile.sums.channels * sizeof *to);
      continue;
    }
    uint16_t rounded[kTileChannels];
    for (int v = 0; v < kRowVectors; ++v) {
      const HalfVector halves = to_halves(vector_of(values[i], v), tile.epilogue.type);
      store_vector(rounded + v * kLanes, halves);
      store_vector(values[i] + v * kLanes, to_floats(halves, tile.epilogue.type));
    }
    uint16_t* to = static_cast<uint16_t*>(tile.epilogue.floats) + tile.index(i);
    __builtin_memcpy(to, rounded, whole ? sizeof rounded : tile.sums.channels * sizeof *to);
  }
}

// bits = (values >= threshold) ^ invert for rows of whole words, whose bounds stay in registers.
template <int kWords, typename T>
void compare_rows(const T* values, const SumTile& tile, const T* threshold, const Word* invert,
                  Word* bits, int64_t row_words) {
  constexpr int kParts = kWordBits / kPackLanes;
  const int64_t first_word = tile.first_channel / kWordBits;
  decltype(load(threshold, kPackLanes)) bounds[kWords * kParts];
#pragma GCC unroll 4
  for (int part = 0; part < kWords * kParts; ++part)
    bounds[part] = load(threshold + tile.first_channel + part * kPackLanes, kPackLanes);
  for (int64_t i = 0; i < tile.window_count; ++i, values += kTileChannels) {
    Word* out = bits + tile.positions[i] * row_words + first_word;
#pragma GCC unroll 2
    for (int word = 0; word < kWords; ++word) {
      Word compared = invert ? invert[first_word + word] : 0;
#pragma GCC unroll 2
      for (int part = word * kParts; part < (word + 1) * kParts; ++part)
        compared ^= bits_of(at_least(load(values + part * kPackLanes, kPackLanes), bounds[part]))
                    << part % kParts * kPackLanes;
      out[word] = compared;
    }
  }
}

void floats(const Epilogue& epilogue, const SumTile& sums) {
  alignas(64) Row values[kTileWindows];
  const Tile tile = {epilogue, sums};
  begin(tile, values);
  for (int64_t step = 0; step < epilogue.operand_count; ++step)
    apply(epilogue.operands[step], tile, values);
  if (epilogue.floats) store(tile, values);
  if (!epilogue.bits) return;
  const int64_t row_words = word_count(epilogue.channels);
  if (!epilogue.flip && sums.channels == kTileChannels)
    return compare_rows<kTileChannels / kWordBits>(values[0], sums, epilogue.threshold, nullptr,
                                                   epilogue.bits, row_words);
  const int64_t first_word = sums.first_channel / kWordBits;
  const float* threshold = epilogue.threshold + sums.first_channel;
  const Word* flip = epilogue.flip ? epilogue.flip + first_word : nullptr;
  for (int64_t i = 0; i < sums.window_count; ++i)
    pack_rows<float>({values[i], 1, sums.channels, kTileChannels, threshold, flip,
                      epilogue.bits + sums.positions[i] * row_words + first_word, row_words});
}

void compare_sums(const Thresholds& thresholds, const SumTile& tile) {
  const int64_t row_words = word_count(thresholds.channels);
  if (tile.channels == kTileChannels)
    return compare_rows<kTileChannels / kWordBits>(tile.sums, tile, thresholds.threshold,
                                                   thresholds.invert, thresholds.bits, row_words);
  if (tile.channels == kWordBits)
    return compare_rows<1>(tile.sums, tile, thresholds.threshold, thresholds.invert,
                           thresholds.bits, row_words);
  const int64_t first_word = tile.first_channel / kWordBits;
  for (int64_t i = 0; i < tile.window_count; ++i) {
    Word* out = thresholds.bits + tile.positions[i] * row_words + first_word;
    pack_rows_by<Rule::kAtLeast, int32_t>({tile.sums + i * kTileChannels, 1, tile.channels, 0,
                                           thresholds.threshold + tile.first_channel, nullptr, out,
                                           row_words});
    for (int64_t word = 0; word < word_count(tile.channels); ++word)
      out[word] ^= thresholds.invert[first_word + word];
  }
}

void dot_bits(const Thresholds& thresholds, const DotTile& tile, const SumTile& sums) {
  dot(tile);
  compare_sums(thresholds, sums);
}

constexpr EpilogueKernels kEpilogueKernels = {floats, dot_bits};
