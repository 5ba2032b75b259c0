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

// Rows of a tile go through their steps in pieces of kVectors vectors: a whole row is one piece, a
// shorter one is cut into single vectors. `lanes` of a piece are channels; those past the last one
// hold anything. The values stay in registers, since no call takes their address.
constexpr int kRowVectors = kTileChannels / kLanes;

struct Piece {
  int64_t index;    // of its first value in a map
  int64_t channel;  // its first one
  int64_t lanes;
};

// What lies at `from`, or a copy in `room` where that ends before the last vector does.
template <int kVectors, typename T>
inline const T* readable(const T* from, int64_t lanes, T* room) {
  if (lanes == kVectors * kLanes) return from;
  __builtin_memcpy(room, from, lanes * sizeof(T));
  return room;
}

template <int kVectors>
inline void load(const Map& map, const Piece& piece, FloatVector* y) {
  if (map.type == FloatType::kFloat) {
    float room[kVectors * kLanes];
    const float* from =
        readable<kVectors>(static_cast<const float*>(map.values) + piece.index, piece.lanes, room);
    for (int v = 0; v < kVectors; ++v) y[v] = load_vector<FloatVector>(from + v * kLanes);
    return;
  }
  uint16_t room[kVectors * kLanes];
  const uint16_t* from =
      readable<kVectors>(static_cast<const uint16_t*>(map.values) + piece.index, piece.lanes, room);
  for (int v = 0; v < kVectors; ++v)
    y[v] = to_floats(load_vector<HalfVector>(from + v * kLanes), map.type);
}

// Rounds the values of half precision in `y` too.
template <int kVectors>
inline void store(const Epilogue& epilogue, const Piece& piece, FloatVector* y) {
  const bool whole = piece.lanes == kVectors * kLanes;
  if (epilogue.type == FloatType::kFloat) {
    float* to = static_cast<float*>(epilogue.floats) + piece.index;
    float room[kVectors * kLanes];
    float* all = whole ? to : room;
    for (int v = 0; v < kVectors; ++v) store_vector(all + v * kLanes, y[v]);
    if (!whole) __builtin_memcpy(to, room, piece.lanes * sizeof *to);
    return;
  }
  HalfVector rounded[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    rounded[v] = to_halves(y[v], epilogue.type);
    y[v] = to_floats(rounded[v], epilogue.type);
  }
  uint16_t* to = static_cast<uint16_t*>(epilogue.floats) + piece.index;
  __builtin_memcpy(to, rounded, whole ? sizeof rounded : piece.lanes * sizeof *to);
}

template <int kVectors>
inline void round_to(FloatType type, FloatVector* y) {
  for (int v = 0; v < kVectors; ++v) y[v] = to_floats(to_halves(y[v], type), type);
}

template <int kVectors>
inline void apply(const Operand& operand, const Piece& piece, FloatVector* y) {
  FloatVector x[kVectors] = {};
  if (operand.map.values)
    load<kVectors>(operand.map, piece, x);
  else if (operand.channels)
    for (int v = 0; v < kVectors; ++v)
      x[v] = load_vector<FloatVector>(operand.channels + piece.channel + v * kLanes);
  switch (operand.operation) {
    case Operation::kMultiply:
      for (int v = 0; v < kVectors; ++v) y[v] *= x[v];
      break;
    case Operation::kAdd:
      for (int v = 0; v < kVectors; ++v) y[v] += x[v];
      break;
    case Operation::kPrelu:
      for (int v = 0; v < kVectors; ++v) y[v] = y[v] > 0.0f ? y[v] : y[v] * x[v];
      break;
    case Operation::kMaximum:
      for (int v = 0; v < kVectors; ++v) y[v] = y[v] < x[v] ? x[v] : y[v];
      break;
    case Operation::kMinimum:
      for (int v = 0; v < kVectors; ++v) y[v] = y[v] > x[v] ? x[v] : y[v];
      break;
    case Operation::kMultiplyAdd:
      for (int v = 0; v < kVectors; ++v)
        y[v] = fused_multiply_add(
            y[v], x[v], load_vector<FloatVector>(operand.addend + piece.channel + v * kLanes));
      break;
    case Operation::kDivide:
      for (int v = 0; v < kVectors; ++v) y[v] /= x[v];
      break;
    case Operation::kFloat16:
      round_to<kVectors>(FloatType::kHalf, y);
      break;
    case Operation::kBFloat16:
      round_to<kVectors>(FloatType::kBFloat16, y);
      break;
  }
}

// One piece of values from its sums, or from a map, through all steps; floats are stored.
template <int kVectors>
inline void finish(const Epilogue& epilogue, const int32_t* sums, const Piece& piece,
                   FloatVector* y) {
  if (epilogue.input.values)
    load<kVectors>(epilogue.input, piece, y);
  else
    for (int v = 0; v < kVectors; ++v)
      y[v] = __builtin_convertvector(load_vector<IntVector>(sums + v * kLanes), FloatVector);
  for (int64_t step = 0; step < epilogue.operand_count; ++step)
    apply<kVectors>(epilogue.operands[step], piece, y);
  if (epilogue.floats) store<kVectors>(epilogue, piece, y);
}

// Two words of comparisons, of a whole row in registers.
inline void store_bits(const FloatVector* y, const float* threshold, const Word* flip, Word* out) {
  const float* values = reinterpret_cast<const float*>(y);
  for (int64_t word = 0; word < kTileChannels / kWordBits; ++word) {
    const auto compared = [&](auto compare) {
      const int64_t low = word * kWordBits, high = low + kPackLanes;
      return bits_of(compare(load(values + low, kPackLanes), load(threshold + low, kPackLanes))) |
             bits_of(compare(load(values + high, kPackLanes), load(threshold + high, kPackLanes)))
                 << kPackLanes;
    };
    Word bits = compared([](const auto& a, const auto& b) { return at_least(a, b); });
    if (flip && flip[word]) {
      const Word flipped = compared([](const auto& a, const auto& b) { return at_most(a, b); });
      bits = (bits & ~flip[word]) | (flipped & flip[word]);
    }
    out[word] = bits;
  }
}

void floats(const Epilogue& epilogue, const SumTile& tile) {
  const int64_t row_words = word_count(epilogue.channels);
  const int64_t first_word = tile.first_channel / kWordBits;
  const float* threshold = epilogue.bits ? epilogue.threshold + tile.first_channel : nullptr;
  const Word* flip = epilogue.flip ? epilogue.flip + first_word : nullptr;
  for (int64_t i = 0; i < tile.window_count; ++i) {
    const int64_t position = tile.positions[i];
    const int64_t index = position * epilogue.channels + tile.first_channel;
    const int32_t* sums = tile.sums + i * kTileChannels;
    Word* bits = epilogue.bits + position * row_words + first_word;
    if (tile.channels == kTileChannels) {
      FloatVector y[kRowVectors];
      finish<kRowVectors>(epilogue, sums, {index, tile.first_channel, kTileChannels}, y);
      if (epilogue.bits) store_bits(y, threshold, flip, bits);
      continue;
    }
    alignas(64) float row[kTileChannels];
    for (int64_t lane = 0; lane < tile.channels; lane += kLanes) {
      const int64_t left = tile.channels - lane;
      FloatVector y[1];
      finish<1>(epilogue, sums + lane,
                {index + lane, tile.first_channel + lane, left < kLanes ? left : kLanes}, y);
      store_vector(row + lane, y[0]);
    }
    if (epilogue.bits)
      pack_rows<float>({row, 1, tile.channels, kTileChannels, threshold, flip, bits, row_words});
  }
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
