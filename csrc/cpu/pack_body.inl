// Comparisons that pack bits, of one CPU level; included like dot_body.inl.
//
// The level defines before:
//
//   compare16(x, t, below)  mask of 16 comparisons x >= t, or x <= t if `below`

template <typename T>
void compare(const T* x, int64_t n, const T* threshold, const Word* flip, Word* out) {
  static const T zeros[kWordBits] = {};
  for (int64_t i = 0; i < n; i += kWordBits, x += kWordBits) {
    const T* t = threshold ? threshold + i : zeros;
    const Word below = flip ? flip[i / kWordBits] : 0;
    Word bits = 0;
    if (n - i >= kWordBits) {
      bits = compare16(x, t, false) | compare16(x + 16, t + 16, false) << 16;
      if (below) {
        const Word down = compare16(x, t, true) | compare16(x + 16, t + 16, true) << 16;
        bits = (bits & ~below) | (down & below);
      }
    } else {
      for (int64_t j = 0; j < n - i; ++j)
        bits |= Word{threshold_bit(x[j], t[j], (below >> j) & 1)} << j;
    }
    *out++ = bits;
  }
}

template <typename T>
void compare_columns(const T* x, int64_t channel_step, int64_t pixels, int64_t channels,
                     const T* threshold, Word below, Word* out, int64_t out_step) {
  constexpr int64_t kWidth = 16;
  for (int64_t p = 0; p < pixels; p += kWidth, x += kWidth, out += kWidth * out_step) {
    const int64_t width = pixels - p < kWidth ? pixels - p : kWidth;
    Word bits[kWidth] = {};
    for (int64_t c = 0; c < channels; ++c) {
      const T* values = x + c * channel_step;
      const T t = threshold ? threshold[c] : T{0};
      const Word bit = Word{1} << c;
      if (below & bit)
        for (int64_t i = 0; i < width; ++i) bits[i] |= values[i] <= t ? bit : 0;
      else if (width == kWidth)
        for (int64_t i = 0; i < kWidth; ++i) bits[i] |= values[i] >= t ? bit : 0;
      else
        for (int64_t i = 0; i < width; ++i) bits[i] |= values[i] >= t ? bit : 0;
    }
    for (int64_t i = 0; i < width; ++i) out[i * out_step] = bits[i];
  }
}

constexpr PackKernels kPackKernels = {compare<float>, compare<int32_t>, compare_columns<float>,
                                      compare_columns<int32_t>};
