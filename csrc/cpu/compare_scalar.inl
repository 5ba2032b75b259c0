// compare16 for the levels without vectors; included inside their target regions.

template <typename T>
inline Word compare16(const T* x, const T* t, bool below) {
  Word bits = 0;
  for (int i = 0; i < 16; ++i) bits |= Word{threshold_bit(x[i], t[i], below)} << i;
  return bits;
}
