// Runs CUDA kernels on the CPU to prove their logic: one fiber per CUDA thread, blocks one after the other. A barrier
// that some threads miss, a lane that has left, a write next to shared memory is a Fault that names kernel, block and
// thread. Shared memory starts as garbage. Between barriers threads run in an order that seed_order chooses, so that a
// missing barrier changes results; a build with FASTLIF_RACE_CHECK finds it by itself (race_check.h).
//
// It cannot show what depends on real concurrency: blocks that wait for each other, the order of memory, timing.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "fiber.h"
#include "race_check.h"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;

namespace fastlif::emulation {

constexpr int kWarp = 32, kMaxThreads = 1024, kMaxSharedBytes = 227 * 1024;

class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Where a barrier stands in the source: all threads must meet at the same one.
struct Site {
  const char *operation = "", *file = "";
  int line = 0;
  bool operator==(const Site& other) const {
    return line == other.line && !std::strcmp(operation, other.operation) && !std::strcmp(file, other.file);
  }
  std::string text() const { return std::string(operation) + " (" + file + ":" + std::to_string(line) + ")"; }
};

inline std::string triple(unsigned x, unsigned y, unsigned z) {
  return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}

class Machine {
 public:
  // Runs body once per thread of the grid. Launches wait for each other.
  void launch(const std::function<std::string()>& name, const std::function<void()>& body, dim3 grid, dim3 block,
              size_t shared_bytes);

  // 0 runs threads and blocks in ascending order; any other seed shuffles them.
  void seed_order(uint64_t seed) { seed_ = seed; }

  unsigned char* shared_memory() { return shared_; }
  bool in_shared_memory(const void* p, size_t bytes) const { return p >= shared_ && end(p, bytes) <= shared_end_; }
  bool near_shared_memory(const void* p) const { return end(p, kGuard) >= shared_ && p < shared_end_ + kGuard; }
  bool on_a_stack(const void* p) const { return stacks_.contains(p); }
  int current_thread() const { return current_; }
  std::string index_of(int thread) const {
    const uint3& index = threads_[size_t(thread)].index;
    return triple(index.x, index.y, index.z);
  }

  // The running thread waits for the other lanes of its warp.
  void wait_for_warp(const Site& site) { wait(State::at_warp, site); }

  // The running thread waits for its block. Returns the OR of the bits that all threads brought.
  int wait_for_block(const Site& site, int bits = 0) {
    const races::Pause pause;
    block_bits_ |= bits;
    wait(State::at_block, site);
    return released_bits_;
  }

  // Shows `value` to the warp; returns use(what lanes 0 to 31 showed, own lane).
  template <class T, class Use>
  auto exchange(const Site& site, const T& value, const Use& use) {
    static_assert(sizeof(T) <= kExchangeBytes, "too large to exchange");
    const races::Pause pause;
    const int lane = current_ % kWarp;
    const unsigned turn = threads_[size_t(current_)].n_exchanges++ & 1;
    T* values = reinterpret_cast<T*>(exchanges_[size_t(current_ / kWarp)][turn].bytes);
    values[lane] = value;
    wait(State::at_warp, site);
    return use(static_cast<const T*>(values), lane);
  }

  // Ends the launch with a fault of the running thread, without unwinding its stack.
  [[noreturn]] void abandon(const std::string& what) {
    races::follow(false);
    thrown_ = std::make_exception_ptr(Fault("thread " + index_of(current_) + " " + what + last_site()));
    threads_[size_t(current_)].fiber.switch_to(scheduler_);
    std::abort();
  }

 private:
  enum class State { ready, at_warp, at_block, finished };
  struct Thread {
    Fiber fiber;
    uint3 index{};
    State state = State::ready;
    Site site;
    unsigned n_exchanges = 0;
  };
  static constexpr size_t kExchangeBytes = 32;  // per lane
  struct alignas(16) Exchange {
    unsigned char bytes[kExchangeBytes * kWarp];
  };
  static constexpr size_t kGuard = 1024;  // bytes on both sides of shared memory that must stay as they are
  static constexpr unsigned char kGuardByte = 0xA5, kGarbage = 0xCD;

  std::mutex busy_;
  std::vector<Thread> threads_;
  std::vector<std::array<Exchange, 2>> exchanges_;  // per warp; in turn, as a lane may be one exchange ahead
  Stacks stacks_;
  Fiber scheduler_;
  std::vector<unsigned char> memory_;
  unsigned char *shared_ = nullptr, *shared_end_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr thrown_;
  std::vector<int> ready_warps_;
  int current_ = 0, n_threads_ = 0, block_bits_ = 0, released_bits_ = 0;
  uint64_t seed_ = 0, random_ = 0;
  bool restart_fibers_ = true;

  static void run_fiber();
  void prepare(dim3 block, size_t shared_bytes);
  void run_block();
  void run_warp(int warp);
  bool release_warp(int warp);
  bool release_block();
  void check_guards() const;
  void resume(int thread);
  void wait(State state, const Site& site);
  unsigned random_below(size_t limit);
  [[noreturn]] void fail(int thread, const std::string& what) const;

  static const unsigned char* end(const void* p, size_t bytes) { return static_cast<const unsigned char*>(p) + bytes; }
  std::string last_site() const {
    const Site& site = threads_[size_t(current_)].site;
    return site.line ? "; it comes from " + site.text() : "";
  }
};

inline Machine machine;

inline void Machine::fail(int thread, const std::string& what) const {
  throw Fault("thread " + index_of(thread) + " " + what);
}

inline unsigned Machine::random_below(size_t limit) {
  random_ += 0x9e3779b97f4a7c15u;  // splitmix64
  uint64_t z = (random_ ^ random_ >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return seed_ ? unsigned(((z >> 32) * limit) >> 32) : 0;
}

// What a fiber runs: its thread of one block after the other.
inline void Machine::run_fiber() {
  Thread& self = machine.threads_[size_t(machine.current_)];
  self.fiber.arrived(machine.scheduler_);
  for (;;) {
    try {
      races::follow(true);
      (*machine.body_)();
      races::follow(false);
    } catch (...) {
      races::follow(false);
      machine.thrown_ = std::current_exception();
    }
    self.state = State::finished;
    self.fiber.switch_to(machine.scheduler_);
  }
}

inline void Machine::wait(State state, const Site& site) {
  const races::Pause pause;
  Thread& self = threads_[size_t(current_)];
  self.state = state, self.site = site;
  self.fiber.switch_to(scheduler_);
}

inline void Machine::resume(int thread) {
  current_ = thread;
  threadIdx = threads_[size_t(thread)].index;
  scheduler_.switch_to(threads_[size_t(thread)].fiber);
  if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
}

// Runs the ready lanes of a warp, each to its next barrier.
inline void Machine::run_warp(int warp) {
  const unsigned first = random_below(kWarp), stride = 2 * random_below(kWarp / 2) + 1;
  for (unsigned i = 0; i < kWarp; ++i) {
    const int thread = warp * kWarp + int((first + i * stride) % kWarp);
    if (threads_[size_t(thread)].state == State::ready) resume(thread);
  }
}

// True when the warp can go on: all its lanes have met. False when it has finished or waits for its block.
inline bool Machine::release_warp(int warp) {
  const int begin = warp * kWarp;
  int waiting = -1;
  for (int i = begin; i < begin + kWarp; ++i)
    if (threads_[size_t(i)].state == State::at_warp) waiting = i;
  if (waiting < 0) return false;
  const Site& site = threads_[size_t(waiting)].site;
  for (int i = begin; i < begin + kWarp; ++i) {
    const Thread& other = threads_[size_t(i)];
    if (other.state == State::finished) fail(i, "has exited while its warp waits at " + site.text());
    if (!(other.site == site)) fail(i, "waits at " + other.site.text() + " while its warp waits at " + site.text());
  }
  for (int i = begin; i < begin + kWarp; ++i) threads_[size_t(i)].state = State::ready;
  races::warp_met(warp);
  return true;
}

// Called when no warp can run. False when all threads have finished.
inline bool Machine::release_block() {
  int waiting = -1;
  for (int i = 0; i < n_threads_; ++i)
    if (threads_[size_t(i)].state == State::at_block) waiting = i;
  if (waiting < 0) return false;
  const Site& site = threads_[size_t(waiting)].site;
  for (int i = 0; i < n_threads_; ++i) {
    const Thread& other = threads_[size_t(i)];
    if (other.state == State::finished) fail(i, "has exited while its block waits at " + site.text());
    if (!(other.site == site)) fail(i, "waits at " + other.site.text() + " while its block waits at " + site.text());
  }
  for (int i = 0; i < n_threads_; ++i) threads_[size_t(i)].state = State::ready;
  races::block_met();
  released_bits_ = std::exchange(block_bits_, 0);
  return true;
}

inline void Machine::check_guards() const {
  for (size_t i = 0; i < kGuard; ++i) {
    if (shared_end_[i] != kGuardByte) throw Fault("a write " + std::to_string(i) + " bytes past shared memory");
    if (*(shared_ - 1 - i) != kGuardByte)
      throw Fault("a write " + std::to_string(i + 1) + " bytes before shared memory");
  }
}

inline void Machine::prepare(dim3 block, size_t shared_bytes) {
  const size_t n_threads = size_t(block.x) * block.y * block.z;
  if (n_threads == 0 || n_threads > kMaxThreads || n_threads % kWarp)
    throw Fault("blocks of " + std::to_string(n_threads) + " threads, not of a multiple of 32 up to 1024");
  if (shared_bytes > kMaxSharedBytes) throw Fault(std::to_string(shared_bytes) + " bytes of shared memory");
  if (stacks_.size() < n_threads) {
    stacks_.resize(n_threads);
    threads_.resize(n_threads);
    exchanges_.resize(n_threads / kWarp);
    restart_fibers_ = true;
  }
  if (restart_fibers_)
    for (size_t i = 0; i < threads_.size(); ++i) threads_[i].fiber.prepare(&run_fiber, stacks_.at(i), Stacks::kBytes);
  restart_fibers_ = false;
  scheduler_.forget_stack();
  n_threads_ = int(n_threads);
  for (unsigned i = 0; i < n_threads; ++i)
    threads_[i].index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
  memory_.assign(shared_bytes + 2 * kGuard + 16, kGuardByte);
  shared_ = memory_.data() + kGuard;
  shared_ += -reinterpret_cast<uintptr_t>(shared_) % 16;
  shared_end_ = shared_ + shared_bytes;
  random_ = seed_;
  races::launch_begins();
}

inline void Machine::run_block() {
  std::memset(shared_, kGarbage, size_t(shared_end_ - shared_));
  for (int i = 0; i < n_threads_; ++i) {
    Thread& thread = threads_[size_t(i)];
    thread.state = State::ready, thread.site = {}, thread.n_exchanges = 0;
  }
  races::block_begins();
  block_bits_ = 0;
  do {
    ready_warps_.resize(size_t(n_threads_ / kWarp));
    std::iota(ready_warps_.begin(), ready_warps_.end(), 0);
    while (!ready_warps_.empty()) {
      const auto chosen = ready_warps_.begin() + random_below(ready_warps_.size());
      run_warp(*chosen);
      if (!release_warp(*chosen)) ready_warps_.erase(chosen);
    }
  } while (release_block());
  check_guards();
}

inline void Machine::launch(const std::function<std::string()>& name, const std::function<void()>& body, dim3 grid,
                            dim3 block, size_t shared_bytes) {
  const std::lock_guard<std::mutex> alone(busy_);
#if defined(__SSE2__)
  const unsigned float_mode = _mm_getcsr();
  _mm_setcsr(float_mode | 0x8040);  // subnormal numbers are zero, as nvcc's -ftz=true makes them
#endif
  std::string fault;
  blockIdx = {0, 0, 0}, blockDim = block, gridDim = grid;
  try {
    prepare(block, shared_bytes);
    body_ = &body;
    std::vector<uint64_t> order(size_t(grid.x) * grid.y * grid.z);
    std::iota(order.begin(), order.end(), uint64_t(0));
    for (size_t i = 0; seed_ && i < order.size(); ++i) std::swap(order[i], order[i + random_below(order.size() - i)]);
    for (const uint64_t i : order) {
      blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / (uint64_t(grid.x) * grid.y))};
      run_block();
    }
  } catch (const std::exception& error) {
    restart_fibers_ = true;  // they stand somewhere in the block that failed
    fault = error.what();
  }
#if defined(__SSE2__)
  _mm_setcsr(float_mode);
#endif
  if (!fault.empty())
    throw Fault("kernel " + name() + ", block " + triple(blockIdx.x, blockIdx.y, blockIdx.z) + ": " + fault);
}

}  // namespace fastlif::emulation

// For tests: the order of threads and blocks in this library's launches.
extern "C" __attribute__((visibility("default"), used)) inline void fastlif_seed_order(uint64_t seed) {
  fastlif::emulation::machine.seed_order(seed);
}
