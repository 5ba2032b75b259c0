// The epilogues of one CPU level; included like dot_body.inl, after pack_body.inl.
//
// The level defines before, besides kLanes:
//
//   half_to_float(from, to), float_to_half(from, to)  kLanes values of IEEE half precision
//   fused_multiply_add(y, factor, addend)  kLanes times y = y * factor + addend, rounded once

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

// Rows of a tile are as long as kTileChannels; lanes past the last channel hold anything.
typedef float Row[kTileChannels];

// A whole row, as most are, without a call of memcpy.
template <typename T>
inline void copy_row(T* to, const T* from, int64_t channels) {
  if (channels == kTileChannels)
    __builtin_memcpy(to, from, kTileChannels * sizeof(T));
  else
    __builtin_memcpy(to, from, channels * sizeof(T));
}

inline void load_row(const Map& map, int64_t index, int64_t channels, Row& row) {
  if (map.type == FloatType::kFloat) {
    copy_row(row, static_cast<const float*>(map.values) + index, channels);
    return;
  }
  uint16_t halves[kTileChannels];
  copy_row(halves, static_cast<const uint16_t*>(map.values) + index, channels);
  for (int64_t lane = 0; lane < channels; lane += kLanes)
    store_vector(row + lane, to_floats(load_vector<HalfVector>(halves + lane), map.type));
}

// Rounds the values of half precision in `row` too.
inline void store_row(const Epilogue& epilogue, int64_t index, int64_t channels, Row& row) {
  if (epilogue.type == FloatType::kFloat) {
    copy_row(static_cast<float*>(epilogue.floats) + index, row, channels);
    return;
  }
  uint16_t halves[kTileChannels];
  for (int64_t lane = 0; lane < channels; lane += kLanes) {
    const HalfVector rounded = to_halves(load_vector<FloatVector>(row + lane), epilogue.type);
    store_vector(halves + lane, rounded);
    store_vector(row + lane, to_floats(rounded, epilogue.type));
  }
  copy_row(static_cast<uint16_t*>(epilogue.floats) + index, halves, channels);
}

// value = function(value, operand) for all values of a tile. One operand at a time over the whole
// tile, which is in the L1 cache: so nothing is decided in the inner loops.
template <typename Function>
void update(const SumTile& tile, Row* rows, const Epilogue& epilogue, const Operand& operand,
            Function function) {
  if (!operand.map.values) {
    const float* values = operand.channels + tile.first_channel;
    for (int64_t lane = 0; lane < tile.channels; lane += kLanes) {
      const FloatVector x = load_vector<FloatVector>(values + lane);
      for (int64_t i = 0; i < tile.window_count; ++i)
        store_vector(rows[i] + lane, function(load_vector<FloatVector>(rows[i] + lane), x));
    }
    return;
  }
  for (int64_t i = 0; i < tile.window_count; ++i) {
    Row values;
    load_row(operand.map, tile.positions[i] * epilogue.channels + tile.first_channel, tile.channels,
             values);
    for (int64_t lane = 0; lane < tile.channels; lane += kLanes)
      store_vector(rows[i] + lane, function(load_vector<FloatVector>(rows[i] + lane),
                                            load_vector<FloatVector>(values + lane)));
  }
}

void multiply_add(const SumTile& tile, Row* rows, const Operand& operand) {
  const float* factors = operand.channels + tile.first_channel;
  const float* addends = operand.addend + tile.first_channel;
  for (int64_t i = 0; i < tile.window_count; ++i)
    for (int64_t lane = 0; lane < tile.channels; lane += kLanes)
      fused_multiply_add(rows[i] + lane, factors + lane, addends + lane);
}

void apply(const SumTile& tile, Row* rows, const Epilogue& epilogue, const Operand& operand) {
  const auto by = [&](auto function) { update(tile, rows, epilogue, operand, function); };
  switch (operand.operation) {
    case Operation::kMultiply:
      return by([](FloatVector y, FloatVector x) { return y * x; });
    case Operation::kAdd:
      return by([](FloatVector y, FloatVector x) { return y + x; });
    case Operation::kPrelu:
      return by([](FloatVector y, FloatVector x) { return y > 0.0f ? y : y * x; });
    case Operation::kMaximum:
      return by([](FloatVector y, FloatVector x) { return y < x ? x : y; });
    case Operation::kMinimum:
      return by([](FloatVector y, FloatVector x) { return y > x ? x : y; });
    case Operation::kMultiplyAdd:
      return multiply_add(tile, rows, operand);
  }
}

void floats(const Epilogue& epilogue, const SumTile& tile) {
  const int64_t row_words = word_count(epilogue.channels);
  const int64_t first_word = tile.first_channel / kWordBits;
  const Word* flip = epilogue.flip ? epilogue.flip + first_word : nullptr;

  alignas(64) Row rows[kTileWindows];
  for (int64_t i = 0; i < tile.window_count; ++i) {
    if (epilogue.input.values) {
      load_row(epilogue.input, tile.positions[i] * epilogue.channels + tile.first_channel,
               tile.channels, rows[i]);
      continue;
    }
    for (int64_t lane = 0; lane < tile.channels; lane += kLanes) {
      const IntVector sums = load_vector<IntVector>(tile.sums + i * kTileChannels + lane);
      store_vector(rows[i] + lane, __builtin_convertvector(sums, FloatVector));
    }
  }
  for (int64_t i = 0; i < epilogue.operand_count; ++i)
    apply(tile, rows, epilogue, epilogue.operands[i]);
  const int64_t* positions = tile.positions;
  if (epilogue.floats)
    for (int64_t i = 0; i < tile.window_count; ++i)
      store_row(epilogue, positions[i] * epilogue.channels + tile.first_channel, tile.channels,
                rows[i]);
  if (!epilogue.bits) return;
  // Positions ascend; those without gaps, as most are, are packed in one call.
  const int64_t last = tile.window_count - 1;
  const int64_t run = positions[last] - positions[0] == last ? tile.window_count : 1;
  for (int64_t i = 0; i < tile.window_count; i += run)
    pack_rows<float>({rows[i], run, tile.channels, kTileChannels,
                      epilogue.threshold + tile.first_channel, flip,
                      epilogue.bits + positions[i] * row_words + first_word, row_words});
}

void thresholds(const Thresholds& thresholds, const SumTile& tile) {
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

constexpr EpilogueKernels kEpilogueKernels = {floats, thresholds};
