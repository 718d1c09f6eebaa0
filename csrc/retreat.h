// One step back of neighbouring spiking neurons: the adjoint of lif_step.h on vectors.
#pragma once

#include "block.h"
#include "lif_step.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

// Neighbouring neurons of one sample at one step.
template <class Real, class Kept>
struct NeuronRun {
  Real *grad_membrane, *grad_current, *next_charged, *grad_before;
  const Real *grad_spikes, *grad_counts;
  const Kept* kept;
  const int32_t *words, *words_before;  // spikes at this step, and at the step before
};

// From the gradients at n + 1 to those at n; `bit` is that of step n in the words.
template <bool detach, bool delayed, class Real, class Kept>
void retreat_run(const Layer& layer, const NeuronConstants<Real>& k, const NeuronRun<Real, Kept>& run, int length,
                 int bit) {
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
    S::store(run.grad_membrane + v, membrane_adjoint(k, unreset, surrogate * grad_spike));
    const auto later = S::load(run.grad_current + v), now = current_adjoint(k, later, unreset);
    S::store(run.grad_current + v, now);
    S::store(run.grad_before + v, delayed ? later : now);
  }
}

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
