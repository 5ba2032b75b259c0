// Vectors and adders of the two AVX-512 levels; included inside their target regions.

using Bits = __m512i;
constexpr int kLanes = 16;

inline Bits zero_bits() { return _mm512_setzero_si512(); }
inline Bits load(const Word* words) { return _mm512_loadu_si512(words); }
inline Bits broadcast(Word word) { return _mm512_set1_epi32(static_cast<int>(word)); }
inline Bits xor_bits(Bits a, Bits b) { return _mm512_xor_si512(a, b); }
inline Bits any_bits() {
  Bits bits;
  __asm__ volatile("vpxord %0, %0, %0" : "=v"(bits));
  return bits;
}

// vpternlogd overwrites its first operand, so that is always one which is not needed any more:
// then no register is copied. The carries are the majority of three, of which one is replaced by
// what the sums tell about it.

inline Bits add_pair(Bits& plane, Bits a1, Bits w1, Bits a2, Bits w2) {
  const Bits s = _mm512_ternarylogic_epi32(w1, a1, plane, 0x96);  // plane ^ x1
  const Bits t = _mm512_ternarylogic_epi32(w2, a2, s, 0x96);      // plane ^ x1 ^ x2
  const Bits carries = _mm512_ternarylogic_epi32(plane, s, t, 0x74);
  plane = t;
  return carries;
}

inline Bits add_carries(Bits& plane, Bits x1, Bits x2) {
  const Bits t = _mm512_ternarylogic_epi32(x2, x1, plane, 0x96);  // plane ^ x1 ^ x2
  const Bits carries = _mm512_ternarylogic_epi32(plane, x1, t, 0xd4);
  plane = t;
  return carries;
}
