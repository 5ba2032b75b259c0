// Levels "avx512_vpopcnt" and "avx512_vpopcnt_csa": AVX-512 with VPOPCNTDQ (Ice Lake, Zen 4 and
// later), where the popcount of a vector is one instruction. The first counts each word by itself,
// the second four words at a time: 10 instructions instead of 12, but 8 of them have three inputs.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/kernels.h"
#include "cpu/target.h"

BNN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,popcnt")
namespace bnn_ext::cpu {
namespace {

constexpr int kPlanes = 2, kRows = 2, kVectors = 2, kCapacity = 1 << 16;

#include "cpu/bits_avx512.inl"

inline Bits popcount_step(Bits count, Bits a, Bits w) {
  return _mm512_add_epi32(count, _mm512_popcnt_epi32(xor_bits(a, w)));
}

inline bool dot_short(const DotTile&) { return false; }

struct Count {
  void clear() { fours = zero_bits(); }

  void add(Bits carries) { fours = _mm512_add_epi32(fours, _mm512_popcnt_epi32(carries)); }

  void store(const Bits (&planes)[kPlanes], Bits base, int32_t* sums) const {
    const Bits ones = _mm512_popcnt_epi32(planes[0]), twos = _mm512_popcnt_epi32(planes[1]);
    const Bits pairs = _mm512_add_epi32(_mm512_add_epi32(fours, fours), twos);
    const Bits total = _mm512_add_epi32(_mm512_add_epi32(pairs, pairs), ones);
    _mm512_store_si512(sums, _mm512_sub_epi32(base, _mm512_add_epi32(total, total)));
  }

  Bits fours;
};

// Each uses what those before it define.
// clang-format off
#include "cpu/float_avx512.inl"
#include "cpu/dot_body.inl"
#include "cpu/lanes_avx512.inl"
#include "cpu/pack_body.inl"
#include "cpu/epilogue_body.inl"
#include "cpu/popcount_body.inl"
#include "cpu/select_body.inl"
#include "cpu/pool_body.inl"
#include "cpu/sign_body.inl"
#include "cpu/lookup_avx512.inl"
#include "cpu/real_body.inl"
// clang-format on

}  // namespace

const Kernels kKernelsAvx512Vpopcnt = {"avx512_vpopcnt", kPopcountKernels, kPopcountEpilogues,
                                       kPackKernels,     kRealKernels,     kSelectKernels,
                                       kPoolKernels,     kSignKernels};
const Kernels kKernelsAvx512VpopcntCsa = {"avx512_vpopcnt_csa", kDotKernels,  kEpilogueKernels,
                                          kPackKernels,         kRealKernels, kSelectKernels,
                                          kPoolKernels,         kSignKernels};

}  // namespace bnn_ext::cpu
BNN_TARGET_END
#endif
