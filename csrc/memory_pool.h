// Large blocks of memory that are used again at the next training step instead of going back to the system: what the
// backward pass needs of a deep network is hundreds of megabytes, and the first touch of fresh pages costs as much as
// the kernel that writes them.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace fastlif {

class MemoryPool {
 public:
  static MemoryPool& instance();
  void* take(size_t bytes);
  void give_back(void* data, size_t bytes);
  void release_unused();
  size_t unused_bytes();
  static size_t rounded(size_t bytes);

 private:
  void release_largest();

  // Used and unused blocks together never exceed the most that was in use at one time.
  std::mutex mutex_;
  std::multimap<size_t, void*> unused_;
  size_t unused_bytes_ = 0, used_bytes_ = 0, most_used_bytes_ = 0;
};

}  // namespace fastlif
