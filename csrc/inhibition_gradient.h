// What the backward pass of a layer with inhibition holds beyond that of other layers: the gradients of its inhibitory
// current, and of the current K that inhibitory spikes inject. Samples and steps are counted as in backward_worker.h.
#pragma once

#include "inhibition.h"
#include "lateral_gradient.h"
#include "weight_gradient.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

// Inhibitory channels begin inside a block of the map: V_inh^T is stored with columns from the start of that block, zero
// where they are excitatory channels, so that its products are whole blocks of the map.
inline int first_block_of_inhibition(const Layer& layer) { return layer.emitted().channels / kBlock * kBlock; }

template <class Real>
void transpose_inhibition(const Layer& layer, const Buffer<Real>& packed, Buffer<Real>& transposed) {
  transpose_weights(layer.inhibition, packed, transposed, layer.emitted().channels % kBlock);
}

template <class Real>
class InhibitionGradient {
 public:
  // For blocks of so many samples and slices of so many steps.
  void allocate(const Layer& layer, int samples, int steps) {
    layer_ = &layer;
    steps_ = steps;
    size_ = int64_t(layer.shape.height) * layer.inhibition.halo_row();
    constants = TwoPopulations<Real>(layer);
    grad_inhibitory_.allocate(samples * layer.shape.padded_size());
    injected_.allocate_zero(samples * size_);
    currents_.allocate_zero(int64_t(samples) * steps * size_);  // the halo stays zero
  }

  void start_block(const LayerPointers& p, int64_t first_sample, int samples) {
    const Shape& shape = layer_->shape;
    const void* entering = layer_->delay ? p.grad_pending_inhibitory : p.grad_inhibitory;
    Buffer<Real> map(shape.padded_size());
    for (int r = 0; r < samples; ++r) {
      load(p.grad_inhibitory, first_sample + r, grad_inhibitory(r));
      load(entering, first_sample + r, map.data());
      copy_to_halo(shape, layer_->inhibition.halo, map.data(), injected_.data() + r * size_);
    }
  }

  // The gradient of the spikes of inhibitory neurons comes from the layer itself alone: nothing enters it from outside.
  // grad_spikes: [sample][step of the slice][neuron, padded].
  void start_slice(Real* grad_spikes, int samples, int steps) {
    const int channels = layer_->shape.padded_channels(), n_excitatory = layer_->emitted().channels;
    for (int r = 0; r < samples; ++r) {
      std::copy_n(injected_.data() + r * size_, size_, row(r, steps - 1));
      Real* first = grad_spikes + int64_t(r) * steps_ * layer_->shape.padded_size();
      for (int64_t p = 0; p < int64_t(steps) * layer_->shape.positions(); ++p)
        std::fill(first + p * channels + n_excitatory, first + (p + 1) * channels, Real(0));
    }
  }

  // grad_spikes += V_inh^T dL/dK at step q. grad_spikes: of the first sample at that step.
  void add_spike_gradient(const Buffer<Real>& weights, int q, Real* grad_spikes, int samples) {
    const Shape& shape = layer_->shape;
    const int first = first_block_of_inhibition(*layer_);
    add_lateral_gradient(layer_->inhibition, weights.data(), shape.padded_channels() - first, {row(0, q), steps_ * size_},
                         {grad_spikes + first, steps_ * shape.padded_size()}, samples);
  }

  Rows<Real> rows(int samples) { return {row(0, 0), size_, steps_ * size_, samples}; }

  Real* grad_inhibitory(int r) { return grad_inhibitory_.data() + r * layer_->shape.padded_size(); }
  // First neuron of dL/dK of the step before: in the row of that step, or past the slice.
  Real* before(int r, int q) {
    return (q > 0 ? row(r, q - 1) : injected_.data() + r * size_) + layer_->inhibition.halo * layer_->shape.padded_channels();
  }

  void finish_sample(const LayerPointers& p, int64_t b, int r) {
    const Shape& shape = layer_->shape;
    const auto sample = [&](void* tensor) { return static_cast<Real*>(tensor) + b * shape.size(); };
    if (p.grad_inhibitory0) from_channels_last(shape, grad_inhibitory(r), sample(p.grad_inhibitory0));
    if (p.grad_pending_inhibitory0 && layer_->delay)
      from_channels_last(shape, before(r, 0), layer_->inhibition.halo_row(), sample(p.grad_pending_inhibitory0));
  }

  TwoPopulations<Real> constants;

 private:
  Real* row(int r, int q) { return currents_.data() + (int64_t(r) * steps_ + q) * size_; }

  void load(const void* tensor, int64_t b, Real* to) {
    const Shape& shape = layer_->shape;
    std::fill(to, to + shape.padded_size(), Real(0));
    if (tensor) to_channels_last(shape, static_cast<const Real*>(tensor) + b * shape.size(), to);
  }

  const Layer* layer_ = nullptr;
  int64_t steps_ = 0, size_ = 0;  // of a slice; of a map with the halo of the inhibitory synapses
  Buffer<Real> grad_inhibitory_;  // [sample][neuron]
  Buffer<Real> injected_;         // [sample][neuron with halo]: dL/dK of the step before the slice in hand
  Buffer<Real> currents_;         // [sample][step of the slice][neuron with halo]: dL/dK
};

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
