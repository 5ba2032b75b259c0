// Level "avx2": carries counted by byte shuffle of their nibbles, byte sums deferred.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/kernels.h"
#include "cpu/target.h"

BNN_TARGET_BEGIN("avx2,fma,f16c,popcnt")
namespace bnn_ext::cpu {
namespace {

constexpr int kLanes = 8, kPlanes = 3, kRows = 1, kVectors = 2, kCapacity = 31;
constexpr int64_t kNibbleWords = 24;

#include "cpu/bits_vector.inl"

inline Bits any_bits() {
  Bits bits;
  __asm__ volatile("vpxor %0, %0, %0" : "=x"(bits));
  return bits;
}

// The popcount of every byte, times `kWeight`.
template <int kWeight>
inline __m256i popcount_bytes(Bits bits) {
  const __m256i x = reinterpret_cast<__m256i>(bits), nibble = _mm256_set1_epi8(0x0f);
  const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi32(
      0x02010100 * kWeight, 0x03020201 * kWeight, 0x03020201 * kWeight, 0x04030302 * kWeight));
  const __m256i low = _mm256_and_si256(x, nibble);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble);
  return _mm256_add_epi8(_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high));
}

inline Bits look_up(const uint8_t (&table)[16], Bits nibbles) {
  const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
  return reinterpret_cast<Bits>(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries),
                                                    reinterpret_cast<__m256i>(nibbles)));
}
inline Bits add_bytes(Bits a, Bits b) {
  return reinterpret_cast<Bits>(
      _mm256_add_epi8(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}

inline Bits popcount_step(Bits bytes, Bits a, Bits w) {
  return reinterpret_cast<Bits>(
      _mm256_add_epi8(reinterpret_cast<__m256i>(bytes), popcount_bytes<1>(a ^ w)));
}

struct Count {
  void clear() { bytes = _mm256_setzero_si256(); }

  // A byte grows by at most 8.
  void add(Bits carries) { bytes = _mm256_add_epi8(bytes, popcount_bytes<1>(carries)); }

  void store(const Bits (&planes)[kPlanes], Bits base, int32_t* sums) const {
    const __m256i rest =
        _mm256_add_epi8(_mm256_add_epi8(popcount_bytes<1>(planes[0]), popcount_bytes<2>(planes[1])),
                        popcount_bytes<4>(planes[2]));
    const __m256i pairs =
        _mm256_add_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1 << kPlanes)),
                         _mm256_maddubs_epi16(rest, _mm256_set1_epi8(1)));
    const __m256i total = _mm256_madd_epi16(pairs, _mm256_set1_epi16(-2));
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums),
                       _mm256_add_epi32(reinterpret_cast<__m256i>(base), total));
  }

  __m256i bytes;
};

inline void half_to_float(const uint16_t* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline void float_to_half(const float* from, uint16_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}
inline __m256 fused_multiply_add(__m256 y, __m256 factor, __m256 addend) {
  return _mm256_fmadd_ps(y, factor, addend);
}

// Each uses what those before it define.
// clang-format off
#include "cpu/nibble_body.inl"
#include "cpu/dot_body.inl"
#include "cpu/lanes_avx2.inl"
#include "cpu/pack_body.inl"
#include "cpu/epilogue_body.inl"
#include "cpu/select_body.inl"
#include "cpu/pool_body.inl"
#include "cpu/sign_body.inl"
#include "cpu/lookup_avx2.inl"
#include "cpu/real_body.inl"
// clang-format on

}  // namespace

const Kernels kKernelsAvx2 = {"avx2",       kDotKernels,    kEpilogueKernels, kPackKernels,
                              kRealKernels, kSelectKernels, kPoolKernels,     kSignKernels};

}  // namespace bnn_ext::cpu
BNN_TARGET_END
#endif
