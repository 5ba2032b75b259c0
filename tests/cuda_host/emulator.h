// Runs CUDA kernels on the host, to test them where there is no GPU.
//
// A kernel's source is compiled by a host compiler; all that it does beyond plain C++ goes through
// "cuda/ptx.cuh", and the one of this folder does the same on an emulated block. Each thread of a
// block is a fiber. A scheduler lets them take turns in an order that follows from a seed, and lets
// asynchronous work (copies and the like) end at any moment between its issue and the wait for it:
// a kernel that misses a barrier or a wait computes something else in some seed. Until it ends,
// the destination of such work holds garbage, and so does shared memory at the start. Accesses out
// of bounds or misaligned, lanes of a warp that diverge in a collective, and deadlocks are
// Failures.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <typeindex>
#include <unordered_set>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN
#endif
#endif
#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace bnn_ext::emulator {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Failure(message.str());
}

// A function of ptx that does nothing, to see that tests notice.
inline std::string& left_out() {
  static std::string name;
  return name;
}

// --- global memory ------------------------------------------------------------------------------

inline std::map<uintptr_t, size_t>& global_ranges() {  // begin -> bytes
  static std::map<uintptr_t, size_t> ranges;
  return ranges;
}

// An array that a kernel may access: as aligned as torch's, and of exactly its size, so that
// AddressSanitizer sees where plain loads and stores leave it.
template <typename T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : size_(values.size()) {
    data_.reset(static_cast<T*>(::operator new(bytes() + 1, kAlignment)));
    std::copy(values.begin(), values.end(), data_.get());
    global_ranges()[reinterpret_cast<uintptr_t>(data_.get())] = bytes();
  }
  Buffer(size_t size, T value) : Buffer(std::vector<T>(size, value)) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { global_ranges().erase(reinterpret_cast<uintptr_t>(data_.get())); }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::vector<T> values() const { return std::vector<T>(data(), data() + size_); }

 private:
  static constexpr std::align_val_t kAlignment{256};
  struct Delete {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };

  size_t bytes() const { return size_ * sizeof(T); }

  std::unique_ptr<T, Delete> data_;
  size_t size_;
};

inline void check_global(const void* pointer, size_t bytes, const char* what) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  const auto next = global_ranges().upper_bound(begin);
  if (begin % bytes != 0) fail(what, ": ", bytes, " bytes of global memory that are not aligned");
  if (next == global_ranges().begin()) fail(what, ": before all global memory");
  const auto& [start, size] = *std::prev(next);
  if (begin + bytes > start + size)
    fail(what, ": bytes ", begin - start, "...", begin - start + bytes, " of a buffer of ", size);
}

// --- a block ------------------------------------------------------------------------------------

using Ticket = uint64_t;  // of asynchronous work

struct Shape {
  unsigned blocks;
  int threads;
  uint32_t shared_bytes;
};

class Block;
inline Block*& current_block() {
  static Block* block = nullptr;
  return block;
}

class Block {
 public:
  // Shared memory does not begin at address 0, so that offsets are not taken for addresses.
  static constexpr uint32_t kSharedBase = 1024;
  static constexpr int kWarp = 32;
  static constexpr int kBarriers = 16;

  struct Thread {
    int index;
    const char* waits_for = nullptr;
    std::function<bool()> ready;
    bool ended = false;
    // Of copy_async: the group that is still open, and those that were committed.
    std::vector<Ticket> copies;
    std::deque<std::vector<Ticket>> copy_groups;
    // What it wrote to shared memory since it last published its writes.
    std::vector<std::pair<uint32_t, uint32_t>> writes;  // address, bytes

    std::unique_ptr<char[]> stack;
    ucontext_t context;
    void* fake_stack = nullptr;
  };

  Block(const Shape& shape, unsigned index, const std::function<void()>& kernel, uint64_t seed)
      : shape_(shape), index_(index), kernel_(kernel), random_(seed) {
    shared_.resize(shape.shared_bytes + kSharedAlignment);
    const auto start = reinterpret_cast<uintptr_t>(shared_.data());
    shared_begin_ = shared_.data() + (kSharedAlignment - start % kSharedAlignment);
    scramble(kSharedBase, shape.shared_bytes);
    // From one extreme, where threads follow each other closely and copies end at once, to the
    // other, where one thread runs as far ahead as barriers let it and copies end when waited for.
    const double chances[] = {1, 0.3, 0.03, 0.003, 0};
    turn_chance_ = chances[random_() % 4];
    yield_chance_ = chances[1 + random_() % 4];
    completion_chance_ = chances[random_() % 5];
  }

  ~Block() {
    for (Thread& thread : threads_)
      if (thread.stack) spare_stacks().push_back(std::move(thread.stack));
  }

  void run() {
    current_block() = this;
    threads_.resize(shape_.threads);
    for (int i = 0; i < shape_.threads; ++i) start(threads_[i], i);
    for (int live = shape_.threads; live > 0;) {
      while (!pending_.empty() && happens(completion_chance_)) complete_any();
      Thread* next = choose();
      if (next == nullptr && pending_.empty()) fail("deadlock: ", who_waits());
      if (next == nullptr) {
        complete_any();
        continue;
      }
      resume(*next);
      if (!failure_.empty()) throw Failure("block " + std::to_string(index_) + ", " + failure_);
      live -= next->ended;
    }
    current_block() = nullptr;
  }

  const Shape& shape() const { return shape_; }
  unsigned index() const { return index_; }
  Thread& thread() { return *running_; }

  // Lets other threads run until `ready`, called at any time, says that this one may go on.
  template <typename Ready>
  void wait_until(const char* what, const Ready& ready) {
    maybe_yield();
    while (!ready()) {
      running_->waits_for = what;
      running_->ready = std::cref(ready);
      suspend();
    }
  }

  // Any thread may be interrupted between two accesses.
  void maybe_yield() {
    if (!happens(yield_chance_)) return;
    running_->ready = [] { return true; };
    suspend();
  }

  // `bytes` of shared memory at an address.
  unsigned char* shared(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what) {
    if (address < kSharedBase || address - kSharedBase + bytes > shape_.shared_bytes)
      fail(what, ": bytes ", int64_t{address} - kSharedBase, "...",
           int64_t{address} - kSharedBase + bytes, " of ", shape_.shared_bytes,
           " of shared memory");
    if (address % alignment != 0) fail(what, ": shared address not aligned to ", alignment);
    return shared_begin_ + (address - kSharedBase);
  }

  // Garbage, in the place of what is being written asynchronously.
  void scramble(uint32_t address, uint32_t bytes) {
    unsigned char* memory = shared(address, bytes, 1, "garbage");
    for (uint32_t i = 0; i < bytes; ++i) memory[i] = static_cast<unsigned char>(random_());
  }

  // --- writes that parts of the machine with another view of memory do not see yet

  void write(Thread& thread, uint32_t address, uint32_t bytes) {
    thread.writes.emplace_back(address, bytes);
    for (uint32_t i = 0; i < bytes; i += 4) unpublished_.insert(address + i);
  }

  void publish(Thread& thread) {
    for (const auto& [address, bytes] : thread.writes)
      for (uint32_t i = 0; i < bytes; i += 4) unpublished_.erase(address + i);
    thread.writes.clear();
  }

  void check_published(uint32_t address, uint32_t bytes, const char* what) const {
    for (uint32_t i = 0; i < bytes; i += 4)
      if (unpublished_.count(address + i)) fail(what, ": reads what no fence has published");
  }

  // What else a group of threads needs to remember.
  template <typename State>
  State& state(int group) {
    std::shared_ptr<void>& state = states_[{std::type_index(typeid(State)), group}];
    if (state == nullptr) state = std::make_shared<State>();
    return *static_cast<State*>(state.get());
  }

  // --- asynchronous work

  // Work that will be done at any moment, at the latest when somebody finishes the ticket.
  Ticket submit(std::function<void()> work) {
    pending_.emplace(++last_ticket_, std::move(work));
    return last_ticket_;
  }

  void finish(Ticket ticket) {
    const auto found = pending_.find(ticket);
    if (found != pending_.end()) complete(found);
  }

  // --- barriers of `threads` threads

  void arrive(int barrier, int threads) {
    maybe_yield();
    arrive_at(barrier, threads);
  }

  void sync(int barrier, int threads) {
    maybe_yield();
    const Meeting& meeting = arrive_at(barrier, threads);
    // The last one to arrive has ended the round.
    const uint64_t next = meeting.round + (meeting.arrived > 0 ? 1 : 0);
    wait_until("a barrier", [&] { return meeting.round >= next; });
  }

  // --- collectives

  // Brings `threads` neighbouring threads (a warp, say) together, each with its `mine`; the last
  // calls perform(all of theirs, in order). All must be in the collective of the same name.
  template <typename Mine>
  void collective(const char* name, int threads, Mine& mine, void (*perform)(Mine* const* all)) {
    maybe_yield();
    Meeting& meeting = collectives_[{threads, running_->index / threads}];
    if (meeting.arrived > 0 && std::strcmp(meeting.name, name) != 0)
      fail("thread ", running_->index, " is at ", name, ", others of its warp at ", meeting.name);
    meeting.name = name;
    meeting.all.resize(threads);
    meeting.all[running_->index % threads] = &mine;
    const uint64_t round = meeting.round;
    if (++meeting.arrived < threads) {
      wait_until(name, [&] { return meeting.round != round; });
      return;
    }
    std::vector<Mine*> all;
    for (void* one : meeting.all) all.push_back(static_cast<Mine*>(one));
    perform(all.data());
    meeting.end();
  }

 private:
  static constexpr size_t kStackBytes = 128 * 1024;
  static constexpr uintptr_t kSharedAlignment = 1024;

  struct Meeting {
    int threads = 0;
    int arrived = 0;
    uint64_t round = 0;
    const char* name = nullptr;
    std::vector<void*> all;

    void end() {
      arrived = 0;
      ++round;
    }
  };

  using Pending = std::map<Ticket, std::function<void()>>;

  Meeting& arrive_at(int barrier, int threads) {
    if (barrier < 0 || barrier >= kBarriers) fail("there is no barrier ", barrier);
    if (threads % kWarp != 0) fail("barrier ", barrier, " of ", threads, " threads: no warps");
    Meeting& meeting = barriers_[barrier];
    if (meeting.arrived > 0 && meeting.threads != threads)
      fail("barrier ", barrier, " of ", threads, " threads is one of ", meeting.threads);
    meeting.threads = threads;
    if (++meeting.arrived == threads) meeting.end();
    return meeting;
  }

  bool happens(double chance) { return static_cast<double>(random_() % 1024) < chance * 1024; }

  void complete(Pending::iterator which) {
    const std::function<void()> work = std::move(which->second);
    pending_.erase(which);
    work();
  }

  void complete_any() {
    const Ticket first = pending_.begin()->first, last = pending_.rbegin()->first;
    complete(pending_.lower_bound(first + random_() % (last - first + 1)));
  }

  // The first thread that can go on, counted from a favourite that changes now and then.
  Thread* choose() {
    if (happens(turn_chance_)) favourite_ = random_() % threads_.size();
    for (size_t i = 0; i < threads_.size(); ++i) {
      Thread& thread = threads_[(favourite_ + i) % threads_.size()];
      if (!thread.ended && thread.ready()) return &thread;
    }
    favourite_ = random_() % threads_.size();
    return nullptr;
  }

  std::string who_waits() const {
    std::map<std::string, std::vector<int>> waiting;
    for (const Thread& thread : threads_)
      if (!thread.ended) waiting[thread.waits_for].push_back(thread.index);
    std::ostringstream text;
    for (const auto& [what, threads] : waiting)
      text << threads.size() << " threads, one of them " << threads.front() << ", wait for " << what
           << "; ";
    return text.str() + "the others have ended";
  }

  // --- fibers

  // Of blocks that have ended: new ones take long under AddressSanitizer.
  static std::vector<std::unique_ptr<char[]>>& spare_stacks() {
    static std::vector<std::unique_ptr<char[]>> stacks;
    return stacks;
  }

  void start(Thread& thread, int index) {
    thread.index = index;
    thread.ready = [] { return true; };
    if (spare_stacks().empty()) spare_stacks().emplace_back(new char[kStackBytes]);
    thread.stack = std::move(spare_stacks().back());
    spare_stacks().pop_back();
#ifdef EMULATOR_ASAN
    ASAN_UNPOISON_MEMORY_REGION(thread.stack.get(), kStackBytes);  // of functions that never ended
#endif
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, &Block::enter, 0);
  }

  static void enter() {
    Block& block = *current_block();
    block.switched(nullptr);
    try {
      block.kernel_();
    } catch (const std::exception& error) {
      block.failure_ = "thread " + std::to_string(block.running_->index) + ": " + error.what();
    }
    block.running_->ended = true;
    block.suspend();
  }

  void resume(Thread& thread) {
    running_ = &thread;
#ifdef EMULATOR_ASAN
    void* fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, thread.stack.get(), kStackBytes);
#endif
    swapcontext(&scheduler_, &thread.context);
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  void suspend() {
    Thread& thread = *running_;
#ifdef EMULATOR_ASAN
    void** fake_stack = thread.ended ? nullptr : &thread.fake_stack;
    __sanitizer_start_switch_fiber(fake_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
    swapcontext(&thread.context, &scheduler_);
    switched(thread.fake_stack);
  }

  void switched([[maybe_unused]] void* fake_stack) {
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  const Shape shape_;
  const unsigned index_;
  const std::function<void()>& kernel_;
  std::mt19937_64 random_;
  double turn_chance_, yield_chance_, completion_chance_;

  std::vector<unsigned char> shared_;
  unsigned char* shared_begin_;
  Meeting barriers_[kBarriers];
  std::map<std::pair<int, int>, Meeting> collectives_;  // by (threads, index of the group)
  Pending pending_;
  Ticket last_ticket_ = 0;
  std::unordered_set<uint32_t> unpublished_;  // words of shared memory
  std::map<std::pair<std::type_index, int>, std::shared_ptr<void>> states_;

  std::vector<Thread> threads_;
  Thread* running_ = nullptr;
  size_t favourite_ = 0;
  std::string failure_;
  ucontext_t scheduler_;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
};

inline Block& block() { return *current_block(); }

// Runs the blocks of a grid one after the other, in random order; `kernel` is what each thread
// does.
inline void launch(const Shape& shape, uint64_t seed, const std::function<void()>& kernel) {
  std::vector<unsigned> order(shape.blocks);
  for (unsigned i = 0; i < shape.blocks; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  for (const unsigned index : order) Block(shape, index, kernel, seed * 1000003 + index).run();
}

}  // namespace bnn_ext::emulator
