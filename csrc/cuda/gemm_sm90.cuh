// Products of packed matrices by wgmma: linear layers and convolutions on Hopper, 9.0a.
//
//   result[m][n] = finish(dot(row m of the input, row n of the weight)), rows as gather.cuh says
//
// Blocks stay on their multiprocessor and walk over tiles of the result. The producer, the first
// warpgroup of a block, fills a ring of stages in shared memory; a stage holds one slab, 1024 bits
// of each row that a tile needs of A, the input, and of B, the weight. The consumers, all other
// warpgroups, multiply 64 rows of A each. They meet the producer at two mbarriers of each stage,
// `full` and `empty`, and nowhere else: while they store the results of one tile, the slabs of the
// next one arrive. The tensor cores have only the and form, which needs the popcounts of A's rows;
// consumers count them in the shadow of their own wgmmas, from the same slabs.
//
// TMA loads rows that are whole chunks of 16 bytes, one after the other in memory; cp.async gathers
// all others into the same layout. Both put zeros past the end of K and of the rows.
//
// Limits: those of fits_wgmma.
#pragma once

#include <algorithm>

#include "cuda/gather.cuh"
#include "cuda/ptx_sm90.cuh"

namespace bnn_ext::cuda::sm90 {

using ptx::SharedAddress;

// --- layouts ------------------------------------------------------------------------------------

constexpr int kWarp = 32;
constexpr int kWarpgroup = 4 * kWarp;

constexpr int kStepBytes = 32;  // of K, in one wgmma
constexpr int kSlabSteps = 4;
constexpr int kSlabBytes = kSlabSteps * kStepBytes;
constexpr int kInstructionRows = 64;

// Where a byte of a row stands in a slab. In the 128-byte swizzle of TMA and wgmma, rows follow
// each other, and bits 4...6 of an address are those of the column xor those of the row.
BNN_HOST_DEVICE constexpr int slab_offset(int row, int byte) {
  return row * kSlabBytes + (byte ^ row % 8 * 16);
}

// What wgmma calls a matrix descriptor, of the rows in a slab that begin at an address: bits 0...13
// hold it, 32...45 the distance to the next 8 rows, both in units of 16 bytes; 62...63 the swizzle.
// Bits 16...29 mean nothing with this swizzle.
BNN_HOST_DEVICE constexpr uint64_t descriptor(SharedAddress rows) {
  constexpr uint64_t kNextRows = 8 * kSlabBytes, kSwizzle128 = 1;
  return uint64_t{rows} >> 4 | kNextRows >> 4 << 32 | kSwizzle128 << 62;
}

// To be added to a descriptor for the next step in K: the swizzle is one of the final address.
constexpr uint64_t kDescriptorStep = kStepBytes >> 4;

// The two rows of a consumer's 64 that a thread has sums of.
BNN_HOST_DEVICE constexpr int sum_row(int thread, int i) {
  return thread / kWarp * 16 + thread % kWarp / 4 + i * 8;
}

// The two chunks of 16 bytes, of the 8 in these rows, whose bits the thread counts. The four
// threads of a row share them in any order; in this one a warp's loads spread over all banks.
BNN_HOST_DEVICE constexpr int counted_chunk(int thread, int half) { return thread % 8 ^ half * 4; }

// --- tiles --------------------------------------------------------------------------------------

// A block: its consumers and the columns of its tiles, how many stages it has, how many blocks fit
// on a multiprocessor, and the registers of each thread of the producer and of the consumers.
template <int consumers, int columns, int stages, int blocks, int producer_registers,
          int consumer_registers>
struct Shape {
  static constexpr int kConsumers = consumers;
  static constexpr int kRows = consumers * kInstructionRows;
  static constexpr int kColumns = columns;
  static constexpr int kStages = stages;
  static constexpr int kBlocks = blocks;
  static constexpr int kProducerRegisters = producer_registers;
  static constexpr int kConsumerRegisters = consumer_registers;
  static constexpr int kThreads = (1 + consumers) * kWarpgroup;
  static_assert((producer_registers + consumers * consumer_registers) * kWarpgroup <=
                    kThreads * (65536 / (kThreads * blocks) / 8 * 8),
                "more registers than the block starts with");

  static constexpr int kABytes = kRows * kSlabBytes;
  static constexpr int kBBytes = columns * kSlabBytes;
  static constexpr int kStageBytes = kABytes + kBBytes;
};

// The tiles of a gemm. Neighbours in the order run at the same time, so that it goes down panels
// of 12 row tiles: 132 multiprocessors then share the rows of about 12 x 11 tiles in the L2 cache.
struct Schedule {
  static constexpr int kPanel = 12;

  struct Tile {
    int row, column, group;
  };

  int row_tiles;
  int column_tiles;  // of one group
  int groups;

  BNN_HOST_DEVICE int count() const { return row_tiles * column_tiles * groups; }

  BNN_HOST_DEVICE Tile tile(int index) const {
    const int group = index / (row_tiles * column_tiles);
    index -= group * row_tiles * column_tiles;
    const int panel = index / (kPanel * column_tiles);
    index -= panel * kPanel * column_tiles;
    const int left = row_tiles - panel * kPanel;
    const int height = left < kPanel ? left : kPanel;
    return {panel * kPanel + index % height, index / height, group};
  }
};

// --- what is multiplied -------------------------------------------------------------------------

// How the producer gets A and B.
enum class Source {
  kTma,       // both by TMA
  kGather16,  // A gathered in chunks of 16 bytes, B by TMA
  kGather8,   // both gathered
  kGather4,
};

struct Gemm {
  ptx::TensorMap a_map;  // see matrix_map
  ptx::TensorMap b_map;
  Source source;
  Gather a;
  const Word* b;
  int depth_bytes;    // of a row of A and B
  int outputs;        // rows of B
  int group_outputs;  // those of one group
  Correction correction;
  Schedule schedule;

  // The first row of B in a tile.
  template <typename Shape>
  BNN_HOST_DEVICE int first_output(Schedule::Tile tile) const {
    return tile.group * group_outputs + tile.column * Shape::kColumns;
  }
};

inline int64_t depth_bytes(const Conv2d& conv) {
  const Extent taps = conv.window.kernel;
  return taps.y * taps.x * word_count(conv.inputs / conv.groups) * int64_t{sizeof(Word)};
}

inline bool fits_wgmma(const Conv2d& conv, int64_t rows) {
  constexpr int64_t most = int64_t{1} << 30;  // far enough from where int ends
  const int64_t tiles = (rows / kInstructionRows + 1) * (conv.outputs / 64 + conv.groups);
  return can_gather(conv) && rows < most && conv.outputs < most && depth_bytes(conv) < most &&
         tiles < most;
}

// All but the tensor maps.
template <typename Shape>
Gemm make_gemm(const Conv2d& conv, int64_t rows, const int32_t* popcounts) {
  const auto one = [](Extent extent) { return extent.y == 1 && extent.x == 1; };
  const Window& w = conv.window;
  const bool matrix = one(w.kernel) && one(w.stride) && w.padding.y == 0 && w.padding.x == 0 &&
                      conv.groups == 1;  // so that a row is a pixel
  const int chunk = chunk_bytes(conv);

  Gemm gemm = {};
  gemm.source = chunk == 4   ? Source::kGather4
                : chunk == 8 ? Source::kGather8
                : matrix     ? Source::kTma
                             : Source::kGather16;
  gemm.a = make_gather(conv, rows, kSlabBytes);
  gemm.b = conv.weight;
  gemm.depth_bytes = static_cast<int>(depth_bytes(conv));
  gemm.outputs = static_cast<int>(conv.outputs);
  gemm.group_outputs = static_cast<int>(conv.outputs / conv.groups);
  gemm.correction = make_correction(conv, popcounts);
  gemm.schedule = {static_cast<int>((rows + Shape::kRows - 1) / Shape::kRows),
                   (gemm.group_outputs + Shape::kColumns - 1) / Shape::kColumns,
                   static_cast<int>(conv.groups)};
  return gemm;
}

// What the tensor map of a matrix says: x counts its words, y its rows. Boxes are one slab of the
// rows of a tile, swizzled, with zeros past the end.
struct MatrixMap {
  const Word* words;
  uint64_t sizes[2];
  uint64_t row_bytes;
  uint32_t box[2];
};

inline MatrixMap matrix_map(const Word* words, int64_t rows, int depth_bytes, int box_rows) {
  return {words,
          {static_cast<uint64_t>(depth_bytes / 4), static_cast<uint64_t>(rows)},
          static_cast<uint64_t>(depth_bytes),
          {kSlabBytes / 4, static_cast<uint32_t>(box_rows)}};
}

template <typename Shape>
MatrixMap a_matrix(const Gemm& gemm) {
  return matrix_map(gemm.a.input, gemm.a.rows, gemm.depth_bytes, Shape::kRows);
}

template <typename Shape>
MatrixMap b_matrix(const Gemm& gemm) {
  return matrix_map(gemm.b, gemm.outputs, gemm.depth_bytes, Shape::kColumns);
}

// --- shared memory ------------------------------------------------------------------------------

// The stages, one after the other; `parity` is that of the phase of `full` in this round.
template <typename Shape>
struct Ring {
  int stage = 0;
  int bytes = 0;  // before this stage; counted, since consumers shall not multiply
  uint32_t parity = 0;

  BNN_HOST_DEVICE void advance() {
    ++stage;
    bytes += Shape::kStageBytes;
    if (stage < Shape::kStages) return;
    stage = bytes = 0;
    parity ^= 1;
  }
};

// Stages first, since their swizzle needs addresses that are multiples of 1024.
template <typename Shape>
struct Memory {
  static constexpr int kBarriers = Shape::kStages * Shape::kStageBytes;
  static constexpr int kStarts = kBarriers + 2 * Shape::kStages * ptx::kMbarrierBytes;
  static constexpr int kBytes = kStarts + Shape::kRows * int{sizeof(WindowStart)};

  static_assert(Shape::kABytes % 1024 == 0 && Shape::kBBytes % 1024 == 0);
  static_assert(Shape::kBlocks * (kBytes + 1024) <= 228 * 1024);  // 1024 are the driver's

  SharedAddress begin;

  BNN_HOST_DEVICE SharedAddress a(Ring<Shape> ring) const { return begin + ring.bytes; }
  BNN_HOST_DEVICE SharedAddress b(Ring<Shape> ring) const { return a(ring) + Shape::kABytes; }
  BNN_HOST_DEVICE SharedAddress full(int stage) const {
    return begin + kBarriers + stage * ptx::kMbarrierBytes;
  }
  BNN_HOST_DEVICE SharedAddress empty(int stage) const { return full(Shape::kStages + stage); }
  BNN_HOST_DEVICE SharedAddress start(int row) const {  // a WindowStart
    return begin + kStarts + row * int{sizeof(WindowStart)};
  }
};

// --- producer -----------------------------------------------------------------------------------

// Both operands by TMA, for which one thread is enough.
template <typename Shape>
__device__ __forceinline__ void load(const Gemm& gemm, Memory<Shape> memory) {
  if (ptx::thread_index() > 0) return;
  Ring<Shape> ring;
  for (int i = ptx::block_index(); i < gemm.schedule.count(); i += ptx::grid_size()) {
    const Schedule::Tile tile = gemm.schedule.tile(i);
    const int row = tile.row * Shape::kRows, output = gemm.first_output<Shape>(tile);
    for (int byte = 0; byte < gemm.depth_bytes; byte += kSlabBytes) {
      ptx::mbarrier_wait(memory.empty(ring.stage), ring.parity ^ 1);
      const SharedAddress full = memory.full(ring.stage);
      ptx::mbarrier_arrive_expect(full, Shape::kStageBytes);
      ptx::tma_load_2d(memory.a(ring), gemm.a_map, byte / 4, row, full);
      ptx::tma_load_2d(memory.b(ring), gemm.b_map, byte / 4, output, full);
      ring.advance();
    }
  }
}

// A, and if it does not come by TMA also B, by all threads in chunks: a thread has one place in
// the slab, in several rows.
template <int chunk, typename Shape>
__device__ __forceinline__ void gather(const Gemm& gemm, Memory<Shape> memory) {
  constexpr bool kTma = chunk == 16;
  constexpr int kBarrier = 1, kLag = Shape::kStages - 2;  // slabs that may still be copied
  static_assert(kLag >= 1);
  constexpr int kChunks = kSlabBytes / chunk;  // of a row
  constexpr int kRows = kWarpgroup / kChunks;  // at once
  const int first_row = ptx::thread_index() / kChunks;
  const int first_byte = ptx::thread_index() % kChunks * chunk;

  Ring<Shape> ring;
  int copying = 0;  // slabs
  const auto publish = [&] {
    const int stage = ring.stage - copying + (ring.stage < copying ? Shape::kStages : 0);
    ptx::fence_proxy_async();  // wgmma reads through the async proxy what cp.async wrote
    ptx::mbarrier_arrive(memory.full(stage));
    --copying;
  };
  for (int i = ptx::block_index(); i < gemm.schedule.count(); i += ptx::grid_size()) {
    const Schedule::Tile tile = gemm.schedule.tile(i);
    const int output = gemm.first_output<Shape>(tile);
    ptx::sync_barrier(kBarrier, kWarpgroup);  // all are done with the starts of the last tile
    for (int row = ptx::thread_index(); row < Shape::kRows; row += kWarpgroup) {
      // Rows past the end read nothing: no cursor leads from there into the map.
      WindowStart start = {nullptr, -(1 << 30), 0};
      const int index = tile.row * Shape::kRows + row;
      if (index < gemm.a.rows) start = gemm.a.window_start(index, tile.group);
      ptx::store_shared(memory.start(row), start);
    }
    ptx::sync_barrier(kBarrier, kWarpgroup);

    TapCursor cursor = gemm.a.at(first_byte);
    for (int byte = 0; byte < gemm.depth_bytes; byte += kSlabBytes) {
      ptx::mbarrier_wait(memory.empty(ring.stage), ring.parity ^ 1);
      const SharedAddress a = memory.a(ring), b = memory.b(ring);
      if (kTma && ptx::thread_index() == 0) {
        ptx::mbarrier_arrive_expect(memory.full(ring.stage), Shape::kBBytes);
        ptx::tma_load_2d(b, gemm.b_map, byte / 4, output, memory.full(ring.stage));
      }
#pragma unroll 2
      for (int row = first_row; row < Shape::kRows; row += kRows) {
        const auto start = ptx::load_shared<WindowStart>(memory.start(row));
        ptx::copy_async<chunk>(a + slab_offset(row, first_byte), start.address + cursor.offset,
                               gemm.a.valid(start, cursor));
      }
      gemm.a.advance(cursor);
      if constexpr (!kTma) {
        const int64_t depth = gemm.depth_bytes;
        const char* words = reinterpret_cast<const char*>(gemm.b) + byte + first_byte;
#pragma unroll 2
        for (int row = first_row; row < Shape::kColumns; row += kRows)
          ptx::copy_async<chunk>(b + slab_offset(row, first_byte), words + (output + row) * depth,
                                 output + row < gemm.outputs && byte + first_byte < depth);
      }
      ptx::copy_async_commit();
      ring.advance();
      if (++copying <= kLag) continue;
      ptx::copy_async_wait<kLag>();
      publish();
    }
  }
  ptx::copy_async_wait<0>();
  while (copying > 0) publish();
}

template <typename Shape>
__device__ __forceinline__ void produce(const Gemm& gemm, Memory<Shape> memory) {
  switch (gemm.source) {
    case Source::kTma:
      return load(gemm, memory);
    case Source::kGather16:
      return gather<16>(gemm, memory);
    case Source::kGather8:
      return gather<8>(gemm, memory);
    case Source::kGather4:
      return gather<4>(gemm, memory);
  }
}

// The arrivals at `full` of a stage: of who announces the bytes of TMA, and of all who gather.
BNN_HOST_DEVICE constexpr int full_arrivals(Source source) {
  if (source == Source::kTma) return 1;
  return source == Source::kGather16 ? 1 + kWarpgroup : kWarpgroup;
}

// --- consumers ----------------------------------------------------------------------------------

// What a thread knows of its two rows: the and-sums as wgmma has them, and its share of the row
// sums.
template <typename Shape>
struct Sums {
  int32_t ands[Shape::kColumns / 8][4];
  int32_t rows[2];
};

// Counts bits of this thread's rows in a slab.
template <typename Shape>
__device__ __forceinline__ void count(Sums<Shape>& sums, SharedAddress a, int thread) {
  struct alignas(16) Chunk {
    Word words[4];
  };
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int offset = sum_row(thread, i) * kSlabBytes + counted_chunk(thread, half) * 16;
      const Chunk bits = ptx::load_shared<Chunk>(a + offset);
#pragma unroll
      for (const Word word : bits.words) sums.rows[i] += popcount(word);
    }
}

template <typename Shape, typename Finish>
__device__ __forceinline__ void store(const Gemm& gemm, const Finish& finish, Schedule::Tile tile,
                                      int consumer, Sums<Shape>& sums) {
  const int thread = ptx::thread_index() % kWarpgroup;
  const int first_row = tile.row * Shape::kRows + consumer * kInstructionRows;
  Taps taps[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sums.rows[i] += ptx::shuffle_xor(sums.rows[i], 1);
    sums.rows[i] += ptx::shuffle_xor(sums.rows[i], 2);
    taps[i] = gemm.correction.all_taps();
    if (gemm.correction.pad_value < 0) continue;
    const WindowStart start = gemm.a.window_start(first_row + sum_row(thread, i), tile.group);
    taps[i] = gemm.a.taps(start.y, start.x);
  }
  const int left = gemm.group_outputs - tile.column * Shape::kColumns;
  const Columns columns = {gemm.first_output<Shape>(tile),
                           left < Shape::kColumns ? left : Shape::kColumns, gemm.outputs};
  to_dots<false>(gemm.correction, taps, sums.rows, columns, sums.ands);
  store_warp_tile(finish, {first_row + thread / kWarp * 16, gemm.a.rows}, columns, sums.ands);
}

template <typename Shape, typename Finish>
__device__ __forceinline__ void consume(const Gemm& gemm, const Finish& finish,
                                        Memory<Shape> memory) {
  const int consumer = ptx::thread_index() / kWarpgroup - 1;
  const int thread = ptx::thread_index() % kWarpgroup;
  const int steps = (gemm.depth_bytes + kStepBytes - 1) / kStepBytes;
  const auto release = [&](int stage) {
    ptx::sync_warp();  // all of its lanes have counted
    if (thread % kWarp == 0) ptx::mbarrier_arrive(memory.empty(stage));
  };

  Ring<Shape> ring;
  for (int i = ptx::block_index(); i < gemm.schedule.count(); i += ptx::grid_size()) {
    Sums<Shape> sums;
    sums.rows[0] = sums.rows[1] = 0;
    int before = 0;  // the stage of the last slab
    for (int step = 0; step < steps; step += kSlabSteps) {
      ptx::mbarrier_wait(memory.full(ring.stage), ring.parity);
      const SharedAddress rows = memory.a(ring) + consumer * kInstructionRows * kSlabBytes;
      const uint64_t a = descriptor(rows), b = descriptor(memory.b(ring));
      if (steps - step >= kSlabSteps) {
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kSlabSteps; ++k)
          ptx::wgmma(sums.ands, a + k * kDescriptorStep, b + k * kDescriptorStep, step + k > 0);
        ptx::wgmma_commit();
      } else {
#pragma unroll 1
        for (int k = 0; k < steps - step; ++k) {
          ptx::wgmma_fence();
          ptx::wgmma(sums.ands, a + k * kDescriptorStep, b + k * kDescriptorStep, step + k > 0);
          ptx::wgmma_commit();
        }
      }
      count(sums, rows, thread);
      ptx::wgmma_wait<1>();  // nobody reads the slab before any more
      if (step > 0) release(before);
      before = ring.stage;
      ring.advance();
    }
    ptx::wgmma_wait<0>();
    release(before);

    store<Shape>(gemm, finish, gemm.schedule.tile(i), consumer, sums);
  }
}

template <typename Shape, typename Finish>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    gemm_sm90_kernel(const __grid_constant__ Gemm gemm, const __grid_constant__ Finish finish) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)  // 9.0a, or the emulator
  const Memory<Shape> memory = {ptx::shared_memory()};
  if (ptx::thread_index() == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      ptx::mbarrier_init(memory.full(stage), full_arrivals(gemm.source));
      ptx::mbarrier_init(memory.empty(stage), Shape::kConsumers * kWarpgroup / kWarp);
    }
    ptx::fence_proxy_async();
  }
  ptx::sync_threads();
  if (ptx::thread_index() < kWarpgroup) {
    ptx::decrease_registers<Shape::kProducerRegisters>();
    produce(gemm, memory);
  } else {
    ptx::increase_registers<Shape::kConsumerRegisters>();
    consume(gemm, finish, memory);
  }
#endif
}

// Two consumers leave each thread so many registers that the epilogue can keep all sums of 256
// columns; three, with tiles of 192 rows, would load less, but spill.
using Large = Shape<2, 256, 4, 1, 40, 232>;
using Medium = Shape<3, 128, 5, 1, 40, 152>;
using Small = Shape<1, 64, 4, 3, 40, 120>;

// About how many cycles a multiprocessor needs for its share of the tiles: the tensor cores do 2^15
// products in one, the L2 cache brings 34 bytes, and 16 results are stored.
template <typename Shape>
double time(const Gemm& gemm, int processors) {
  constexpr double kProducts = Shape::kRows * Shape::kColumns / 4096.0;  // per byte of depth
  constexpr double kLoads = (Shape::kRows + Shape::kColumns) / 34.0;
  constexpr double kStores = Shape::kRows * Shape::kColumns / 16.0;
  const int tiles = (gemm.schedule.count() + processors - 1) / processors;
  return tiles * (gemm.depth_bytes * std::max(kProducts, kLoads) + kStores);
}

}  // namespace bnn_ext::cuda::sm90
