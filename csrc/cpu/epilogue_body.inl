// The epilogues of one CPU level; included like dot_body.inl, after pack_body.inl.
//
// The level defines before, besides kLanes:
//
//   half_to_float(from, to), float_to_half(from, to)  kLanes values of IEEE half precision

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef Word Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

template <typename Vector, typename T>
inline Vector load_vector(const T* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

inline Floats to_floats(Halves halves, FloatType type) {
  if (type == FloatType::kBFloat16)
    return reinterpret_cast<Floats>(__builtin_convertvector(halves, Words) << 16);
  Floats values;
  half_to_float(reinterpret_cast<const uint16_t*>(&halves), reinterpret_cast<float*>(&values));
  return values;
}

template <typename T, typename Vector>
inline void store_vector(T* to, Vector vector) {
  __builtin_memcpy(to, &vector, sizeof vector);
}

inline Halves to_bfloat16(Floats values) {
  const Words bits = reinterpret_cast<Words>(values);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const Words quiet = Words{} + 0x7fc0u;
  return __builtin_convertvector(values == values ? rounded : quiet, Halves);
}

inline Halves to_halves(Floats values, FloatType type) {
  if (type == FloatType::kBFloat16) return to_bfloat16(values);
  Halves halves;
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

// One row of an operand that has a value per output.
inline void load_row(const Operand& operand, int64_t index, int64_t channels, Row& row) {
  if (operand.type == FloatType::kFloat) {
    copy_row(row, static_cast<const float*>(operand.map) + index, channels);
    return;
  }
  uint16_t halves[kTileChannels];
  copy_row(halves, static_cast<const uint16_t*>(operand.map) + index, channels);
  for (int64_t lane = 0; lane < channels; lane += kLanes)
    store_vector(row + lane, to_floats(load_vector<Halves>(halves + lane), operand.type));
}

// Rounds the values of half precision in `row` too.
inline void store_row(const Epilogue& epilogue, int64_t index, int64_t channels, Row& row) {
  if (epilogue.type == FloatType::kFloat) {
    copy_row(static_cast<float*>(epilogue.floats) + index, row, channels);
    return;
  }
  uint16_t halves[kTileChannels];
  for (int64_t lane = 0; lane < channels; lane += kLanes) {
    const Halves rounded = to_halves(load_vector<Floats>(row + lane), epilogue.type);
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
  if (!operand.map) {
    const float* values = operand.channels + tile.first_channel;
    for (int64_t lane = 0; lane < tile.channels; lane += kLanes) {
      const Floats x = load_vector<Floats>(values + lane);
      for (int64_t i = 0; i < tile.window_count; ++i)
        store_vector(rows[i] + lane, function(load_vector<Floats>(rows[i] + lane), x));
    }
    return;
  }
  for (int64_t i = 0; i < tile.window_count; ++i) {
    Row values;
    load_row(operand, tile.positions[i] * epilogue.channels + tile.first_channel, tile.channels,
             values);
    for (int64_t lane = 0; lane < tile.channels; lane += kLanes)
      store_vector(rows[i] + lane, function(load_vector<Floats>(rows[i] + lane),
                                            load_vector<Floats>(values + lane)));
  }
}

void apply(const SumTile& tile, Row* rows, const Epilogue& epilogue, const Operand& operand) {
  const auto by = [&](auto function) { update(tile, rows, epilogue, operand, function); };
  switch (operand.operation) {
    case Operation::kMultiply:
      return by([](Floats y, Floats x) { return y * x; });
    case Operation::kAdd:
      return by([](Floats y, Floats x) { return y + x; });
    case Operation::kPrelu:
      return by([](Floats y, Floats x) { return y > 0.0f ? y : y * x; });
    case Operation::kMaximum:
      return by([](Floats y, Floats x) { return y < x ? x : y; });
    case Operation::kMinimum:
      return by([](Floats y, Floats x) { return y > x ? x : y; });
  }
}

// Packs x >= threshold for one row.
template <typename T>
inline void compare_row(const T* x, int64_t channels, const T* threshold, Word* out) {
  for (int64_t lane = 0; lane < channels; lane += kWordBits) {
    Word bits = compare16(x + lane, threshold + lane, false);
    if (channels - lane > kBlock)
      bits |= compare16(x + lane + kBlock, threshold + lane + kBlock, false) << kBlock;
    *out++ = bits & low_bits(channels - lane);
  }
}

void floats(const Epilogue& epilogue, const SumTile& tile) {
  const int64_t row_words = word_count(epilogue.channels);
  const int64_t first_word = tile.first_channel / kWordBits;
  const Word* flip = epilogue.flip ? epilogue.flip + first_word : nullptr;

  alignas(64) Row rows[kTileWindows];
  for (int64_t i = 0; i < tile.window_count; ++i)
    for (int64_t lane = 0; lane < tile.channels; lane += kLanes) {
      const Ints sums = load_vector<Ints>(tile.sums + i * kTileChannels + lane);
      store_vector(rows[i] + lane, __builtin_convertvector(sums, Floats));
    }
  for (int64_t i = 0; i < epilogue.operand_count; ++i)
    apply(tile, rows, epilogue, epilogue.operands[i]);
  for (int64_t i = 0; i < tile.window_count; ++i) {
    const int64_t position = tile.positions[i];
    if (epilogue.floats)
      store_row(epilogue, position * epilogue.channels + tile.first_channel, tile.channels,
                rows[i]);
    if (!epilogue.bits) continue;
    const float* threshold = epilogue.threshold + tile.first_channel;
    Word* bits = epilogue.bits + position * row_words + first_word;
    if (flip)
      compare<float>(rows[i], tile.channels, threshold, flip, bits);
    else
      compare_row(rows[i], tile.channels, threshold, bits);
  }
}

void thresholds(const Thresholds& thresholds, const SumTile& tile) {
  const int64_t row_words = word_count(thresholds.channels);
  const int64_t first_word = tile.first_channel / kWordBits;
  for (int64_t i = 0; i < tile.window_count; ++i) {
    Word* out = thresholds.bits + tile.positions[i] * row_words + first_word;
    compare_row(tile.sums + i * kTileChannels, tile.channels,
                thresholds.threshold + tile.first_channel, out);
    for (int64_t word = 0; word < word_count(tile.channels); ++word)
      out[word] ^= thresholds.invert[first_word + word];
  }
}

constexpr EpilogueKernels kEpilogueKernels = {floats, thresholds};
