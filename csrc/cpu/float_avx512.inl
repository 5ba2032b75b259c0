// Half precision and the fused multiply-add of the two AVX-512 levels; included inside their
// target regions.

inline void half_to_float(const uint16_t* from, float* to) {
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
inline void float_to_half(const float* from, uint16_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}
inline __m512 fused_multiply_add(__m512 y, __m512 factor, __m512 addend) {
  return _mm512_fmadd_ps(y, factor, addend);
}
