// The step of SMORMS3 (Rossbroich et al. 2022, eqs 30-33), in place; the reference is in fastlif/optim.py.
#include <algorithm>
#include <cmath>

#include "buffer.h"
#include "engine.h"

namespace fastlif {

namespace {

constexpr int64_t kElements = 1 << 14;  // of a work item

// Each operation rounds once, as torch's do.
template <class Real>
void update(const OptimizedTensor& tensor, int64_t begin, int64_t end, const Smorms3Options& options) {
  const auto at = [&](void* data) { return static_cast<Real*>(data) + begin; };
  Real *parameter = at(tensor.parameter), *mean = at(tensor.mean), *mean_square = at(tensor.mean_square);
  Real* window = at(tensor.window);
  const Real* gradient = static_cast<const Real*>(tensor.gradient) + begin;
  const Real largest = Real(tensor.lr), eps = Real(options.eps), minimum = Real(options.minimum);
  const Real sign = options.maximize ? Real(-1) : Real(1);
#pragma omp simd
  for (int64_t i = 0; i < end - begin; ++i) {
    const Real g = sign * gradient[i], m = window[i];
    const Real rate = Real(1) / (m + Real(1));
    const auto lerp = [&](Real from, Real to) {
      const Real change = to - from;
      return rate < Real(0.5) ? from + rate * change : to - change * (Real(1) - rate);
    };
    const Real g1 = lerp(mean[i], g), g2 = lerp(mean_square[i], g * g);
    const Real share = g1 * g1 / (g2 + eps);
    const Real step = (share > largest ? largest : share) * g;  // NaN stays NaN
    const Real moved = parameter[i] - step / (std::sqrt(g2) + eps);
    mean[i] = g1, mean_square[i] = g2;
    window[i] = m - m * share + Real(1);
    parameter[i] = moved < minimum ? minimum : moved;
  }
}

}  // namespace

void smorms3(const std::vector<OptimizedTensor>& tensors, const Smorms3Options& options, int threads) {
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
      tensor->is_double ? update<double>(*tensor, begin, end, options) : update<float>(*tensor, begin, end, options);
    };
  });
}

}  // namespace fastlif
