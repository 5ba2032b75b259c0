// Dot products where a vector of popcounts is one instruction, for levels whose vectors hold a
// block of channels; included after epilogue_body.inl.
//
// A word takes three instructions: xor, popcount, addition. What is left to do is to keep them
// busy: sums of several windows and two blocks, one word of bits, stay in registers to the end, and
// so bits are compared right there.

static_assert(kLanes == kBlock && 2 * kBlock == kWordBits, "two vectors make a word of bits");

// Windows in registers at once. More of them share what a group takes to begin and to end, but need
// more addresses than there are registers, which only longer steps outweigh; and sums that are
// written should not come all at once.
constexpr int kSumRows = 4;
template <int kStepWords>
constexpr int kBitRows = kStepWords == 4 ? 8 : 4;

// Weights of a panel are read again for every window and stay in the L1 cache.
constexpr int64_t kPopcountWords = (24 << 10) / (2 * kBlock * sizeof(Word));

// In how many bits kRowCount windows from `window` on differ from each channel of kVectorCount
// blocks from `block` on, over some steps.
template <int kStepWords, int kRowCount, int kVectorCount>
[[gnu::always_inline]] inline void count_bits(const DotTile& tile, int64_t window, int64_t block,
                                              const Step* step, int64_t step_count,
                                              Bits (&count)[kRowCount][kVectorCount]) {
  const Word* windows[kRowCount];
  const Word* weights[kVectorCount];
#pragma GCC unroll 8
  for (int r = 0; r < kRowCount; ++r) {
    windows[r] = tile.windows[window + r];
#pragma GCC unroll 2
    for (int v = 0; v < kVectorCount; ++v) count[r][v] = zero_bits();
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectorCount; ++v) weights[v] = tile.weight + (block + v) * tile.block_stride;

  for (const Step* const end = step + step_count; step < end; ++step)
#pragma GCC unroll 4
    for (int i = 0; i < kStepWords; ++i) {
      Bits w[kVectorCount];
#pragma GCC unroll 2
      for (int v = 0; v < kVectorCount; ++v) w[v] = load(weights[v] + step->weight + i * kBlock);
#pragma GCC unroll 8
      for (int r = 0; r < kRowCount; ++r) {
        const Bits a = broadcast(windows[r][step->input + i]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectorCount; ++v) {
          count[r][v] = popcount_step(count[r][v], a, w[v]);
          // Or the compiler adds popcounts to each other first and runs out of registers.
          __asm__("" : "+v"(count[r][v]));
        }
      }
    }
}

// Calls run.rows<n>(window) for n windows at a time, kMost or not many fewer.
template <int kRowCount, typename Run>
void for_rows(const Run& run, int64_t window, int64_t count) {
  if constexpr (kRowCount > 0) {
    if (count == kRowCount)
      run.template rows<kRowCount>(window);
    else
      for_rows<kRowCount - 1>(run, window, count);
  }
}
template <int kMost, typename Run>
void for_windows(const Run& run, int64_t windows) {
  const int64_t parts = (windows + kMost - 1) / kMost;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = windows * part / parts;
    for_rows<kMost>(run, first, windows * (part + 1) / parts - first);
  }
}

// The sums of some steps; they start from *k, or from what earlier steps left if it is null.
template <int kStepWords, int kVectorCount>
struct PopcountSums {
  const DotTile& tile;
  int64_t block;
  const Step* steps;
  int64_t step_count;
  const int32_t* k;

  template <int kRowCount>
  void rows(int64_t window) const {
    if (tile.results) {
#pragma GCC unroll 8
      for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectorCount; ++v)
          tile.prefetch_result(window + r, (block + v) * kBlock);
    }
    Bits count[kRowCount][kVectorCount];
    count_bits<kStepWords>(tile, window, block, steps, step_count, count);
#pragma GCC unroll 8
    for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectorCount; ++v) {
        int32_t* const to = tile.sums[window + r] + (block + v) * kBlock;
        const Bits base = k ? broadcast(*k) : load(reinterpret_cast<const Word*>(to));
        _mm512_store_si512(to, _mm512_sub_epi32(base, _mm512_slli_epi32(count[r][v], 1)));
      }
  }
};

template <int kStepWords>
void popcount_sums(const DotTile& tile) {
  const int64_t words = tile.step_count * kStepWords;
  const int64_t panels = words > kPopcountWords ? (words + kPopcountWords - 1) / kPopcountWords : 1;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = tile.step_count * panel / panels;
    const int64_t count = tile.step_count * (panel + 1) / panels - first;
    const Step* const steps = tile.steps + first;
    const int32_t* const k = panel == 0 ? &tile.k : nullptr;
    int64_t block = 0;
    for (; block + 2 <= tile.blocks; block += 2)
      for_windows<kSumRows>(PopcountSums<kStepWords, 2>{tile, block, steps, count, k},
                            tile.window_count);
    if (block < tile.blocks)
      for_windows<kSumRows>(PopcountSums<kStepWords, 1>{tile, block, steps, count, k},
                            tile.window_count);
  }
}

void popcount_dot(const DotTile& tile) {
  if (tile.step_words == 4)
    popcount_sums<4>(tile);
  else if (tile.step_words == 2)
    popcount_sums<2>(tile);
  else
    popcount_sums<1>(tile);
}

// One word of bits for each window. A sum is at least t if the bits that differ are at most
// (k - t) / 2.
template <int kStepWords, int kVectorCount>
struct PopcountBits {
  const DotTile& tile;
  const SumTile& sums;
  int64_t block;
  Bits most[kVectorCount];
  Word invert;
  Word* bits;
  int64_t row_words;

  PopcountBits(const Thresholds& thresholds, const DotTile& dot_tile, const SumTile& sum_tile,
               int64_t first_block)
      : tile(dot_tile), sums(sum_tile), block(first_block) {
    const Bits least = _mm512_set1_epi32(-tile.k), k = _mm512_set1_epi32(tile.k);
    const Bits over = _mm512_add_epi32(k, _mm512_set1_epi32(1));
    const Bits never = _mm512_set1_epi32(-1);  // for lanes behind the last channel
#pragma GCC unroll 2
    for (int v = 0; v < kVectorCount; ++v) {
      const int64_t channel = (block + v) * kBlock;
      // Beyond all sums a threshold is as good as just beyond them, where k - t cannot overflow.
      const Bits t = _mm512_loadu_si512(thresholds.threshold + sums.first_channel + channel);
      const Bits within = _mm512_min_epi32(_mm512_max_epi32(t, least), over);
      most[v] = _mm512_mask_srai_epi32(never, first_lanes(sums.channels - channel),
                                       _mm512_sub_epi32(k, within), 1);
    }
    const int64_t word = (sums.first_channel + block * kBlock) / kWordBits;
    invert = thresholds.invert[word];
    bits = thresholds.bits + word;
    row_words = word_count(thresholds.channels);
  }

  template <int kRowCount>
  void rows(int64_t window) const {
    Bits count[kRowCount][kVectorCount];
    count_bits<kStepWords>(tile, window, block, tile.steps, tile.step_count, count);
#pragma GCC unroll 8
    for (int r = 0; r < kRowCount; ++r) {
      __mmask32 word = _mm512_cmple_epi32_mask(count[r][0], most[0]);
      if constexpr (kVectorCount == 2)
        word = _mm512_kunpackw(_mm512_cmple_epi32_mask(count[r][1], most[1]), word);
      bits[sums.positions[window + r] * row_words] = word ^ invert;
    }
  }
};

template <int kStepWords>
void popcount_words(const Thresholds& thresholds, const DotTile& tile, const SumTile& sums) {
  int64_t block = 0;
  for (; block + 2 <= tile.blocks; block += 2)
    for_windows<kBitRows<kStepWords>>(PopcountBits<kStepWords, 2>(thresholds, tile, sums, block),
                                      tile.window_count);
  if (block < tile.blocks)
    for_windows<kBitRows<kStepWords>>(PopcountBits<kStepWords, 1>(thresholds, tile, sums, block),
                                      tile.window_count);
}

void popcount_bits(const Thresholds& thresholds, const DotTile& tile, const SumTile& sums) {
  if (tile.step_count * tile.step_words > kPopcountWords) {
    popcount_dot(tile);
    compare_sums(thresholds, sums);
  } else if (tile.step_words == 4) {
    popcount_words<4>(thresholds, tile, sums);
  } else if (tile.step_words == 2) {
    popcount_words<2>(thresholds, tile, sums);
  } else {
    popcount_words<1>(thresholds, tile, sums);
  }
}

constexpr DotKernels kPopcountKernels = {popcount_dot, plain_peak, plain_peak};
constexpr EpilogueKernels kPopcountEpilogues = {floats, popcount_bits};
