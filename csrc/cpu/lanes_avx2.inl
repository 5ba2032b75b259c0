// 16 values in two registers, for pack_body.inl; of level avx2.

constexpr int kUnpackBytes = 32;

struct Floats {
  __m256 low, high;
};
struct Ints {
  __m256i low, high;
};

inline __m256i load256(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }
// The first n of 8 32-bit lanes.
inline __m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}
inline Ints load(const int32_t* x, int64_t n) {
  if (n >= kPackLanes) return {load256(x), load256(x + 8)};
  return {_mm256_maskload_epi32(x, first_lanes(n)),
          _mm256_maskload_epi32(x + 8, first_lanes(n - 8))};
}
inline Floats load(const float* x, int64_t n) {
  if (n >= kPackLanes) return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)};
  return {_mm256_maskload_ps(x, first_lanes(n)), _mm256_maskload_ps(x + 8, first_lanes(n - 8))};
}

inline Floats to_floats(const HalfBits* x) {
  const __m128i* half = reinterpret_cast<const __m128i*>(x);
  return {_mm256_cvtph_ps(_mm_loadu_si128(half)), _mm256_cvtph_ps(_mm_loadu_si128(half + 1))};
}
inline Floats to_floats(const BFloat16Bits* x) {
  const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  const __m256i high =
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 8)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
template <typename T>  // HalfBits or BFloat16Bits
inline Floats load(const T* x, int64_t n) {
  if (n >= kPackLanes) return to_floats(x);
  T copy[kPackLanes] = {};
  for (int64_t i = 0; i < n; ++i) copy[i] = x[i];
  return to_floats(copy);
}

inline Floats splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Ints splat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

template <int kPredicate>
inline Ints compare(const Floats& a, const Floats& b) {
  return {_mm256_castps_si256(_mm256_cmp_ps(a.low, b.low, kPredicate)),
          _mm256_castps_si256(_mm256_cmp_ps(a.high, b.high, kPredicate))};
}
inline Ints at_least(const Floats& a, const Floats& b) { return compare<_CMP_GE_OQ>(a, b); }
inline Ints at_most(const Floats& a, const Floats& b) { return compare<_CMP_LE_OQ>(a, b); }
inline Ints at_least(const Ints& a, const Ints& b) {
  return {_mm256_cmpeq_epi32(_mm256_max_epi32(a.low, b.low), a.low),
          _mm256_cmpeq_epi32(_mm256_max_epi32(a.high, b.high), a.high)};
}
inline Ints at_most(const Ints& a, const Ints& b) { return at_least(b, a); }

inline Word bits_of(const Ints& mask) {
  const int low = _mm256_movemask_ps(_mm256_castsi256_ps(mask.low));
  const int high = _mm256_movemask_ps(_mm256_castsi256_ps(mask.high));
  return static_cast<Word>(low | high << 8);
}

// Halves from 0 to infinity, and minus zero.
inline __m256i signs16(const uint16_t* x, uint16_t infinity) {
  const __m256i values = load256(x), last = _mm256_set1_epi16(static_cast<int16_t>(infinity));
  return _mm256_or_si256(_mm256_cmpeq_epi16(_mm256_min_epu16(values, last), values),
                         _mm256_cmpeq_epi16(values, _mm256_set1_epi16(INT16_MIN)));
}
inline Word signs(const uint16_t* x, uint16_t infinity) {
  const __m256i bytes = _mm256_packs_epi16(signs16(x, infinity), signs16(x + 16, infinity));
  return static_cast<Word>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xd8)));
}

inline void set_where(const Ints& mask, Word bit, Word* words) {
  __m256i* out = reinterpret_cast<__m256i*>(words);
  const __m256i bits = _mm256_set1_epi32(static_cast<int>(bit));
  out[0] = _mm256_or_si256(out[0], _mm256_and_si256(mask.low, bits));
  out[1] = _mm256_or_si256(out[1], _mm256_and_si256(mask.high, bits));
}
