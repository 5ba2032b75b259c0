// 16 values in four vectors of 16 bytes, which the compiler turns into whatever the baseline has;
// for pack_body.inl, of the levels without vector instructions of their own.

constexpr int kUnpackBytes = 16;

typedef float FloatPart __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t IntPart __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint16_t HalfPart __attribute__((vector_size(8), aligned(2), may_alias));

struct Floats {
  FloatPart part[4];
};
struct Ints {
  IntPart part[4];
};

inline Floats load16(const float* x) {
  const FloatPart* parts = reinterpret_cast<const FloatPart*>(x);
  return {{parts[0], parts[1], parts[2], parts[3]}};
}
inline Ints load16(const int32_t* x) {
  const IntPart* parts = reinterpret_cast<const IntPart*>(x);
  return {{parts[0], parts[1], parts[2], parts[3]}};
}

inline FloatPart to_float(IntPart bits, BFloat16Bits) { return (FloatPart)(bits << 16); }
inline FloatPart to_float(IntPart bits, HalfBits) {
  const IntPart magnitude = (bits & 0x7fff) << 13, exponent = magnitude & (0x1f << 23);
  const IntPart sign = (bits & 0x8000) << 16;
  // Rebiased from 15 to 127; infinities and NaNs once more, so that they keep the top exponent.
  IntPart rebiased = magnitude + (112 << 23) + ((exponent == (0x1f << 23)) & (112 << 23));
  // Subnormals have no implicit one: give it to them, then subtract it.
  const IntPart subnormal = exponent == 0;
  rebiased += subnormal & (1 << 23);
  const FloatPart implicit = (FloatPart)(subnormal & (113 << 23));
  return (FloatPart)((IntPart)((FloatPart)rebiased - implicit) | sign);
}
template <typename T>  // HalfBits or BFloat16Bits
inline Floats load16(const T* x) {
  const HalfPart* parts = reinterpret_cast<const HalfPart*>(x);
  Floats floats;
  for (int p = 0; p < 4; ++p)
    floats.part[p] = to_float(__builtin_convertvector(parts[p], IntPart), T{});
  return floats;
}

template <typename T>
inline auto load(const T* x, int64_t n) {
  if (n >= kPackLanes) return load16(x);
  T copy[kPackLanes] = {};
  for (int64_t i = 0; i < n; ++i) copy[i] = x[i];
  return load16(copy);
}

inline Floats splat(float x) {
  const FloatPart part = {x, x, x, x};
  return {{part, part, part, part}};
}
inline Ints splat(int32_t x) {
  const IntPart part = {x, x, x, x};
  return {{part, part, part, part}};
}

template <typename Values>
inline Ints at_least(const Values& a, const Values& b) {
  Ints mask;
  for (int p = 0; p < 4; ++p) mask.part[p] = a.part[p] >= b.part[p];
  return mask;
}
template <typename Values>
inline Ints at_most(const Values& a, const Values& b) {
  return at_least(b, a);
}

inline Word bits_of(const Ints& mask) {
  const IntPart bit = {1, 2, 4, 8};
  IntPart bits = mask.part[0] & bit;
  for (int p = 1; p < 4; ++p) bits |= mask.part[p] & (bit << 4 * p);
  return static_cast<Word>(bits[0] | bits[1] | bits[2] | bits[3]);
}

// Halves from 0 to infinity, and minus zero.
inline Word signs(const uint16_t* x, uint16_t infinity) {
  typedef uint16_t Part __attribute__((vector_size(16), aligned(2), may_alias));
  typedef uint64_t Halves __attribute__((vector_size(16)));
  const Part* parts = reinterpret_cast<const Part*>(x);
  const Part bit = {1, 2, 4, 8, 16, 32, 64, 128};
  Word words[2];
  for (int w = 0; w < 2; ++w) {
    const Part low = parts[2 * w], high = parts[2 * w + 1];
    const Part low_mask = (Part)((low <= infinity) | (low == 0x8000));
    const Part high_mask = (Part)((high <= infinity) | (high == 0x8000));
    const Halves halves = (Halves)((low_mask & bit) | (high_mask & (bit << 8)));
    const uint64_t lanes = halves[0] | halves[1], pairs = lanes | lanes >> 32;
    words[w] = static_cast<uint16_t>(pairs | pairs >> 16);
  }
  return words[0] | words[1] << 16;
}

inline void set_where(const Ints& mask, Word bit, Word* words) {
  IntPart* parts = reinterpret_cast<IntPart*>(words);
  for (int p = 0; p < 4; ++p) parts[p] |= mask.part[p] & static_cast<int32_t>(bit);
}
