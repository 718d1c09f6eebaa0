// Forward: one sample after the other, 32 steps at a time through all layers, so that state, currents and events stay in
// the first-level cache. The samples of all networks are one queue: no thread waits between networks. Compiled once per
// instruction set, without contraction into fused multiply-adds: results are then the same on all of them, and as
// PyTorch rounds.
#include "advance.h"
#include "pooling.h"
#include "skips.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {

// to[0..length) += the rows, in order. Sums stay in registers.
template <class Real>
void gather_rows(Real* to, const Real* const* rows, int n_rows, int length) {
  using S = Simd<Real>;
  constexpr int kWide = kRegisters == 32 ? 8 : 4;
  int i = 0;
  for (; i + kWide * S::lanes <= length; i += kWide * S::lanes) {
    typename S::vec sum[kWide];
#pragma GCC unroll 8
    for (int v = 0; v < kWide; ++v) sum[v] = S::load(to + i + v * S::lanes);
    for (int r = 0; r < n_rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kWide; ++v) sum[v] = sum[v] + S::load(rows[r] + i + v * S::lanes);
#pragma GCC unroll 8
    for (int v = 0; v < kWide; ++v) S::store(to + i + v * S::lanes, sum[v]);
  }
  for (; i < length; i += S::lanes) {
    auto sum = S::load(to + i);
    for (int r = 0; r < n_rows; ++r) sum = sum + S::load(rows[r] + i);
    S::store(to + i, sum);
  }
}

// Adds the current that the events of one step cause to `injected`. `rows` is room for one pointer an event.
template <class Real>
void inject_events(const Connection& c, const Real* weights, const uint32_t* codes, int n_events, const Real** rows,
                   Real* injected) {
  if (n_events == 0) return;
  const int64_t channel_pitch = int64_t(c.taps()) * c.out.padded_channels();
  if (c.out.positions() == 1) {
    int n = 0;
    for (int e = 0; e < n_events; ++e) {
      const int p = event_position(codes[e]);
      if (c.first_target[p] < c.first_target[p + 1])
        rows[n++] = weights + event_channel(codes[e]) * channel_pitch + c.targets[c.first_target[p]].tap;
    }
    gather_rows(injected, rows, n, c.out.padded_channels());
    return;
  }
  for (int e = 0; e < n_events; ++e) {
    const Real* w = weights + event_channel(codes[e]) * channel_pitch;
    const int p = event_position(codes[e]);
    for (int t = c.first_target[p]; t < c.first_target[p + 1]; ++t)
      add(injected + c.targets[t].out, w + c.targets[t].tap, c.targets[t].length);
  }
}

// The same for input that is not binary; `values` is one sample and step as torch stores it (channels, positions).
template <class Real>
void inject_values(const Connection& c, const Real* weights, const Real* values, Real* injected) {
  const int64_t channel_pitch = int64_t(c.taps()) * c.out.padded_channels();
  const int positions = c.in.positions();
  for (int p = 0; p < positions; ++p)
    for (int ch = 0; ch < c.in.channels; ++ch) {
      const Real value = values[int64_t(ch) * positions + p];
      if (value == 0) continue;
      const Real* w = weights + ch * channel_pitch;
      for (int t = c.first_target[p]; t < c.first_target[p + 1]; ++t)
        add_scaled(injected + c.targets[t].out, w + c.targets[t].tap, value, c.targets[t].length);
    }
}

template <class Real>
struct SharedWeights {
  Buffer<Real> feedforward, recurrence, inhibition, bias;  // bias: a whole map, channels last
  std::vector<Buffer<Real>> skips;
};

template <class Real>
using NetworkWeights = std::vector<SharedWeights<Real>>;  // one per layer

template <class Real>
struct LayerState {
  Buffer<Real> membrane, current, injected[2], best;
  Buffer<int32_t> words, best_step, counts;
  Events events;  // of the neurons that the layer emits
  Buffer<uint32_t> codes;
  InhibitoryState<Real> inhibition;
};

template <class Real, class Kept>
class ForwardWorker {
  using S = Simd<Real>;

 public:
  ForwardWorker(const Problem& problem, const std::vector<NetworkWeights<Real>>& networks)
      : problem_(problem), plan_(*problem.plan), networks_(networks), state_(plan_.layers.size()) {
    int64_t most_events = plan_.input_shape().size();
    if (problem.input.kind == InputKind::bits) {
      input_events_.reserve(most_events);
      input_codes_ = neuron_codes(plan_.input_shape(), plan_.input_shape().channels);
    }
    for (size_t l = 0; l < plan_.layers.size(); ++l) {
      const Layer& layer = plan_.layers[l];
      LayerState<Real>& s = state_[l];
      constants_.emplace_back(layer);
      const bool pools = layer.kind == Kind::max_pool;  // has words and events, but no neurons
      const int64_t n = layer.shape.padded_size(), neurons = pools ? 0 : n;
      s.membrane.allocate(neurons), s.current.allocate(neurons);
      s.injected[0].allocate(neurons), s.injected[1].allocate(neurons);
      if (layer.emits_spikes()) {
        s.words.allocate(n), s.counts.allocate(neurons);
        s.events.reserve(layer.shape.size());
        s.codes = layer_codes(layer);
        most_events = std::max(most_events, layer.shape.size());
      }
      if (layer.n_inhibitory) s.inhibition.allocate(layer);
      if (layer.kind == Kind::readout_max) s.best.allocate(n), s.best_step.allocate(n);
    }
    rows_.allocate(most_events);
  }

  void operator()(int64_t b) {
    weights_ = networks_[b / problem_.samples_per_network()].data();
    for (size_t l = 0; l < plan_.layers.size(); ++l) start_sample(l, b);
    for (int64_t word = 0; word < problem_.words(); ++word) {
      const int steps = int(std::min<int64_t>(kWordSteps, problem_.n_steps - word * kWordSteps));
      const Shape in = plan_.input_shape();
      if (problem_.input.kind == InputKind::bits)
        words_to_events(in.size(),
                        static_cast<const int32_t*>(problem_.input.data) +
                            (word * problem_.input_batch + problem_.input_sample(b)) * in.size(),
                        input_codes_.data(), steps, input_events_);
      for (size_t l = 0; l < plan_.layers.size(); ++l) {
        if (plan_.layers[l].kind == Kind::lif) state_[l].words.zero(), state_[l].events.clear();
        if (plan_.layers[l].kind == Kind::max_pool)
          pool(l, steps);
        else
          for (int q = 0; q < steps; ++q) run_step(l, b, word * kWordSteps + q, q);
        if (plan_.layers[l].emits_spikes()) finish_word(l, b, word, steps);
      }
    }
    for (size_t l = 0; l < plan_.layers.size(); ++l) finish_sample(l, b);
  }

 private:
  const Real* sample(const void* tensor, const Shape& shape, int64_t b) const {
    return static_cast<const Real*>(tensor) + b * shape.size();
  }
  Real* sample(void* tensor, const Shape& shape, int64_t b) const {
    return static_cast<Real*>(tensor) + b * shape.size();
  }

  void start_sample(size_t l, int64_t b) {
    const Layer& layer = plan_.layers[l];
    const LayerPointers& p = problem_.layers[l];
    LayerState<Real>& s = state_[l];
    s.membrane.zero(), s.current.zero(), s.injected[0].zero(), s.injected[1].zero();
    if (p.membrane0) to_channels_last(layer.shape, sample(p.membrane0, layer.shape, b), s.membrane.data());
    if (p.current0) to_channels_last(layer.shape, sample(p.current0, layer.shape, b), s.current.data());
    if (p.pending0 && layer.delay) to_channels_last(layer.shape, sample(p.pending0, layer.shape, b), s.injected[1].data());
    if (layer.n_inhibitory)
      s.inhibition.start_sample(layer, p.inhibitory0 ? sample(p.inhibitory0, layer.shape, b) : nullptr,
                                p.pending_inhibitory0 ? sample(p.pending_inhibitory0, layer.shape, b) : nullptr);
    if (layer.kind == Kind::lif) s.counts.zero();
    if (layer.kind == Kind::readout_max) {
      std::copy(s.membrane.data(), s.membrane.data() + s.membrane.size(), s.best.data());
      s.best_step.zero();
    }
  }

  void pool(size_t l, int steps) {
    LayerState<Real>& s = state_[l];
    pool_words(plan_.layers[l].feedforward, state_[l - 1].words.data(), plan_.layers[l - 1].shape.padded_channels(),
               s.words.data());
    words_to_events(s.words.size(), s.words.data(), s.codes.data(), steps, s.events);
  }

  // Holds J[n - 1 - delay], the current that enters I at this step, until J[n] takes its place. With a delay two buffers
  // alternate.
  Real* injected(size_t l, int64_t n) {
    return state_[l].injected[plan_.layers[l].delay ? n & 1 : 0].data();
  }

  void run_step(size_t l, int64_t b, int64_t n, int q) {
    const Layer& layer = plan_.layers[l];
    if (layer.kind == Kind::lif) {
      // Training without bias and with whole blocks of channels is the common case: no tests inside its loop.
      const bool plain = problem_.layers[l].kept && layer.detach_reset && !weights_[l].bias.size() &&
                         layer.shape.channels % kBlock == 0;
      if (layer.n_inhibitory)
        advance_lif(l, b, n, q, plain, state_[l].inhibition.constants);
      else
        advance_lif(l, b, n, q, plain, OnePopulation<Real>{constants_[l]});
    } else if (layer.kind != Kind::current) {
      n == 0 ? advance_readout<true>(l, b, n) : advance_readout<false>(l, b, n);
    } else {
      reset_injected(l, n);
    }
    inject(l, b, n, q);
    if (layer.kind == Kind::current)
      from_channels_last(layer.shape, injected(l, n), sample(problem_.output, layer.shape, n * problem_.batch + b));
  }

  void reset_injected(size_t l, int64_t n) {
    Real* to = injected(l, n);
    const Buffer<Real>& bias = weights_[l].bias;
    if (bias.size())
      std::copy(bias.data(), bias.data() + bias.size(), to);
    else
      std::fill(to, to + plan_.layers[l].shape.padded_size(), Real(0));
  }

  void inject(size_t l, int64_t b, int64_t n, int q) {
    const Layer& layer = plan_.layers[l];
    Real* to = injected(l, n);
    if (l == 0 && problem_.input.kind != InputKind::bits) {
      const Real* row = static_cast<const Real*>(problem_.input.data) + n * problem_.input.time_stride +
                        problem_.input_sample(b) * problem_.input.batch_stride;
      if (layer.has_feedforward)
        inject_values(layer.feedforward, weights_[l].feedforward.data(), row, to);
      else
        to_channels_last(layer.shape, row, to);
    } else {
      const Events& source = l ? state_[l - 1].events : input_events_;
      inject_events(layer.feedforward, weights_[l].feedforward.data(), source.step(q), source.count[q], rows_.data(), to);
    }
    for (size_t i = 0; i < layer.skips.size(); ++i) {
      const Events& source = state_[layer.skips[i]].events;
      inject_events(layer.skip_connections[i], weights_[l].skips[i].data(), source.step(q), source.count[q], rows_.data(), to);
    }
    if (layer.recurrent) {
      const Events& own = state_[l].events;
      inject_events(layer.recurrence, weights_[l].recurrence.data(), own.step(q), own.count[q], rows_.data(), to);
    }
    if (layer.n_inhibitory) {
      InhibitoryState<Real>& own = state_[l].inhibition;
      inject_events(layer.inhibition, weights_[l].inhibition.data(), own.events.step(q), own.events.count[q], rows_.data(),
                    own.injected_at(layer, n));
    }
  }

  // `plain`: the common case, without tests inside its loop.
  template <class Populations>
  void advance_lif(size_t l, int64_t b, int64_t n, int q, bool plain, const Populations& populations) {
    const Layer& layer = plan_.layers[l];
    LayerState<Real>& s = state_[l];
    Kept* kept = static_cast<Kept*>(problem_.layers[l].kept);
    if (kept) kept += (b * problem_.kept_rows(layer) + n) * layer.shape.size();
    SpikingNeurons<Real, Kept> neurons{
        s.membrane.data(), s.current.data(), injected(l, n), s.inhibition.current.data(),
        s.inhibition.injected_at(layer, n), weights_[l].bias.size() ? weights_[l].bias.data() : nullptr, s.words.data(),
        s.codes.data(), s.events.step(q), s.inhibition.events.step(q), kept};
    n == 0  ? advance<true, false>(layer, constants_[l], populations, neurons, q)
    : plain ? advance<false, true>(layer, constants_[l], populations, neurons, q)
            : advance<false, false>(layer, constants_[l], populations, neurons, q);
    s.events.count[q] = int(neurons.events - s.events.step(q));
    if (layer.n_inhibitory)
      s.inhibition.events.count[q] = int(neurons.inhibitory_events - s.inhibition.events.step(q));
  }

  template <bool first>
  void advance_readout(size_t l, int64_t b, int64_t n) {
    const Layer& layer = plan_.layers[l];
    LayerState<Real>& s = state_[l];
    const NeuronConstants<Real>& k = constants_[l];
    Real* into = injected(l, n);
    for (int64_t v = 0; v < s.membrane.size(); v += S::lanes) {
      const auto u = S::load(s.membrane.data() + v);
      auto i = S::load(s.current.data() + v);
      if (!first) i = next_current(k, i, S::load(into + v));
      if (layer.kind == Kind::readout_max) {
        const auto best = S::load(s.best.data() + v);
        // The first of equals stays, and so does the first NaN, which must not be lost.
        const typename S::mask better = ~(u <= best) & (best == best);
        S::store(s.best.data() + v, S::select(better, u, best));
        const auto take = S::narrow(better);
        const auto step = S::load_words(s.best_step.data() + v);
        S::store_words(s.best_step.data() + v, (take & int32_t(n)) | (~take & step));
      }
      S::store(s.current.data() + v, i);
    }
    if (layer.kind == Kind::readout_trace)
      from_channels_last(layer.shape, s.membrane.data(),
                         sample(problem_.output, layer.shape, n * problem_.batch + b));
    for (int64_t v = 0; v < s.membrane.size(); v += S::lanes)
      S::store(s.membrane.data() + v,
               charged_membrane(k, S::load(s.membrane.data() + v), S::load(s.current.data() + v)));
    reset_injected(l, n);
  }

  // Hands out what 32 steps of a spiking layer gave: words, counts, and dense spikes of the last layer.
  void finish_word(size_t l, int64_t b, int64_t word, int steps) {
    const Shape &shape = plan_.layers[l].shape, emitted = plan_.layers[l].emitted();
    LayerState<Real>& s = state_[l];
    for (int64_t i = 0; i < s.counts.size(); ++i) s.counts[i] += __builtin_popcount(uint32_t(s.words[i]));
    if (problem_.layers[l].words) {
      int32_t* to = problem_.layers[l].words + (word * problem_.batch + b) * shape.size();
      for (int p = 0; p < shape.positions(); ++p)
        std::copy_n(s.words.data() + int64_t(p) * shape.padded_channels(), shape.channels, to + int64_t(p) * shape.channels);
    }
    if (l + 1 < plan_.layers.size() || !problem_.output) return;
    for (int q = 0; q < steps; ++q) {
      Real* to = sample(problem_.output, emitted, (word * kWordSteps + q) * problem_.batch + b);
      std::fill(to, to + emitted.size(), Real(0));
      const uint32_t* codes = s.events.step(q);
      for (int e = 0; e < s.events.count[q]; ++e)
        to[int64_t(event_channel(codes[e])) * emitted.positions() + event_position(codes[e])] = Real(1);
    }
  }

  void finish_sample(size_t l, int64_t b) {
    const Layer& layer = plan_.layers[l];
    const LayerPointers& p = problem_.layers[l];
    LayerState<Real>& s = state_[l];
    const Shape& shape = layer.shape;
    if (layer.kind == Kind::current || layer.kind == Kind::max_pool) return;
    const int64_t n = problem_.n_steps;
    const Real* last = injected(l, n);  // J[n - 1 - delay]
    if (layer.n_inhibitory)
      finish_current(layer.shape, s.inhibition.constants, last, s.current);
    else
      finish_current(layer.shape, OnePopulation<Real>{constants_[l]}, last, s.current);
    if (p.membrane) from_channels_last(shape, s.membrane.data(), sample(p.membrane, shape, b));
    if (p.current) from_channels_last(shape, s.current.data(), sample(p.current, shape, b));
    if (p.pending && layer.delay) from_channels_last(shape, injected(l, n - 1), sample(p.pending, shape, b));
    if (layer.n_inhibitory)
      s.inhibition.finish_sample(layer, n, p.inhibitory ? sample(p.inhibitory, shape, b) : nullptr,
                                 p.pending_inhibitory ? sample(p.pending_inhibitory, shape, b) : nullptr);
    if (p.counts) {
      // The injected current is not needed any more: room for the counts as numbers.
      Real* counts = injected(l, n);
      for (int64_t i = 0; i < s.counts.size(); ++i) counts[i] = Real(s.counts[i]);
      from_channels_last(shape, counts, sample(p.counts, shape, b));
    }
    if (layer.kind == Kind::readout_max) {
      from_channels_last(shape, s.best.data(), sample(problem_.output, shape, b));
      from_channels_last(shape, s.best_step.data(), problem_.best_step + b * shape.size());
    }
  }

  const Problem& problem_;
  const Plan& plan_;
  const std::vector<NetworkWeights<Real>>& networks_;
  const SharedWeights<Real>* weights_ = nullptr;  // of the layers of the network whose sample is in hand
  std::vector<LayerState<Real>> state_;
  std::vector<NeuronConstants<Real>> constants_;
  Events input_events_;
  Buffer<uint32_t> input_codes_;
  Buffer<const Real*> rows_;
};

template <class Real>
NetworkWeights<Real> pack_network(const Problem& problem, int64_t network) {
  NetworkWeights<Real> weights(problem.plan->layers.size());
  for (size_t l = 0; l < weights.size(); ++l) {
    const Layer& layer = problem.plan->layers[l];
    const LayerPointers& p = problem.layers[l];
    const auto of_network = [&](const void* all, int64_t size) {
      return all ? static_cast<const Real*>(all) + network * size : nullptr;
    };
    const Real* weight = of_network(p.weight, layer.weight_size());
    if (layer.has_weight()) pack_weights(layer.feedforward, weight, layer.weight_columns(), weights[l].feedforward);
    pack_skips(layer, weight, weights[l].skips);
    if (layer.recurrent)
      pack_weights(layer.recurrence, of_network(p.recurrent_weight, layer.recurrence.weight_size()), weights[l].recurrence);
    if (layer.n_inhibitory)
      pack_weights(layer.inhibition, of_network(p.inhibitory_weight, layer.inhibition.weight_size()), weights[l].inhibition);
    if (p.bias) {
      weights[l].bias.allocate_zero(layer.shape.padded_size());
      for (int i = 0; i < layer.shape.positions(); ++i)
        std::copy_n(of_network(p.bias, layer.shape.channels), layer.shape.channels,
                    weights[l].bias.data() + int64_t(i) * layer.shape.padded_channels());
    }
  }
  return weights;
}

template <class Real, class Kept>
void run_forward(const Problem& problem) {
  std::vector<NetworkWeights<Real>> networks(problem.networks);
  parallel_items(problem.networks, problem.threads, [&] {
    return [&](int64_t network) { networks[network] = pack_network<Real>(problem, network); };
  });
  parallel_items(problem.batch, problem.threads, [&] {
    return [worker = ForwardWorker<Real, Kept>(problem, networks), flush = FlushSubnormals()](int64_t b) mutable {
      worker(b);
    };
  });
}

}  // namespace

void forward(const Problem& problem, Precision precision) {
  switch (precision) {
    case Precision::float32_half: return run_forward<float, Half>(problem);
    case Precision::float32_exact: return run_forward<float, float>(problem);
    case Precision::float64: return run_forward<double, double>(problem);
  }
}

}  // namespace FASTLIF_ISA
}  // namespace fastlif
