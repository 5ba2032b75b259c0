// What csrc/cuda/ptx.cuh offers, in plain C++ on an emulated block.
#pragma once

#include <cmath>

#include "common/bits.h"
#include "emulator.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

namespace bnn_ext::cuda::ptx {

using emulator::block;
using emulator::check_global;

// --- threads ------------------------------------------------------------------------------------

inline int thread_index() { return block().thread().index; }
inline unsigned block_index() { return block().index(); }
inline unsigned grid_size() { return block().shape().blocks; }

inline void sync_threads() {
  if (emulator::left_out() != "sync_threads") block().sync(0, block().shape().threads);
}
inline void sync_barrier(int barrier, int threads) {
  if (emulator::left_out() != "sync_barrier") block().sync(barrier, threads);
}
inline void arrive_barrier(int barrier, int threads) { block().arrive(barrier, threads); }

// --- warps --------------------------------------------------------------------------------------

inline void sync_warp() {
  int nothing = 0;
  block().collective<int>("sync_warp", 32, nothing, [](int* const*) {});
}

inline uint32_t shuffle_xor(uint32_t value, int mask) {
  struct Lane {
    uint32_t value;
    int mask;
    uint32_t result;
  } lane = {value, mask, 0};
  block().collective<Lane>("shuffle_xor", 32, lane, [](Lane* const* warp) {
    for (int i = 0; i < 32; ++i) warp[i]->result = warp[i ^ warp[i]->mask]->value;
  });
  return lane.result;
}

inline uint32_t ballot(bool bit) {
  struct Lane {
    bool bit;
    uint32_t result;
  } lane = {bit, 0};
  block().collective<Lane>("ballot", 32, lane, [](Lane* const* warp) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= uint32_t{warp[i]->bit} << i;
    for (int i = 0; i < 32; ++i) warp[i]->result = bits;
  });
  return lane.result;
}

// --- memory -------------------------------------------------------------------------------------

using SharedAddress = uint32_t;

inline SharedAddress shared_memory() { return emulator::Block::kSharedBase; }

template <typename T>
T load_shared(SharedAddress address) {
  block().maybe_yield();
  T value;
  std::memcpy(&value, block().shared(address, sizeof(T), sizeof(T), "load_shared"), sizeof(T));
  return value;
}

template <typename T>
void store_shared(SharedAddress address, const T& value) {
  block().maybe_yield();
  std::memcpy(block().shared(address, sizeof(T), sizeof(T), "store_shared"), &value, sizeof(T));
  block().write(block().thread(), address, sizeof(T));
}

template <int count>
void load_words(const void* from, Word (&words)[count]) {
  check_global(from, sizeof(words), "load_words");
  std::memcpy(words, from, sizeof(words));
}

template <typename T, int count>
void store_vector(T* pointer, const T (&values)[count]) {
  check_global(pointer, sizeof(values), "store_vector");
  std::memcpy(pointer, values, sizeof(values));
}

template <int bytes>
void copy_async(SharedAddress destination, const void* source, bool valid) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  block().maybe_yield();
  unsigned char* memory = block().shared(destination, bytes, bytes, "copy_async");
  if (valid) check_global(source, bytes, "copy_async");
  block().scramble(destination, bytes);
  emulator::Block::Thread& thread = block().thread();
  thread.copies.push_back(block().submit([=, &thread] {
    if (valid)
      std::memcpy(memory, source, bytes);
    else
      std::memset(memory, 0, bytes);
    block().write(thread, destination, bytes);
  }));
}

inline void copy_async_commit() {
  emulator::Block::Thread& thread = block().thread();
  thread.copy_groups.push_back(std::move(thread.copies));
  thread.copies.clear();
}

template <int groups>
void copy_async_wait() {
  if (emulator::left_out() == "copy_async_wait") return;
  emulator::Block::Thread& thread = block().thread();
  for (; thread.copy_groups.size() > groups; thread.copy_groups.pop_front())
    for (const emulator::Ticket copy : thread.copy_groups.front()) block().finish(copy);
}

// --- tensor cores -------------------------------------------------------------------------------

inline void load_matrices(Word (&words)[4], SharedAddress row) {
  struct Lane {
    Word (*words)[4];
    SharedAddress row;
  } lane = {&words, row};
  block().collective<Lane>("load_matrices", 32, lane, [](Lane* const* warp) {
    for (int matrix = 0; matrix < 4; ++matrix)
      for (int i = 0; i < 32; ++i) {
        const SharedAddress row = warp[8 * matrix + i / 4]->row;
        const unsigned char* memory = block().shared(row, 16, 16, "load_matrices");
        std::memcpy(&(*warp[i]->words)[matrix], memory + 4 * (i % 4), 4);
      }
  });
}

// Both forms, so that a test on the host runs both.
template <bool kXor>
void mma(int32_t (&sums)[4], const Word (&a)[4], const Word (&b)[2]) {
  struct Lane {
    int32_t (*sums)[4];
    const Word (*a)[4];
    const Word (*b)[2];
  } lane = {&sums, &a, &b};
  block().collective<Lane>(kXor ? "mma xor" : "mma and", 32, lane, [](Lane* const* warp) {
    Word a[16][8], b[8][8];  // [row or column][word]
    for (int i = 0; i < 32; ++i) {
      for (int j = 0; j < 4; ++j) a[i / 4 + 8 * (j % 2)][i % 4 + 4 * (j / 2)] = (*warp[i]->a)[j];
      for (int j = 0; j < 2; ++j) b[i / 4][i % 4 + 4 * j] = (*warp[i]->b)[j];
    }
    for (int i = 0; i < 32; ++i)
      for (int j = 0; j < 4; ++j)
        for (int k = 0; k < 8; ++k) {
          const Word x = a[i / 4 + 8 * (j / 2)][k], y = b[2 * (i % 4) + j % 2][k];
          (*warp[i]->sums)[j] += __builtin_popcount(kXor ? x ^ y : x & y);
        }
  });
}

// --- bytes --------------------------------------------------------------------------------------

inline Word permute_bytes(Word low, Word high, unsigned chosen) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  Word result = 0;
  for (int i = 0; i < 4; ++i) result |= Word(bytes >> (chosen >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}

// --- floats, rounded once -----------------------------------------------------------------------

inline float multiply(float x, float y) { return x * y; }
inline float add(float x, float y) { return x + y; }
inline float multiply_add(float x, float y, float z) { return std::fma(x, y, z); }
inline float divide(float x, float y) { return x / y; }

}  // namespace bnn_ext::cuda::ptx
