// The dot products of one CPU level, written once against its `Sum` type.
//
// Each kernels_<level>.cpp defines `Sum` inside its target region and namespace and then includes
// this file there, so that the code is compiled anew for every level. For the same reason nothing
// may be included here.
//
//   Sum             per-lane popcounts of one row and one block of 16 channels
//     Vector        16 words; load(const Word*), broadcast(Word), hide(Vector&)
//     kRows,kBlocks register tile
//     kCapacity     how many add() fit before drain() must be called, or kUnlimited
//     add(a, w)     counts += popcount(a ^ w)
//     drain(sums)   sums -= 2 * counts; counts = 0

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

constexpr DotKernels kDotKernels = {Sum::kRows, dot, to_float, register_peak};
