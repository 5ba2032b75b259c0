// Signed sums of one CPU level, written once against its `Lookup`; included behind pack_body.inl.
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
//     clear(), load(sums)  16 sums; add(table, signs), store(sums)

template <typename T, bool kOneQuad, int kRows, int kBlocks>
void add_tile(const SignedSums<T>& problem, int64_t row, int64_t block) {
  using Signs = typename Lookup<T>::Signs;
  const int64_t row_stride = problem.row_stride, block_stride = problem.block_stride;
  const int64_t sums_stride = problem.sums_stride;
  T* sums = problem.sums + row * sums_stride + block * kBlock;
  Lookup<T> lookup[kRows][kBlocks];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b)
      if (problem.more)
        lookup[r][b].load(sums + r * sums_stride + b * kBlock);
      else
        lookup[r][b].clear();

  const T* tables = problem.tables + row * row_stride;
  const Word* weight = problem.weight + block * block_stride;
  const int64_t quads = kOneQuad ? 1 : problem.tap_quads;
  const TableTap* end = problem.taps + problem.tap_count;
  for (const TableTap* tap = problem.taps; tap != end; ++tap) {
    const T* table = tables + tap->tables;
    const Word* words = weight + tap->weight;
    int64_t left = quads;
    do {
      Signs signs[kBlocks];
#pragma GCC unroll 8
      for (int b = 0; b < kBlocks; ++b) signs[b] = Lookup<T>::load_signs(words + b * block_stride);
      int64_t nibbles = left < kWordQuads ? left : kWordQuads;
      for (;;) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const auto row_table = Lookup<T>::load_table(table + r * row_stride);
#pragma GCC unroll 8
          for (int b = 0; b < kBlocks; ++b) lookup[r][b].add(row_table, signs[b]);
        }
        table += Lookup<T>::kTableSize;
        if (--nibbles == 0) break;
#pragma GCC unroll 8
        for (int b = 0; b < kBlocks; ++b) signs[b] = Lookup<T>::next(signs[b]);
      }
      words += kBlock;
      left -= kWordQuads;
    } while (left > 0);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) lookup[r][b].store(sums + r * sums_stride + b * kBlock);
}

template <typename T, bool kOneQuad, int kRows>
void add_rows(const SignedSums<T>& problem, int64_t row, int64_t rows, int64_t block, int64_t end) {
  if constexpr (kRows > 0) {
    if (rows != kRows) return add_rows<T, kOneQuad, kRows - 1>(problem, row, rows, block, end);
    constexpr int kBlocks = Lookup<T>::blocks(kRows);
    for (; block + kBlocks <= end; block += kBlocks)
      add_tile<T, kOneQuad, kRows, kBlocks>(problem, row, block);
    if constexpr (kBlocks > 2)
      for (; block + 2 <= end; block += 2) add_tile<T, kOneQuad, kRows, 2>(problem, row, block);
    if constexpr (kBlocks > 1)
      for (; block < end; ++block) add_tile<T, kOneQuad, kRows, 1>(problem, row, block);
  }
}

template <typename T, bool kOneQuad>
void add_quads(const SignedSums<T>& problem) {
  constexpr int kRows = Lookup<T>::kRows;
  const int64_t passes = (problem.rows + kRows - 1) / kRows;  // of nearly equal height
  const int64_t least = problem.rows / passes, higher = problem.rows % passes;
  for (int64_t block = 0; block < problem.blocks; block += kTileBlocks) {
    const int64_t rest = problem.blocks - block;
    const int64_t end = block + (rest < kTileBlocks ? rest : kTileBlocks);
    int64_t row = 0;
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t rows = pass < higher ? least + 1 : least;
      add_rows<T, kOneQuad, kRows>(problem, row, rows, block, end);
      row += rows;
    }
  }
}

template <typename T>
void add(const SignedSums<T>& problem) {
  if (problem.tap_quads == 1)  // images: without the loops over words and nibbles
    add_quads<T, true>(problem);
  else
    add_quads<T, false>(problem);
}

// The tables of quads of which kCount channels are there.
template <typename T, int kCount>
inline void make_quad(const T* x, int64_t channel_step, T* table) {
  Lookup<T>::make_table(x[0], kCount > 1 ? x[channel_step] : T{0},
                        kCount > 2 ? x[2 * channel_step] : T{0},
                        kCount > 3 ? x[3 * channel_step] : T{0}, table);
}

template <typename T>
void make_tables(const T* input, int64_t channel_step, int64_t channels, int64_t pixel_step,
                 int64_t pixels, T* tables) {
  const int64_t rest = channels % kQuad, whole = channels - rest;
  const int64_t whole_size = whole / kQuad * Lookup<T>::kTableSize;
  const int64_t pixel_size = whole_size + (rest > 0 ? Lookup<T>::kTableSize : 0);
  for (int64_t pixel = 0; whole > 0 && pixel < pixels; ++pixel) {
    T* table = tables + pixel * pixel_size;
    for (int64_t c = 0; c < whole; c += kQuad, table += Lookup<T>::kTableSize)
      make_quad<T, kQuad>(input + pixel * pixel_step + c * channel_step, channel_step, table);
  }
  const auto make_last = [&](auto make) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      make(input + pixel * pixel_step + whole * channel_step, channel_step,
           tables + pixel * pixel_size + whole_size);
  };
  if (rest == 1) make_last(make_quad<T, 1>);
  if (rest == 2) make_last(make_quad<T, 2>);
  if (rest == 3) make_last(make_quad<T, 3>);
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
