// Level "avx2": popcount of nibbles by byte shuffle, byte sums deferred over up to 31 words.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/kernels.h"
#include "cpu/target.h"

BNN_TARGET_BEGIN("avx2,popcnt")
namespace bnn_ext::cpu {
namespace {

inline __m256i popcount_bytes(__m256i x) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, nibble));
  const __m256i high =
      _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
  return _mm256_add_epi8(low, high);
}

// sums -= 2 * (the four bytes of each 32-bit lane added up)
inline void drain_bytes(int32_t* sums, __m256i bytes) {
  const __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
  const __m256i twice = _mm256_madd_epi16(pairs, _mm256_set1_epi16(2));
  __m256i* out = reinterpret_cast<__m256i*>(sums);
  _mm256_storeu_si256(out, _mm256_sub_epi32(_mm256_loadu_si256(out), twice));
}

struct Sum {
  struct Vector {
    __m256i low, high;
  };
  static constexpr int kRows = 4, kBlocks = 1;
  static constexpr int64_t kCapacity = 31;  // a byte grows by at most 8 a step

  // Written out: the implicit constructor would be compiled for the baseline.
  Sum() : low(_mm256_setzero_si256()), high(_mm256_setzero_si256()) {}

  static inline Vector load(const Word* words) {
    const __m256i* half = reinterpret_cast<const __m256i*>(words);
    return {_mm256_loadu_si256(half), _mm256_loadu_si256(half + 1)};
  }
  static inline Vector broadcast(Word word) {
    const __m256i half = _mm256_set1_epi32(static_cast<int>(word));
    return {half, half};
  }
  static inline void hide(Vector& vector) {
    __asm__ volatile("" : "+x"(vector.low), "+x"(vector.high));
  }

  inline void add(const Vector& a, const Vector& w) {
    low = _mm256_add_epi8(low, popcount_bytes(_mm256_xor_si256(a.low, w.low)));
    high = _mm256_add_epi8(high, popcount_bytes(_mm256_xor_si256(a.high, w.high)));
  }
  inline void drain(int32_t* sums) {
    drain_bytes(sums, low);
    drain_bytes(sums + 8, high);
    low = high = _mm256_setzero_si256();
  }

  __m256i low, high;
};

inline Word compare8(const float* x, const float* t, bool below) {
  const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(t);
  const __m256 mask = below ? _mm256_cmp_ps(a, b, _CMP_LE_OQ) : _mm256_cmp_ps(a, b, _CMP_GE_OQ);
  return static_cast<Word>(_mm256_movemask_ps(mask));
}

inline Word compare8(const int32_t* x, const int32_t* t, bool below) {
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(t));
  const __m256i not_mask = below ? _mm256_cmpgt_epi32(a, b) : _mm256_cmpgt_epi32(b, a);
  return static_cast<Word>(_mm256_movemask_ps(_mm256_castsi256_ps(not_mask))) ^ 0xffu;
}

template <typename T>
inline Word compare16(const T* x, const T* t, bool below) {
  return compare8(x, t, below) | compare8(x + 8, t + 8, below) << 8;
}

#include "cpu/dot_body.inl"
#include "cpu/pack_body.inl"

}  // namespace

const Kernels kKernelsAvx2 = {"avx2", kDotKernels, kPackKernels};

}  // namespace bnn_ext::cpu
BNN_TARGET_END
#endif
