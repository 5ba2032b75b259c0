// Level "popcnt": x86 with the scalar POPCNT instruction (2008 onwards), no vectors but those
// of the baseline.
#if defined(__x86_64__)
#include <torch/headeronly/util/Half.h>

#include "cpu/kernels.h"
#include "cpu/target.h"

BNN_TARGET_BEGIN("popcnt")
namespace bnn_ext::cpu {
namespace {

constexpr int kLanes = 4, kPlanes = 4, kRows = 1, kVectors = 1, kCapacity = 1 << 16;

#include "cpu/bits_vector.inl"

inline Bits any_bits() {
  Bits bits;
  __asm__ volatile("pxor %0, %0" : "=x"(bits));
  return bits;
}

inline Bits popcount_step(Bits count, Bits a, Bits w) {
  const Bits x = a ^ w;
  for (int lane = 0; lane < kLanes; ++lane) count[lane] += __builtin_popcount(x[lane]);
  return count;
}

inline bool dot_short(const DotTile&) { return false; }

struct Count {
  void clear() {
    for (int lane = 0; lane < kLanes; ++lane) last[lane] = 0;
  }

  void add(Bits carries) {
    for (int lane = 0; lane < kLanes; ++lane) last[lane] += __builtin_popcount(carries[lane]);
  }

  void store(const Bits (&planes)[kPlanes], Bits base, int32_t* sums) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      int32_t total = last[lane];
      for (int p = kPlanes - 1; p >= 0; --p)
        total = 2 * total + __builtin_popcount(planes[p][lane]);
      sums[lane] = static_cast<int32_t>(base[lane]) - 2 * total;
    }
  }

  int32_t last[kLanes];
};

// Each uses what those before it define.
// clang-format off
#include "cpu/float_scalar.inl"
#include "cpu/dot_body.inl"
#include "cpu/lanes_scalar.inl"
#include "cpu/pack_body.inl"
#include "cpu/epilogue_body.inl"
#include "cpu/select_body.inl"
#include "cpu/pool_body.inl"
#include "cpu/sign_body.inl"
#include "cpu/lookup_scalar.inl"
#include "cpu/real_body.inl"
// clang-format on

}  // namespace

const Kernels kKernelsPopcnt = {"popcnt",     kDotKernels,    kEpilogueKernels, kPackKernels,
                                kRealKernels, kSelectKernels, kPoolKernels,     kSignKernels};

}  // namespace bnn_ext::cpu
BNN_TARGET_END
#endif
