// Dot products of short windows by lookup, for levels whose popcount is itself a byte shuffle;
// included before dot_body.inl.
//
// The level defines before, besides what dot_body.inl needs:
//
//   look_up(table, nibbles)  for each byte the entry of `table` that it numbers
//   add_bytes
//   kNibbleWords             in a window, at most
//
// A nibble of the window chooses a table: in how many bits it differs from each possible nibble.
// Weights are the indices into it, a byte for each of 4 * kLanes channels. That takes a shuffle and
// an addition for every nibble, where adding words up bit by bit takes fewer; but no popcounts in
// the end, which cost more than the words of a short window (after J. Wei et al., "T-MAC: CPU
// Renaissance via Table Lookup for Low-Bit LLM Deployment on Edge", 2024).

typedef Word Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Pairs __attribute__((vector_size(kLanes * 4)));

static_assert(kTileBlocks == 4, "a lane has a byte for each block");

constexpr int64_t kNibbleWindows = 8;  // in a tile, at least: they share the rearranged weights
constexpr int64_t kNibbleBlocks = 3;   // at least: four are computed anyway
constexpr int kNibbleRows = 4;         // windows in registers at once
constexpr int64_t kByteWords = 7;      // the words whose differing bits fit into a byte

// The tables of a byte's two nibbles.
struct alignas(32) NibbleTables {
  uint8_t low[16], high[16];
};
struct AllNibbleTables {
  NibbleTables of[256];
};
constexpr AllNibbleTables make_nibble_tables() {
  AllNibbleTables tables{};
  for (int byte = 0; byte < 256; ++byte)
    for (int nibble = 0; nibble < 16; ++nibble)
      for (int bit = 0; bit < 4; ++bit) {
        tables.of[byte].low[nibble] += (byte ^ nibble) >> bit & 1;
        tables.of[byte].high[nibble] += (byte >> 4 ^ nibble) >> bit & 1;
      }
  return tables;
}
constexpr AllNibbleTables kNibbleTables = make_nibble_tables();

// Of four blocks, [word][byte][low, high][kLanes]: byte b of a lane is the nibble of block b.
using NibblePanel = Word[kNibbleWords][4][2][kLanes];

inline void store_words(Word* to, Words words) { __builtin_memcpy(to, &words, sizeof words); }

void fill_panel(const DotTile& tile, int64_t lane, NibblePanel& panel) {
  int64_t k = 0;
  for (const Step* step = tile.steps; step < tile.steps + tile.step_count; ++step)
    for (int64_t i = 0; i < tile.step_words; ++i, ++k) {
      Words block[kTileBlocks];
#pragma GCC unroll 4
      for (int64_t b = 0; b < kTileBlocks; ++b)
        block[b] = b < tile.blocks
                       ? reinterpret_cast<Words>(load(tile.weight + b * tile.block_stride +
                                                      step->weight + i * kBlock + lane))
                       : Words{};
      const Words halves[4] = {
          (block[0] & 0xffffu) | block[2] << 16, (block[1] & 0xffffu) | block[3] << 16,
          block[0] >> 16 | (block[2] & 0xffff0000u), block[1] >> 16 | (block[3] & 0xffff0000u)};
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const Words a = halves[2 * half], b = halves[2 * half + 1];
        const Words bytes[2] = {(a & 0xff00ffu) | (b & 0xff00ffu) << 8,
                                (a >> 8 & 0xff00ffu) | (b & 0xff00ff00u)};
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; ++odd) {
          store_words(panel[k][2 * half + odd][0], bytes[odd] & 0x0f0f0f0fu);
          store_words(panel[k][2 * half + odd][1], bytes[odd] >> 4 & 0x0f0f0f0fu);
        }
      }
    }
}

template <int kRowCount>
void nibble_windows(const DotTile& tile, int64_t window, int64_t lane, const NibblePanel& panel,
                    const int64_t* offsets) {
  const int64_t words = tile.step_count * tile.step_words;
  for (; window + kRowCount <= tile.window_count; window += kRowCount) {
    Pairs even[kRowCount], odd[kRowCount];  // blocks 0 and 2, blocks 1 and 3
#pragma GCC unroll 4
    for (int r = 0; r < kRowCount; ++r) even[r] = odd[r] = Pairs{};
    for (int64_t first = 0; first < words; first += kByteWords) {
      Bits bytes[kRowCount];
#pragma GCC unroll 4
      for (int r = 0; r < kRowCount; ++r) bytes[r] = zero_bits();
      const int64_t end = first + kByteWords < words ? first + kByteWords : words;
      for (int64_t k = first; k < end; ++k) {
        const uint8_t* from[kRowCount];
#pragma GCC unroll 4
        for (int r = 0; r < kRowCount; ++r)
          from[r] = reinterpret_cast<const uint8_t*>(tile.windows[window + r] + offsets[k]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const Bits low = load(panel[k][i][0]), high = load(panel[k][i][1]);
#pragma GCC unroll 4
          for (int r = 0; r < kRowCount; ++r) {
            const NibbleTables& tables = kNibbleTables.of[from[r][i]];
            bytes[r] = add_bytes(bytes[r], look_up(tables.low, low));
            bytes[r] = add_bytes(bytes[r], look_up(tables.high, high));
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRowCount; ++r) {
        even[r] += reinterpret_cast<Pairs>(bytes[r]) & 0xff;
        odd[r] += reinterpret_cast<Pairs>(bytes[r]) >> 8;
      }
    }
    const Words base = Words{} + static_cast<Word>(tile.k);
#pragma GCC unroll 4
    for (int r = 0; r < kRowCount; ++r) {
      int32_t* sums = tile.sums[window + r] + lane;
      const Words e = reinterpret_cast<Words>(even[r] + even[r]);
      const Words o = reinterpret_cast<Words>(odd[r] + odd[r]);
      store_words(reinterpret_cast<Word*>(sums), base - (e & 0xffffu));
      store_words(reinterpret_cast<Word*>(sums + kBlock), base - (o & 0xffffu));
      store_words(reinterpret_cast<Word*>(sums + 2 * kBlock), base - (e >> 16));
      store_words(reinterpret_cast<Word*>(sums + 3 * kBlock), base - (o >> 16));
    }
  }
  if constexpr (kRowCount > 1) nibble_windows<kRowCount - 1>(tile, window, lane, panel, offsets);
}

// Does a tile for which this is the faster way.
bool dot_short(const DotTile& tile) {
  if (tile.step_count * tile.step_words > kNibbleWords || tile.window_count < kNibbleWindows ||
      tile.blocks < kNibbleBlocks)
    return false;
  int64_t offsets[kNibbleWords];
  int64_t k = 0;
  for (const Step* step = tile.steps; step < tile.steps + tile.step_count; ++step)
    for (int64_t i = 0; i < tile.step_words; ++i) offsets[k++] = step->input + i;
  for (int64_t lane = 0; lane < kBlock; lane += kLanes) {
    alignas(64) NibblePanel panel;
    fill_panel(tile, lane, panel);
    nibble_windows<kNibbleRows>(tile, 0, lane, panel, offsets);
  }
  return true;
}
