// Sums of real inputs with the signs of packed weights, looked up in tables: linear layers.
//
//   sum(row, output) = sum of x(row, k) * sign(output, k) over the features k
//
// Four neighbouring inputs have 16 sums with signs, and four bits of a weight say which it is. A
// block makes such tables in shared memory, a stage of 1024 features of one row at a time, and a
// lane looks up the words of an output channel. The 16 sums of a table lie in 16 banks: lanes that
// read one table never conflict. Weights pass through shared memory as well, so that they are read
// in lines of 128 bytes.
//
// Eight warps have the same 32 channels. Part p of the eight adds up the words i with
// i / 4 % 8 == p in order, four features at a time, ((±x0 ± x1) ± x2) ± x3; then the parts are
// added in order. So no sum depends on the batch. uint8 gives int32 sums, exactly.
#pragma once

#include <cstring>

#include "cuda/signed_sums.cuh"

namespace bnn_ext::cuda {

constexpr int kTableParts = 8;      // warps that share the words of a channel
constexpr int kTableMaxGroups = 4;  // of 32 channels and 8 warps, in a block
constexpr int kTableStages = 4;     // of weights in shared memory
constexpr int kTableGroupThreads = 32 * kTableParts;
constexpr int kTablePartWords = 4;  // of a channel in a stage: 16 bytes
constexpr int kTableStageWords = kTableParts * kTablePartWords;
constexpr int kTableStageBytes = 32 * kTableStageWords * 4;  // of the weights of a group
constexpr int kTableBytes = 16 * 4;                          // of four features
constexpr int kTablePartBytes = kTablePartWords * kWordBits / 4 * kTableBytes;
constexpr int kTablesBytes = kTableParts * kTablePartBytes;  // of a stage
static_assert(kTablePartBytes % 256 == 0, "the lowest byte is a place in a table");

constexpr int signed_tables_shared_bytes(int groups) {
  return 2 * kTablesBytes + groups * kTableStages * kTableStageBytes;
}

struct SignedTables {
  const void* input;   // [rows][features]
  const Word* weight;  // [outputs][words]
  int64_t rows;
  int64_t features;
  int64_t outputs;
  int groups;  // of 32 channels in a block

  // Whether four values of a row, and four words, can be read at a time.
  template <typename In>
  bool has_vectors() const {
    return word_count(features) % 4 == 0 && features % 4 == 0 &&
           reinterpret_cast<uintptr_t>(weight) % 16 == 0 &&
           reinterpret_cast<uintptr_t>(input) % (4 * sizeof(In)) == 0;
  }

  int64_t blocks() const { return rows * ((outputs + 32 * groups - 1) / (32 * groups)); }

  // How long the processor with most blocks takes, counted in accesses of shared memory: these
  // bound the kernel. In a stage each of the 8 warps of a group looks up 32 times, and its weights
  // come in 4 accesses and go in 4; the tables take 160, whatever number of groups uses them.
  int64_t time(int processors) const {
    return (blocks() + processors - 1) / processors * (320 * groups + 160);
  }
};

// The same with the number of groups that is fastest: many share the cost of tables, few make
// enough blocks for all processors.
inline SignedTables with_groups(SignedTables problem, int processors, int shared_bytes) {
  SignedTables best = problem;
  best.groups = 1;
  for (problem.groups = 2; problem.groups <= kTableMaxGroups; problem.groups *= 2)
    if (signed_tables_shared_bytes(problem.groups) <= shared_bytes &&
        problem.time(processors) < best.time(processors))
      best = problem;
  return best;
}

// --- weights ------------------------------------------------------------------------------------

// Where the 16 bytes of a channel and a part begin in a stage: lanes with neighbouring channels
// read different banks.
BNN_HOST_DEVICE inline int table_weight_offset(int channel, int part) {
  return (channel * kTableParts + (part ^ channel % 8)) * 16;
}

// Copies the weights of a group to its ring of stages, one after the other, zeros past their end. A
// thread copies 16 bytes.
template <bool kVector>
class TableWeights {
 public:
  __device__ __forceinline__ TableWeights(const SignedTables& problem, int64_t first_channel,
                                          ptx::SharedAddress ring) {
    const int thread = ptx::thread_index() % kTableGroupThreads;
    const int row = thread / kTableParts, part = thread % kTableParts;
    const int64_t channel = first_channel + row, words = word_count(problem.features);
    const bool exists = channel < problem.outputs;
    from_ = problem.weight + (exists ? channel * words : 0) + part * kTablePartWords;
    left_ = exists ? static_cast<int>(words) - part * kTablePartWords : 0;
    ring_ = ring + table_weight_offset(row, part);
  }

  __device__ __forceinline__ void copy(int stage) {
    const ptx::SharedAddress to = ring_ + stage % kTableStages * kTableStageBytes;
    if constexpr (kVector) {
      ptx::copy_async<16>(to, from_, left_ > 0);
    } else {
#pragma unroll
      for (int i = 0; i < kTablePartWords; ++i)
        ptx::copy_async<4>(to + 4 * i, from_ + i, i < left_);
    }
    from_ += kTableStageWords;
    left_ -= kTableStageWords;
  }

 private:
  const Word* from_;
  int left_;  // words
  ptx::SharedAddress ring_;
};

// --- tables -------------------------------------------------------------------------------------

// Two lanes make a table, of two quarters each: the signs of x3 and x2. A lane has one sign of x3
// and this quarter first, then that with the other sign of x2. Eight lanes store at a time, to four
// tables: as two of these begin with each sign, they store to all banks.
BNN_HOST_DEVICE inline int first_quarter(int lane) { return lane % 2 * 2 + lane / 4 % 2; }

// Makes the tables of one stage after the other, of inputs that it loads some time before. A warp
// makes 16 tables at a time, two lanes each of them; a group alone needs two turns for all.
template <typename In, bool kVector>
class TableMaker {
  using Sum = SumOf<In>;

 public:
  __device__ __forceinline__ TableMaker(const SignedTables& problem, int64_t row,
                                        ptx::SharedAddress tables)
      : stride_(problem.groups * kTableGroupThreads / 2) {
    const int table = ptx::thread_index() / 2;
    const int quarter = first_quarter(ptx::thread_index() % 32);
    turns_ = (kTables - table + stride_ - 1) / stride_;
    from_ = static_cast<const In*>(problem.input) + row * problem.features + 4 * table;
    left_ = static_cast<int>(problem.features) - 4 * table;
    sign3_ = quarter / 2 != 0 ? Sum{1} : Sum{-1};
    sign2_ = quarter % 2 != 0 ? Sum{1} : Sum{-1};
    to_ = tables + table * kTableBytes + quarter * int{sizeof(Quarter)};
  }

  // The inputs of the next stage, zeros past the end.
  __device__ __forceinline__ void load() {
#pragma unroll
    for (int turn = 0; turn < kMostTurns; ++turn) {
      const In* from = from_ + turn * 4 * stride_;
      const int left = turn < turns_ ? left_ - turn * 4 * stride_ : 0;
      if constexpr (kVector) {
#pragma unroll
        for (Word& word : inputs_[turn]) word = 0;
        if (left > 0) ptx::load_words(from, inputs_[turn]);
      } else {
        In values[4] = {};
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (i < left) values[i] = from[i];
        memcpy(inputs_[turn], values, sizeof(values));
      }
    }
    from_ += 4 * kTables;
    left_ -= 4 * kTables;
  }

  // The tables of the inputs that were loaded last.
  __device__ __forceinline__ void store(int stage) const {
#pragma unroll
    for (int turn = 0; turn < kMostTurns; ++turn) {
      if (turn >= turns_) break;
      In values[4];
      memcpy(values, inputs_[turn], sizeof(values));
      store_half(values, to_ + stage % 2 * kTablesBytes + turn * stride_ * kTableBytes);
    }
  }

 private:
  static constexpr int kTables = kTablesBytes / kTableBytes;
  static constexpr int kMostTurns = kTables / (kTableGroupThreads / 2);

  struct alignas(16) Quarter {
    Sum sums[4];  // with the signs --, +-, -+, ++ of x0 and x1
  };

  __device__ __forceinline__ void store_half(const In (&values)[4], ptx::SharedAddress to) const {
    Sum x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = static_cast<Sum>(values[i]);
    const Sum same = x[0] + x[1], other = x[0] - x[1];
    const Sum same_first = add_product(x[2], sign2_, same);
    const Sum same_then = add_product(x[2], -sign2_, same);
    const Sum other_first = add_product(x[2], sign2_, other);
    const Sum other_then = add_product(x[2], -sign2_, other);
    const auto last = [&](Sum sum) { return add_product(x[3], sign3_, sum); };
    // Where all signs are turned, so is that of the sum.
    ptx::store_shared(
        to, Quarter{{last(-same_then), last(other_first), last(-other_then), last(same_first)}});
    ptx::store_shared(to ^ sizeof(Quarter), Quarter{{last(-same_first), last(other_then),
                                                     last(-other_first), last(same_then)}});
  }

  const In* from_;
  int left_;          // inputs
  const int stride_;  // tables that all warps make at a time
  int turns_;
  Sum sign2_, sign3_;
  ptx::SharedAddress to_;
  Word inputs_[kMostTurns][sizeof(In)];  // as they lie in memory: nothing waits for them so early
};

// Adds the eight sums that word `index` of a part says, one after the other.
template <typename Sum>
__device__ __forceinline__ void add_sums(Word word, int index, ptx::SharedAddress tables,
                                         Sum& sum) {
  constexpr int kWordTables = kWordBits / 4;
  constexpr Word kPlaces = 0x3c3c3c3c;  // in a table, in bytes: four bits in each byte
  const Word places[2] = {word << 2 & kPlaces, word >> 2 & kPlaces};
  Sum found[kWordTables];
#pragma unroll
  for (int i = 0; i < kWordTables; ++i) {
    // The lowest byte of the address of a part's tables is 0.
    const ptx::SharedAddress place = ptx::permute_bytes(tables, places[i % 2], 0x3214 + i / 2);
    found[i] = ptx::load_shared<Sum>(place + (index * kWordTables + i) * kTableBytes);
  }
#pragma unroll
  for (const Sum& one : found) sum += one;
}

// --- kernel -------------------------------------------------------------------------------------

// kVector: has_vectors().
// Finish: called as finish(row, channel, outputs, sum) by whole warps, of which the first lane has
// a channel; the others may be past the end.
template <typename In, bool kVector, typename Finish>
__global__ void __launch_bounds__(kTableMaxGroups* kTableGroupThreads, 1)
    signed_tables_kernel(__grid_constant__ const SignedTables problem, const Finish finish) {
  using Sum = SumOf<In>;
  const int warp = ptx::thread_index() / 32, lane = ptx::thread_index() % 32;
  const int group = warp / kTableParts, part = warp % kTableParts;
  // Blocks that follow one another have the same weights.
  const int64_t channel_block = ptx::block_index() / problem.rows;
  const int64_t row = ptx::block_index() - channel_block * problem.rows;
  const int64_t first_channel = channel_block * problem.groups * 32;
  const ptx::SharedAddress tables = ptx::shared_memory();  // of two stages
  const ptx::SharedAddress ring =
      tables + 2 * kTablesBytes + group * kTableStages * kTableStageBytes;
  const int64_t words = word_count(problem.features);
  const int stages = static_cast<int>((words + kTableStageWords - 1) / kTableStageWords);

  TableWeights<kVector> weights(problem, first_channel + group * 32, ring);
  for (int stage = 0; stage < kTableStages - 1; ++stage) {
    if (stage < stages) weights.copy(stage);
    ptx::copy_async_commit();
  }
  TableMaker<In, kVector> maker(problem, row, tables);
  maker.load();
  if (stages > 0) maker.store(0);

  Sum sum = 0;
  constexpr int kUnrolled = kVector ? 2 : 1;  // as tables lie in two places; 7.5 would spill
#pragma unroll kUnrolled
  for (int stage = 0; stage < stages; ++stage) {
    ptx::copy_async_wait<kTableStages - 2>();
    ptx::sync_threads();  // all is there for this stage, and nobody needs the last one
    if (stage + kTableStages - 1 < stages) weights.copy(stage + kTableStages - 1);
    ptx::copy_async_commit();
    maker.load();  // arrives while sums are looked up

    struct alignas(16) Words {
      Word words[kTablePartWords];
    };
    const Words signs = ptx::load_shared<Words>(ring + stage % kTableStages * kTableStageBytes +
                                                table_weight_offset(lane, part));
    const ptx::SharedAddress looked_up = tables + stage % 2 * kTablesBytes + part * kTablePartBytes;
#pragma unroll
    for (int i = 0; i < kTablePartWords; ++i) add_sums(signs.words[i], i, looked_up, sum);
    if (stage + 1 < stages) maker.store(stage + 1);
  }

  // In the tables that were not used last: [part][channel]
  const ptx::SharedAddress found = tables + stages % 2 * kTablesBytes;
  const int channels = problem.groups * 32;
  ptx::store_shared(found + (part * channels + group * 32 + lane) * 4, sum);
  ptx::sync_threads();
  // The first warps finish a group each, if it has channels.
  const int64_t channel = first_channel + warp * 32 + lane;
  if (warp >= problem.groups || channel - lane >= problem.outputs) return;
  sum = 0;
#pragma unroll
  for (int other = 0; other < kTableParts; ++other)
    sum += ptx::load_shared<Sum>(found + (other * channels + warp * 32 + lane) * 4);
  finish(row, channel, problem.outputs, sum);
}

}  // namespace bnn_ext::cuda
