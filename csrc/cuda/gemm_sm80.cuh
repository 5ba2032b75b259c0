// Products of packed matrices by mma.sync: linear layers and convolutions on 7.5, 8.x and 9.0.
//
//   result[m][n] = finish(dot(row m of the input, row n of the weight)), rows as gather.cuh says
//
// A block computes a tile of the result. Slabs of 512 bits of its rows and columns come through a
// ring of kStages stages in shared memory, by asynchronous copies: while the warps multiply one
// slab, the next ones are on their way. In a stage, a row has 64 bytes: 4 cells of 16, of which
// cell c lies in place c ^ (row / 2 % 4), so that the 8 rows which one step of ldmatrix reads lie
// in different banks. A warp computes 16 * blocks_m rows and 32 * words_n columns.
//
// Limits: those of can_gather; at most 2^31 - 1 tiles, which hold more results than memory does.
#pragma once

#include "cuda/gather.cuh"

namespace bnn_ext::cuda {

constexpr int kStages = 3;
constexpr int kSlabBytes = 64;
constexpr int kStepBytes = 32;  // of a row, in one mma

// The tile of a block, as warps_m x warps_n tiles of warps, each of these as blocks_m x words_n
// parts of 16 rows and the 32 columns of a packed word.
template <int warps_m, int warps_n, int blocks_m_, int words_n_>
struct Tile {
  static constexpr int blocks_m = blocks_m_;
  static constexpr int words_n = words_n_;
  static constexpr int columns_of_warps = warps_n;
  static constexpr int threads = 32 * warps_m * warps_n;
  static constexpr int rows = 16 * blocks_m * warps_m;
  static constexpr int columns = 32 * words_n * warps_n;
  static constexpr int stage_bytes = (rows + columns) * kSlabBytes;
  static constexpr int shared_bytes = kStages * stage_bytes + rows * int{sizeof(WindowStart)};
  static_assert(shared_bytes <= 64 * 1024, "more than 7.5 has");
  static_assert(rows <= threads, "each thread prepares at most one row");
};
using LargeTile = Tile<2, 2, 4, 2>;   // 128 x 128
using MediumTile = Tile<2, 2, 2, 1>;  // 64 x 64
using SmallTile = Tile<2, 2, 1, 1>;   // 32 x 64

struct Gemm {
  Gather gather;
  const Word* weight;  // [outputs][depth_bytes]
  Correction correction;
  int64_t depth_bytes;
  int64_t group_outputs;
  int64_t row_tiles;
  int64_t column_tiles;  // of one group
};

inline Gemm make_gemm(const Conv2d& conv, int64_t rows, const int32_t* popcounts, int64_t tile_rows,
                      int64_t tile_columns) {
  const int64_t group_outputs = conv.outputs / conv.groups;
  const Gather gather = make_gather(conv, rows, kSlabBytes);
  return {gather,
          conv.weight,
          make_correction(conv, popcounts),
          conv.window.kernel.y * conv.window.kernel.x * gather.tap_bytes,
          group_outputs,
          (rows + tile_rows - 1) / tile_rows,
          (group_outputs + tile_columns - 1) / tile_columns};
}

// About how long a product takes by tiles of this size, in units of one sum's products: a block
// multiplies its rows with its columns, and each of them costs as much to load as 32 products.
inline double tile_time(int64_t rows, int64_t columns, int64_t groups, int64_t tile_rows,
                        int64_t tile_columns, int64_t processors) {
  const int64_t tiles =
      (rows + tile_rows - 1) / tile_rows * ((columns + tile_columns - 1) / tile_columns) * groups;
  const int64_t turns = (tiles + processors - 1) / processors;
  return static_cast<double>(turns) *
         static_cast<double>(tile_rows * tile_columns + 32 * (tile_rows + tile_columns));
}

struct TileIndex {
  int64_t group;
  int64_t row;
  int64_t column;
};

// Blocks that run at the same time have neighbouring numbers: bands of 8 rows of tiles, column by
// column, so that they share what they read through the second-level cache.
BNN_HOST_DEVICE inline TileIndex tile_index(int64_t block, int64_t row_tiles,
                                            int64_t column_tiles) {
  constexpr int64_t band_rows = 8;
  const int64_t group = block / (row_tiles * column_tiles);
  const int64_t in_group = block % (row_tiles * column_tiles);
  const int64_t first = in_group / (band_rows * column_tiles) * band_rows;
  const int64_t rows = row_tiles - first < band_rows ? row_tiles - first : band_rows;
  const int64_t in_band = in_group - first * column_tiles;
  return {group, first + in_band % rows, in_band / rows};
}

BNN_HOST_DEVICE inline int at_most(int64_t count, int most) {
  return count < most ? static_cast<int>(count) : most;
}

// Where 16 bytes of a row begin in a stage.
BNN_HOST_DEVICE inline int cell_offset(int row, int cell) {
  return row * kSlabBytes + 16 * (cell ^ (row / 2 % 4));
}

// Copies slab after slab of a tile's rows and columns, in chunks; a thread has one place in the
// slab, in several rows.
template <typename Tile, int chunk>
class Loader {
 public:
  __device__ __forceinline__ Loader(const Gemm& gemm, int64_t first_column, int64_t group,
                                    ptx::SharedAddress starts)
      : gemm_(gemm) {
    const int row = ptx::thread_index() / kChunks;
    byte_ = ptx::thread_index() % kChunks * chunk;
    offset_ = cell_offset(row, byte_ / 16) + byte_ % 16;
    start_ = starts + row * int{sizeof(WindowStart)};
    cursor_ = gemm.gather.at(byte_);
    columns_left_ = at_most(gemm.group_outputs - first_column, Tile::columns) - row;
    const int64_t column = group * gemm.group_outputs + first_column + row;
    column_ = reinterpret_cast<const char*>(gemm.weight) + column * gemm.depth_bytes + byte_;
    column_step_ = kRows * gemm.depth_bytes;
    bytes_left_ = gemm.depth_bytes - byte_;
  }

  __device__ __forceinline__ void load(ptx::SharedAddress stage) {
#pragma unroll
    for (int row = 0; row < Tile::rows; row += kRows) {
      const auto start = ptx::load_shared<WindowStart>(start_ + row * int{sizeof(WindowStart)});
      ptx::copy_async<chunk>(stage + offset_ + row * kSlabBytes, start.address + cursor_.offset,
                             gemm_.gather.valid(start, cursor_));
    }
    const char* column = column_;
#pragma unroll
    for (int row = 0; row < Tile::columns; row += kRows, column += column_step_)
      ptx::copy_async<chunk>(stage + offset_ + (Tile::rows + row) * kSlabBytes, column,
                             row < columns_left_ && bytes_left_ > 0);
    gemm_.gather.advance(cursor_);
    column_ += kSlabBytes;
    bytes_left_ -= kSlabBytes;
  }

 private:
  static constexpr int kChunks = kSlabBytes / chunk;     // of a row
  static constexpr int kRows = Tile::threads / kChunks;  // at once
  static_assert(kRows % 8 == 0, "the rows of a thread have their cells in the same places");
  static_assert(Tile::rows % kRows == 0 && Tile::columns % kRows == 0);

  const Gemm& gemm_;
  int byte_;
  int offset_;
  ptx::SharedAddress start_;
  TapCursor cursor_;
  int columns_left_;
  const char* column_;
  int64_t column_step_;
  int64_t bytes_left_;
};

// The registers all[i + 1] to all[i].
template <int count, int length>
__device__ __forceinline__ void move_to_front(int32_t (&all)[count][length]) {
#pragma unroll
  for (int i = 0; i + 1 < count; ++i) {
#pragma unroll
    for (int j = 0; j < length; ++j) all[i][j] = all[i + 1][j];
  }
}

template <int count, int blocks>
__device__ __forceinline__ void move_to_front(int32_t (&all)[count][blocks][4]) {
#pragma unroll
  for (int i = 0; i + 1 < count; ++i) {
#pragma unroll
    for (int j = 0; j < 4 * blocks; ++j) all[i][j / 4][j % 4] = all[i + 1][j / 4][j % 4];
  }
}

template <typename Tile, int chunk, bool xor_form, typename Finish>
__device__ __forceinline__ void multiply(const Gemm& gemm, const Finish& finish) {
  constexpr int blocks_m = Tile::blocks_m, words_n = Tile::words_n;
  const int thread = ptx::thread_index(), lane = thread % 32, warp = thread / 32;
  const TileIndex tile = tile_index(ptx::block_index(), gemm.row_tiles, gemm.column_tiles);
  const int64_t first_row = tile.row * Tile::rows, first_column = tile.column * Tile::columns;
  const ptx::SharedAddress ring = ptx::shared_memory();
  const ptx::SharedAddress ring_end = ring + kStages * Tile::stage_bytes;
  const ptx::SharedAddress starts = ring_end;

  if (thread < Tile::rows) {
    // Rows past the end read nothing: no cursor leads from there into the map.
    WindowStart start = {nullptr, -(1 << 30), 0};
    if (first_row + thread < gemm.gather.rows)
      start = gemm.gather.window_start(first_row + thread, tile.group);
    ptx::store_shared(starts + thread * int{sizeof(WindowStart)}, start);
  }
  ptx::sync_threads();

  Loader<Tile, chunk> loader(gemm, first_column, tile.group, starts);
  const int slabs = static_cast<int>((gemm.depth_bytes + kSlabBytes - 1) / kSlabBytes);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < slabs) loader.load(ring + stage * Tile::stage_bytes);
    ptx::copy_async_commit();
  }

  // The lane's address for load_matrices in the warp's first 16 rows and 16 columns. The four
  // matrices are for a the two halves of the rows, then these in the next cell; for b the two cells
  // of the first 8 columns, then of the others.
  const int warp_row = warp / Tile::columns_of_warps * 16 * blocks_m;
  const int warp_column = warp % Tile::columns_of_warps * 32 * words_n;
  const int a_offset = cell_offset(warp_row + lane % 16, lane / 16);
  const int b_offset =
      cell_offset(Tile::rows + warp_column + lane % 8 + lane / 16 * 8, lane / 8 % 2);

  int32_t sums[blocks_m * words_n][4][4] = {};  // of each part, as in epilogue.cuh
  int32_t input_popcounts[blocks_m][4] = {};    // in the and form: the same in all columns
  ptx::SharedAddress stage = ring, next = ring_end - Tile::stage_bytes;
  for (int slab = 0; slab < slabs; ++slab) {
    // This thread's copies of the slab have ended; beyond the barrier so have those of all, and all
    // are done with the stage of the slab before, which the next copies overwrite.
    ptx::copy_async_wait<kStages - 2>();
    ptx::sync_threads();
    if (slab + kStages - 1 < slabs) loader.load(next);
    ptx::copy_async_commit();

#pragma unroll
    for (int step = 0; step < kSlabBytes / kStepBytes; ++step) {
      Word a[blocks_m][4], b[2 * words_n][4];
      // Two cells on is the other half of the row: another bit of the cell's place.
#pragma unroll
      for (int m = 0; m < blocks_m; ++m)
        ptx::load_matrices(a[m], stage + (a_offset ^ step * kStepBytes) + m * 16 * kSlabBytes);
#pragma unroll
      for (int n = 0; n < 2 * words_n; ++n)
        ptx::load_matrices(b[n], stage + (b_offset ^ step * kStepBytes) + n * 16 * kSlabBytes);
#pragma unroll
      for (int m = 0; m < blocks_m; ++m) {
#pragma unroll
        for (int n = 0; n < 4 * words_n; ++n) {
          const Word(&both)[4] = b[n / 2];
          ptx::mma<xor_form>(sums[m * words_n + n / 4][n % 4], a[m],
                             {both[n % 2 * 2], both[n % 2 * 2 + 1]});
        }
        if constexpr (!xor_form) ptx::mma<false>(input_popcounts[m], a[m], {~0u, ~0u});
      }
    }
    next = stage;
    stage += Tile::stage_bytes;
    if (stage == ring_end) stage = ring;
  }

  // One copy of this code serves all parts; the next one always moves to the front, since registers
  // cannot be indexed.
#pragma unroll 1
  for (int part = 0; part < blocks_m * words_n; ++part) {
    const int row = warp_row + 16 * (part / words_n);
    const int64_t column = first_column + warp_column + 32 * (part % words_n);
    const Columns columns = {tile.group * gemm.group_outputs + column,
                             at_most(gemm.group_outputs - column, 32), gemm.correction.outputs};
    Taps taps[2] = {gemm.correction.all_taps(), gemm.correction.all_taps()};
    if (gemm.correction.pad_value >= 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = row + lane / 4 + 8 * half;
        const auto start = ptx::load_shared<WindowStart>(starts + at * int{sizeof(WindowStart)});
        taps[half] = gemm.gather.taps(start.y, start.x);
      }
    }
    to_dots<xor_form>(gemm.correction, taps, {input_popcounts[0][0], input_popcounts[0][2]},
                      columns, sums[0]);
    store_warp_tile(finish, {first_row + row, gemm.gather.rows}, columns, sums[0]);
    move_to_front(sums);
    if (part % words_n == words_n - 1) move_to_front(input_popcounts);
  }
}

}  // namespace bnn_ext::cuda
