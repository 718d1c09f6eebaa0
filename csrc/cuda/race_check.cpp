// What every byte of memory remembers, and the calls that -fsanitize=thread puts before loads and stores. Compiled
// without that option itself.
#include "race_check.h"

#include <array>
#include <string>
#include <unordered_map>

#include "emulation.h"

namespace fastlif::emulation::races {
namespace {

// Who touched a byte, and when. Epochs count barriers; they never start again.
struct Access {
  uint64_t block = 0;  // serial number of the block, from 1; 0: nobody
  uint64_t block_epoch = 0, warp_epoch = 0;
  int thread = 0;
  bool atomic = false;
};

struct Byte {
  Access write, read;  // the last ones
  // Of the reads since the last barrier, who else: lanes of the same warp, other warps, other blocks.
  bool more_lanes = false, more_warps = false, more_blocks = false;
};

constexpr uintptr_t kPage = 256;
using Page = std::array<Byte, kPage>;
std::unordered_map<uintptr_t, Page> pages;
uint64_t launches = 0, block = 0, block_epoch = 0;
std::array<uint64_t, kMaxThreads / kWarp> warp_epochs{};
bool following = false;

// The page of a place; the one asked for last is found at once.
Page& page_of(uintptr_t place) {
  static uintptr_t last_number = 0;
  static Page* last = nullptr;
  static uint64_t last_launch = 0;
  if (last_launch != launches || place / kPage != last_number)
    last = &pages[place / kPage], last_number = place / kPage, last_launch = launches;
  return *last;
}

Access now(bool atomic) {
  const int thread = machine.current_thread();
  return {block, block_epoch, warp_epochs[size_t(thread / kWarp)], thread, atomic};
}

bool same_warp(const Access& a, const Access& b) { return a.thread / kWarp == b.thread / kWarp; }

// Whether no barrier orders an earlier access before this one.
bool unordered(const Access& earlier, const Access& access, bool shared) {
  if (!earlier.block || (earlier.atomic && access.atomic)) return false;
  if (earlier.block != access.block) return !shared;
  return earlier.block_epoch == access.block_epoch && earlier.thread != access.thread &&
         (!same_warp(earlier, access) || earlier.warp_epoch == access.warp_epoch);
}

bool races_with_reads(const Byte& byte, const Access& access, bool shared) {
  if (unordered(byte.read, access, shared)) return true;
  if (!shared && byte.more_blocks) return true;
  if (byte.read.block != access.block || byte.read.block_epoch != access.block_epoch) return false;
  return byte.more_warps ||
         (byte.more_lanes && same_warp(byte.read, access) && byte.read.warp_epoch == access.warp_epoch);
}

void remember_read(Byte& byte, const Access& access) {
  const Access& last = byte.read;
  const bool same_block = last.block == access.block, same_epoch = same_block && last.block_epoch == access.block_epoch;
  if (last.block && !same_block) byte.more_blocks = true;
  byte.more_warps = same_epoch && (byte.more_warps || !same_warp(last, access));
  byte.more_lanes = same_epoch && same_warp(last, access) && last.warp_epoch == access.warp_epoch &&
                    (byte.more_lanes || last.thread != access.thread);
  byte.read = access;
}

[[noreturn]] void report(const std::string& what, const void* address, bool shared, const Access* other = nullptr,
                         const char* did = "") {
  std::string text = what;
  if (shared) {
    const auto offset = static_cast<const unsigned char*>(address) - machine.shared_memory();
    text += " byte " + std::to_string(offset) + " of shared memory";
  } else {
    text += " global memory";
  }
  if (other)
    text += std::string(", which thread ") + machine.index_of(other->thread) +
            (other->block == block ? " of this block " : " of another block ") + did +
            (other->block == block ? " since their last common barrier" : "");
  machine.abandon(text);
}

// Whether this block has written any of the 16 bytes that the widest load would take: it may take more than it wants.
bool written_around(uintptr_t place) {
  const Page& page = page_of(place);
  for (uintptr_t i = place % kPage & ~uintptr_t(15), end = i + 16; i < end; ++i)
    if (page[i].write.block == block) return true;
  return false;
}

void access(const void* address, size_t bytes, bool writes, bool atomic) {
  if (!following || machine.on_a_stack(address)) return;
  const bool shared = machine.near_shared_memory(address);
  if (shared && !machine.in_shared_memory(address, bytes))
    report(writes ? "writes outside of shared memory:" : "reads outside of shared memory:", address, shared);
  const Access access = now(atomic);
  for (size_t i = 0; i < bytes; ++i) {
    const uintptr_t place = reinterpret_cast<uintptr_t>(address) + i;
    Byte& byte = page_of(place)[place % kPage];
    if (unordered(byte.write, access, shared))
      report(writes ? "writes over" : "reads", address, shared, &byte.write, "wrote");
    if (writes && !atomic && races_with_reads(byte, access, shared))
      report("writes over", address, shared, &byte.read, "read");
    if (writes) byte.write = access;
    if (!writes) remember_read(byte, access);
  }
  if (shared && !writes && !written_around(reinterpret_cast<uintptr_t>(address)))
    report("reads what no thread has written:", address, shared);
}

}  // namespace

void launch_begins() {
  pages.clear();
  ++launches;
}
void block_begins() { ++block, ++block_epoch; }
void block_met() { ++block_epoch; }
void warp_met(int warp) { ++warp_epochs[size_t(warp)]; }
bool follow(bool follows) { return std::exchange(following, follows); }
void atomic_access(const void* address, size_t bytes) { access(address, bytes, true, true); }

}  // namespace fastlif::emulation::races

#define FASTLIF_ON_ACCESS(bytes)                                                                            \
  void __tsan_read##bytes(void* p) { fastlif::emulation::races::access(p, bytes, false, false); }            \
  void __tsan_write##bytes(void* p) { fastlif::emulation::races::access(p, bytes, true, false); }            \
  void __tsan_unaligned_read##bytes(void* p) { fastlif::emulation::races::access(p, bytes, false, false); }  \
  void __tsan_unaligned_write##bytes(void* p) { fastlif::emulation::races::access(p, bytes, true, false); }

extern "C" {
#pragma GCC visibility push(hidden)
FASTLIF_ON_ACCESS(1)
FASTLIF_ON_ACCESS(2)
FASTLIF_ON_ACCESS(4)
FASTLIF_ON_ACCESS(8)
FASTLIF_ON_ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) { fastlif::emulation::races::access(p, bytes, false, false); }
void __tsan_write_range(void* p, size_t bytes) { fastlif::emulation::races::access(p, bytes, true, false); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) { return *p; }  // of function-local statics
#pragma GCC visibility pop
}
