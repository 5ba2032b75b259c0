// Packing and unpacking of one CPU level; included like dot_body.inl.
//
// The level defines before, in its lanes_*.inl, registers of 16 values:
//
//   load(x, n)               the first n <= 16 values as floats or int32, no more being read
//   splat(x)                 16 times the same value
//   at_least(a, b), at_most  masks of a >= b and a <= b, false for NaN
//   bits_of(mask)            as 16 bits
//   signs(x, infinity)       32 bits at once: half x is at least 0
//   set_where(mask, bit, words)  words[i] |= bit where the mask is set
//   kUnpackBytes             of a vector that unpacks: at most 32, see unpack_word

enum class Rule { kSign, kAtLeast, kFlip };  // no threshold; threshold; threshold and flip

// Comparisons of n <= 16 neighbouring channels of a row that starts at x.
template <Rule kRule, typename T>
inline Word compare(const PackTile<T>& tile, const T* x, int64_t channel, int64_t n) {
  const auto values = load(x + channel, n);
  if constexpr (kRule == Rule::kSign) return bits_of(at_least(values, splat(ThresholdOf<T>{0})));
  const auto bound = load(tile.threshold + channel, n);
  const Word bits = bits_of(at_least(values, bound));
  if constexpr (kRule == Rule::kAtLeast) return bits;
  const Word flip = tile.flip[channel / kWordBits] >> channel % kWordBits;
  return (bits & ~flip) | (bits_of(at_most(values, bound)) & flip);
}

// A whole word of comparisons.
template <Rule kRule, typename T>
inline Word compare_word(const PackTile<T>& tile, const T* x, int64_t channel) {
  if constexpr (kRule == Rule::kSign && sizeof(T) == 2)
    return signs(&x[channel].bits, T::kInfinity);
  else
    return compare<kRule>(tile, x, channel, kPackLanes) |
           compare<kRule>(tile, x, channel + kPackLanes, kPackLanes) << kPackLanes;
}

template <Rule kRule, typename T>
void pack_rows_by(const PackTile<T>& tile) {
  const int64_t rest = tile.channels % kWordBits, whole = tile.channels - rest;
  const int64_t rest_low = rest < kPackLanes ? rest : kPackLanes, rest_high = rest - rest_low;
  const T* x = tile.input;
  Word* out = tile.out;
  for (int64_t row = 0; row < tile.rows; ++row, x += tile.step, out += tile.out_step) {
    Word* word = out;
    for (int64_t c = 0; c < whole; c += kWordBits) *word++ = compare_word<kRule>(tile, x, c);
    if (rest > 0) {
      Word bits = compare<kRule>(tile, x, whole, rest_low);
      if (rest_high > 0)
        bits |= compare<kRule>(tile, x, whole + kPackLanes, rest_high) << kPackLanes;
      *word = bits & low_bits(rest);
    }
  }
}

template <typename T>
void pack_rows(const PackTile<T>& tile) {
  if (tile.flip)
    pack_rows_by<Rule::kFlip>(tile);
  else if (tile.threshold)
    pack_rows_by<Rule::kAtLeast>(tile);
  else
    pack_rows_by<Rule::kSign>(tile);
}

// One channel after the other: each reads memory in order, and sets its bit in words that stay in
// the L1 cache. The next channel lies on another page, so it has to be prefetched.
template <typename T>
void pack_columns(const PackTile<T>& tile) {
  constexpr int64_t kRows = 1024;
  alignas(64) Word bits[kRows];
  const int64_t words = word_count(tile.channels);
  int64_t rows = 0;
  for (int64_t row = 0, left = (tile.rows + kRows - 1) / kRows; left > 0; row += rows, --left) {
    rows = (tile.rows - row + left - 1) / left;                // passes of nearly equal height ...
    rows = (rows + kPackLanes - 1) / kPackLanes * kPackLanes;  // ... and of whole vectors
    if (rows > tile.rows - row) rows = tile.rows - row;
    for (int64_t word = 0; word < words; ++word) {
      for (int64_t i = 0; i < rows; ++i) bits[i] = 0;
      const int64_t first = word * kWordBits;
      const int64_t end = first + kWordBits < tile.channels ? first + kWordBits : tile.channels;
      for (int64_t c = first; c < end; ++c) {
        const T* x = tile.input + c * tile.step + row;
        const auto bound = splat(tile.threshold ? tile.threshold[c] : 0);
        const Word bit = Word{1} << (c - first);
        const auto set_bits = [&](auto compare) {
          for (int64_t i = 0; i < rows; i += kPackLanes) {
            __builtin_prefetch(x + tile.step + i);
            set_where(compare(load(x + i, rows - i), bound), bit, bits + i);
          }
        };
        if (tile.flip && (tile.flip[word] & bit))
          set_bits([](const auto& a, const auto& b) { return at_most(a, b); });
        else
          set_bits([](const auto& a, const auto& b) { return at_least(a, b); });
      }
      for (int64_t i = 0; i < rows; ++i) tile.out[(row + i) * tile.out_step + word] = bits[i];
    }
  }
}

// Vectors of as many values as these have bits, or of fewer: value i tests bit i of its own copy.
template <typename T>
inline void unpack_word(Word word, T plus, T minus, T* out) {
  typedef T Vector __attribute__((vector_size(kUnpackBytes), aligned(sizeof(T)), may_alias));
  constexpr int kSize = kUnpackBytes / sizeof(T), kBits = 8 * sizeof(T);
  Vector bits;
  for (int i = 0; i < kSize; ++i) bits[i] = static_cast<T>(1u << i % kBits);
#pragma GCC unroll 8
  for (int first = 0; first < kWordBits; first += kSize) {
    Vector copies;
    if constexpr (kBits == 8) {  // each 8 values test another byte
      typedef uint64_t Bytes __attribute__((vector_size(kUnpackBytes)));
      Bytes bytes;
      for (int i = 0; i < kSize / 8; ++i)
        bytes[i] = (word >> (first + 8 * i) & 0xff) * 0x0101010101010101u;
      copies = (Vector)bytes;
    } else {
      const T part = static_cast<T>(word >> first);
      copies = Vector{} + part;
    }
    const Vector set = (Vector)((copies & bits) == bits);
    *reinterpret_cast<Vector*>(out + first) = (set & plus) | (~set & minus);
  }
}

template <typename T>
void unpack(const Word* words, int64_t rows, int64_t channels, T plus, T minus, T* out) {
  for (int64_t row = 0; row < rows; ++row) {
    int64_t left = channels;
    for (; left >= kWordBits; left -= kWordBits, out += kWordBits)
      unpack_word(*words++, plus, minus, out);
    if (left > 0) {
      T last[kWordBits];
      unpack_word(*words++, plus, minus, last);
      for (int64_t i = 0; i < left; ++i) *out++ = last[i];
    }
  }
}

template <typename T>
constexpr PackKernelsOf<T> kPackKernelsOf = {pack_rows<T>, pack_columns<T>};

constexpr PackKernels kPackKernels = {
    kPackKernelsOf<float>,   kPackKernelsOf<HalfBits>, kPackKernelsOf<BFloat16Bits>,
    kPackKernelsOf<int32_t>, unpack<uint8_t>,          unpack<uint16_t>,
    unpack<uint32_t>};
