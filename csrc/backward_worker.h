// The backward pass of a block of samples: state, and the loops over slices, layers and steps.
//
// Names: J[n] is the current injected at step n; its gradient is dL/dI[n+1] (n+2 with delay). Steps inside a slice are
// counted by q, samples inside a block by r.
#pragma once

#include "backward_state.h"
#include "pooling_gradient.h"
#include "retreat.h"
#include "skip_gradient.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

template <class Real, class Kept>
class BackwardWorker {
  using S = Simd<Real>;

 public:
  BackwardWorker(const Problem& problem, const Blocking& blocking,
                 const std::vector<NetworkTransposed<Real>>& networks, std::vector<std::vector<Partial<Real>>>& partials)
      : problem_(problem), plan_(*problem.plan), blocking_(blocking), networks_(networks), partials_(partials),
        state_(plan_.layers.size()) {
    const int64_t rows = int64_t(blocking.samples) * blocking.steps;
    int most_channels = 0;
    int64_t most_currents = 0;
    for (size_t l = 0; l < plan_.layers.size(); ++l) {
      const Layer& layer = plan_.layers[l];
      LayerState<Real>& s = state_[l];
      constants_.emplace_back(layer);
      s.grad_spikes.allocate_zero(rows * layer.shape.padded_size());
      if (layer.kind == Kind::max_pool) continue;  // it has no neurons
      const int64_t n = blocking.samples * layer.shape.padded_size();
      s.grad_membrane.allocate(n), s.grad_current.allocate(n), s.grad_counts.allocate(n);
      s.grad_injected.allocate_zero(blocking.samples * layer.halo_size());
      most_currents = std::max(most_currents, layer.halo_size() * (is_large<Real>(layer.feedforward) ? blocking.samples : 1));
      most_channels = std::max({most_channels, layer.shape.channels, layer.feedforward.in.channels});
      if (!layer.detach_reset) s.next_charged.allocate(n);
      if (layer.n_inhibitory) s.inhibition.allocate(layer, blocking.samples, blocking.steps);
      if (layer.kind == Kind::readout_max) s.best_step.allocate(n);
      s.grad_currents.allocate_zero(rows * layer.halo_size());  // the halo stays zero
    }
    if (problem.grad_input && plan_.layers[0].has_feedforward)
      input_rows_.allocate_zero(rows * plan_.input_shape().padded_size());
    active_ = ActiveChannels(most_channels);
    transposed_.allocate(most_currents * kWordSteps);
    const int most_padded = padded(most_channels);
    copies_.allocate(most_padded);
  }

  void operator()(int64_t group) {
    const int64_t network = group / blocking_.groups, samples = problem_.samples_per_network();
    weights_ = networks_[network].data();
    for (size_t l = 0; l < plan_.layers.size(); ++l) start_group(l, group);
    const int64_t first = network * samples + group % blocking_.groups * blocking_.group;
    const int64_t last = std::min((network + 1) * samples, first + blocking_.group);
    for (int64_t b = first; b < last; b += blocking_.samples) {
      first_sample_ = b;
      samples_ = int(std::min<int64_t>(blocking_.samples, last - b));
      run_block(group);
    }
  }

 private:
  const Real* sample(const void* tensor, const Shape& shape, int64_t b) const {
    return static_cast<const Real*>(tensor) + b * shape.size();
  }
  Real* sample(void* tensor, const Shape& shape, int64_t b) const {
    return static_cast<Real*>(tensor) + b * shape.size();
  }

  void start_group(size_t l, int64_t group) {
    const Layer& layer = plan_.layers[l];
    const LayerPointers& p = problem_.layers[l];
    Partial<Real>& partial = partials_[l][group];
    if (p.grad_weight) partial.feedforward.allocate_zero(layer.feedforward.packed_size());
    if (p.grad_weight) start_skip_partials(layer, partial.skips);
    if (p.grad_recurrent_weight) partial.recurrence.allocate_zero(layer.recurrence.packed_size());
    if (p.grad_inhibitory_weight) partial.inhibition.allocate_zero(layer.inhibition.packed_size());
    if (p.grad_bias) partial.bias.allocate_zero(layer.shape.padded_channels());
  }

  void run_block(int64_t group) {
    for (size_t l = 0; l < plan_.layers.size(); ++l) start_block(l);
    for (int64_t word = problem_.words() - 1; word >= 0; --word) {
      const int in_word = int(std::min<int64_t>(kWordSteps, problem_.n_steps - word * kWordSteps));
      for (int first = (in_word - 1) / blocking_.steps * blocking_.steps; first >= 0; first -= blocking_.steps) {
        word_ = word, first_ = first;
        steps_ = std::min(blocking_.steps, in_word - first);
        for (size_t l = plan_.layers.size(); l-- > 0;) run_slice(l, group);
      }
    }
    for (size_t l = 0; l < plan_.layers.size(); ++l) finish_block(l);
  }

  // Loads per-sample gradients or zero, channels last.
  void load_samples(const void* tensor, const Shape& shape, Buffer<Real>& to) {
    to.zero();
    if (!tensor) return;
    for (int r = 0; r < samples_; ++r)
      to_channels_last(shape, sample(tensor, shape, first_sample_ + r), to.data() + r * shape.padded_size());
  }

  void start_block(size_t l) {
    const Layer& layer = plan_.layers[l];
    const LayerPointers& p = problem_.layers[l];
    LayerState<Real>& s = state_[l];
    if (layer.kind == Kind::max_pool) return;
    load_samples(p.grad_membrane, layer.shape, s.grad_membrane);
    load_samples(p.grad_current, layer.shape, s.grad_current);
    load_samples(p.grad_counts, layer.shape, s.grad_counts);
    Buffer<Real> pending(layer.delay ? s.grad_current.size() : 0);
    if (layer.delay) load_samples(p.grad_pending, layer.shape, pending);
    for (int r = 0; r < samples_; ++r)
      copy_to_halo(layer.shape, layer.halo(), (layer.delay ? pending : s.grad_current).data() + r * layer.shape.padded_size(),
                   s.grad_injected.data() + r * layer.halo_size());
    if (layer.n_inhibitory) s.inhibition.start_block(p, first_sample_, samples_);
    if (layer.kind == Kind::lif && !layer.detach_reset) {
      for (int r = 0; r < samples_; ++r)
        load_kept_row(layer, kept_row(l, r, problem_.n_steps), constants_[l].threshold,
                      s.next_charged.data() + r * layer.shape.padded_size());
    }
    if (layer.kind == Kind::readout_max) {
      // The gradient of a score enters at one step: kept in grad_counts until then.
      load_samples(problem_.grad_output, layer.shape, s.grad_counts);
      s.best_step.zero();
      for (int r = 0; r < samples_; ++r)
        to_channels_last(layer.shape, problem_.best_step + (first_sample_ + r) * layer.shape.size(),
                         s.best_step.data() + r * layer.shape.padded_size());
    }
  }

  const Kept* kept_row(size_t l, int r, int64_t n) const {
    const Layer& layer = plan_.layers[l];
    return static_cast<const Kept*>(problem_.layers[l].kept) +
           ((first_sample_ + r) * problem_.kept_rows(layer) + n) * layer.shape.size();
  }

  void load_kept_row(const Layer& layer, const Kept* kept, Real threshold, Real* to) {
    for (int p = 0; p < layer.shape.positions(); ++p)
      for (int c = 0; c < layer.shape.padded_channels(); c += kBlock) {
        const int valid = std::min(kBlock, layer.shape.channels - c);
        alignas(64) Kept block[kBlock] = {};
        std::copy(kept, kept + valid, block);
        for (int v = 0; v < kBlock; v += S::lanes) S::store(to + v, load_kept(block + v) + threshold);
        kept += valid, to += kBlock;
      }
  }

  Real* spike_row(size_t l, int r, int q) {
    return state_[l].grad_spikes.data() + (int64_t(r) * blocking_.steps + q) * plan_.layers[l].shape.padded_size();
  }
  Real* current_row(size_t l, int r, int q) {
    return state_[l].grad_currents.data() + (int64_t(r) * blocking_.steps + q) * plan_.layers[l].halo_size();
  }

  SpikeGradients<Real> spike_gradients(size_t l) {
    const Shape& shape = plan_.layers[l].shape;
    return {spike_row(l, 0, 0), shape, blocking_.steps * shape.padded_size(), samples_, steps_};
  }
  Rows<Real> current_rows(size_t l) {
    const int64_t size = plan_.layers[l].halo_size();
    return {current_row(l, 0, 0), size, blocking_.steps * size, samples_};
  }

  // Spikes of the block's samples around the slice in hand.
  SourceWords spikes_of(size_t l) const {
    const Shape& shape = plan_.layers[l].shape;
    return {problem_.layers[l].words + (word_ * problem_.batch + first_sample_) * shape.size(), shape};
  }
  SourceWords input_spikes() const {
    const Shape& shape = plan_.layers[0].feedforward.in;
    const int64_t sample = word_ * problem_.input_batch + problem_.input_sample(first_sample_);
    return {static_cast<const int32_t*>(problem_.input.data) + sample * shape.size(), shape};
  }

  Real* injected_row(size_t l, int r) { return state_[l].grad_injected.data() + r * plan_.layers[l].halo_size(); }
  // Where dL/dJ of the step before goes: the row of that step, or past the slice.
  Real* row_before(size_t l, int r, int q) { return q > 0 ? current_row(l, r, q - 1) : injected_row(l, r); }

  void run_slice(size_t l, int64_t group) {
    const Layer& layer = plan_.layers[l];
    if (l + 1 == plan_.layers.size() && layer.kind != Kind::readout_max) load_output_gradient(l);
    add_skip_gradients(l);
    if (layer.kind == Kind::max_pool)
      return pooling_(layer.feedforward, spikes_of(l - 1), first_, spike_gradients(l), spike_gradients(l - 1));
    if (layer.kind == Kind::current) {
      for (int r = 0; r < samples_; ++r)
        for (int q = 0; q < steps_; ++q)
          copy_to_halo(layer.shape, layer.halo(), spike_row(l, r, q), current_row(l, r, q));
    } else {
      for (int r = 0; r < samples_; ++r)
        std::copy_n(injected_row(l, r), layer.halo_size(), current_row(l, r, steps_ - 1));
      if (layer.n_inhibitory) state_[l].inhibition.start_slice(spike_row(l, 0, 0), samples_, steps_);
      for (int q = steps_ - 1; q >= 0; --q) {
        add_recurrent_gradient(l, q);
        for (int r = 0; r < samples_; ++r) retreat(l, r, q);
      }
    }
    add_weight_gradients(l, group);
    if (l > 0)
      input_gradient(l, plan_.layers[l - 1].shape, state_[l - 1].grad_spikes.data());
    else if (problem_.grad_input)
      finish_input_gradient();
  }

  // What the readout sends past the layers between: its slice came first, and its gradients still stand.
  void add_skip_gradients(size_t l) {
    const size_t last = plan_.layers.size() - 1;
    const Layer& readout = plan_.layers[last];
    for (size_t i = 0; i < readout.skips.size(); ++i)
      if (readout.skips[i] == int(l))
        add_skip_gradient(readout.skip_connections[i], weights_[last].skips[i], current_rows(last), spike_gradients(l));
  }

  // The gradient of the last layer's output, into the rows its gradient of spikes stands in.
  void load_output_gradient(size_t l) {
    const Shape &shape = plan_.layers[l].shape, emitted = plan_.layers[l].emitted();
    for (int r = 0; r < samples_; ++r)
      for (int q = 0; q < steps_; ++q) {
        Real* to = spike_row(l, r, q);
        std::fill(to, to + shape.padded_size(), Real(0));  // pads too: the recurrent product adds to them
        if (problem_.grad_output)
          to_channels_last(emitted,
                           sample(problem_.grad_output, emitted,
                                  (word_ * kWordSteps + first_ + q) * problem_.batch + first_sample_ + r),
                           shape.padded_channels(), to);
      }
  }

  // grad_spikes += V^T grad_currents at one step.
  void add_recurrent_gradient(size_t l, int q) {
    const Layer& layer = plan_.layers[l];
    if (layer.recurrent)
      add_lateral_gradient<Real>(layer.recurrence, weights_[l].recurrence.data(), layer.recurrence.in.padded_channels(),
                                 {current_row(l, 0, q), blocking_.steps * layer.halo_size()},
                                 {spike_row(l, 0, q), blocking_.steps * layer.shape.padded_size()}, samples_);
    if (layer.n_inhibitory)
      state_[l].inhibition.add_spike_gradient(weights_[l].inhibition, q, spike_row(l, 0, q), samples_);
  }

  // From the gradients at n + 1 to those at n (see lif_step.h); also leaves dL/dJ[n-1] in the row of the step before.
  void retreat(size_t l, int r, int q) {
    const Layer& layer = plan_.layers[l];
    if (layer.kind != Kind::lif) return retreat_readout(l, r, q);
    if (layer.detach_reset)
      layer.delay ? retreat_lif<true, true>(l, r, q) : retreat_lif<true, false>(l, r, q);
    else
      layer.delay ? retreat_lif<false, true>(l, r, q) : retreat_lif<false, false>(l, r, q);
  }

  template <bool detach, bool delayed>
  void retreat_lif(size_t l, int r, int q) {
    const Layer& layer = plan_.layers[l];
    LayerState<Real>& s = state_[l];
    const Shape& shape = layer.shape;
    const int64_t at = r * shape.padded_size(), n = word_ * kWordSteps + first_ + q;
    const int64_t word_pitch = problem_.batch * shape.size();
    const int bit = first_ + q;
    const int32_t* words = problem_.layers[l].words + word_ * word_pitch + (first_sample_ + r) * shape.size();
    // Was the neuron reset on the way to this step? Then its membrane is 0, not what was charged.
    const int32_t* words_before = n == 0 ? nullptr : bit > 0 ? words : words - word_pitch;
    NeuronRun<Real, Kept> run{s.grad_membrane.data() + at, s.grad_current.data() + at,
                              detach ? nullptr : s.next_charged.data() + at,
                              row_before(l, r, q) + layer.halo() * shape.padded_channels(), nullptr, nullptr,
                              spike_row(l, r, q), s.grad_counts.data() + at, kept_row(l, r, n), words, words_before};
    if (!layer.n_inhibitory)
      return retreat_map<detach, delayed>(layer, constants_[l], OnePopulation<Real>{constants_[l]}, run, bit, copies_);
    run.grad_inhibitory = s.inhibition.grad_inhibitory(r), run.grad_inhibitory_before = s.inhibition.before(r, q);
    retreat_map<detach, delayed>(layer, constants_[l], s.inhibition.constants, run, bit, copies_);
  }

  void retreat_readout(size_t l, int r, int q) {
    const Layer& layer = plan_.layers[l];
    LayerState<Real>& s = state_[l];
    const NeuronConstants<Real>& k = constants_[l];
    const int64_t size = layer.shape.padded_size(), at = r * size, n = word_ * kWordSteps + first_ + q;
    const bool is_max = layer.kind == Kind::readout_max;
    Real* before_row = row_before(l, r, q);
    for (int64_t v = 0; v < size; v += S::lanes) {
      const auto entering =
          is_max ? S::select(S::widen(S::load_words(s.best_step.data() + at + v) == int32_t(n)),
                             S::load(s.grad_counts.data() + at + v), typename S::vec{})
                 : S::load(spike_row(l, r, q) + v);
      const auto grad_next = S::load(s.grad_membrane.data() + at + v);
      const auto later = S::load(s.grad_current.data() + at + v), now = current_adjoint(k, later, grad_next);
      S::store(s.grad_membrane.data() + at + v, membrane_adjoint(k, grad_next, entering));
      S::store(s.grad_current.data() + at + v, now);
      S::store(before_row + v, layer.delay ? later : now);
    }
  }

  void add_weight_gradients(size_t l, int64_t group) {
    const Layer& layer = plan_.layers[l];
    const LayerPointers& p = problem_.layers[l];
    Partial<Real>& partial = partials_[l][group];
    const Rows<Real> rows = current_rows(l);
    if (p.grad_weight && l == 0 && problem_.input.kind != InputKind::bits) {
      for (int r = 0; r < samples_; ++r) {
        const Real* values = static_cast<const Real*>(problem_.input.data) +
                             problem_.input_sample(first_sample_ + r) * problem_.input.batch_stride +
                             (word_ * kWordSteps + first_) * problem_.input.time_stride;
        weight_gradient_values(layer.feedforward, values, problem_.input.time_stride, steps_,
                               rows.data + r * rows.sample_pitch, rows.step_pitch, partial.feedforward.data());
      }
    } else if (p.grad_weight) {
      const SourceWords source = l ? spikes_of(l - 1) : input_spikes();
      weight_gradient_events(layer.feedforward, source, first_, steps_, rows, active_, partial.feedforward.data());
    }
    for (size_t i = 0; i < partial.skips.size(); ++i)
      weight_gradient_events(layer.skip_connections[i], spikes_of(layer.skips[i]), first_, steps_, rows, active_,
                             partial.skips[i].data());
    if (p.grad_recurrent_weight)
      weight_gradient_events(layer.recurrence, spikes_of(l), first_, steps_, rows, active_, partial.recurrence.data());
    if (p.grad_inhibitory_weight) {
      SourceWords inhibitory = spikes_of(l);
      inhibitory.data += layer.emitted().channels;
      weight_gradient_events(layer.inhibition, inhibitory, first_, steps_, state_[l].inhibition.rows(samples_), active_,
                             partial.inhibition.data());
    }
    if (p.grad_bias)
      for (int r = 0; r < samples_; ++r)
        for (int q = 0; q < steps_; ++q)
          for (int y = 0; y < layer.shape.height; ++y)
            for (int x = 0; x < layer.shape.width; ++x)
              add(partial.bias.data(), current_row(l, r, q) + y * layer.halo_row() +
                                           (x + layer.halo()) * layer.shape.padded_channels(),
                  layer.shape.padded_channels());
  }

  // W^T dL/dJ for every source position; rows are the steps of the slice. `to` holds maps of the shape `source`, of which
  // the connection may hear the first channels only.
  void input_gradient(size_t l, const Shape& source, Real* to) {
    const Layer& layer = plan_.layers[l];
    const Connection& c = layer.feedforward;
    const int64_t pitch = source.padded_size();
    const int columns = c.in.padded_channels();
    const bool large = is_large<Real>(c), transpose = large || columns == kBlock;
    // All samples take a panel of large weights before the next one is read.
    const int at_once = large ? int(Panel::kColumns) : columns;
    for (int first = 0; first < columns; first += at_once)
      for (int r = 0; r < samples_; ++r) {
        const Real* rows = current_row(l, r, 0);
        Real* const transposed = transposed_.data() + (large ? r * layer.halo_size() * kWordSteps : 0);
        if (transpose && first == 0) transpose_rows(rows, layer.halo_size(), steps_, layer.halo_size(), transposed);
        for (int p = 0; p < c.in.positions(); ++p) {
          const Product<Real> work{transpose ? transposed : rows,
                                   layer.halo_size(),
                                   c.exact_targets.data() + c.first_target[p],
                                   c.first_target[p + 1] - c.first_target[p],
                                   weights_[l].feedforward.data(),
                                   c.taps() * c.out.padded_channels(),
                                   columns,
                                   to + int64_t(r) * blocking_.steps * pitch + int64_t(p) * source.padded_channels(),
                                   pitch,
                                   false};
          const int last = std::min(columns, first + at_once);
          transpose ? product<InLayout::transposed>(work, steps_, first, last)
                    : product<InLayout::strided>(work, steps_, first, last);
        }
      }
  }

  void finish_input_gradient() {
    const Layer& layer = plan_.layers[0];
    const Shape shape = plan_.input_shape();
    if (layer.has_feedforward) input_gradient(0, shape, input_rows_.data());
    for (int r = 0; r < samples_; ++r)
      for (int q = 0; q < steps_; ++q) {
        Real* to = sample(problem_.grad_input, shape, (word_ * kWordSteps + first_ + q) * problem_.batch + first_sample_ + r);
        if (layer.has_feedforward)
          from_channels_last(shape, input_rows_.data() + (int64_t(r) * blocking_.steps + q) * shape.padded_size(), to);
        else
          from_channels_last(shape, current_row(0, r, q) + layer.halo() * shape.padded_channels(), layer.halo_row(), to);
      }
  }

  void finish_block(size_t l) {
    const Layer& layer = plan_.layers[l];
    const LayerPointers& p = problem_.layers[l];
    LayerState<Real>& s = state_[l];
    for (int r = 0; r < samples_; ++r) {
      const int64_t at = r * layer.shape.padded_size(), b = first_sample_ + r;
      if (p.grad_membrane0)
        from_channels_last(layer.shape, s.grad_membrane.data() + at, sample(p.grad_membrane0, layer.shape, b));
      if (p.grad_current0)
        from_channels_last(layer.shape, s.grad_current.data() + at, sample(p.grad_current0, layer.shape, b));
      if (layer.n_inhibitory) s.inhibition.finish_sample(p, b, r);
      if (p.grad_pending0 && layer.delay)
        from_channels_last(layer.shape, injected_row(l, r) + layer.halo() * layer.shape.padded_channels(),
                           layer.halo_row(), sample(p.grad_pending0, layer.shape, b));
    }
  }

  const Problem& problem_;
  const Plan& plan_;
  const Blocking& blocking_;
  const std::vector<NetworkTransposed<Real>>& networks_;
  const TransposedWeights<Real>* weights_ = nullptr;  // of the layers of the network whose samples are in hand
  std::vector<std::vector<Partial<Real>>>& partials_;  // [layer][group of any network]
  std::vector<LayerState<Real>> state_;
  std::vector<NeuronConstants<Real>> constants_;
  Buffer<Real> input_rows_, transposed_;
  PaddedPosition<Kept> copies_;
  ActiveChannels active_{0};
  PoolingGradient<Real> pooling_;
  int64_t first_sample_ = 0, word_ = 0;
  int samples_ = 0, first_ = 0, steps_ = 0;
};

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
