// Binary spikes to and from words of 32 steps, and events to words.
#include <sys/mman.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "buffer.h"
#include "engine.h"

namespace fastlif {

namespace {

// Rows of 32 steps: work item i is (word, sample).
template <class Make>
void for_each_word(int64_t n_steps, int64_t batch, int threads, const Make& make) {
  parallel_items((n_steps + kWordSteps - 1) / kWordSteps * batch, threads, make);
}

}  // namespace

template <class Real>
bool pack_dense(const Real* dense, int64_t time_stride, int64_t batch_stride, int64_t n_steps, int64_t batch, Shape shape,
                int threads, int32_t* words) {
  std::atomic<bool> binary{true};
  const int64_t size = shape.size(), positions = shape.positions();
  for_each_word(n_steps, batch, threads, [&] {
    return [&, row_words = Buffer<uint32_t>(size)](int64_t item) mutable {
      if (!binary.load(std::memory_order_relaxed)) return;
      const int64_t word = item / batch, b = item % batch;
      row_words.zero();
      uint32_t* to = row_words.data();
      int other = 0;
      for (int64_t n = word * kWordSteps; n < n_steps && n < (word + 1) * kWordSteps; ++n) {
        const Real* row = dense + n * time_stride + b * batch_stride;
        const int bit = int(n - word * kWordSteps);
#pragma omp simd reduction(| : other)
        for (int64_t i = 0; i < size; ++i) {
          to[i] |= uint32_t(row[i] != 0) << bit;
          other |= (row[i] != 0) & (row[i] != 1);
        }
        if (other) {
          binary.store(false, std::memory_order_relaxed);
          return;
        }
      }
      int32_t* out = words + item * size;
      for (int64_t p = 0; p < positions; ++p)
        for (int64_t c = 0; c < shape.channels; ++c) *out++ = int32_t(to[c * positions + p]);
    };
  });
  return binary.load();
}

template <class Real>
void unpack_dense(const int32_t* words, int64_t n_steps, int64_t batch, Shape shape, int threads, Real* dense) {
  const int64_t size = shape.size(), positions = shape.positions();
  for_each_word(n_steps, batch, threads, [&] {
    return [&](int64_t item) {
      const int64_t word = item / batch, b = item % batch;
      const int32_t* row = words + item * size;
      for (int64_t n = word * kWordSteps; n < n_steps && n < (word + 1) * kWordSteps; ++n) {
        Real* to = dense + (n * batch + b) * size;
        const int bit = int(n - word * kWordSteps);
        for (int64_t c = 0; c < shape.channels; ++c)
          for (int64_t p = 0; p < positions; ++p) *to++ = Real(uint32_t(row[p * shape.channels + c]) >> bit & 1);
      }
    };
  });
}

template bool pack_dense<float>(const float*, int64_t, int64_t, int64_t, int64_t, Shape, int, int32_t*);
template bool pack_dense<double>(const double*, int64_t, int64_t, int64_t, int64_t, Shape, int, int32_t*);
template void unpack_dense<float>(const int32_t*, int64_t, int64_t, Shape, int, float*);
template void unpack_dense<double>(const int32_t*, int64_t, int64_t, Shape, int, double*);

void pack_events(const int32_t* step, const int32_t* feature, const int64_t* offsets, int64_t n_steps, int64_t batch,
                 int64_t features, int threads, int32_t* words) {
  parallel_items(batch, threads, [&] {
    return [&](int64_t b) {
      for (int64_t word = 0; word * kWordSteps < n_steps; ++word)
        std::memset(words + (word * batch + b) * features, 0, size_t(features) * sizeof(int32_t));
      for (int64_t e = offsets[b]; e < offsets[b + 1]; ++e) {
        if (feature[e] < 0 || feature[e] >= features)
          throw std::invalid_argument("feature of event " + std::to_string(e) + " (sample " + std::to_string(b) +
                                      ") must be in [0, " + std::to_string(features) + "), got " +
                                      std::to_string(feature[e]));
        if (step[e] < 0 || step[e] >= n_steps) continue;
        int32_t& word = words[(int64_t(step[e] / kWordSteps) * batch + b) * features + feature[e]];
        word = int32_t(uint32_t(word) | uint32_t(1) << step[e] % kWordSteps);
      }
    };
  });
}

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace fastlif
