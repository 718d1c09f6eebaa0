// Backward: a few samples at a time, up to 32 steps at a time through all layers from the last to the first, so that the
// gradients between layers stay in the second-level cache. Weight gradients visit spikes only; input gradients are dense
// and exact. Compiled once per instruction set, with fused multiply-adds where it has them.
#include <atomic>
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
  Blocking blocking{1, kWordSteps, 0, 0};
  const int64_t samples = problem.samples_per_network();  // and not all: a network's sums are then what they are alone
  blocking.group = large_weights ? std::clamp<int64_t>(samples / 8, 1, kMostBlock)
                                 : std::min<int64_t>(8, (samples + 15) / 16);
  const int64_t partial = weight_elements(*problem.plan) * int64_t(sizeof(Real));
  while (blocking.group < samples && samples / blocking.group * partial > kPartialBytes) blocking.group *= 2;
  while (blocking.steps > 4 && blocking.steps * per_step > slice) blocking.steps /= 2;
  // With dense recurrence the rows of the matrix product are samples: shorter slices rather than fewer samples.
  const int wanted = large_weights ? kMostBlock : dense_recurrence ? kFewSamples : 1;
  const int most_samples = int(std::min<int64_t>(blocking.group, wanted));
  while (blocking.samples < most_samples) {
    blocking.samples *= 2;
    if (blocking.samples * blocking.steps * per_step > slice && blocking.steps > 4) blocking.steps /= 2;
  }
  blocking.samples = std::min(blocking.samples, most_samples);
  blocking.groups = (samples + blocking.group - 1) / blocking.group;
  return blocking;
}

// Adds groups in order into the first of them, a piece of the weights per work item. which: a member of Partial, or a
// function from one to its buffer.
template <class Real, class Which>
void sum_groups(Partial<Real>* groups, int64_t n_groups, const Which& which, int threads) {
  const int64_t size = std::invoke(which, groups[0]).size(), piece = 4096;
  parallel_items((size + piece - 1) / piece, threads, [&] {
    return [&](int64_t item) {
      const int64_t lo = item * piece, hi = std::min(size, lo + piece);
      Real* to = std::invoke(which, groups[0]).data();
      for (int64_t g = 1; g < n_groups; ++g) {
        const Real* from = std::invoke(which, groups[g]).data();
        for (int64_t i = lo; i < hi; ++i) to[i] += from[i];
      }
    };
  });
}

template <class Real>
NetworkTransposed<Real> transpose_network(const Problem& problem, int64_t network) {
  NetworkTransposed<Real> weights(problem.plan->layers.size());
  for (size_t l = 0; l < weights.size(); ++l) {
    Buffer<Real> packed;
    const Layer& layer = problem.plan->layers[l];
    const LayerPointers& p = problem.layers[l];
    const auto of_network = [&](const void* all, int64_t size) {
      return all ? static_cast<const Real*>(all) + network * size : nullptr;
    };
    const Real* weight = of_network(p.weight, layer.weight_size());
    if (layer.has_weight() && (l > 0 || problem.grad_input)) {
      pack_weights(layer.feedforward, weight, layer.weight_columns(), packed);
      transpose_weights(layer.feedforward, packed, weights[l].feedforward);
    }
    transpose_skips(layer, weight, weights[l].skips);
    if (layer.recurrent) {
      pack_weights(layer.recurrence, of_network(p.recurrent_weight, layer.recurrence.weight_size()), packed);
      transpose_weights(layer.recurrence, packed, weights[l].recurrence);
    }
    if (layer.n_inhibitory) {
      pack_weights(layer.inhibition, of_network(p.inhibitory_weight, layer.inhibition.weight_size()), packed);
      transpose_inhibition(layer, packed, weights[l].inhibition);
    }
  }
  return weights;
}

// Hands out the weight gradients of a network all of whose groups are done, and frees these.
template <class Real>
void finish_network(const Problem& problem, const Blocking& blocking, int64_t network, int threads,
                    std::vector<std::vector<Partial<Real>>>& partials) {
  for (size_t l = 0; l < problem.plan->layers.size(); ++l) {
    const Layer& layer = problem.plan->layers[l];
    const LayerPointers& p = problem.layers[l];
    Partial<Real>* const groups = partials[l].data() + network * blocking.groups;
    const auto of_network = [&](void* all, int64_t size) { return static_cast<Real*>(all) + network * size; };
    const auto sum = [&](const auto& which) { sum_groups(groups, blocking.groups, which, threads); };
    if (p.grad_weight) {
      sum(&Partial<Real>::feedforward);
      Real* const to = of_network(p.grad_weight, layer.weight_size());
      const int64_t columns = layer.weight_columns();
      unpack_weights(layer.feedforward, groups[0].feedforward.data(), columns, to);
      visit_skips(layer, [&](size_t i, const Connection& c, int64_t column) {
        sum([i](Partial<Real>& partial) -> auto& { return partial.skips[i]; });
        unpack_weights(c, groups[0].skips[i].data(), columns, to + column);
      });
    }
    if (p.grad_recurrent_weight) {
      sum(&Partial<Real>::recurrence);
      unpack_weights(layer.recurrence, groups[0].recurrence.data(),
                     of_network(p.grad_recurrent_weight, layer.recurrence.weight_size()));
    }
    if (p.grad_inhibitory_weight) {
      sum(&Partial<Real>::inhibition);
      unpack_weights(layer.inhibition, groups[0].inhibition.data(),
                     of_network(p.grad_inhibitory_weight, layer.inhibition.weight_size()));
    }
    if (p.grad_bias) {
      sum(&Partial<Real>::bias);
      std::copy_n(groups[0].bias.data(), layer.shape.channels, of_network(p.grad_bias, layer.shape.channels));
    }
    for (int64_t g = 0; g < blocking.groups; ++g) groups[g] = Partial<Real>();
  }
}

template <class Real, class Kept>
void run_backward(const Problem& problem) {
  std::vector<NetworkTransposed<Real>> networks(problem.networks);
  parallel_items(problem.networks, problem.threads, [&] {
    return [&](int64_t network) { networks[network] = transpose_network<Real>(problem, network); };
  });
  const Blocking blocking = choose_blocking<Real>(problem);
  const int64_t groups = problem.networks * blocking.groups;
  std::vector<std::vector<Partial<Real>>> partials(problem.plan->layers.size());
  for (auto& layer_partials : partials) layer_partials.resize(groups);
  // Of several networks, the thread that ends the last group of one sums them, and the others go on.
  std::vector<std::atomic<int64_t>> left(problem.networks);
  for (auto& one : left) one = blocking.groups;
  parallel_items(groups, problem.threads, [&] {
    return [&, worker = BackwardWorker<Real, Kept>(problem, blocking, networks, partials)](int64_t group) mutable {
      {
        [[maybe_unused]] const FlushSubnormals flush;  // not while groups are summed, as with one network
        worker(group);
      }
      const int64_t network = group / blocking.groups;
      if (problem.networks > 1 && --left[network] == 0) finish_network(problem, blocking, network, 1, partials);
    };
  });
  if (problem.networks == 1) finish_network(problem, blocking, 0, problem.threads, partials);
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
