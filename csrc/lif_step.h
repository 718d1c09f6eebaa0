// One step of the neuron and its adjoint: the only place where these formulas stand in C++. V is a number or a vector of
// numbers; reset and spike selection are left to the caller, which knows how a condition on V is expressed.
// Rossbroich et al. 2022, eqs 10, 11, 28, 29.
#pragma once

#include "plan.h"
#include "qualifiers.h"

namespace fastlif {

template <class Real>
struct NeuronConstants {
  Real decay_mem, gain_mem, decay_syn, threshold, slope, scale;
  explicit NeuronConstants(const Layer& layer)
      : decay_mem(Real(layer.decay_mem)), gain_mem(Real(1.0 - layer.decay_mem)), decay_syn(Real(layer.decay_syn)),
        threshold(Real(layer.threshold)), slope(Real(layer.surrogate_slope)), scale(Real(layer.surrogate_scale)) {}
};

// I[n+1] from I[n] and the current injected at n (eq 11).
template <class Real, class V>
FASTLIF_BOTH static inline V next_current(const NeuronConstants<Real>& k, V current, V injected) {
  return k.decay_syn * current + injected;
}

// U[n+1] before the reset (eq 10).
template <class Real, class V>
FASTLIF_BOTH static inline V charged_membrane(const NeuronConstants<Real>& k, V membrane, V current) {
  return k.decay_mem * membrane + k.gain_mem * current;
}

// 1 / dS/dU up to the scale: (slope |U - threshold| + 1)^2 (eq 28).
template <class Real, class V>
FASTLIF_BOTH static inline V surrogate_denominator(const NeuronConstants<Real>& k, V distance_magnitude) {
  const V root = k.slope * distance_magnitude + Real(1);
  return root * root;
}

// dL/dU[n] from dL/dU[n+1] (zero where n spiked) and dL/dS[n] * dS/dU.
template <class Real, class V>
FASTLIF_BOTH static inline V membrane_adjoint(const NeuronConstants<Real>& k, V grad_next_unreset,
                                             V grad_through_spike) {
  return k.decay_mem * grad_next_unreset + grad_through_spike;
}

// dL/dI[n] from dL/dI[n+1] and dL/dU[n+1] (zero where n spiked).
template <class Real, class V>
FASTLIF_BOTH static inline V current_adjoint(const NeuronConstants<Real>& k, V grad_current_next, V grad_next_unreset) {
  return k.decay_syn * grad_current_next + k.gain_mem * grad_next_unreset;
}

}  // namespace fastlif
