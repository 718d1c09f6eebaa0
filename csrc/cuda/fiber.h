// A stack of its own for every emulated thread, and the switch between stacks. Only for the emulation.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FASTLIF_ADDRESS_SANITIZER
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define FASTLIF_ADDRESS_SANITIZER
#endif
#if defined(FASTLIF_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// FASTLIF_UCONTEXT chooses the slow way where the fast one would do.
#if defined(__x86_64__) && !defined(FASTLIF_UCONTEXT)
#define FASTLIF_OWN_SWITCH
#else
#include <ucontext.h>
#endif

namespace fastlif::emulation {

#if defined(FASTLIF_OWN_SWITCH)
#if defined(__clang__)
#define FASTLIF_OPAQUE __attribute__((naked, noinline))
#else
#define FASTLIF_OPAQUE __attribute__((naked, noipa))
#endif
// Saves the registers that a callee must keep and the stack pointer, and continues where `to` was saved.
FASTLIF_OPAQUE inline void switch_stack(void**, void*) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
#undef FASTLIF_OPAQUE
#endif

// One fiber, or (never started) the place on the scheduler's own stack from which fibers are resumed.
class Fiber {
 public:
  Fiber() = default;

  // Makes the next switch to this fiber call entry(), which must not return.
  void prepare(void (*entry)(), char* stack, size_t bytes) {
    stack_ = stack, bytes_ = bytes;
#if defined(FASTLIF_OWN_SWITCH)
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(63)) - 1;
    *top = nullptr;  // entry's return address: none
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    saved_ = top;
#else
    getcontext(&saved_);
    saved_.uc_stack.ss_sp = stack, saved_.uc_stack.ss_size = bytes, saved_.uc_link = nullptr;
    makecontext(&saved_, entry, 0);
#endif
#if defined(FASTLIF_ADDRESS_SANITIZER)
    __asan_unpoison_memory_region(stack, bytes);  // what an abandoned run left behind
    fake_stack_ = nullptr;
#endif
  }

  // Leaves this fiber, which must be the running one, for `other`; returns when something switches back.
  void switch_to(Fiber& other) {
#if defined(FASTLIF_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(&fake_stack_, other.stack_, other.bytes_);
#endif
    asm volatile("" ::: "memory");
#if defined(FASTLIF_OWN_SWITCH)
    switch_stack(&saved_, other.saved_);
#else
    swapcontext(&saved_, &other.saved_);
#endif
    asm volatile("" ::: "memory");
    arrived(other);
  }

  // To be called first thing on a new fiber: tells AddressSanitizer that the switch from `from` is complete.
  void arrived([[maybe_unused]] Fiber& from) {
#if defined(FASTLIF_ADDRESS_SANITIZER)
    const void* bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &bytes);
    if (from.bytes_ == 0) from.stack_ = static_cast<const char*>(bottom), from.bytes_ = bytes;
#endif
  }

  // The scheduler's fiber may stand on another stack at the next launch.
  void forget_stack() { stack_ = nullptr, bytes_ = 0; }

 private:
#if defined(FASTLIF_OWN_SWITCH)
  void* saved_ = nullptr;
#else
  ucontext_t saved_{};
#endif
  const char* stack_ = nullptr;
  size_t bytes_ = 0;
#if defined(FASTLIF_ADDRESS_SANITIZER)
  void* fake_stack_ = nullptr;
#endif
};

// Stacks in one mapping, each below an inaccessible page; memory is taken from the system when it is first touched.
class Stacks {
 public:
  static constexpr size_t kBytes = size_t(128) << 10;

  Stacks() = default;
  Stacks(const Stacks&) = delete;
  ~Stacks() { release(); }

  size_t size() const { return count_; }
  char* at(size_t i) const { return memory_ + i * (kBytes + page_) + page_; }
  bool contains(const void* p) const { return p >= memory_ && p < memory_ + count_ * (kBytes + page_); }

  void resize(size_t count) {
    release();
    page_ = size_t(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, count * (kBytes + page_), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory), count_ = count;
    for (size_t i = 0; i < count; ++i) mprotect(at(i) - page_, page_, PROT_NONE);
  }

 private:
  char* memory_ = nullptr;
  size_t count_ = 0, page_ = 0;

  void release() {
    if (count_) munmap(memory_, count_ * (kBytes + page_));
    count_ = 0;
  }
};

}  // namespace fastlif::emulation
