// Level "generic": any CPU. Popcount by adding neighbouring bit fields, byte sums deferred; the
// compiler turns the 16-byte vectors into whatever the baseline has.
#include "cpu/kernels.h"

namespace bnn_ext::cpu {
namespace {

struct Sum {
  typedef Word Lanes __attribute__((vector_size(16), aligned(4), may_alias));
  struct Vector {
    Lanes part[4];
  };
  static constexpr int kRows = 1, kBlocks = 1;
  static constexpr int64_t kCapacity = 31;  // a byte grows by at most 8 a step

  static inline Vector load(const Word* words) {
    const Lanes* parts = reinterpret_cast<const Lanes*>(words);
    return {{parts[0], parts[1], parts[2], parts[3]}};
  }
  static inline Vector broadcast(Word word) {
    const Lanes part = {word, word, word, word};
    return {{part, part, part, part}};
  }
  static inline void hide(Vector& vector) { __asm__ volatile("" : "+m"(vector)); }

  inline void add(const Vector& a, const Vector& w) {
    for (int i = 0; i < 4; ++i) {
      Lanes x = a.part[i] ^ w.part[i];
      x -= (x >> 1) & 0x55555555u;
      x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
      bytes[i] += (x + (x >> 4)) & 0x0f0f0f0fu;
    }
  }
  inline void drain(int32_t* sums) {
    for (int lane = 0; lane < kBlock; ++lane) {
      Word x = bytes[lane / 4][lane % 4];
      x = (x & 0x00ff00ffu) + ((x >> 8) & 0x00ff00ffu);
      sums[lane] -= 2 * static_cast<int32_t>((x & 0xffffu) + (x >> 16));
    }
    for (Lanes& part : bytes) part = Lanes{};
  }

  Lanes bytes[4] = {};
};

#include "cpu/compare_scalar.inl"
#include "cpu/dot_body.inl"
#include "cpu/pack_body.inl"

}  // namespace

const Kernels kKernelsGeneric = {"generic", kDotKernels, kPackKernels};

}  // namespace bnn_ext::cpu
