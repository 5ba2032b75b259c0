// Signed sums for the two AVX-512 levels: a table is one register, a permutation looks it up.

inline __m512 load16(const float* from) { return _mm512_loadu_ps(from); }
inline __m512i load16(const int32_t* from) { return _mm512_loadu_si512(from); }
inline void store16(__m512 x, float* to) { _mm512_storeu_ps(to, x); }
inline void store16(__m512i x, int32_t* to) { _mm512_storeu_si512(to, x); }
inline __m512 sum16(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
inline __m512i sum16(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }

// The four lowest bits of an index count, the others are ignored.
inline __m512 look_up(__m512i index, __m512 table) { return _mm512_permutexvar_ps(index, table); }
inline __m512i look_up(__m512i index, __m512i table) {
  return _mm512_permutexvar_epi32(index, table);
}

// sum + x in the lanes whose bit is set, sum - x in the others
inline __m512 add_signed(__m512 sum, float x, __mmask16 bits) {
  const __m512 signs = _mm512_mask_blend_ps(bits, _mm512_set1_ps(-1), _mm512_set1_ps(1));
  return _mm512_fmadd_ps(signs, _mm512_set1_ps(x), sum);  // an exact product: rounds only the sum
}
inline __m512i add_signed(__m512i sum, int32_t x, __mmask16 bits) {
  const __m512i values = _mm512_set1_epi32(x);
  return _mm512_mask_add_epi32(_mm512_sub_epi32(sum, values), bits, sum, values);
}

template <typename T>
struct Lookup {
  using Table = decltype(load16(static_cast<const T*>(nullptr)));
  using Signs = __m512i;
  static constexpr int kRows = 6;
  static constexpr int64_t kTableSize = 16;
  static constexpr int blocks(int) { return 4; }

  static inline void make_table(T x0, T x1, T x2, T x3, T* table) {
    Table sums = add_signed(Table{}, x0, 0xaaaa);
    sums = add_signed(sums, x1, 0xcccc);
    sums = add_signed(sums, x2, 0xf0f0);
    store16(add_signed(sums, x3, 0xff00), table);
  }
  static inline Table load_table(const T* table) { return load16(table); }
  static inline Signs load_signs(const Word* words) { return _mm512_loadu_si512(words); }
  static inline Signs next(Signs signs) { return _mm512_srli_epi32(signs, 4); }

  inline void clear() { lanes = Table{}; }
  inline void load(const T* sums) { lanes = load16(sums); }
  inline void store(T* sums) const { store16(lanes, sums); }
  inline void add(Table table, Signs signs) { lanes = sum16(lanes, look_up(signs, table)); }

  Table lanes;
};
