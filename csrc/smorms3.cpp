// The step of SMORMS3 on a CPU, in place.
#include "smorms3.h"

#include <algorithm>

#include "buffer.h"
#include "engine.h"

namespace fastlif {

namespace {

constexpr int64_t kElements = 1 << 14;  // of a work item

template <class Real>
void update(const OptimizedTensor& tensor, int64_t begin, int64_t end, const Smorms3Options& options) {
  const auto at = [&](void* data) { return static_cast<Real*>(data) + begin; };
  Real *parameter = at(tensor.parameter), *mean = at(tensor.mean), *mean_square = at(tensor.mean_square);
  Real* window = at(tensor.window);
  const Real* gradient = static_cast<const Real*>(tensor.gradient) + begin;
  const Smorms3Constants<Real> constants(options);
  const Real lr = Real(tensor.lr);
#pragma omp simd
  for (int64_t i = 0; i < end - begin; ++i)
    smorms3_step(constants, lr, gradient[i], parameter[i], mean[i], mean_square[i], window[i]);
}

}  // namespace

void smorms3(const std::vector<OptimizedTensor>& tensors, bool is_double, const Smorms3Options& options, int threads) {
  struct Item {
    const OptimizedTensor* tensor;
    int64_t begin, end;
  };
  std::vector<Item> items;
  int64_t elements = 0;
  for (const OptimizedTensor& tensor : tensors) {
    elements += tensor.size;
    for (int64_t begin = 0; begin < tensor.size; begin += kElements)
      items.push_back({&tensor, begin, std::min(begin + kElements, tensor.size)});
  }
  // Waking threads takes longer than a few items.
  parallel_items(int64_t(items.size()), elements < 4 * kElements ? 1 : threads, [&] {
    return [&](int64_t i) {
      const auto& [tensor, begin, end] = items[i];
      is_double ? update<double>(*tensor, begin, end, options) : update<float>(*tensor, begin, end, options);
    };
  });
}

}  // namespace fastlif
