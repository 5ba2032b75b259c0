// Level "avx512": AVX-512 F/BW/DQ/VL without VPOPCNTDQ (Skylake-X to Cascade Lake). Popcount of
// nibbles by byte shuffle, byte sums deferred over up to 31 words.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/kernels.h"
#include "cpu/target.h"

BNN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,popcnt")
namespace bnn_ext::cpu {
namespace {

struct Sum {
  using Vector = __m512i;
  static constexpr int kRows = 6, kBlocks = 2;
  static constexpr int64_t kCapacity = 31;  // a byte grows by at most 8 a step

  // Written out: the implicit constructor would be compiled for the baseline.
  Sum() : bytes(_mm512_setzero_si512()) {}

  static inline Vector load(const Word* words) { return _mm512_loadu_si512(words); }
  static inline Vector broadcast(Word word) { return _mm512_set1_epi32(static_cast<int>(word)); }
  static inline void hide(Vector& vector) { __asm__ volatile("" : "+v"(vector)); }

  inline void add(Vector a, Vector w) {
    const __m512i table = _mm512_set4_epi32(0x04030302, 0x03020201, 0x03020201, 0x02010100);
    const __m512i nibble = _mm512_set1_epi8(0x0f);
    const __m512i x = _mm512_xor_si512(a, w);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(x, 4), nibble);
    bytes = _mm512_add_epi8(bytes, _mm512_shuffle_epi8(table, _mm512_and_si512(x, nibble)));
    bytes = _mm512_add_epi8(bytes, _mm512_shuffle_epi8(table, high));
  }
  inline void drain(int32_t* sums) {
    const __m512i pairs = _mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1));
    const __m512i twice = _mm512_madd_epi16(pairs, _mm512_set1_epi16(2));
    _mm512_storeu_si512(sums, _mm512_sub_epi32(_mm512_loadu_si512(sums), twice));
    bytes = _mm512_setzero_si512();
  }

  __m512i bytes;
};

#include "cpu/compare_avx512.inl"
#include "cpu/dot_body.inl"
#include "cpu/pack_body.inl"

}  // namespace

const Kernels kKernelsAvx512 = {"avx512", kDotKernels, kPackKernels};

}  // namespace bnn_ext::cpu
BNN_TARGET_END
#endif
