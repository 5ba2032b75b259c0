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

// A block is some windows of a tile, each with the channels of one word of bits. Its values stay in
// half of the registers over all steps: so whatever takes them by reference is inlined by force.
constexpr int kWordVectors = kWordBits / kLanes;
constexpr int kBlockWindows = kLanes == 16 ? 8 : kLanes == 8 ? 2 : 1;
#define BNN_IN_REGISTERS __attribute__((always_inline)) inline

template <int kWindows>
using Values = FloatVector[kWindows][kWordVectors];

// Where a block lies.
template <int kWindows>
struct Place {
  int64_t channel;          // the first one, counted over all groups
  int64_t channels;         // at most kWordBits
  int64_t index[kWindows];  // of each window's first value in maps
};

// What an operand has for a block: operand(i, v) is vector v of window i. A value per channel is
// loaded once for all windows.
struct ChannelOperand {
  const float* values;
  int64_t channel;  // of the block

  FloatVector operator()(int, int v) const {
    return load_vector<FloatVector>(values + channel + v * kLanes);
  }
};
struct MapOperand {
  const float* values;
  const int64_t* index;  // of each window's first value

  FloatVector operator()(int i, int v) const {
    return load_vector<FloatVector>(values + index[i] + v * kLanes);
  }
};

// Copies what a map has for a block where that is of half precision or less than whole words.
template <int kWindows>
struct MapReader {
  float copy[kWindows * kWordBits];
  int64_t copy_index[kWindows];

  template <typename T>
  MapOperand copied(const T* values, const Place<kWindows>& place) {
    for (int i = 0; i < kWindows; ++i) {
      copy_index[i] = i * kWordBits;
      for (int64_t c = 0; c < place.channels; c += kPackLanes) {
        const auto part = load(values + place.index[i] + c, place.channels - c);
        // By vectors: a struct is copied in smaller parts, which loads of vectors would wait for.
        const float* const floats = reinterpret_cast<const float*>(&part);
#pragma GCC unroll 4
        for (int lane = 0; lane < kPackLanes; lane += kLanes)
          store_vector(copy + copy_index[i] + c + lane, load_vector<FloatVector>(floats + lane));
      }
    }
    return {copy, copy_index};
  }
  MapOperand read(const Map& map, const Place<kWindows>& place) {
    if (map.type == FloatType::kHalf)
      return copied(static_cast<const HalfBits*>(map.values), place);
    if (map.type == FloatType::kBFloat16)
      return copied(static_cast<const BFloat16Bits*>(map.values), place);
    const float* values = static_cast<const float*>(map.values);
    if (place.channels < kWordBits) return copied(values, place);
    return {values, place.index};
  }
};

// y = rule(y, i, v) for vector v of every window i
template <int kWindows, typename Rule>
BNN_IN_REGISTERS void apply_rule(Values<kWindows>& values, const Rule& rule) {
#pragma GCC unroll 8
  for (int i = 0; i < kWindows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kWordVectors; ++v) values[i][v] = rule(values[i][v], i, v);
}

template <int kWindows, typename X>
BNN_IN_REGISTERS void apply(Operation operation, const X& x, const ChannelOperand& addend,
                            Values<kWindows>& values) {
  using V = FloatVector;
  switch (operation) {
    case Operation::kMultiply:
      return apply_rule<kWindows>(values, [&](V y, int i, int v) { return y * x(i, v); });
    case Operation::kAdd:
      return apply_rule<kWindows>(values, [&](V y, int i, int v) { return y + x(i, v); });
    case Operation::kPrelu:
      return apply_rule<kWindows>(values,
                                  [&](V y, int i, int v) { return y > 0.0f ? y : y * x(i, v); });
    case Operation::kMaximum:
      return apply_rule<kWindows>(values,
                                  [&](V y, int i, int v) { return y < x(i, v) ? x(i, v) : y; });
    case Operation::kMinimum:
      return apply_rule<kWindows>(values,
                                  [&](V y, int i, int v) { return y > x(i, v) ? x(i, v) : y; });
    case Operation::kMultiplyAdd:
      return apply_rule<kWindows>(
          values, [&](V y, int i, int v) { return fused_multiply_add(y, x(i, v), addend(i, v)); });
    case Operation::kDivide:
      return apply_rule<kWindows>(values, [&](V y, int i, int v) { return y / x(i, v); });
    case Operation::kFloat16:
      return apply_rule<kWindows>(values, [](V y, int, int) {
        return to_floats(to_halves(y, FloatType::kHalf), FloatType::kHalf);
      });
    case Operation::kBFloat16:
      return apply_rule<kWindows>(
          values, [](V y, int, int) { return to_floats(to_bfloat16(y), FloatType::kBFloat16); });
  }
}

// Writes round(y) for every vector y, which that may change.
template <typename T, int kWindows, typename Round>
BNN_IN_REGISTERS void store_rows(void* floats, const Place<kWindows>& place,
                                 Values<kWindows>& values, const Round& round) {
  T* const to = static_cast<T*>(floats);
  T copy[kWindows][kWordBits];  // of rows that are less than a whole word
  const bool whole = place.channels == kWordBits;
#pragma GCC unroll 8
  for (int i = 0; i < kWindows; ++i) {
    T* row = whole ? to + place.index[i] : copy[i];
#pragma GCC unroll 8
    for (int v = 0; v < kWordVectors; ++v) store_vector(row + v * kLanes, round(values[i][v]));
  }
  if (whole) return;
  for (int i = 0; i < kWindows; ++i)
    __builtin_memcpy(to + place.index[i], copy[i], place.channels * sizeof *to);
}

// Rounds the values too where the result is of half precision.
template <int kWindows>
BNN_IN_REGISTERS void store(const Epilogue& epilogue, const Place<kWindows>& place,
                            Values<kWindows>& values) {
  const auto rounding = [](FloatType type) {
    return [type](FloatVector& y) {
      const HalfVector halves = to_halves(y, type);
      y = to_floats(halves, type);
      return halves;
    };
  };
  switch (epilogue.type) {
    case FloatType::kFloat:
      return store_rows<float, kWindows>(epilogue.floats, place, values,
                                         [](FloatVector y) { return y; });
    case FloatType::kHalf:
      return store_rows<uint16_t, kWindows>(epilogue.floats, place, values,
                                            rounding(FloatType::kHalf));
    case FloatType::kBFloat16:
      return store_rows<uint16_t, kWindows>(epilogue.floats, place, values,
                                            rounding(FloatType::kBFloat16));
  }
}

// The word of a window's comparisons.
template <typename Compare>
BNN_IN_REGISTERS Word compare_values(const FloatVector (&values)[kWordVectors],
                                     const float* threshold, const Compare& compare) {
  float row[kWordBits];  // turns vectors into those of lanes_*.inl, without being written
#pragma GCC unroll 8
  for (int v = 0; v < kWordVectors; ++v) store_vector(row + v * kLanes, values[v]);
  Word bits = 0;
#pragma GCC unroll 2
  for (int first = 0; first < kWordBits; first += kPackLanes)
    bits |= bits_of(compare(load(row + first, kPackLanes), load(threshold + first, kPackLanes)))
            << first;
  return bits;
}

// The block at a window and a channel of a tile.
template <int kWindows>
void apply_epilogue(const Epilogue& epilogue, const SumTile& tile, int64_t window,
                    int64_t channel) {
  const int64_t* const positions = tile.positions + window;
  const int64_t channels = tile.channels - channel;
  Place<kWindows> place;
  place.channel = tile.first_channel + channel;
  place.channels = channels < kWordBits ? channels : kWordBits;
  for (int i = 0; i < kWindows; ++i)
    place.index[i] = positions[i] * epilogue.channels + place.channel;

  Values<kWindows> values;
  if (epilogue.input.values) {
    MapReader<kWindows> reader;
    const MapOperand input = reader.read(epilogue.input, place);
    apply_rule<kWindows>(values, [&](FloatVector, int i, int v) { return input(i, v); });
  } else {
    const int32_t* sums = tile.sums + window * kTileChannels + channel;
    apply_rule<kWindows>(values, [&](FloatVector, int i, int v) {
      const int32_t* from = sums + i * kTileChannels + v * kLanes;
      return __builtin_convertvector(load_vector<IntVector>(from), FloatVector);
    });
  }

  for (int64_t step = 0; step < epilogue.operand_count; ++step) {
    const Operand& operand = epilogue.operands[step];
    const ChannelOperand addend = {operand.addend, place.channel};
    MapReader<kWindows> reader;
    if (operand.map.values)
      apply<kWindows>(operand.operation, reader.read(operand.map, place), addend, values);
    else
      apply<kWindows>(operand.operation, ChannelOperand{operand.channels, place.channel}, addend,
                      values);
  }

  if (epilogue.floats) store<kWindows>(epilogue, place, values);
  if (!epilogue.bits) return;
  const int64_t word = place.channel / kWordBits, row_words = word_count(epilogue.channels);
  const float* threshold = epilogue.threshold + place.channel;
  const Word flip = epilogue.flip ? epilogue.flip[word] : 0;
  const auto upwards = [](const auto& a, const auto& b) { return at_least(a, b); };
  const auto downwards = [](const auto& a, const auto& b) { return at_most(a, b); };
#pragma GCC unroll 8
  for (int i = 0; i < kWindows; ++i) {
    Word bits = compare_values(values[i], threshold, upwards);
    if (flip) bits = (bits & ~flip) | (compare_values(values[i], threshold, downwards) & flip);
    epilogue.bits[positions[i] * row_words + word] = bits & low_bits(place.channels);
  }
}

// The windows of a tile from `first` on, kWindows at a time and the rest by fewer.
template <int kWindows>
void apply_epilogue(const Epilogue& epilogue, const SumTile& tile, int64_t first) {
  for (; first + kWindows <= tile.window_count; first += kWindows)
    for (int64_t channel = 0; channel < tile.channels; channel += kWordBits)
      apply_epilogue<kWindows>(epilogue, tile, first, channel);
  if constexpr (kWindows > 1) apply_epilogue<kWindows / 2>(epilogue, tile, first);
}

void floats(const Epilogue& epilogue, const SumTile& tile) {
  apply_epilogue<kBlockWindows>(epilogue, tile, 0);
}
#undef BNN_IN_REGISTERS

// bits = (sums >= threshold) ^ invert for rows of whole words, whose bounds stay in registers.
template <int kWords>
void compare_rows(const Thresholds& thresholds, const SumTile& tile) {
  constexpr int kParts = kWordBits / kPackLanes;
  const int64_t first_word = tile.first_channel / kWordBits;
  const int64_t row_words = word_count(thresholds.channels);
  decltype(load(tile.sums, kPackLanes)) bounds[kWords * kParts];
#pragma GCC unroll 4
  for (int part = 0; part < kWords * kParts; ++part)
    bounds[part] = load(thresholds.threshold + tile.first_channel + part * kPackLanes, kPackLanes);
  const int32_t* sums = tile.sums;
  for (int64_t i = 0; i < tile.window_count; ++i, sums += kTileChannels) {
    Word* out = thresholds.bits + tile.positions[i] * row_words + first_word;
#pragma GCC unroll 2
    for (int word = 0; word < kWords; ++word) {
      Word compared = thresholds.invert[first_word + word];
#pragma GCC unroll 2
      for (int part = word * kParts; part < (word + 1) * kParts; ++part)
        compared ^= bits_of(at_least(load(sums + part * kPackLanes, kPackLanes), bounds[part]))
                    << part % kParts * kPackLanes;
      out[word] = compared;
    }
  }
}

void compare_sums(const Thresholds& thresholds, const SumTile& tile) {
  if (tile.channels == kTileChannels)
    return compare_rows<kTileChannels / kWordBits>(thresholds, tile);
  if (tile.channels == kWordBits) return compare_rows<1>(thresholds, tile);
  const int64_t row_words = word_count(thresholds.channels);
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
