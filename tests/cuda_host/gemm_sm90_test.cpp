// Whole kernels of gemm_sm90.cuh under the emulator, with every finish, against sums one by one;
// and each of its layouts against what the hardware does.
#include "cuda/gemm_sm90.cuh"

#include <cstdlib>
#include <set>
#include <tuple>

#include "cuda_host/problems.h"

using namespace bnn_ext;
using namespace bnn_ext::cuda;
using namespace bnn_ext::problems;
using namespace bnn_ext::cuda::sm90;

namespace {

// --- kernels ------------------------------------------------------------------------------------

ptx::TensorMap tensor_map(const MatrixMap& map) {
  return {map.words, {map.sizes[0], map.sizes[1]}, map.row_bytes, {map.box[0], map.box[1]}};
}

// On so few blocks that each of them has several tiles.
template <typename Shape, typename Finish>
void run_shape(const Problem& problem, const Finish& finish) {
  sm90::Gemm gemm = make_gemm<Shape>(problem.conv, problem.rows, problem.popcounts.data());
  gemm.a_map = tensor_map(a_matrix<Shape>(gemm));
  gemm.b_map = tensor_map(b_matrix<Shape>(gemm));
  const unsigned blocks = static_cast<unsigned>(pick(1, std::min(3, gemm.schedule.count())));
  emulator::launch({blocks, Shape::kThreads, Memory<Shape>::kBytes}, ++seed,
                   [&] { gemm_sm90_kernel<Shape>(gemm, finish); });
}

// Those that are launched, and one of fewer stages whose tiles are cheaper to emulate.
using Tiny = sm90::Shape<2, 64, 3, 1, 40, 232>;

void check_shape(int way, const Problem& problem) {
  check_all(
      [&](const Problem& given, const auto& finish) {
        if (way == 0) return run_shape<Large>(given, finish);
        if (way == 1) return run_shape<Medium>(given, finish);
        if (way % 2 == 0) return run_shape<Small>(given, finish);
        run_shape<Tiny>(given, finish);
      },
      problem);
}

void test_linear(int rounds) {
  const std::vector<int64_t> sizes = {1, 31, 32, 33, 63, 65, 127, 129, 160, 257};
  for (int round = 0; round < rounds; ++round) {
    const int64_t features =
        pick({1, 32, 33, 64, 96, 127, 128, 256, 1023, 1024, 1152, 2304, 4096, 4192, 5120});
    check_shape(round % 6, Problem(linear(features, pick(sizes)), pick(sizes)));
  }
}

void test_conv2d(int rounds) {
  for (int round = 0; round < rounds; ++round)
    check_shape(round % 6, Problem(random_convolution(), pick(1, 3)));
}

// --- layouts ------------------------------------------------------------------------------------

// A byte of a row stands where TMA puts it, and nothing else does.
void test_slab() {
  std::set<int> offsets;
  for (int row = 0; row < 256; ++row)
    for (int byte = 0; byte < kSlabBytes; ++byte) {
      const SharedAddress linear = 1024 * 7 + row * kSlabBytes + byte;
      check_equal("place of a byte", slab_offset(row, byte),
                  int64_t{ptx::swizzled_128(linear)} - 1024 * 7);
      offsets.insert(slab_offset(row, byte));
    }
  check_equal("places of bytes", offsets.size(), 256 * kSlabBytes);
}

// From a descriptor wgmma reads the words that slab_offset placed.
void test_descriptor() {
  constexpr int kRows = 256, kWords = kSlabBytes / 4;
  const auto word = [](int row, int i) { return static_cast<Word>(row * kWords + i); };
  emulator::launch({1, 32, (kRows + 8) * kSlabBytes}, ++seed, [&] {
    if (ptx::thread_index() > 0) return;
    const SharedAddress slab = ptx::shared_memory() + 8 * kSlabBytes;  // 1024 bytes on
    for (int row = 0; row < kRows; ++row)
      for (int i = 0; i < kWords; ++i)
        ptx::store_shared(slab + slab_offset(row, 4 * i), word(row, i));
    ptx::fence_proxy_async();
    for (int first = 0; first < kRows; first += kInstructionRows)
      for (int step = 0; step < kSlabSteps; ++step)
        for (int row = 0; first + row < kRows; ++row) {
          const uint64_t rows = descriptor(slab + first * kSlabBytes);
          const auto bits = ptx::wgmma_row(rows + step * kDescriptorStep, row);
          for (int i = 0; i < 8; ++i)
            check_equal("word of a descriptor", bits.words[i], word(first + row, 8 * step + i));
        }
  });
}

// The threads that share a row count each of its chunks once, and the 8 threads whose 16 bytes are
// loaded at a time read from different banks.
void test_counting() {
  std::set<std::pair<int, int>> chunks;
  for (int half = 0; half < 2; ++half)
    for (int i = 0; i < 2; ++i)
      for (int thread = 0; thread < kWarpgroup; thread += 8) {
        std::set<int> banks;
        for (int t = thread; t < thread + 8; ++t) {
          chunks.insert({sum_row(t, i), counted_chunk(t, half)});
          banks.insert(counted_chunk(t, half));
        }
        check_equal("different banks of 8 threads", banks.size(), 8);
      }
  check_equal("chunks that are counted", chunks.size(), kInstructionRows * 8);
}

// Each tile belongs to one block, and blocks that run at the same time share rows and columns.
void test_schedule() {
  for (const int rows : {1, 11, 12, 13, 43})
    for (const int columns : {1, 2, 32}) {
      const Schedule schedule = {rows, columns, 3};
      std::set<std::tuple<int, int, int>> seen;
      for (int i = 0; i < schedule.count(); ++i) {
        const Schedule::Tile tile = schedule.tile(i);
        check_equal("row of a tile is there", tile.row >= 0 && tile.row < rows, true);
        check_equal("column of a tile is there", tile.column >= 0 && tile.column < columns, true);
        seen.insert({tile.group, tile.row, tile.column});
      }
      check_equal("tiles", seen.size(), 3 * rows * columns);
    }
  const Schedule schedule = {64, 32, 1};
  for (int first = 0; first + 132 <= schedule.count(); first += 132) {
    std::set<int> rows, columns;
    for (int i = first; i < first + 132; ++i) {
      rows.insert(schedule.tile(i).row);
      columns.insert(schedule.tile(i).column);
    }
    check_equal("rows and columns are few", rows.size() * columns.size() <= 24 * 14, true);
  }
}

// What is left to other paths.
void test_limits() {
  check_equal("a product", fits_wgmma(linear(4096, 4096), 4096), true);
  check_equal("too many rows", fits_wgmma(linear(4096, 1), int64_t{1} << 30), false);
  check_equal("too many outputs", fits_wgmma(linear(32, int64_t{1} << 30), 1), false);
  check_equal("too many tiles", fits_wgmma(linear(32, 1 << 22), 1 << 22), false);
  check_equal("rows that are too long", fits_wgmma(linear(int64_t{1} << 33, 1), 1), false);
}

template <typename Shape>
double time_of(const Conv2d& conv, int64_t rows) {
  return sm90::time<Shape>(make_gemm<Shape>(conv, rows, nullptr), 132);
}

// Tiles are as large as pays.
void test_shapes() {
  const auto fastest = [](const Conv2d& conv, int64_t rows) {
    const double large = time_of<Large>(conv, rows), medium = time_of<Medium>(conv, rows);
    const double small = time_of<Small>(conv, rows);
    return std::min({large, medium, small}) == large ? 256 : medium < small ? 128 : 64;
  };
  check_equal("columns of a large product", fastest(linear(8192, 8192), 8192), 256);
  check_equal("columns for 256 outputs", fastest(linear(2304, 256), 50000), 256);
  check_equal("columns for 128 outputs", fastest(linear(1152, 128), 200000), 128);
  check_equal("columns for 64 outputs", fastest(linear(576, 64), 800000), 64);
  check_equal("columns of a small product", fastest(linear(4096, 512), 256), 64);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) generator.seed(static_cast<unsigned>(std::atoi(argv[1])));
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 24;
  if (argc > 3) emulator::left_out() = argv[3];
  try {
    test_slab();
    test_descriptor();
    test_counting();
    test_schedule();
    test_limits();
    test_shapes();
    test_linear(rounds);
    test_conv2d(rounds);
  } catch (const emulator::Failure& failure) {
    std::cout << failure.what() << std::endl;
    return 1;
  }
  std::cout << "all kernels are right" << std::endl;
  return 0;
}
