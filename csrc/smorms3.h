// SMORMS3 (Rossbroich et al. 2022, eqs 30-33): what a step works on, and the step of one element, which both processors
// take. The reference is in fastlif/optim.py.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "qualifiers.h"

namespace fastlif {

// A parameter, its gradient and its state g1, g2 and m, all of one size and precision.
struct OptimizedTensor {
  void* parameter = nullptr;
  const void* gradient = nullptr;
  void *mean = nullptr, *mean_square = nullptr, *window = nullptr;
  int64_t size = 0;
  double lr = 0;
};

struct Smorms3Options {
  double eps = 0;
  bool maximize = false;
  double minimum = -std::numeric_limits<double>::infinity();
};

// The options as numbers of the parameter's precision.
template <class Real>
struct Smorms3Constants {
  Real eps, minimum, sign;
  FASTLIF_BOTH explicit Smorms3Constants(const Smorms3Options& options)
      : eps(Real(options.eps)), minimum(Real(options.minimum)), sign(options.maximize ? Real(-1) : Real(1)) {}
};

// Each operation rounds once, as torch's do.
template <class Real>
FASTLIF_BOTH static inline void smorms3_step(const Smorms3Constants<Real>& k, Real lr, Real gradient, Real& parameter,
                                             Real& mean, Real& mean_square, Real& window) {
  using std::sqrt;
  const Real g = k.sign * gradient, m = window;
  const Real rate = Real(1) / (m + Real(1));
  const auto lerp = [rate](Real from, Real to) {
    const Real change = to - from;
    return rate < Real(0.5) ? from + rate * change : to - change * (Real(1) - rate);
  };
  const Real g1 = lerp(mean, g), g2 = lerp(mean_square, g * g);
  const Real share = g1 * g1 / (g2 + k.eps);
  const Real step = (share > lr ? lr : share) * g;  // NaN stays NaN
  const Real moved = parameter - step / (sqrt(g2) + k.eps);
  mean = g1, mean_square = g2;
  window = m - m * share + Real(1);
  parameter = moved < k.minimum ? k.minimum : moved;
}

}  // namespace fastlif
