// Signed sums of one CPU level, written once against its `Lookup`; included like dot_body.inl.
//
// The level defines before:
//
//   Lookup<T>            for T float and int32_t
//     kRows              windows that share one pass over the weights
//     blocks(rows)       blocks of 16 channels side by side, for so many windows
//     kTableSize         values in a table
//     make_table(x0, x1, x2, x3, table)
//     load_table(table)  a table in registers
//     load_signs(words)  16 words of weights; next(signs) moves on to their next nibbles
//     load(sums)         16 sums; add(table, signs), store(sums)

template <typename T, int kRows, int kBlocks>
void add_tile(const SignedSums<T>& problem, int64_t row, int64_t block) {
  T* sums = problem.sums + row * problem.sums_stride + block * kBlock;
  Lookup<T> lookup[kRows][kBlocks];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) lookup[r][b].load(sums + r * problem.sums_stride + b * kBlock);

  const Word* weight = problem.weight + block * problem.block_stride;
  for (int64_t t = 0; t < problem.tap_count; ++t) {
    const T* table = problem.tables + row * problem.row_stride + problem.taps[t].tables;
    const Word* words = weight + problem.taps[t].weight * kBlock;
    for (int64_t left = problem.tap_quads; left > 0; left -= kWordQuads, words += kBlock) {
      typename Lookup<T>::Signs signs[kBlocks];
#pragma GCC unroll 8
      for (int b = 0; b < kBlocks; ++b)
        signs[b] = Lookup<T>::load_signs(words + b * problem.block_stride);
      const T* end = table + (left < kWordQuads ? left : kWordQuads) * Lookup<T>::kTableSize;
      for (; table < end; table += Lookup<T>::kTableSize) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const auto row_table = Lookup<T>::load_table(table + r * problem.row_stride);
#pragma GCC unroll 8
          for (int b = 0; b < kBlocks; ++b) lookup[r][b].add(row_table, signs[b]);
        }
#pragma GCC unroll 8
        for (int b = 0; b < kBlocks; ++b) signs[b] = Lookup<T>::next(signs[b]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b)
      lookup[r][b].store(sums + r * problem.sums_stride + b * kBlock);
}

template <typename T, int kRows>
void add_rows(const SignedSums<T>& problem, int64_t row, int64_t rows, int64_t block, int64_t end) {
  if constexpr (kRows > 0) {
    if (rows != kRows) return add_rows<T, kRows - 1>(problem, row, rows, block, end);
    constexpr int kBlocks = Lookup<T>::blocks(kRows);
    for (; block + kBlocks <= end; block += kBlocks) add_tile<T, kRows, kBlocks>(problem, row, block);
    if constexpr (kBlocks > 2)
      for (; block + 2 <= end; block += 2) add_tile<T, kRows, 2>(problem, row, block);
    if constexpr (kBlocks > 1)
      for (; block < end; ++block) add_tile<T, kRows, 1>(problem, row, block);
  }
}

template <typename T>
void add(const SignedSums<T>& problem) {
  constexpr int kRows = Lookup<T>::kRows;
  const int64_t passes = (problem.rows + kRows - 1) / kRows;
  for (int64_t block = 0; block < problem.blocks; block += kTileBlocks) {
    const int64_t rest = problem.blocks - block;
    const int64_t end = block + (rest < kTileBlocks ? rest : kTileBlocks);
    int64_t row = 0;
    for (int64_t pass = passes; pass > 0; --pass) {  // passes of nearly equal height
      const int64_t rows = (problem.rows - row + pass - 1) / pass;
      add_rows<T, kRows>(problem, row, rows, block, end);
      row += rows;
    }
  }
}

template <typename T>
void make_tables(const T* input, int64_t channel_step, int64_t channels, int64_t pixel_step,
                 int64_t pixels, T* tables) {
  const int64_t whole = channels - channels % kQuad;
  for (int64_t pixel = 0; pixel < pixels; ++pixel, input += pixel_step) {
    for (int64_t c = 0; c < whole; c += kQuad, tables += Lookup<T>::kTableSize) {
      const T* x = input + c * channel_step;
      Lookup<T>::make_table(x[0], x[channel_step], x[2 * channel_step], x[3 * channel_step],
                            tables);
    }
    if (whole < channels) {
      T x[kQuad] = {};
      for (int64_t c = whole; c < channels; ++c) x[c - whole] = input[c * channel_step];
      Lookup<T>::make_table(x[0], x[1], x[2], x[3], tables);
      tables += Lookup<T>::kTableSize;
    }
  }
}

void finish(float* values, int64_t n, const float* scale, const float* bias) {
  if (scale)
    for (int64_t i = 0; i < n; ++i) values[i] *= scale[i];
  if (bias)
    for (int64_t i = 0; i < n; ++i) values[i] += bias[i];
}

constexpr RealKernels kRealKernels = {Lookup<float>::kTableSize,
                                      {make_tables<float>, add<float>},
                                      {make_tables<int32_t>, add<int32_t>},
                                      finish};
