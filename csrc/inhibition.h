// Layers with inhibitory neurons: constants of neighbours that belong to different populations.
#pragma once

#include "block.h"
#include "lif_step.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

// What lif_step.h reads of neighbouring neurons that differ.
template <class Real>
struct NeighbourConstants {
  using vec = typename Simd<Real>::vec;
  vec decay_mem, gain_mem, decay_syn, decay_inhibitory;
};

// Constants of a layer with one population, by channel.
template <class Real>
struct OnePopulation {
  static constexpr bool inhibition = false;
  const NeuronConstants<Real>& constants;
  const NeuronConstants<Real>& at(int) const { return constants; }
};

// Of a layer with two; the channel where they meet may lie inside a block. Pads count as inhibitory neurons.
template <class Real>
class TwoPopulations {
 public:
  static constexpr bool inhibition = true;

  TwoPopulations() = default;
  explicit TwoPopulations(const Layer& layer) {
    const NeuronConstants<Real> of[2] = {NeuronConstants<Real>(layer), NeuronConstants<Real>(layer, true)};
    const int channels = layer.shape.padded_channels(), n_excitatory = layer.emitted().channels;
    for (Buffer<Real>* factor : {&decay_mem_, &gain_mem_, &decay_syn_, &decay_inhibitory_}) factor->allocate(channels);
    for (int c = 0; c < channels; ++c) {
      const NeuronConstants<Real>& k = of[c >= n_excitatory];
      decay_mem_[c] = k.decay_mem, gain_mem_[c] = k.gain_mem;
      decay_syn_[c] = k.decay_syn, decay_inhibitory_[c] = k.decay_inhibitory;
    }
  }
  NeighbourConstants<Real> at(int channel) const {
    const auto load = [&](const Buffer<Real>& factor) { return Simd<Real>::load(factor.data() + channel); };
    return {load(decay_mem_), load(gain_mem_), load(decay_syn_), load(decay_inhibitory_)};
  }

 private:
  Buffer<Real> decay_mem_, gain_mem_, decay_syn_, decay_inhibitory_;
};

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
