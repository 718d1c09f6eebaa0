// Backward: a few samples at a time, up to 32 steps at a time through all layers from the last to the first, so that the
// gradients between layers stay in the second-level cache. Weight gradients visit spikes only; input gradients are dense
// and exact. Compiled once per instruction set, with fused multiply-adds where it has them.
#include <functional>

#include "backward_worker.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {

constexpr int64_t kSliceBytes = 1 << 20;         // of gradients between layers, kept in cache
constexpr int64_t kLargeSliceBytes = 1 << 22;    // the same where weights are read from beyond the cache, less often then
constexpr int kFewSamples = 8;                   // in a block, so that dense recurrence is a matrix product
constexpr int64_t kPartialBytes = int64_t(1) << 29;  // of weight gradients summed per group of samples

int64_t weight_elements(const Plan& plan) {
  int64_t n = 0;
  for (const Layer& layer : plan.layers)
    n += (layer.has_weight() ? layer.feedforward.packed_size() : 0) +
         (layer.recurrent ? layer.recurrence.packed_size() : 0) +
         (layer.n_inhibitory ? layer.inhibition.packed_size() : 0) + layer.shape.padded_size();
  for (const Layer& layer : plan.layers)
    for (const Connection& skip : layer.skip_connections) n += skip.packed_size();
  return n;
}

template <class Real>
Blocking choose_blocking(const Problem& problem) {
  int64_t per_step = 0;
  bool dense_recurrence = false, large_weights = false;
  for (const Layer& layer : problem.plan->layers) {
    // A pooling layer has gradients of its spikes alone.
    const int64_t currents = layer.kind == Kind::max_pool ? 0 : layer.halo_size();
    per_step += (layer.shape.padded_size() + currents) * int64_t(sizeof(Real));
    if (layer.n_inhibitory) per_step += layer.shape.height * layer.inhibition.halo_row() * int64_t(sizeof(Real));
    if (layer.shape.positions() > 1) continue;
    dense_recurrence |= layer.recurrent || layer.n_inhibitory;
    large_weights |= (layer.has_weight() && is_large<Real>(layer.feedforward)) || (layer.recurrent && is_large<Real>(layer.recurrence));
  }
  const int64_t slice = large_weights ? kLargeSliceBytes : kSliceBytes;
  Blocking blocking{1, kWordSteps, 0};
  blocking.group = large_weights ? std::clamp<int64_t>(problem.batch / 8, 1, kMostBlock)
                                 : std::min<int64_t>(8, (problem.batch + 15) / 16);
  const int64_t partial = weight_elements(*problem.plan) * int64_t(sizeof(Real));
  while (blocking.group < problem.batch && problem.batch / blocking.group * partial > kPartialBytes) blocking.group *= 2;
  while (blocking.steps > 4 && blocking.steps * per_step > slice) blocking.steps /= 2;
  // With dense recurrence the rows of the matrix product are samples: shorter slices rather than fewer samples.
  const int wanted = large_weights ? kMostBlock : dense_recurrence ? kFewSamples : 1;
  const int most_samples = int(std::min<int64_t>(blocking.group, wanted));
  while (blocking.samples < most_samples) {
    blocking.samples *= 2;
    if (blocking.samples * blocking.steps * per_step > slice && blocking.steps > 4) blocking.steps /= 2;
  }
  blocking.samples = std::min(blocking.samples, most_samples);
  return blocking;
}

// Adds the groups in order into the first of them, a piece of the weights per work item. which: a member of Partial, or a
// function from one to its buffer.
template <class Real, class Which>
void sum_groups(std::vector<Partial<Real>>& groups, const Which& which, int threads) {
  const int64_t size = std::invoke(which, groups[0]).size(), piece = 4096;
  parallel_items((size + piece - 1) / piece, threads, [&] {
    return [&](int64_t item) {
      const int64_t lo = item * piece, hi = std::min(size, lo + piece);
      Real* to = std::invoke(which, groups[0]).data();
      for (size_t g = 1; g < groups.size(); ++g) {
        const Real* from = std::invoke(which, groups[g]).data();
        for (int64_t i = lo; i < hi; ++i) to[i] += from[i];
      }
    };
  });
}

template <class Real, class Kept>
void run_backward(const Problem& problem) {
  const Plan& plan = *problem.plan;
  std::vector<TransposedWeights<Real>> weights(plan.layers.size());
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    Buffer<Real> packed;
    const Real* weight = static_cast<const Real*>(problem.layers[l].weight);
    if (plan.layers[l].has_weight() && (l > 0 || problem.grad_input)) {
      pack_weights(plan.layers[l].feedforward, weight, plan.layers[l].weight_columns(), packed);
      transpose_weights(plan.layers[l].feedforward, packed, weights[l].feedforward);
    }
    transpose_skips(plan.layers[l], weight, weights[l].skips);
    if (plan.layers[l].recurrent) {
      pack_weights(plan.layers[l].recurrence, static_cast<const Real*>(problem.layers[l].recurrent_weight), packed);
      transpose_weights(plan.layers[l].recurrence, packed, weights[l].recurrence);
    }
    if (plan.layers[l].n_inhibitory) {
      pack_weights(plan.layers[l].inhibition, static_cast<const Real*>(problem.layers[l].inhibitory_weight), packed);
      transpose_inhibition(plan.layers[l], packed, weights[l].inhibition);
    }
  }
  const Blocking blocking = choose_blocking<Real>(problem);
  const int64_t groups = (problem.batch + blocking.group - 1) / blocking.group;
  std::vector<std::vector<Partial<Real>>> partials(plan.layers.size());
  for (auto& layer_partials : partials) layer_partials.resize(groups);
  parallel_items(groups, problem.threads, [&] {
    return [worker = BackwardWorker<Real, Kept>(problem, blocking, weights, partials),
            flush = FlushSubnormals()](int64_t group) mutable { worker(group); };
  });
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const LayerPointers& p = problem.layers[l];
    if (p.grad_weight) {
      sum_groups(partials[l], &Partial<Real>::feedforward, problem.threads);
      Real* const to = static_cast<Real*>(p.grad_weight);
      const int64_t columns = plan.layers[l].weight_columns();
      unpack_weights(plan.layers[l].feedforward, partials[l][0].feedforward.data(), columns, to);
      visit_skips(plan.layers[l], [&](size_t i, const Connection& c, int64_t column) {
        sum_groups(partials[l], [i](Partial<Real>& partial) -> auto& { return partial.skips[i]; }, problem.threads);
        unpack_weights(c, partials[l][0].skips[i].data(), columns, to + column);
      });
    }
    if (p.grad_recurrent_weight) {
      sum_groups(partials[l], &Partial<Real>::recurrence, problem.threads);
      unpack_weights(plan.layers[l].recurrence, partials[l][0].recurrence.data(), static_cast<Real*>(p.grad_recurrent_weight));
    }
    if (p.grad_inhibitory_weight) {
      sum_groups(partials[l], &Partial<Real>::inhibition, problem.threads);
      unpack_weights(plan.layers[l].inhibition, partials[l][0].inhibition.data(), static_cast<Real*>(p.grad_inhibitory_weight));
    }
    if (p.grad_bias) {
      sum_groups(partials[l], &Partial<Real>::bias, problem.threads);
      std::copy_n(partials[l][0].bias.data(), plan.layers[l].shape.channels, static_cast<Real*>(p.grad_bias));
    }
  }
}

}  // namespace

void backward(const Problem& problem, Precision precision) {
  switch (precision) {
    case Precision::float32_half: return run_backward<float, Half>(problem);
    case Precision::float32_exact: return run_backward<float, float>(problem);
    case Precision::float64: return run_backward<double, double>(problem);
  }
}

}  // namespace FASTLIF_ISA
}  // namespace fastlif
