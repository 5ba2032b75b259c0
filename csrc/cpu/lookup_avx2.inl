// Signed sums for level "avx2": a table of the 8 sums in which the fourth input is subtracted is
// one register. The other 8 are their negatives.

inline __m256 load8(const float* from) { return _mm256_loadu_ps(from); }
inline __m256i load8(const int32_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline void store8(__m256 x, float* to) { _mm256_storeu_ps(to, x); }
inline void store8(__m256i x, int32_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
}

// sum + table[the three lowest bits of index], or sum - it where the fourth bit is set
inline __m256 add_entry(__m256 sum, __m256 table, __m256i index) {
  const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(index, 28), _mm256_set1_epi32(1 << 31));
  const __m256 entry = _mm256_permutevar8x32_ps(table, index);
  return _mm256_add_ps(sum, _mm256_xor_ps(entry, _mm256_castsi256_ps(sign)));
}
inline __m256i add_entry(__m256i sum, __m256i table, __m256i index) {
  const __m256i minus = _mm256_srai_epi32(_mm256_slli_epi32(index, 28), 31);
  const __m256i entry = _mm256_xor_si256(_mm256_permutevar8x32_epi32(table, index), minus);
  return _mm256_add_epi32(sum, _mm256_sub_epi32(entry, minus));
}

inline __m256 table_of(float x0, float x1, float x2, float x3) {
  const __m256 minus0 = _mm256_setr_ps(-0.f, 0, -0.f, 0, -0.f, 0, -0.f, 0);
  const __m256 minus1 = _mm256_setr_ps(-0.f, -0.f, 0, 0, -0.f, -0.f, 0, 0);
  const __m256 minus2 = _mm256_setr_ps(-0.f, -0.f, -0.f, -0.f, 0, 0, 0, 0);
  __m256 sums = _mm256_xor_ps(_mm256_set1_ps(x0), minus0);
  sums = _mm256_add_ps(sums, _mm256_xor_ps(_mm256_set1_ps(x1), minus1));
  sums = _mm256_add_ps(sums, _mm256_xor_ps(_mm256_set1_ps(x2), minus2));
  return _mm256_sub_ps(sums, _mm256_set1_ps(x3));
}
inline __m256i table_of(int32_t x0, int32_t x1, int32_t x2, int32_t x3) {
  const __m256i sign0 = _mm256_setr_epi32(-1, 1, -1, 1, -1, 1, -1, 1);
  const __m256i sign1 = _mm256_setr_epi32(-1, -1, 1, 1, -1, -1, 1, 1);
  const __m256i sign2 = _mm256_setr_epi32(-1, -1, -1, -1, 1, 1, 1, 1);
  __m256i sums = _mm256_sign_epi32(_mm256_set1_epi32(x0), sign0);
  sums = _mm256_add_epi32(sums, _mm256_sign_epi32(_mm256_set1_epi32(x1), sign1));
  sums = _mm256_add_epi32(sums, _mm256_sign_epi32(_mm256_set1_epi32(x2), sign2));
  return _mm256_sub_epi32(sums, _mm256_set1_epi32(x3));
}

// Where the fourth bit of a nibble is set, the others choose the entry of the opposite signs.
inline __m256i load_index(const Word* words) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
  const __m256i fourth = _mm256_and_si256(bits, _mm256_set1_epi8(static_cast<char>(0x88)));
  const __m256i others = _mm256_sub_epi32(fourth, _mm256_srli_epi32(fourth, 3));
  return _mm256_xor_si256(bits, others);
}

template <typename T>
struct Lookup {
  using Table = decltype(load8(static_cast<const T*>(nullptr)));
  struct Signs {
    __m256i low, high;
  };
  static constexpr int kRows = 4;
  static constexpr int64_t kTableSize = 8;
  static constexpr int blocks(int rows) { return rows > 2 ? 1 : 2; }

  static inline void make_table(T x0, T x1, T x2, T x3, T* table) {
    store8(table_of(x0, x1, x2, x3), table);
  }
  static inline Table load_table(const T* table) { return load8(table); }
  static inline Signs load_signs(const Word* words) {
    return {load_index(words), load_index(words + 8)};
  }
  static inline Signs next(Signs signs) {
    return {_mm256_srli_epi32(signs.low, 4), _mm256_srli_epi32(signs.high, 4)};
  }

  inline void clear() { low = high = Table{}; }
  inline void load(const T* sums) {
    low = load8(sums);
    high = load8(sums + 8);
  }
  inline void store(T* sums) const {
    store8(low, sums);
    store8(high, sums + 8);
  }
  inline void add(Table table, const Signs& signs) {
    low = add_entry(low, table, signs.low);
    high = add_entry(high, table, signs.high);
  }

  Table low, high;
};
