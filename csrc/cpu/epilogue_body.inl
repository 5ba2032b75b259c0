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

// `count` <= kLanes values starting at `index`; nothing behind them is read.
inline Floats load_map(const Operand& operand, int64_t index, int64_t count) {
  if (operand.type == FloatType::kFloat) {
    const float* from = static_cast<const float*>(operand.map) + index;
    if (count == kLanes) return load_vector<Floats>(from);
    Floats values = {};
    __builtin_memcpy(&values, from, count * sizeof(float));
    return values;
  }
  const uint16_t* from = static_cast<const uint16_t*>(operand.map) + index;
  Halves halves = {};
  if (count == kLanes)
    halves = load_vector<Halves>(from);
  else
    __builtin_memcpy(&halves, from, count * sizeof(uint16_t));
  if (operand.type == FloatType::kBFloat16)
    return reinterpret_cast<Floats>(__builtin_convertvector(halves, Words) << 16);
  Floats values;
  half_to_float(reinterpret_cast<const uint16_t*>(&halves), reinterpret_cast<float*>(&values));
  return values;
}

inline Halves to_bfloat16(Floats values) {
  const Words bits = reinterpret_cast<Words>(values);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const Words quiet = Words{} + 0x7fc0u;
  return __builtin_convertvector(values == values ? rounded : quiet, Halves);
}

inline void store_values(const Epilogue& epilogue, int64_t index, int64_t count, Floats values) {
  if (epilogue.type == FloatType::kFloat) {
    float* to = static_cast<float*>(epilogue.floats) + index;
    if (count == kLanes)
      __builtin_memcpy(to, &values, sizeof values);
    else
      __builtin_memcpy(to, &values, count * sizeof(float));
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(epilogue.floats) + index;
  Halves halves;
  if (epilogue.type == FloatType::kBFloat16)
    halves = to_bfloat16(values);
  else
    float_to_half(reinterpret_cast<const float*>(&values), reinterpret_cast<uint16_t*>(&halves));
  if (count == kLanes)
    __builtin_memcpy(to, &halves, sizeof halves);
  else
    __builtin_memcpy(to, &halves, count * sizeof(uint16_t));
}

inline Floats apply(Operation operation, Floats y, Floats operand) {
  switch (operation) {
    case Operation::kMultiply:
      return y * operand;
    case Operation::kAdd:
      return y + operand;
    case Operation::kPrelu:
      return y > 0.0f ? y : y * operand;
    case Operation::kMaximum:
      return y < operand ? operand : y;
    case Operation::kMinimum:
      return y > operand ? operand : y;
  }
  return y;
}

void floats(const Epilogue& epilogue, const SumTile& tile) {
  const int64_t row_words = word_count(epilogue.channels);
  const int64_t first_word = tile.first_channel / kWordBits;
  const Word* flip = epilogue.flip ? epilogue.flip + first_word : nullptr;
  for (int64_t window = 0; window < tile.window_count; ++window) {
    const int32_t* sums = tile.sums + window * kTileChannels;
    const int64_t position = tile.positions[window];
    float row[kTileChannels];
    for (int64_t lane = 0; lane < tile.channels; lane += kLanes) {
      const int64_t channel = tile.first_channel + lane;
      const int64_t index = position * epilogue.channels + channel;
      const int64_t count = tile.channels - lane < kLanes ? tile.channels - lane : kLanes;
      Floats y = __builtin_convertvector(load_vector<Ints>(sums + lane), Floats);
      for (int64_t i = 0; i < epilogue.operand_count; ++i) {
        const Operand& operand = epilogue.operands[i];
        const Floats values = operand.map ? load_map(operand, index, count)
                                          : load_vector<Floats>(operand.channels + channel);
        y = apply(operand.operation, y, values);
      }
      if (epilogue.floats) store_values(epilogue, index, count, y);
      if (epilogue.bits) __builtin_memcpy(row + lane, &y, sizeof y);
    }
    if (epilogue.bits)
      compare<float>(row, tile.channels, epilogue.threshold + tile.first_channel, flip,
                     epilogue.bits + position * row_words + first_word);
  }
}

void thresholds(const Thresholds& thresholds, const SumTile& tile) {
  const int64_t row_words = word_count(thresholds.channels);
  const int64_t first_word = tile.first_channel / kWordBits;
  for (int64_t window = 0; window < tile.window_count; ++window) {
    const int32_t* sums = tile.sums + window * kTileChannels;
    const int32_t* threshold = thresholds.threshold + tile.first_channel;
    Word* out = thresholds.bits + tile.positions[window] * row_words + first_word;
    for (int64_t lane = 0; lane < tile.channels; lane += kWordBits) {
      Word bits = compare16(sums + lane, threshold + lane, false);
      if (tile.channels - lane > kBlock)
        bits |= compare16(sums + lane + kBlock, threshold + lane + kBlock, false) << kBlock;
      const int64_t word = lane / kWordBits;
      out[word] = (bits & low_bits(tile.channels - lane)) ^ thresholds.invert[first_word + word];
    }
  }
}

constexpr EpilogueKernels kEpilogueKernels = {floats, thresholds};
