// The emulator itself: right kernels are right in every seed, and each mistake shows in some seed.
#include <functional>
#include <iostream>

#include "cuda/ptx.cuh"
#include "cuda_host/checks.h"

using namespace bnn_ext;
using namespace bnn_ext::checks;
using namespace bnn_ext::cuda;
using emulator::Buffer;
using emulator::Failure;

namespace {

constexpr int kSeeds = 40;

// --- a ring of copies, with or without a mistake -------------------------------------------------

enum class Mistake { kNone, kNoWait, kNoBarrier, kTooFewStages, kOutOfShared, kOutOfGlobal };

constexpr int kThreads = 96;
constexpr int kRounds = 7;
constexpr int kStages = 3;

// output[t] = the sum over the rounds of what thread kThreads - 1 - t copied.
void ring_kernel(const Word* input, Word* output, Mistake mistake) {
  const int thread = ptx::thread_index();
  // With one stage more in flight than there is room for, a copy overwrites what others still read.
  const int ahead = mistake == Mistake::kTooFewStages ? kStages : kStages - 1;
  const auto cell = [&](int round, int owner) {
    return ptx::shared_memory() + 4 * (round % kStages * kThreads + owner);
  };
  const auto copy = [&](int round) {
    const int shift = mistake == Mistake::kOutOfGlobal ? 1 : 0;
    const int beyond = mistake == Mistake::kOutOfShared ? kStages * kThreads : 0;
    ptx::copy_async<4>(cell(round, thread) + 4 * beyond, input + round * kThreads + thread + shift,
                       round < kRounds);
    ptx::copy_async_commit();
  };
  for (int round = 0; round < ahead; ++round) copy(round);
  Word sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    if (mistake != Mistake::kNoWait) ptx::copy_async_wait<kStages - 2>();
    if (mistake != Mistake::kNoBarrier) ptx::sync_threads();
    copy(round + ahead);
    sum += ptx::load_shared<Word>(cell(round, kThreads - 1 - thread));
  }
  output[thread] = sum;
}

bool ring_works(Mistake mistake, uint64_t seed) {
  std::vector<Word> values(kRounds * kThreads);
  for (Word& value : values) value = static_cast<Word>(generator());
  std::vector<Word> expected(kThreads, 0);
  for (size_t i = 0; i < values.size(); ++i) expected[kThreads - 1 - i % kThreads] += values[i];
  const Buffer<Word> input(values);
  Buffer<Word> output(kThreads, 0);
  try {
    emulator::launch({1, kThreads, 4 * kStages * kThreads}, seed,
                     [&] { ring_kernel(input.data(), output.data(), mistake); });
  } catch (const Failure&) {
    return false;
  }
  return output.values() == expected;
}

void test_mistakes_show() {
  const std::pair<Mistake, const char*> mistakes[] = {{Mistake::kNoWait, "a missing wait"},
                                                      {Mistake::kNoBarrier, "a missing barrier"},
                                                      {Mistake::kTooFewStages, "a short ring"},
                                                      {Mistake::kOutOfShared, "an overrun"},
                                                      {Mistake::kOutOfGlobal, "a read past it"}};
  for (uint64_t seed = 0; seed < kSeeds; ++seed)
    check_equal("the right ring", ring_works(Mistake::kNone, seed), true);
  for (const auto& [mistake, name] : mistakes) {
    int caught = 0;
    for (uint64_t seed = 0; seed < kSeeds; ++seed) caught += !ring_works(mistake, seed);
    std::cout << name << " shows in " << caught << " of " << kSeeds << " seeds" << std::endl;
    check_equal((std::string("seeds that show ") + name).c_str(), caught > kSeeds / 4, true);
  }
}

// --- failures that say what is wrong -------------------------------------------------------------

void check_fails(const std::string& words, int threads, const std::function<void()>& kernel) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    try {
      emulator::launch({1, threads, 64}, seed, kernel);
    } catch (const Failure& failure) {
      if (std::string(failure.what()).find(words) != std::string::npos) continue;
      std::cout << failure.what() << ", expected " << words << std::endl;
      std::exit(1);
    }
    std::cout << "no failure, expected " << words << std::endl;
    std::exit(1);
  }
}

void test_failures() {
  check_fails("deadlock: 63 threads", 64, [] {
    if (ptx::thread_index() != 5) ptx::sync_threads();
  });
  check_fails("deadlock: 32 threads, one of them 0, wait for a barrier", 64, [] {
    if (ptx::thread_index() < 32) ptx::sync_barrier(1, 64);
  });
  check_fails("others of its warp at", 32,
              [] { ptx::thread_index() == 0 ? ptx::ballot(true) : ptx::shuffle_xor(1, 1); });
  check_fails("deadlock", 32, [] {
    if (ptx::thread_index() < 31) ptx::ballot(true);
  });
  check_fails("load_shared: bytes 64...68 of 64", 32,
              [] { ptx::load_shared<Word>(ptx::shared_memory() + 64); });
  check_fails("not aligned to 4", 32, [] { ptx::load_shared<Word>(ptx::shared_memory() + 2); });
  Buffer<Word> buffer(5, 0);
  check_fails("bytes 16...32 of a buffer of 20", 32,
              [&] { ptx::copy_async<16>(ptx::shared_memory(), buffer.data() + 4, true); });
  check_fails("not aligned", 32,
              [&] { ptx::copy_async<16>(ptx::shared_memory(), buffer.data() + 1, true); });
  check_fails("threads is one of", 64,
              [] { ptx::sync_barrier(1, ptx::thread_index() < 32 ? 64 : 96); });
}

// --- functions of ptx.cuh ------------------------------------------------------------------------

void test_warps_and_barriers() {
  Buffer<Word> output(4 * 64, 0);
  const auto kernel = [&] {
    const int thread = ptx::thread_index();
    const int index = static_cast<int>(ptx::block_index()) * 64 + thread;
    const Word others = ptx::shuffle_xor(index, 5);
    ptx::sync_warp();
    // The second warp waits for the first, which goes on at once.
    thread < 32 ? ptx::arrive_barrier(3, 64) : ptx::sync_barrier(3, 64);
    output.data()[index] = others + (ptx::ballot(thread % 3 == 0) & 1u << thread % 32 ? 1000 : 0);
  };
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    emulator::launch({4, 64, 0}, seed, kernel);
    for (int i = 0; i < 4 * 64; ++i)
      check_equal("shuffle and ballot", output.data()[i], (i ^ 5) + ((i % 64) % 3 == 0 ? 1000 : 0));
  }
}

// Matrices of random bits through shared memory into fragments: 16 rows, 8 columns, 256 bits.
template <bool kXor>
void test_mma() {
  const std::vector<int> a = random_signs(16 * 256), b = random_signs(16 * 256);
  std::vector<Word> words = packed(a, 256);
  const std::vector<Word> b_words = packed(b, 256);
  words.insert(words.end(), b_words.begin(), b_words.end());
  const Buffer<Word> input(words);
  Buffer<int32_t> output(16 * 16, 0);
  const auto kernel = [&] {
    const int lane = ptx::thread_index();
    for (int i = 0; i < 8; ++i) {  // row i * 4 + lane / 8 holds 8 words
      const int index = i * 32 + lane;
      ptx::store_shared(ptx::shared_memory() + 4 * index, input.data()[index]);
    }
    ptx::sync_threads();
    Word a[4], b[4];
    ptx::load_matrices(a, ptx::shared_memory() + 32 * (lane % 16) + 16 * (lane / 16));
    ptx::load_matrices(
        b, ptx::shared_memory() + 512 + 32 * (lane % 8 + lane / 16 * 8) + 16 * (lane / 8 % 2));
    for (int block = 0; block < 2; ++block) {
      int32_t sums[4] = {1, 1, 1, 1};
      ptx::mma<kXor>(sums, a, {b[2 * block], b[2 * block + 1]});
      for (int i = 0; i < 4; ++i)
        output.data()[(lane / 4 + 8 * (i / 2)) * 16 + 8 * block + 2 * (lane % 4) + i % 2] = sums[i];
    }
  };
  emulator::launch({1, 32, 1024}, 1, kernel);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 16; ++column) {
      int32_t expected = 1;
      for (int k = 0; k < 256; ++k) {
        const int x = a[row * 256 + k], y = b[column * 256 + k];
        expected += kXor ? x != y : x > 0 && y > 0;
      }
      check_equal("mma", output.data()[row * 16 + column], expected);
    }
}

}  // namespace

int main() {
  test_mistakes_show();
  test_failures();
  test_warps_and_barriers();
  test_mma<true>();
  test_mma<false>();
  std::cout << "the emulator works" << std::endl;
  return 0;
}
