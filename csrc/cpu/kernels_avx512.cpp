// Level "avx512": AVX-512 F/BW/DQ/VL without VPOPCNTDQ (Skylake-X to Cascade Lake). Carries are
// counted by byte shuffle of their nibbles, byte sums deferred.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/kernels.h"
#include "cpu/target.h"

BNN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,popcnt")
namespace bnn_ext::cpu {
namespace {

constexpr int kPlanes = 4, kRows = 1, kVectors = 4, kCapacity = 31;
constexpr int64_t kNibbleWords = 16;

#include "cpu/bits_avx512.inl"

// The popcount of every byte, times `kWeight`.
template <int kWeight>
inline Bits popcount_bytes(Bits x) {
  const Bits table = _mm512_set4_epi32(0x04030302 * kWeight, 0x03020201 * kWeight,
                                       0x03020201 * kWeight, 0x02010100 * kWeight);
  const Bits nibble = _mm512_set1_epi8(0x0f);
  const Bits low = _mm512_and_si512(x, nibble);
  const Bits high = _mm512_and_si512(_mm512_srli_epi16(x, 4), nibble);
  return _mm512_add_epi8(_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high));
}

inline Bits look_up(const uint8_t (&table)[16], Bits nibbles) {
  const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), nibbles);
}
inline Bits add_bytes(Bits a, Bits b) { return _mm512_add_epi8(a, b); }

inline Bits popcount_step(Bits bytes, Bits a, Bits w) {
  return _mm512_add_epi8(bytes, popcount_bytes<1>(xor_bits(a, w)));
}

struct Count {
  void clear() { bytes = zero_bits(); }

  // A byte grows by at most 8.
  void add(Bits carries) { bytes = _mm512_add_epi8(bytes, popcount_bytes<1>(carries)); }

  void store(const Bits (&planes)[kPlanes], Bits base, int32_t* sums) const {
    const Bits low = _mm512_add_epi8(popcount_bytes<1>(planes[0]), popcount_bytes<2>(planes[1]));
    const Bits high = _mm512_add_epi8(popcount_bytes<4>(planes[2]), popcount_bytes<8>(planes[3]));
    const Bits pairs =
        _mm512_add_epi16(_mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1 << kPlanes)),
                         _mm512_maddubs_epi16(_mm512_add_epi8(low, high), _mm512_set1_epi8(1)));
    const Bits total = _mm512_madd_epi16(pairs, _mm512_set1_epi16(-2));
    _mm512_store_si512(sums, _mm512_add_epi32(base, total));
  }

  Bits bytes;
};

// Each uses what those before it define.
// clang-format off
#include "cpu/float_avx512.inl"
#include "cpu/nibble_body.inl"
#include "cpu/dot_body.inl"
#include "cpu/lanes_avx512.inl"
#include "cpu/pack_body.inl"
#include "cpu/epilogue_body.inl"
#include "cpu/select_body.inl"
#include "cpu/pool_body.inl"
#include "cpu/sign_body.inl"
#include "cpu/lookup_avx512.inl"
#include "cpu/real_body.inl"
// clang-format on

}  // namespace

const Kernels kKernelsAvx512 = {"avx512",     kDotKernels,    kEpilogueKernels, kPackKernels,
                                kRealKernels, kSelectKernels, kPoolKernels,     kSignKernels};

}  // namespace bnn_ext::cpu
BNN_TARGET_END
#endif
