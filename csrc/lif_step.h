// One step of the neuron and its adjoint: the only place where these formulas stand in C++. V is a number or a vector of
// numbers; reset and spike selection are left to the caller, which knows how a condition on V is expressed. Constants are
// NeuronConstants, or what has members of the same names for neighbours of different populations.
// Rossbroich et al. 2022, eqs 10, 11, 28, 29; with inhibition 12 to 19.
#pragma once

#include "plan.h"
#include "qualifiers.h"

namespace fastlif {

template <class Real>
struct NeuronConstants {
  Real decay_mem, gain_mem, decay_syn, decay_inhibitory, threshold, slope, scale;
  // Of the inhibitory neurons of a layer, or of its other ones.
  explicit NeuronConstants(const Layer& layer, bool inhibitory = false)
      : NeuronConstants(layer, inhibitory ? layer.inhibitory_neurons
                                          : Decays{layer.decay_mem, layer.decay_syn, layer.decay_inhibitory}) {}

 private:
  NeuronConstants(const Layer& layer, const Decays& decays)
      : decay_mem(Real(decays.mem)), gain_mem(Real(1.0 - decays.mem)), decay_syn(Real(decays.syn)),
        decay_inhibitory(Real(decays.inhibitory)), threshold(Real(layer.threshold)), slope(Real(layer.surrogate_slope)),
        scale(Real(layer.surrogate_scale)) {}
};

// I[n+1] from I[n] and the current injected at n (eq 11).
template <class Constants, class V>
FASTLIF_BOTH static inline V next_current(const Constants& k, V current, V injected) {
  return k.decay_syn * current + injected;
}

// H[n+1] from H[n] and the inhibitory current injected at n.
template <class Constants, class V>
FASTLIF_BOTH static inline V next_inhibitory(const Constants& k, V inhibitory, V injected) {
  return k.decay_inhibitory * inhibitory + injected;
}

// What the membrane integrates where there is inhibition.
template <class V>
FASTLIF_BOTH static inline V net_current(V current, V inhibitory) {
  return current - inhibitory;
}

// U[n+1] before the reset (eq 10).
template <class Constants, class V>
FASTLIF_BOTH static inline V charged_membrane(const Constants& k, V membrane, V current) {
  return k.decay_mem * membrane + k.gain_mem * current;
}

// 1 / dS/dU up to the scale: (slope |U - threshold| + 1)^2 (eq 28).
template <class Real, class V>
FASTLIF_BOTH static inline V surrogate_denominator(const NeuronConstants<Real>& k, V distance_magnitude) {
  const V root = k.slope * distance_magnitude + Real(1);
  return root * root;
}

// dL/dU[n] from dL/dU[n+1] (zero where n spiked) and dL/dS[n] * dS/dU.
template <class Constants, class V>
FASTLIF_BOTH static inline V membrane_adjoint(const Constants& k, V grad_next_unreset, V grad_through_spike) {
  return k.decay_mem * grad_next_unreset + grad_through_spike;
}

// dL/dI[n] from dL/dI[n+1] and dL/dU[n+1] (zero where n spiked).
template <class Constants, class V>
FASTLIF_BOTH static inline V current_adjoint(const Constants& k, V grad_current_next, V grad_next_unreset) {
  return k.decay_syn * grad_current_next + k.gain_mem * grad_next_unreset;
}

// dL/dH[n] likewise: H enters the membrane with a minus.
template <class Constants, class V>
FASTLIF_BOTH static inline V inhibitory_adjoint(const Constants& k, V grad_inhibitory_next, V grad_next_unreset) {
  return k.decay_inhibitory * grad_inhibitory_next - k.gain_mem * grad_next_unreset;
}

}  // namespace fastlif
