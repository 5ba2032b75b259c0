// Level "popcnt": x86 with the scalar POPCNT instruction (2008 onwards), no vector extension.
#if defined(__x86_64__)
#include "cpu/kernels.h"
#include "cpu/target.h"

BNN_TARGET_BEGIN("popcnt")
namespace bnn_ext::cpu {
namespace {

struct Sum {
  struct Vector {
    Word lane[kBlock];
  };
  static constexpr int kRows = 1, kBlocks = 1;
  static constexpr int64_t kCapacity = kUnlimited;

  static inline Vector load(const Word* words) {
    Vector vector;
    for (int i = 0; i < kBlock; ++i) vector.lane[i] = words[i];
    return vector;
  }
  static inline Vector broadcast(Word word) {
    Vector vector;
    for (int i = 0; i < kBlock; ++i) vector.lane[i] = word;
    return vector;
  }
  static inline void hide(Vector& vector) { __asm__ volatile("" : "+m"(vector)); }

  inline void add(const Vector& a, const Vector& w) {
    for (int i = 0; i < kBlock; ++i) count[i] += __builtin_popcount(a.lane[i] ^ w.lane[i]);
  }
  inline void drain(int32_t* sums) {
    for (int i = 0; i < kBlock; ++i) {
      sums[i] -= 2 * count[i];
      count[i] = 0;
    }
  }

  int32_t count[kBlock] = {};
};

#include "cpu/compare_scalar.inl"
#include "cpu/dot_body.inl"
#include "cpu/pack_body.inl"

}  // namespace

const Kernels kKernelsPopcnt = {"popcnt", kDotKernels, kPackKernels};

}  // namespace bnn_ext::cpu
BNN_TARGET_END
#endif
