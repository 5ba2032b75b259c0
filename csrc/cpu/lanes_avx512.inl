// 16 values in a register, for pack_body.inl; of the two AVX-512 levels.

constexpr int kUnpackBytes = 32;

inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>(low_bits(n)); }

inline __m512 load(const float* x, int64_t n) {
  return n < kPackLanes ? _mm512_maskz_loadu_ps(first_lanes(n), x) : _mm512_loadu_ps(x);
}
inline __m512i load(const int32_t* x, int64_t n) {
  return n < kPackLanes ? _mm512_maskz_loadu_epi32(first_lanes(n), x) : _mm512_loadu_si512(x);
}
inline __m256i load_half(const void* x, int64_t n) {
  return n < kPackLanes ? _mm256_maskz_loadu_epi16(first_lanes(n), x)
                        : _mm256_loadu_si256(static_cast<const __m256i*>(x));
}
inline __m512 load(const HalfBits* x, int64_t n) { return _mm512_cvtph_ps(load_half(x, n)); }
inline __m512 load(const BFloat16Bits* x, int64_t n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_half(x, n)), 16));
}

inline __m512 splat(float x) { return _mm512_set1_ps(x); }
inline __m512i splat(int32_t x) { return _mm512_set1_epi32(x); }

inline __mmask16 at_least(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline __mmask16 at_most(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
inline __mmask16 at_least(__m512i a, __m512i b) { return _mm512_cmpge_epi32_mask(a, b); }
inline __mmask16 at_most(__m512i a, __m512i b) { return _mm512_cmple_epi32_mask(a, b); }

inline Word bits_of(__mmask16 mask) { return mask; }

// Halves from 0 to infinity, and minus zero.
inline Word signs(const uint16_t* x, uint16_t infinity) {
  const __m512i values = _mm512_loadu_si512(x);
  return _mm512_cmple_epu16_mask(values, _mm512_set1_epi16(static_cast<int16_t>(infinity))) |
         _mm512_cmpeq_epi16_mask(values, _mm512_set1_epi16(INT16_MIN));
}

inline void set_where(__mmask16 mask, Word bit, Word* words) {
  const __m512i before = _mm512_load_si512(words);
  const __m512i bits = _mm512_set1_epi32(static_cast<int>(bit));
  _mm512_store_si512(words, _mm512_mask_or_epi32(before, mask, before, bits));
}
