// One step back of one spiking neuron, the adjoint of lif_step.h on the GPU; csrc/retreat.h is its twin on vectors.
#pragma once

#include <cmath>

#include "../lif_step.h"
#include "portable.h"

namespace fastlif::cuda {

// dS/dU. Of floats a product with the reciprocal, within two units in the last place: a third of the instructions.
template <class Real>
FASTLIF_BOTH inline Real surrogate_derivative(const NeuronConstants<Real>& k, Real distance_magnitude) {
  const Real denominator = surrogate_denominator(k, distance_magnitude);
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Real) == 4) return __fdividef(k.scale, denominator);
#endif
  return k.scale / denominator;
}

// What dL/dU[n+1] leaves for the state at n: nothing where the spike at n reset the membrane.
template <class Real>
FASTLIF_BOTH inline Real unless_reset(bool spike, Real grad_membrane_next) {
  return spike ? Real(0) : grad_membrane_next;
}

// What the forward pass left behind at step n. `kept_next` and `spike_before` matter only when the reset is
// differentiated, and spike_before is false at step 0: then kept[0] is the initial membrane, which no spike reset.
template <class Real>
struct NeuronStep {
  Real kept;       // U[n] - threshold; as charged, before the reset, when the reset is differentiated
  Real kept_next;  // the same at n + 1
  bool spike;
  bool spike_before;
};

// dL/dU[n] from dL/dU[n+1] and dL/dS[n].
template <class Real>
FASTLIF_BOTH inline Real grad_membrane_at(const NeuronConstants<Real>& k, bool detach_reset, Real grad_membrane_next,
                                          Real grad_spike, const NeuronStep<Real>& step) {
  Real distance = step.kept;
  if (!detach_reset) {
    grad_spike -= (step.kept_next + k.threshold) * grad_membrane_next;
    if (step.spike_before) distance = -k.threshold;
  }
  return membrane_adjoint(k, unless_reset(step.spike, grad_membrane_next),
                          surrogate_derivative(k, std::fabs(distance)) * grad_spike);
}

// dL/dI[n] from dL/dI[n+1] and dL/dU[n+1].
template <class Real>
FASTLIF_BOTH inline Real grad_current_at(const NeuronConstants<Real>& k, Real grad_current_next,
                                         Real grad_membrane_next, bool spike) {
  return current_adjoint(k, grad_current_next, unless_reset(spike, grad_membrane_next));
}

}  // namespace fastlif::cuda
