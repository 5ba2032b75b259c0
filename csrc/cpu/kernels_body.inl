// The kernels of one CPU level, written once against its `Sum` type.
//
// Each kernels_<level>.cpp defines `Sum` and `compare16` inside its target region and namespace and
// then includes this file there, so that the code is compiled anew for every level. For the same
// reason nothing may be included here.
//
//   Sum             per-lane popcounts of one row and one block of 16 channels
//     Vector        16 words; load(const Word*), broadcast(Word), hide(Vector&)
//     kRows,kBlocks register tile
//     kCapacity     how many add() fit before drain() must be called, or kUnlimited
//     add(a, w)     counts += popcount(a ^ w)
//     drain(sums)   sums -= 2 * counts; counts = 0
//   compare16(x, t, below)  mask of 16 comparisons x >= t, or x <= t if `below`

template <int kRowCount, int kBlockCount>
void dot_rows(const DotTile& tile, int64_t row, int64_t block) {
  int32_t* sums = tile.sums + row * kTileChannels + block * kBlock;
  for (int r = 0; r < kRowCount; ++r)
    for (int lane = 0; lane < kBlockCount * kBlock; ++lane) sums[r * kTileChannels + lane] = tile.k;

  Sum sum[kRowCount][kBlockCount];
  auto drain = [&] {
#pragma GCC unroll 8
    for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 8
      for (int b = 0; b < kBlockCount; ++b) sum[r][b].drain(sums + r * kTileChannels + b * kBlock);
  };

  const Word* input = tile.input + row * tile.row_stride;
  const Word* weight = tile.weight + block * tile.block_stride;
  int64_t room = Sum::kCapacity;
  for (int64_t t = 0; t < tile.tap_count; ++t) {
    const Word* a = input + tile.taps[t].input;
    const Word* w = weight + tile.taps[t].weight * kBlock;
    for (int64_t k = 0; k < tile.tap_words;) {
      const int64_t steps = room < tile.tap_words - k ? room : tile.tap_words - k;
      room -= steps;
      for (const int64_t end = k + steps; k < end; ++k) {
        Sum::Vector lanes[kBlockCount];
#pragma GCC unroll 8
        for (int b = 0; b < kBlockCount; ++b)
          lanes[b] = Sum::load(w + b * tile.block_stride + k * kBlock);
#pragma GCC unroll 8
        for (int r = 0; r < kRowCount; ++r) {
          const Sum::Vector word = Sum::broadcast(a[r * tile.row_stride + k]);
#pragma GCC unroll 8
          for (int b = 0; b < kBlockCount; ++b) sum[r][b].add(word, lanes[b]);
        }
      }
      if (Sum::kCapacity < kUnlimited && room == 0) {
        drain();
        room = Sum::kCapacity;
      }
    }
  }
  drain();
}

template <int kRowCount>
void dot_blocks(const DotTile& tile, int64_t row) {
  int64_t block = 0;
  for (; block + Sum::kBlocks <= tile.blocks; block += Sum::kBlocks)
    dot_rows<kRowCount, Sum::kBlocks>(tile, row, block);
  if constexpr (Sum::kBlocks > 2)
    for (; block + 2 <= tile.blocks; block += 2) dot_rows<kRowCount, 2>(tile, row, block);
  for (; block < tile.blocks; ++block) dot_rows<kRowCount, 1>(tile, row, block);
}

template <int kRowCount>
void dot_with_rows(const DotTile& tile) {
  if constexpr (kRowCount > 0) {
    if (tile.rows == kRowCount) return dot_blocks<kRowCount>(tile, 0);
    dot_with_rows<kRowCount - 1>(tile);
  }
}

void dot(const DotTile& tile) { dot_with_rows<Sum::kRows>(tile); }

void to_float(const int32_t* sums, int64_t n, const float* scale, const float* bias, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(sums[i]);
  if (scale)
    for (int64_t i = 0; i < n; ++i) out[i] *= scale[i];
  if (bias)
    for (int64_t i = 0; i < n; ++i) out[i] += bias[i];
}

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

int64_t register_peak(int64_t iterations) {
  constexpr int kRows = Sum::kRows < 3 ? Sum::kRows : 3;  // enough chains, and none is spilled
  Sum sum[kRows][Sum::kBlocks];
  alignas(64) Word words[kBlock] = {};
  Sum::Vector lanes[Sum::kBlocks], word = Sum::load(words);
#pragma GCC unroll 8
  for (int b = 0; b < Sum::kBlocks; ++b) {
    lanes[b] = word;
    Sum::hide(lanes[b]);  // or one popcount would serve all blocks
  }
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      Sum::hide(word);  // a new value, as far as the compiler knows
#pragma GCC unroll 8
      for (int b = 0; b < Sum::kBlocks; ++b) sum[r][b].add(word, lanes[b]);
    }
  }
  alignas(64) int32_t sums[kBlock] = {};
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int b = 0; b < Sum::kBlocks; ++b) sum[r][b].drain(sums);
  __asm__ volatile("" : : "r"(sums) : "memory");  // every lane is needed
  return iterations * kRows * Sum::kBlocks * kBlock * kWordBits;
}

constexpr Kernels make_kernels(const char* name) {
  return {name,
          Sum::kRows,
          dot,
          to_float,
          compare<float>,
          compare<int32_t>,
          compare_columns<float>,
          compare_columns<int32_t>,
          register_peak};
}
