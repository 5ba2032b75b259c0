// Vectors and adders by the compiler's vector extension, for levels without three-input logic;
// included inside their target regions after kLanes is defined.

typedef Word Bits __attribute__((vector_size(kLanes * sizeof(Word))));

inline Bits zero_bits() { return Bits{}; }
inline Bits load(const Word* words) {
  typedef Word Unaligned
      __attribute__((vector_size(kLanes * sizeof(Word)), aligned(sizeof(Word)), may_alias));
  return *reinterpret_cast<const Unaligned*>(words);
}
inline Bits broadcast(Word word) { return Bits{} + word; }
inline Bits xor_bits(Bits a, Bits b) { return a ^ b; }

inline Bits add_carries(Bits& plane, Bits x1, Bits x2) {
  const Bits unequal = x1 ^ x2;
  const Bits carries = x1 ^ (unequal & (x1 ^ plane));  // unequal ? plane : x1
  plane ^= unequal;
  return carries;
}

inline Bits add_pair(Bits& plane, Bits a1, Bits w1, Bits a2, Bits w2) {
  return add_carries(plane, a1 ^ w1, a2 ^ w2);
}
