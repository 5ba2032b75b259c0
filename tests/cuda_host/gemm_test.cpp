// Whole kernels of gemm_sm80.cuh under the emulator, with every finish, against sums one by one.
#include <cstdlib>
#include <set>
#include <tuple>

#include "cuda/gemm_sm80.cuh"
#include "cuda_host/problems.h"

using namespace bnn_ext;
using namespace bnn_ext::cuda;
using namespace bnn_ext::problems;

namespace {

// --- kernels ------------------------------------------------------------------------------------

template <typename Tile, int chunk, bool xor_form, typename Finish>
void run_tile(const Problem& problem, const Finish& finish) {
  // The xor form has no need of the table where nothing is padded.
  const Correction needs = make_correction(problem.conv, nullptr);
  const int32_t* popcounts = xor_form && needs.pad_value < 0 ? nullptr : problem.popcounts.data();
  const Gemm gemm = make_gemm(problem.conv, problem.rows, popcounts, Tile::rows, Tile::columns);
  const int64_t blocks = gemm.row_tiles * gemm.column_tiles * problem.conv.groups;
  emulator::launch({static_cast<unsigned>(blocks), Tile::threads, Tile::shared_bytes}, ++seed,
                   [&] { multiply<Tile, chunk, xor_form>(gemm, finish); });
}

// One sum per thread, as kernels without tensor cores compute them.
template <typename Finish>
void run_places(const Problem& problem, const Finish& finish) {
  emulator::launch({1, 64, 0}, ++seed, [&] {
    const int64_t outputs = problem.conv.outputs;
    for (int64_t i = ptx::thread_index(); i < place_count(problem.rows, outputs); i += 64) {
      const Place at = place(i, outputs);
      store_place(finish, at, outputs,
                  at.channel < outputs ? problem.conv.sum(at.row, at.channel) : 0);
    }
  });
}

// A choice of tiles, chunks and forms, each of them with several of the others; where the chunks of
// a way are too wide for the problem, narrower ones.
template <typename Finish>
void run(int way, const Problem& problem, const Finish& finish) {
  const int widest = chunk_bytes(problem.conv);
  if (way == 0 && widest >= 16) return run_tile<LargeTile, 16, true>(problem, finish);
  if (way == 1 && widest >= 16) return run_tile<LargeTile, 16, false>(problem, finish);
  if (way == 2 && widest >= 16) return run_tile<SmallTile, 16, false>(problem, finish);
  if (way <= 3 && widest >= 8) return run_tile<SmallTile, 8, true>(problem, finish);
  if (way == 4 && widest >= 8) return run_tile<MediumTile, 8, false>(problem, finish);
  if (way <= 4) return run_tile<MediumTile, 4, true>(problem, finish);
  if (way == 5) return run_tile<SmallTile, 4, false>(problem, finish);
  return run_places(problem, finish);
}
constexpr int kWays = 7;

void check_way(int way, const Problem& problem) {
  check_all([&](const Problem& given, const auto& finish) { run(way, given, finish); }, problem);
}

// --- tests --------------------------------------------------------------------------------------

void test_linear() {
  const std::vector<int64_t> sizes = {1, 31, 32, 33, 63, 65, 127, 129, 160};
  for (int round = 0; round < 21; ++round) {
    const int64_t features = pick({1, 32, 33, 96, 127, 128, 129, 511, 512, 513, 1024, 1537, 2600});
    check_way(round % kWays, Problem(linear(features, pick(sizes)), pick(sizes)));
  }
}

void test_conv2d(int rounds) {
  for (int round = 0; round < rounds; ++round)
    check_way(round % kWays, Problem(random_convolution(), pick(1, 3)));
}

// What a warp holds of 16 rows and `words` words of columns, some of which are past the end.
template <int words>
void test_warp_tile() {
  for (int round = 0; round < 20; ++round) {
    const int64_t rows = pick(1, 16), all = pick(1, 32 * words + 70);
    const int64_t first = 32 * pick(0, (all - 1) / 32);
    const int count = at_most(all - first, 32 * words);
    const auto value = [](int64_t row, int64_t column) {
      return static_cast<int32_t>((row * 7919 + column * 104729) % 1009 - 500);
    };
    std::vector<int32_t> sums(rows * all, kGarbage);
    std::vector<Word> bits(rows * word_count(all), kGarbage);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = first; column < first + count; ++column) {
        Word& word = bits[row * word_count(all) + column / 32];
        if (column % 32 == 0) word = 0;
        word |= Word{value(row, column) >= 0} << (column % 32);
        sums[row * all + column] = value(row, column);
      }
    }
    Buffer<int32_t> stored_sums(sums.size(), kGarbage);
    Buffer<Word> stored_bits(bits.size(), kGarbage);
    const Buffer<int32_t> threshold(all, 0);
    emulator::launch({1, 32, 0}, ++seed, [&] {
      const int lane = ptx::thread_index();
      int32_t dots[4 * words][4];
      for (int t = 0; t < 4 * words; ++t)
        for (int i = 0; i < 4; ++i)
          dots[t][i] = value(lane / 4 + 8 * (i / 2), first + 8 * t + 2 * (lane % 4) + i % 2);
      const Rows all_rows = {0, rows};
      const Columns columns = {first, count, all};
      store_warp_tile(StoreSum{stored_sums.data()}, all_rows, columns, dots);
      store_warp_tile(StoreBits{stored_bits.data(), threshold.data(), nullptr}, all_rows, columns,
                      dots);
    });
    check_equal("sums of a warp", stored_sums.values(), sums);
    check_equal("bits of a warp", stored_bits.values(), bits);
  }
}

// Each tile belongs to one block, and neighbours in number share rows or columns.
void test_tile_order() {
  for (const int64_t rows : {1, 7, 8, 9, 21})
    for (const int64_t columns : {1, 2, 13}) {
      std::set<std::tuple<int64_t, int64_t, int64_t>> seen;
      for (int64_t block = 0; block < 3 * rows * columns; ++block) {
        const TileIndex tile = tile_index(block, rows, columns);
        check_equal("group of a tile", tile.group, block / (rows * columns));
        check_equal("row of a tile is there", tile.row >= 0 && tile.row < rows, true);
        check_equal("column of a tile is there", tile.column >= 0 && tile.column < columns, true);
        seen.insert({tile.group, tile.row, tile.column});
      }
      check_equal("tiles", seen.size(), 3 * rows * columns);
    }
}

// The 8 rows that one step of ldmatrix reads lie in different banks, wherever they begin.
void test_no_bank_conflicts() {
  for (int first = 0; first < 128; first += 8)
    for (int cell = 0; cell < 4; ++cell) {
      std::set<int> banks;
      for (int row = first; row < first + 8; ++row) banks.insert(cell_offset(row, cell) / 16 % 8);
      check_equal("different banks of 8 rows", banks.size(), 8);
    }
  std::set<int> offsets;
  for (int row = 0; row < 128; ++row)
    for (int cell = 0; cell < 4; ++cell) offsets.insert(cell_offset(row, cell));
  check_equal("places of cells", offsets.size(), 128 * 4);
  check_equal("last place", *offsets.rbegin(), 128 * kSlabBytes - 16);
}

// A cursor that advances is where a division says, for slabs of every width that kernels have.
void test_cursor() {
  for (int round = 0; round < 300; ++round) {
    Conv2d conv = random_convolution();
    const int slab = static_cast<int>(pick({64, 128}));
    const Gather gather = make_gather(conv, 1, slab);
    TapCursor cursor = gather.at(4 * pick(0, slab / 4 - 1));
    const int64_t first = cursor.byte + (cursor.x / conv.window.dilation.x +
                                         cursor.y / conv.window.dilation.y * conv.window.kernel.x) *
                                            gather.tap_bytes;
    for (int64_t bytes = first;
         bytes < conv.window.kernel.y * conv.window.kernel.x * gather.tap_bytes + slab;
         bytes += slab, gather.advance(cursor)) {
      const TapCursor expected = gather.at(bytes);
      check_equal("offset of a cursor", cursor.offset, expected.offset);
      check_equal("y of a cursor", cursor.y, expected.y);
      check_equal("x of a cursor", cursor.x, expected.x);
      check_equal("byte of a cursor", cursor.byte, expected.byte);
    }
  }
}

// What kernels on tensor cores leave to others.
void test_limits() {
  const Window window = {{9, 9}, {}, {3, 3}, {1, 1}, {1, 1}, {1, 1}};
  check_equal("no channels", can_gather(convolution(0, 32, 1, window, 0)), false);
  check_equal("groups of whole words", can_gather(convolution(96, 64, 2, window, 0)), false);
  check_equal("results of whole words", can_gather(convolution(128, 66, 2, window, 0)), false);
  check_equal("whole words", can_gather(convolution(128, 64, 2, window, 0)), true);
  Window wide = window;
  wide.dilation.x = int64_t{1} << 28;
  check_equal("a wide dilation", can_gather(convolution(32, 32, 1, wide, 0)), false);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) generator.seed(static_cast<unsigned>(std::atoi(argv[1])));
  try {
    test_tile_order();
    test_no_bank_conflicts();
    test_cursor();
    test_limits();
    test_warp_tile<1>();
    test_warp_tile<2>();
    test_warp_tile<4>();
    test_warp_tile<8>();
    test_linear();
    test_conv2d(argc > 2 ? std::atoi(argv[2]) : 42);
  } catch (const emulator::Failure& failure) {
    std::cout << failure.what() << std::endl;
    return 1;
  }
  std::cout << "all kernels are right" << std::endl;
  return 0;
}
