// Memory aligned to cache lines, and the loop over work items on several threads.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <utility>

namespace fastlif {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) { allocate(size); }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() { std::free(data_); }

  void allocate(int64_t size) {  // contents undefined
    std::free(data_);
    data_ = nullptr;
    size_ = size;
    const size_t bytes = (size_t(size > 0 ? size : 1) * sizeof(T) + 63) / 64 * 64;
    if (posix_memalign(reinterpret_cast<void**>(&data_), 64, bytes)) throw std::bad_alloc();
  }
  void allocate_zero(int64_t size) {
    allocate(size);
    zero();
  }
  void zero() { std::memset(static_cast<void*>(data_), 0, size_t(size_) * sizeof(T)); }
  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

// Calls make() once per thread and the worker it returns once per item, in any order. With one thread no OpenMP region
// is entered, so that forked children stay safe. The first exception is rethrown in the caller.
template <class Make>
void parallel_items(int64_t items, int threads, const Make& make) {
  if (threads > items) threads = int(items);
  if (threads <= 1) {
    auto worker = make();
    for (int64_t i = 0; i < items; ++i) worker(i);
    return;
  }
  std::exception_ptr error;
  std::mutex error_mutex;
  int64_t next = 0;
#pragma omp parallel num_threads(threads)
  {
    try {
      auto worker = make();
      for (;;) {
        int64_t i;
#pragma omp atomic capture
        i = next++;
        if (i >= items) break;
        worker(i);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace fastlif
