// One step of the spiking neurons of one sample: lif_step.h on vectors. Its adjoint is retreat.h.
#pragma once

#include "inhibition.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

// Inhibitory current of a layer during one sample, and the spikes that cause it.
template <class Real>
struct InhibitoryState {
  Buffer<Real> current, injected[2];
  Events events;  // channels count from the first inhibitory one
  TwoPopulations<Real> constants;

  void allocate(const Layer& layer) {
    for (Buffer<Real>* buffer : {&current, &injected[0], &injected[1]}) buffer->allocate(layer.shape.padded_size());
    events.reserve(layer.inhibition.in.size());
    constants = TwoPopulations<Real>(layer);
  }

  // K[n - 1 - delay], then K[n].
  Real* injected_at(const Layer& layer, int64_t n) { return injected[layer.delay ? n & 1 : 0].data(); }

  void start_sample(const Layer& layer, const Real* current0, const Real* pending0) {
    current.zero(), injected[0].zero(), injected[1].zero();
    if (current0) to_channels_last(layer.shape, current0, current.data());
    if (pending0 && layer.delay) to_channels_last(layer.shape, pending0, injected[1].data());
  }

  // Moves the current to H[T] and hands out what is asked for.
  void finish_sample(const Layer& layer, int64_t n_steps, Real* final_current, Real* pending) {
    using S = Simd<Real>;
    const int channels = layer.shape.padded_channels();
    const Real* last = injected_at(layer, n_steps);
    for (int64_t v = 0; v < current.size(); v += S::lanes) {
      const auto k = constants.at(int(v % channels));
      S::store(current.data() + v, next_inhibitory(k, S::load(current.data() + v), S::load(last + v)));
    }
    if (final_current) from_channels_last(layer.shape, current.data(), final_current);
    if (pending && layer.delay) from_channels_last(layer.shape, injected_at(layer, n_steps - 1), pending);
  }
};

// I[T] from I[T-1] and the current injected at T - 1 - delay.
template <class Populations, class Real>
void finish_current(const Shape& shape, const Populations& populations, const Real* injected, Buffer<Real>& current) {
  using S = Simd<Real>;
  const int channels = shape.padded_channels();
  for (int64_t v = 0; v < current.size(); v += S::lanes) {
    const auto& k = populations.at(int(v % channels));
    S::store(current.data() + v, next_current(k, S::load(current.data() + v), S::load(injected + v)));
  }
}

// Codes of the neurons of a layer; those of inhibitory neurons count from the first of them.
inline Buffer<uint32_t> layer_codes(const Layer& layer) {
  const int pitch = layer.shape.padded_channels(), n_excitatory = layer.emitted().channels;
  Buffer<uint32_t> codes = neuron_codes(layer.shape, pitch);
  for (int p = 0; p < layer.shape.positions(); ++p)
    for (int c = n_excitatory; c < layer.shape.channels; ++c) codes[int64_t(p) * pitch + c] -= uint32_t(n_excitatory);
  return codes;
}

// Where a step finds the neurons of a sample and leaves what they do; maps are channels last, pads included.
template <class Real, class Kept>
struct SpikingNeurons {
  Real *membrane, *current, *injected;
  Real *inhibitory, *inhibitory_injected;  // not read without inhibition
  const Real* bias;                        // null: none
  int32_t* words;
  const uint32_t* codes;
  uint32_t *events, *inhibitory_events;  // ends of the lists, room for 16 entries past them
  Kept* kept;                            // of this step, without pads; null: not kept
};

// U[n] - threshold of the neurons of a sample, without pads.
template <class Real, class Kept>
void keep_distance(const Shape& shape, const Real* membrane, Real threshold, Kept* kept) {
  using S = Simd<Real>;
  alignas(64) Kept tail[kBlock];
  for (int p = 0; p < shape.positions(); ++p)
    for (int c = 0; c < shape.padded_channels(); c += kBlock) {
      const int valid = std::min(kBlock, shape.channels - c);
      for (int v = 0; v < kBlock; v += S::lanes) store_kept(tail + v, S::load(membrane + v) - threshold);
      std::copy(tail, tail + valid, kept);
      kept += valid, membrane += kBlock;
    }
}

// Emits S[n], moves the currents to I[n] and H[n] and the membrane to U[n+1], leaves the bias in the injected current.
// `q` is the step's bit in the words. The event lists are left at their new ends.
template <bool first, bool plain, class Populations, class Real, class Kept>
void advance(const Layer& layer, const NeuronConstants<Real>& constants, const Populations& populations,
             SpikingNeurons<Real, Kept>& neurons, int q) {
  using S = Simd<Real>;
  Real *membrane = neurons.membrane, *current = neurons.current, *into = neurons.injected;
  Real *inhibitory = neurons.inhibitory, *inhibitory_into = neurons.inhibitory_injected;
  const Real* bias = plain ? nullptr : neurons.bias;
  int32_t* words = neurons.words;
  const uint32_t* codes = neurons.codes;
  uint32_t *events = neurons.events, *inhibitory_events = neurons.inhibitory_events;
  Kept* kept = neurons.kept;
  const Shape& shape = layer.shape;
  const bool keeps = plain || kept;
  const bool keep_unreset = !plain && !layer.detach_reset;
  if (first && keeps && keep_unreset) keep_distance(shape, membrane, constants.threshold, kept);
  if (keeps && keep_unreset) kept += shape.size();  // row n + 1 holds U[n+1] before the reset
  const auto bit = typename S::words{} + int32_t(uint32_t(1) << q);
  const int channels = shape.padded_channels(), n_excitatory = layer.emitted().channels;
  for (int p = 0; p < shape.positions(); ++p)
    for (int c = 0; c < channels; c += kBlock) {
      unsigned fired = 0;
      alignas(64) Kept tail[kBlock];
      const int valid = plain ? kBlock : std::min(kBlock, shape.channels - c);
      Kept* keep = valid == kBlock ? kept : tail;
#pragma GCC unroll 4
      for (int v = 0; v < kBlock; v += S::lanes) {
        const auto& k = populations.at(c + v);
        auto u = S::load(membrane + v), i = S::load(current + v);
        if (!first) i = next_current(k, i, S::load(into + v));
        const typename S::mask spike = u > constants.threshold;
        S::store_words(words + v, S::load_words(words + v) | (S::narrow(spike) & bit));
        fired |= movemask(spike) << v;
        auto net = i;
        if constexpr (Populations::inhibition) {
          auto h = S::load(inhibitory + v);
          if (!first) h = next_inhibitory(k, h, S::load(inhibitory_into + v));
          net = net_current(i, h);
          S::store(inhibitory + v, h);
          S::store(inhibitory_into + v, typename S::vec{});
        }
        const auto charged = charged_membrane(k, u, net);
        if (keeps) store_kept(keep + v, (keep_unreset ? charged : u) - constants.threshold);
        S::store(membrane + v, S::select(spike, typename S::vec{}, charged));
        S::store(current + v, i);
        S::store(into + v, bias ? S::load(bias + v) : typename S::vec{});
      }
      if (keeps && valid < kBlock) std::copy(tail, tail + valid, kept);
      if constexpr (Populations::inhibition) {
        const unsigned excitatory = (1u << std::clamp(n_excitatory - c, 0, kBlock)) - 1;
        events += append_codes(codes, fired & excitatory, events);
        inhibitory_events += append_codes(codes, fired & ~excitatory, inhibitory_events);
        inhibitory += kBlock, inhibitory_into += kBlock;
      } else {
        events += append_codes(codes, fired, events);
      }
      membrane += kBlock, current += kBlock, into += kBlock, words += kBlock, codes += kBlock;
      if (bias) bias += kBlock;
      if (keeps) kept += valid;
    }
  neurons.events = events, neurons.inhibitory_events = inhibitory_events;
}

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
