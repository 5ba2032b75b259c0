// Level "avx512_vpopcnt": AVX-512 with VPOPCNTDQ (Ice Lake, Zen 4 and later): xor, popcount and add
// are one instruction each.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/kernels.h"
#include "cpu/target.h"

BNN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,popcnt")
namespace bnn_ext::cpu {
namespace {

struct Sum {
  using Vector = __m512i;
  static constexpr int kRows = 6, kBlocks = 4;
  static constexpr int64_t kCapacity = kUnlimited;

  // Written out: the implicit constructor would be compiled for the baseline.
  Sum() : count(_mm512_setzero_si512()) {}

  static inline Vector load(const Word* words) { return _mm512_loadu_si512(words); }
  static inline Vector broadcast(Word word) { return _mm512_set1_epi32(static_cast<int>(word)); }
  static inline void hide(Vector& vector) { __asm__ volatile("" : "+v"(vector)); }

  inline void add(Vector a, Vector w) {
    count = _mm512_add_epi32(count, _mm512_popcnt_epi32(_mm512_xor_si512(a, w)));
  }
  inline void drain(int32_t* sums) {
    const __m512i twice = _mm512_add_epi32(count, count);
    _mm512_storeu_si512(sums, _mm512_sub_epi32(_mm512_loadu_si512(sums), twice));
    count = _mm512_setzero_si512();
  }

  __m512i count;
};

#include "cpu/compare_avx512.inl"
#include "cpu/dot_body.inl"
#include "cpu/pack_body.inl"

}  // namespace

const Kernels kKernelsAvx512Vpopcnt = {"avx512_vpopcnt", kDotKernels, kPackKernels};

}  // namespace bnn_ext::cpu
BNN_TARGET_END
#endif
