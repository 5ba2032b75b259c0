// Level "generic": any CPU. Carries are counted by adding neighbouring bit fields, byte sums
// deferred; the compiler turns the 16-byte vectors into whatever the baseline has.
#include <torch/headeronly/util/Half.h>

#include "cpu/kernels.h"

namespace bnn_ext::cpu {
namespace {

constexpr int kLanes = 4, kPlanes = 4, kRows = 1, kVectors = 1, kCapacity = 31;

#include "cpu/bits_vector.inl"

inline Bits any_bits() {
  Bits bits = zero_bits();
  __asm__ volatile("" : "+m"(bits));
  return bits;
}

inline Bits popcount_bytes(Bits x) {
  x -= (x >> 1) & 0x55555555u;
  x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
  return (x + (x >> 4)) & 0x0f0f0f0fu;
}

inline Bits popcount_step(Bits bytes, Bits a, Bits w) { return bytes + popcount_bytes(a ^ w); }

inline bool dot_short(const DotTile&) { return false; }

struct Count {
  void clear() { bytes = zero_bits(); }

  // A byte grows by at most 8.
  void add(Bits carries) { bytes += popcount_bytes(carries); }

  void store(const Bits (&planes)[kPlanes], Bits base, int32_t* sums) const {
    Bits low = {};  // bytes, at most 8 * (1 + 2 + 4 + 8)
    for (int p = kPlanes - 1; p >= 0; --p) low = low + low + popcount_bytes(planes[p]);
    const Bits pairs = add_neighbours(low) + (add_neighbours(bytes) << kPlanes);
    const Bits total = (pairs & 0xffffu) + (pairs >> 16);
    const Bits result = base - total - total;
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] = static_cast<int32_t>(result[lane]);
  }

  static Bits add_neighbours(Bits x) { return (x & 0x00ff00ffu) + ((x >> 8) & 0x00ff00ffu); }

  Bits bytes;
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

const Kernels kKernelsGeneric = {"generic",    kDotKernels,    kEpilogueKernels, kPackKernels,
                                 kRealKernels, kSelectKernels, kPoolKernels,     kSignKernels};

}  // namespace bnn_ext::cpu
