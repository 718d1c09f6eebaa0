// What the backward pass holds: weights, partial weight gradients, and gradients of a block of samples.
#pragma once

#include "inhibition_gradient.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

// Whether the weights of dense synapses are too large to stay in cache from one product to the next.
template <class Real>
bool is_large(const Connection& c) {
  return c.in.positions() == 1 && c.packed_size() * int64_t(sizeof(Real)) >= 1 << 20;
}

template <class Real>
struct TransposedWeights {
  Buffer<Real> feedforward, recurrence, inhibition;
  std::vector<Buffer<Real>> skips;
};

template <class Real>
using NetworkTransposed = std::vector<TransposedWeights<Real>>;  // one per layer

// Weight gradients of one group of samples, in the packed order of the weights. Which samples form a group depends on
// the samples of one network alone, and groups are added in order: the sum is the same for any number of threads, and for
// any networks beside this one.
template <class Real>
struct Partial {
  Buffer<Real> feedforward, recurrence, inhibition, bias;
  std::vector<Buffer<Real>> skips;
};

struct Blocking {
  int samples, steps;   // of a block and of a slice
  int64_t group;        // samples whose weight gradients are summed in one place
  int64_t groups;       // of a network
};

// Gradients of a layer's spikes, channels last and padded, for a block of samples at the steps of a slice.
template <class Real>
struct SpikeGradients {
  Real* data;
  const Shape& layer;
  int64_t sample_pitch;
  int samples, steps;
  Real* row(int r, int q) const { return data + r * sample_pitch + q * layer.padded_size(); }
};

template <class Real>
struct LayerState {
  // Per sample of the block, one after the other.
  Buffer<Real> grad_membrane, grad_current, grad_counts, next_charged;
  Buffer<Real> grad_injected;  // with halo: dL/dJ of the step before the slice in hand, dL/dI[n+1] (delayed: n+2)
  Buffer<Real> grad_spikes;   // [sample][step of the slice][neuron, padded]: dL/dS, or dL/dU of a readout
  Buffer<Real> grad_currents; // [sample][step of the slice][neuron with halo]: dL/dJ
  Buffer<int32_t> best_step;
  InhibitionGradient<Real> inhibition;
};

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
