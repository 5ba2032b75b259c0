// What csrc/cuda/ptx_sm90.cuh offers, in plain C++ on an emulated block.
//
// The warps of a warpgroup run their part of a wgmma independently, as nothing says that hardware
// does not. Descriptors and swizzle are decoded from their bits.
#pragma once

#include "cuda/ptx.cuh"

namespace bnn_ext::cuda::ptx {

// --- mbarrier -----------------------------------------------------------------------------------

constexpr uint32_t kMbarrierBytes = 8;

struct Mbarrier {
  uint16_t arrivals;   // of a phase
  uint16_t missing;    // of these, in this phase
  int32_t bytes : 31;  // announced, and not there yet
  uint32_t parity : 1;
};
static_assert(sizeof(Mbarrier) == kMbarrierBytes);

inline Mbarrier& mbarrier(SharedAddress address) {
  return *reinterpret_cast<Mbarrier*>(block().shared(address, 8, 8, "mbarrier"));
}

inline void mbarrier_end_phase_if_all_came(Mbarrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.arrivals;
  barrier.parity ^= 1;
}

inline void mbarrier_init(SharedAddress barrier, uint32_t arrivals) {
  block().maybe_yield();
  mbarrier(barrier) = {static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals), 0, 0};
  block().write(block().thread(), barrier, kMbarrierBytes);
}

inline void mbarrier_arrive_expect(SharedAddress address, uint32_t bytes) {
  block().maybe_yield();
  Mbarrier& barrier = mbarrier(address);
  if (barrier.missing == 0) emulator::fail("mbarrier: more arrivals than its phase has");
  barrier.bytes += static_cast<int32_t>(bytes);
  --barrier.missing;
  mbarrier_end_phase_if_all_came(barrier);
}

inline void mbarrier_arrive(SharedAddress barrier) { mbarrier_arrive_expect(barrier, 0); }

inline void mbarrier_wait(SharedAddress barrier, uint32_t parity) {
  if (emulator::left_out() == "mbarrier_wait") return;
  block().wait_until("an mbarrier", [&] { return mbarrier(barrier).parity != parity; });
}

inline void fence_proxy_async() {
  if (emulator::left_out() != "fence_proxy_async") block().publish(block().thread());
}

// --- TMA ----------------------------------------------------------------------------------------

struct TensorMap {
  const Word* words;
  uint64_t sizes[2];  // words, rows
  uint64_t row_bytes;
  uint32_t box[2];
};

constexpr SharedAddress swizzled_128(SharedAddress address) {
  return address ^ (address >> 7 & 7) << 4;
}

inline void tma_load_2d(SharedAddress destination, const TensorMap& map, int32_t x, int32_t y,
                        SharedAddress barrier) {
  const uint32_t box_row_bytes = map.box[0] * 4, bytes = box_row_bytes * map.box[1];
  if (map.row_bytes % 16 != 0 || reinterpret_cast<uintptr_t>(map.words) % 16 != 0)
    emulator::fail("tma_load_2d: rows are not aligned to 16 bytes");
  if (box_row_bytes != 128 || map.box[1] > 256) emulator::fail("tma_load_2d: no box like this");
  block().maybe_yield();
  block().shared(destination, bytes, 128, "tma_load_2d");
  block().check_published(barrier, kMbarrierBytes, "tma_load_2d");
  block().scramble(destination, bytes);
  block().submit([=, &map] {
    for (uint32_t i = 0; i < bytes; i += 4) {
      const int64_t row = y + int64_t{i / box_row_bytes}, word = x + int64_t{i % box_row_bytes / 4};
      const bool valid = row >= 0 && row < static_cast<int64_t>(map.sizes[1]) && word >= 0 &&
                         word < static_cast<int64_t>(map.sizes[0]);
      const Word* source = map.words + row * static_cast<int64_t>(map.row_bytes / 4) + word;
      if (valid) check_global(source, 4, "tma_load_2d");
      const Word value = valid ? *source : 0;
      std::memcpy(block().shared(swizzled_128(destination + i), 4, 4, "tma_load_2d"), &value, 4);
    }
    mbarrier(barrier).bytes -= static_cast<int32_t>(bytes);
    mbarrier_end_phase_if_all_came(mbarrier(barrier));
  });
}

// --- registers ----------------------------------------------------------------------------------

template <int kRegisters>
void decrease_registers() {
  int nothing = 0;
  block().collective<int>("setmaxnreg", 128, nothing, [](int* const*) {});
}

template <int kRegisters>
void increase_registers() {
  decrease_registers<kRegisters>();
}

// --- wgmma --------------------------------------------------------------------------------------

// Of a warp.
struct Wgmmas {
  bool fenced = false;
  std::vector<emulator::Ticket> begun;  // since the last commit
  std::deque<std::vector<emulator::Ticket>> groups;

  static Wgmmas& mine() { return block().state<Wgmmas>(block().thread().index / 32); }
};

// Runs `perform` once for the whole warp.
template <typename Perform>
void once_per_warp(const char* name, const Perform& perform) {
  const Perform* mine = &perform;
  block().collective<const Perform*>(name, 32, mine,
                                     [](const Perform** const* all) { (**all[0])(); });
}

inline void wgmma_fence() {
  if (emulator::left_out() == "wgmma_fence") return;
  once_per_warp("wgmma_fence", [] { Wgmmas::mine().fenced = true; });
}

inline void wgmma_commit() {
  once_per_warp("wgmma_commit", [] {
    Wgmmas& warp = Wgmmas::mine();
    warp.groups.push_back(std::move(warp.begun));
    warp.begun.clear();
  });
}

template <int kPending>
void wgmma_wait() {
  if (emulator::left_out() == "wgmma_wait") return;
  once_per_warp("wgmma_wait", [] {
    Wgmmas& warp = Wgmmas::mine();
    for (; warp.groups.size() > kPending; warp.groups.pop_front())
      for (const emulator::Ticket ticket : warp.groups.front()) block().finish(ticket);
    if (kPending == 0) warp.fenced = false;
  });
}

// The 256 bits of a row that a descriptor leads to.
struct WgmmaRow {
  Word words[8];
};

inline WgmmaRow wgmma_row(uint64_t descriptor, int row) {
  const auto field = [&](int first, int bits) {
    return static_cast<uint32_t>(descriptor >> first & ((uint64_t{1} << bits) - 1));
  };
  if (field(62, 2) != 1 || field(49, 3) != 0)
    emulator::fail("wgmma: only the 128-byte swizzle from base 0 is emulated");
  const SharedAddress start = (field(0, 14) << 4) + row / 8 * (field(32, 14) << 4) + row % 8 * 128;
  WgmmaRow bits;
  for (int half = 0; half < 2; ++half) {
    const SharedAddress address = swizzled_128(start + 16 * half);
    block().check_published(address, 16, "wgmma");
    std::memcpy(bits.words + 4 * half, block().shared(address, 16, 16, "wgmma"), 16);
  }
  return bits;
}

template <int blocks>
void wgmma(int32_t (&sums)[blocks][4], uint64_t a, uint64_t b, int32_t add) {
  struct Lane {
    int32_t (*sums)[4];
    uint64_t a, b;
    int32_t add;
  } lane = {sums, a, b, add};
  block().collective<Lane>("wgmma", 32, lane, [](Lane* const* warp) {
    Wgmmas& mine = Wgmmas::mine();
    if (!mine.fenced) emulator::fail("wgmma without a fence before it");
    std::vector<Lane> lanes;
    for (int i = 0; i < 32; ++i) {
      lanes.push_back(*warp[i]);
      if (warp[i]->a != warp[0]->a || warp[i]->b != warp[0]->b || warp[i]->add != warp[0]->add)
        emulator::fail("wgmma: lanes differ");
    }
    const int first_row = block().thread().index / 32 % 4 * 16;
    std::vector<emulator::Ticket> earlier = mine.begun;
    for (const auto& group : mine.groups) earlier.insert(earlier.end(), group.begin(), group.end());
    mine.begun.push_back(block().submit([=] {
      for (const emulator::Ticket ticket : earlier) block().finish(ticket);
      WgmmaRow a[16], b[8 * blocks];
      for (int i = 0; i < 16; ++i) a[i] = wgmma_row(lanes[0].a, first_row + i);
      for (int i = 0; i < 8 * blocks; ++i) b[i] = wgmma_row(lanes[0].b, i);
      for (int l = 0; l < 32; ++l)
        for (int t = 0; t < blocks; ++t)
          for (int i = 0; i < 4; ++i) {
            int32_t sum = lanes[l].add ? lanes[l].sums[t][i] : 0;
            for (int k = 0; k < 8; ++k)
              sum += __builtin_popcount(a[l / 4 + i / 2 * 8].words[k] &
                                        b[8 * t + l % 4 * 2 + i % 2].words[k]);
            lanes[l].sums[t][i] = sum;
          }
    }));
  });
}

}  // namespace bnn_ext::cuda::ptx
