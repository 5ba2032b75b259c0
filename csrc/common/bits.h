// The bit convention, once for every kernel.
//
// A packed tensor holds 32-bit words, least significant bit first, along the last dimension.
// Bit 1 is +1 and bit 0 is -1. Bits past the real length ("tail bits") are 0 in every packed
// tensor, so a xor of two tails counts nothing:
//
//   dot(a, b) = K - 2 popcount(a xor b),   K = number of real bits
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define BNN_HOST_DEVICE __host__ __device__
#else
#define BNN_HOST_DEVICE
#endif

namespace bnn_ext {

using Word = uint32_t;
constexpr int64_t kWordBits = 32;

BNN_HOST_DEVICE constexpr int64_t word_count(int64_t bits) {
  return (bits + kWordBits - 1) / kWordBits;
}

// The `count` lowest bits set; count in 0..32.
BNN_HOST_DEVICE constexpr Word low_bits(int64_t count) {
  return count >= kWordBits ? ~Word{0} : (Word{1} << count) - 1;
}

// sign(x) is +1 where this holds, else -1: so -0.0 gives +1 and NaN gives -1.
BNN_HOST_DEVICE constexpr bool sign_bit(float x) { return x >= 0.0f; }

// A threshold reads upwards (x >= threshold) or, where its flip bit is set, downwards
// (x <= threshold). NaN gives 0 either way.
template <typename T>
BNN_HOST_DEVICE constexpr bool threshold_bit(T x, T threshold, bool flip) {
  return flip ? x <= threshold : x >= threshold;
}

BNN_HOST_DEVICE constexpr bool get_bit(const Word* words, int64_t index) {
  return (words[index / kWordBits] >> (index % kWordBits)) & 1;
}

// `count` <= 32 bits that start at bit `first`; never reads a word that holds none of them.
BNN_HOST_DEVICE inline Word read_bits(const Word* words, int64_t first, int64_t count) {
  const Word* word = words + first / kWordBits;
  const int64_t shift = first % kWordBits;
  Word bits = word[0] >> shift;
  if (shift + count > kWordBits) bits |= word[1] << (kWordBits - shift);
  return bits & low_bits(count);
}

// Appends runs of bits to words, from the lowest bit of the first word on.
class BitWriter {
 public:
  explicit BitWriter(Word* words) : next_(words) {}

  // The `count` <= 32 lowest of `bits`; writes a word when it is full.
  void append(Word bits, int64_t count) {
    pending_ |= static_cast<uint64_t>(bits & low_bits(count)) << pending_count_;
    pending_count_ += count;
    if (pending_count_ < kWordBits) return;
    *next_++ = static_cast<Word>(pending_);
    pending_ >>= kWordBits;
    pending_count_ -= kWordBits;
  }

  // Writes the last word, the rest of it 0, if it has bits at all.
  void finish() {
    if (pending_count_ > 0) *next_ = static_cast<Word>(pending_);
  }

 private:
  Word* next_;
  uint64_t pending_ = 0;
  int64_t pending_count_ = 0;
};

}  // namespace bnn_ext
