// The dot products of one CPU level, written once against its vectors.
//
// Each kernels_<level>.cpp defines the following inside its target region and namespace and then
// includes this file there, so that the code is compiled anew for every level. For the same reason
// nothing may be included here.
//
//   Bits                   a vector of kLanes words, one output channel each
//   load, broadcast, zero_bits, xor_bits
//   any_bits               a vector that the compiler knows nothing about and that waits for
//                          none, at no cost but the instruction's decoding: for the peaks
//   add_pair               adds a1 ^ w1 and a2 ^ w2 to a plane, returns the carries
//   add_carries            adds two vectors to a plane, returns the carries
//   popcount_step          what counting one word by itself takes, for plain_peak
//   Count                  popcounts of the carries out of the last plane; has no constructor, for
//                          compilers keep arrays of such in memory:
//     clear()
//     add(carries)         counts 2^kPlanes for every bit, at most kCapacity times
//     store(planes, base, sums)  sums = base - 2 * (popcounts so far and those of the planes)
//   dot_short(tile)        does a tile of short windows if there is a faster way than all this
//   kLanes, kPlanes        adders in a row: 2^kPlanes words yield one carry
//   kRows, kVectors        windows and vectors of channels in registers at once
//
// Popcounts are expensive, so words are first added up bit by bit, in carry-save form (R. Harley
// and D. Seal; W. Mula, N. Kurz and D. Lemire, "Faster Population Counts Using AVX2 Instructions",
// 2018): plane p holds, for every bit position, bit p of how many words had a 1 there. Only what
// leaves the last plane is counted, once in 2^kPlanes words.

constexpr int kChunk = 1 << kPlanes;  // words that yield one carry

// Words of a panel: its weights are read again for every window and stay in the L1 cache, and Count
// has room for its carries.
constexpr int64_t kCacheWords = (24 << 10) / (kVectors * kLanes * sizeof(Word));
constexpr int64_t kPanelChunks =
    kCacheWords / kChunk < kCapacity ? kCacheWords / kChunk : kCapacity;
constexpr int64_t kPanelWords = kPanelChunks * kChunk;

template <int kRowCount, int kVectorCount>
struct Planes {
  Bits bits[kRowCount][kVectorCount][kPlanes];

  // Written out: the implicit constructor would be compiled for the baseline.
  Planes() {
#pragma GCC unroll 8
    for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectorCount; ++v)
#pragma GCC unroll 8
        for (int p = 0; p < kPlanes; ++p) bits[r][v][p] = zero_bits();
  }
};

// The words of a few windows and weights; `k` counts words from `steps` on.
template <int kStepWords, int kRowCount, int kVectorCount>
struct Operands {
  const Word* windows[kRowCount];
  const Word* weights[kVectorCount];
  const Step* steps;

  Bits window(int r, int k) const {
    return broadcast(windows[r][steps[k / kStepWords].input + k % kStepWords]);
  }
  Bits weight(int v, int k) const {
    return load(weights[v] + steps[k / kStepWords].weight + k % kStepWords * kBlock);
  }
};

// Operands that no load brings.
struct RegisterOperands {
  Bits window(int, int) const { return any_bits(); }
  Bits weight(int, int) const { return any_bits(); }
};

// Adds the 2^kLog words from `k` on to the planes below kLog; `carries` belong into plane kLog.
template <int kLog, int kRowCount, int kVectorCount, typename Operands>
inline void add_words(Planes<kRowCount, kVectorCount>& planes, const Operands& operands, int k,
                      Bits (&carries)[kRowCount][kVectorCount]) {
  if constexpr (kLog <= 1) {
    Bits w[kVectorCount][2];
#pragma GCC unroll 8
    for (int v = 0; v < kVectorCount; ++v)
#pragma GCC unroll 2
      for (int i = 0; i <= kLog; ++i) w[v][i] = operands.weight(v, k + i);
#pragma GCC unroll 8
    for (int r = 0; r < kRowCount; ++r) {
      Bits a[2];
#pragma GCC unroll 2
      for (int i = 0; i <= kLog; ++i) a[i] = operands.window(r, k + i);
#pragma GCC unroll 8
      for (int v = 0; v < kVectorCount; ++v)
        if constexpr (kLog == 0)
          carries[r][v] = xor_bits(a[0], w[v][0]);
        else
          carries[r][v] = add_pair(planes.bits[r][v][0], a[0], w[v][0], a[1], w[v][1]);
    }
  } else {
    Bits first[kRowCount][kVectorCount];
    add_words<kLog - 1>(planes, operands, k, first);
    add_words<kLog - 1>(planes, operands, k + (1 << (kLog - 1)), carries);
#pragma GCC unroll 8
    for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectorCount; ++v)
        carries[r][v] = add_carries(planes.bits[r][v][kLog - 1], first[r][v], carries[r][v]);
  }
}

// The words that fill no chunk come first, fewest first: then each carry enters an empty plane.
template <int kLog, int kStepWords, int kRowCount, int kVectorCount>
inline void add_rest(Planes<kRowCount, kVectorCount>& planes,
                     Operands<kStepWords, kRowCount, kVectorCount>& operands, int64_t words) {
  if constexpr (kLog < kPlanes) {
    if constexpr ((1 << kLog) >= kStepWords) {
      if (words & (1 << kLog)) {
        Bits carries[kRowCount][kVectorCount];
        add_words<kLog>(planes, operands, 0, carries);
#pragma GCC unroll 8
        for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 8
          for (int v = 0; v < kVectorCount; ++v) planes.bits[r][v][kLog] = carries[r][v];
        operands.steps += (1 << kLog) / kStepWords;
      }
    }
    add_rest<kLog + 1>(planes, operands, words);
  }
}

// One panel of kRowCount windows and kVectorCount vectors; sums start from *k, or from what earlier
// panels left if it is null.
template <int kStepWords, int kRowCount, int kVectorCount>
void dot_panel(const Operands<kStepWords, kRowCount, kVectorCount>& from, int64_t step_count,
               const int32_t* k, int32_t* const* sums, int64_t channel) {
  Operands<kStepWords, kRowCount, kVectorCount> operands = from;
  Planes<kRowCount, kVectorCount> planes;
  Count count[kRowCount][kVectorCount];
#pragma GCC unroll 8
  for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectorCount; ++v) count[r][v].clear();
  const Step* const end = operands.steps + step_count;
  add_rest<0>(planes, operands, step_count * kStepWords);
  for (; operands.steps < end; operands.steps += kChunk / kStepWords) {
    Bits carries[kRowCount][kVectorCount];
    add_words<kPlanes>(planes, operands, 0, carries);
#pragma GCC unroll 8
    for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectorCount; ++v) count[r][v].add(carries[r][v]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectorCount; ++v) {
      int32_t* to = sums[r] + channel + v * kLanes;
      const Bits base = k ? broadcast(*k) : load(reinterpret_cast<const Word*>(to));
      count[r][v].store(planes.bits[r][v], base, to);
    }
}

// All windows of a tile, kRowCount at a time and the rest by fewer.
template <int kStepWords, int kRowCount, int kVectorCount>
void dot_windows(const DotTile& tile, int64_t window, int64_t vector, const Step* steps,
                 int64_t step_count, const int32_t* k) {
  Operands<kStepWords, kRowCount, kVectorCount> operands;
  operands.steps = steps;
  for (int v = 0; v < kVectorCount; ++v) {
    const int64_t channel = (vector + v) * kLanes;
    operands.weights[v] = tile.weight + channel / kBlock * tile.block_stride + channel % kBlock;
  }
  for (; window + kRowCount <= tile.window_count; window += kRowCount) {
    for (int r = 0; r < kRowCount; ++r) {
      operands.windows[r] = tile.windows[window + r];
      for (int v = 0; tile.results && v < kVectorCount; ++v)
        tile.prefetch_result(window + r, (vector + v) * kLanes);
    }
    dot_panel(operands, step_count, k, tile.sums + window, vector * kLanes);
  }
  if constexpr (kRowCount > 1)
    dot_windows<kStepWords, kRowCount - 1, kVectorCount>(tile, window, vector, steps, step_count,
                                                         k);
}

template <int kStepWords>
void dot_steps(const DotTile& tile) {
  const int64_t vectors = tile.blocks * (kBlock / kLanes);
  const int64_t words = tile.step_count * kStepWords;
  const int64_t panels = words > kPanelWords ? (words + kPanelWords - 1) / kPanelWords : 1;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = tile.step_count * panel / panels;
    const int64_t count = tile.step_count * (panel + 1) / panels - first;
    const Step* steps = tile.steps + first;
    const int32_t* k = panel == 0 ? &tile.k : nullptr;
    int64_t vector = 0;
    for (; vector + kVectors <= vectors; vector += kVectors)
      dot_windows<kStepWords, kRows, kVectors>(tile, 0, vector, steps, count, k);
    if constexpr (kVectors > 1)
      for (; vector < vectors; ++vector)
        dot_windows<kStepWords, kRows, 1>(tile, 0, vector, steps, count, k);
  }
}

void dot(const DotTile& tile) {
  if (dot_short(tile)) return;
  if (tile.step_words == 4)
    dot_steps<4>(tile);
  else if (tile.step_words == 2)
    dot_steps<2>(tile);
  else
    dot_steps<1>(tile);
}

int64_t register_peak(int64_t iterations) {
  Planes<kRows, kVectors> planes;
  Count count[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) count[r][v].clear();
  const RegisterOperands operands;
  alignas(64) int32_t sums[kLanes];
  for (int64_t left = iterations; left > 0; left -= kPanelChunks) {
    for (int64_t i = 0; i < (left < kPanelChunks ? left : kPanelChunks); ++i) {
      Bits carries[kRows][kVectors];
      add_words<kPlanes>(planes, operands, 0, carries);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) count[r][v].add(carries[r][v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        count[r][v].store(planes.bits[r][v], zero_bits(), sums);
        count[r][v].clear();
        __asm__ volatile("" : : "r"(sums) : "memory");
      }
  }
  return iterations * kRows * kVectors * kChunk * kLanes * kWordBits;
}

int64_t plain_peak(int64_t iterations) {
  constexpr int kChains = 4;  // so that no addition waits for another
  Bits counts[kChains];
#pragma GCC unroll 4
  for (int i = 0; i < kChains; ++i) counts[i] = zero_bits();
  for (int64_t i = 0; i < iterations; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kChains; ++j) counts[j] = popcount_step(counts[j], any_bits(), any_bits());
  const Bits all = xor_bits(xor_bits(counts[0], counts[1]), xor_bits(counts[2], counts[3]));
  __asm__ volatile("" : : "m"(all));  // every count is needed
  return iterations * kChains * kLanes * kWordBits;
}

constexpr DotKernels kDotKernels = {dot, register_peak, plain_peak};
