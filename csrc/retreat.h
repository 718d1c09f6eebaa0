// One step back of neighbouring spiking neurons: the adjoint of lif_step.h on vectors.
#pragma once

#include "inhibition.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

// Neighbouring neurons of one sample at one step.
template <class Real, class Kept>
struct NeuronRun {
  Real *grad_membrane, *grad_current, *next_charged, *grad_before;
  Real *grad_inhibitory, *grad_inhibitory_before;  // not read without inhibition
  const Real *grad_spikes, *grad_counts;
  const Kept* kept;
  const int32_t *words, *words_before;  // spikes at this step, and at the step before
};

// From the gradients at n + 1 to those at n; `bit` is that of step n in the words. The run begins at channel 0.
template <bool detach, bool delayed, class Populations, class Real, class Kept>
void retreat_run(const Layer& layer, const NeuronConstants<Real>& k, const Populations& populations,
                 const NeuronRun<Real, Kept>& run, int length, int bit) {
  using S = Simd<Real>;
  const int bit_before = bit > 0 ? bit - 1 : kWordSteps - 1;
  const int64_t ahead = 2 * layer.shape.size();  // kept values come from memory, in descending steps
  for (int v = 0; v < length; v += S::lanes) {
    __builtin_prefetch(run.kept + v - ahead);
    const auto spike = S::widen((S::load_words(run.words + v) >> bit & 1) != 0);
    auto grad_spike = S::load(run.grad_spikes + v) + S::load(run.grad_counts + v);
    auto distance = load_kept(run.kept + v);
    const auto grad_next = S::load(run.grad_membrane + v);
    if (!detach) {
      grad_spike -= S::load(run.next_charged + v) * grad_next;
      S::store(run.next_charged + v, distance + k.threshold);
      if (run.words_before)
        distance = S::select(S::widen((S::load_words(run.words_before + v) >> bit_before & 1) != 0),
                             S::all(-k.threshold), distance);
    }
    const auto unreset = S::select(spike, typename S::vec{}, grad_next);
    const auto surrogate = k.scale * reciprocal(surrogate_denominator(k, absolute(distance)));
    const auto& own = populations.at(v);
    S::store(run.grad_membrane + v, membrane_adjoint(own, unreset, surrogate * grad_spike));
    if constexpr (Populations::inhibition) {
      const auto later = S::load(run.grad_inhibitory + v), now = inhibitory_adjoint(own, later, unreset);
      S::store(run.grad_inhibitory + v, now);
      S::store(run.grad_inhibitory_before + v, delayed ? later : now);
    }
    const auto later = S::load(run.grad_current + v), now = current_adjoint(own, later, unreset);
    S::store(run.grad_current + v, now);
    S::store(run.grad_before + v, delayed ? later : now);
  }
}

// Copies of the neurons at one position in whole blocks, with pads that are zero.
template <class Kept>
struct PaddedPosition {
  Buffer<Kept> kept;
  Buffer<int32_t> words, words_before;

  template <class T>
  static const T* copy(const T* from, const Shape& shape, Buffer<T>& to) {
    std::fill(std::copy_n(from, shape.channels, to.data()), to.data() + shape.padded_channels(), T{});
    return to.data();
  }
  void allocate(int channels) {
    kept.allocate_zero(channels), words.allocate_zero(channels), words_before.allocate_zero(channels);
  }
};

// The neurons of a whole map; `run` begins at its first one.
template <bool detach, bool delayed, class Populations, class Real, class Kept>
void retreat_map(const Layer& layer, const NeuronConstants<Real>& k, const Populations& populations,
                 NeuronRun<Real, Kept> run, int bit, PaddedPosition<Kept>& copies) {
  const Shape& shape = layer.shape;
  const int channels = shape.padded_channels();
  const bool whole = shape.channels == channels;
  const int length = whole && !Populations::inhibition ? shape.width * channels : channels;
  for (int y = 0; y < shape.height; ++y) {
    Real *const row_start = run.grad_before, *const inhibitory_row_start = run.grad_inhibitory_before;
    for (int x = 0; x < shape.width; x += length / channels) {
      if (whole) {
        retreat_run<detach, delayed>(layer, k, populations, run, length, bit);
      } else {
        NeuronRun<Real, Kept> padded = run;
        padded.kept = copies.copy(run.kept, shape, copies.kept);
        padded.words = copies.copy(run.words, shape, copies.words);
        if (!detach && run.words_before) padded.words_before = copies.copy(run.words_before, shape, copies.words_before);
        retreat_run<detach, delayed>(layer, k, populations, padded, length, bit);
      }
      run.grad_membrane += length, run.grad_current += length, run.grad_before += length;
      run.grad_spikes += length, run.grad_counts += length;
      if (Populations::inhibition) run.grad_inhibitory += length, run.grad_inhibitory_before += length;
      if (!detach) run.next_charged += length;
      const int advance = whole ? length : shape.channels;
      run.kept += advance, run.words += advance;
      if (run.words_before) run.words_before += advance;
    }
    run.grad_before = row_start + layer.halo_row();
    if (Populations::inhibition) run.grad_inhibitory_before = inhibitory_row_start + layer.inhibition.halo_row();
  }
}

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
