// Finds races between threads of an emulated kernel. A build with FASTLIF_RACE_CHECK compiles the kernels with
// -fsanitize=thread, whose calls at every load and store race_check.cpp answers itself: it knows which barriers order
// two emulated threads. Without the macro nothing of this is there.
#pragma once

#include <cstddef>

namespace fastlif::emulation::races {

#if defined(FASTLIF_RACE_CHECK)
void launch_begins();
void block_begins();
void block_met();           // all threads of the block have met
void warp_met(int warp);    // all lanes of the warp have met
bool follow(bool follows);  // whether loads and stores are the kernel's; returns what was set before
void atomic_access(const void* address, size_t bytes);
#else
inline void launch_begins() {}
inline void block_begins() {}
inline void block_met() {}
inline void warp_met(int) {}
inline bool follow(bool) { return false; }
inline void atomic_access(const void*, size_t) {}
#endif

// While it lives, loads and stores are the emulation's own.
class Pause {
 public:
  Pause() : before_(follow(false)) {}
  ~Pause() { follow(before_); }
  Pause(const Pause&) = delete;

 private:
  bool before_;
};

}  // namespace fastlif::emulation::races
