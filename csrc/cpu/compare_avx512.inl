// compare16 for the two AVX-512 levels; included inside their target regions.

inline Word compare16(const float* x, const float* t, bool below) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(t);
  return below ? _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ) : _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}

inline Word compare16(const int32_t* x, const int32_t* t, bool below) {
  const __m512i a = _mm512_loadu_si512(x), b = _mm512_loadu_si512(t);
  return below ? _mm512_cmple_epi32_mask(a, b) : _mm512_cmpge_epi32_mask(a, b);
}
