#include "memory_pool.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <new>

#include "engine.h"

namespace fastlif {

namespace {
constexpr size_t kPage = size_t(1) << 21;  // a huge page
}

MemoryPool& MemoryPool::instance() {
  static MemoryPool* pool = new MemoryPool;  // never destroyed: tensors may outlive static objects
  return *pool;
}

size_t MemoryPool::rounded(size_t bytes) { return (std::max<size_t>(bytes, 1) + kPage - 1) / kPage * kPage; }

void* MemoryPool::take(size_t bytes) {
  bytes = rounded(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  void* data = nullptr;
  const auto found = unused_.find(bytes);
  if (found != unused_.end()) {
    data = found->second;
    unused_bytes_ -= bytes;
    unused_.erase(found);
  } else {
    while (!unused_.empty() && used_bytes_ + unused_bytes_ + bytes > most_used_bytes_) release_largest();
    if (posix_memalign(&data, kPage, bytes)) throw std::bad_alloc();
    advise_huge_pages(data, int64_t(bytes));
  }
  used_bytes_ += bytes;
  most_used_bytes_ = std::max(most_used_bytes_, used_bytes_);
  return data;
}

void MemoryPool::give_back(void* data, size_t bytes) {
  bytes = rounded(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  used_bytes_ -= bytes;
  unused_.emplace(bytes, data);
  unused_bytes_ += bytes;
}

void MemoryPool::release_largest() {
  const auto largest = std::prev(unused_.end());
  std::free(largest->second);
  unused_bytes_ -= largest->first;
  unused_.erase(largest);
}

void MemoryPool::release_unused() {
  const std::lock_guard<std::mutex> lock(mutex_);
  while (!unused_.empty()) release_largest();
  most_used_bytes_ = used_bytes_;
}

size_t MemoryPool::unused_bytes() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return unused_bytes_;
}

}  // namespace fastlif
