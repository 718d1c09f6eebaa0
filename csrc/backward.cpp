// Backward: a few samples at a time, up to 32 steps at a time through all layers from the last to the first, so that the
// gradients between layers stay in the second-level cache. Weight gradients visit spikes only; input gradients are dense
// and exact. Compiled once per instruction set, with fused multiply-adds where it has them.
//
// Names: J[n] is the current injected at step n; its gradient is dL/dI[n+1] (n+2 with delay). Steps inside a slice are
// counted by q, samples inside a block by r.
#include "block.h"
#include "lif_step.h"
#include "matmul.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {

constexpr int kMostBlock = 8;                    // samples handled together, so that dense recurrence is a matrix product
constexpr int64_t kSliceBytes = 1 << 20;         // of gradients between layers, kept in cache
constexpr int64_t kPartialBytes = int64_t(1) << 29;  // of weight gradients summed per group of samples

template <class Real>
struct SharedWeights {
  Buffer<Real> feedforward, recurrence;  // transposed
};

// Weight gradients of one group of samples, in the packed order of the weights. Which samples form a group depends on
// the problem alone, and groups are added in order: the sum is the same for any number of threads.
template <class Real>
struct Partial {
  Buffer<Real> feedforward, recurrence, bias;
};

struct Blocking {
  int samples, steps;   // of a block and of a slice
  int64_t group;        // samples whose weight gradients are summed in one place
};

int64_t weight_elements(const Plan& plan) {
  int64_t n = 0;
  for (const Layer& layer : plan.layers)
    n += (layer.has_feedforward ? layer.feedforward.packed_size() : 0) +
         (layer.recurrent ? layer.recurrence.packed_size() : 0) + layer.shape.padded_size();
  return n;
}

template <class Real>
Blocking choose_blocking(const Problem& problem) {
  int64_t per_step = 0;
  bool dense_recurrence = false;
  for (const Layer& layer : problem.plan->layers) {
    per_step += (layer.shape.padded_size() + layer.halo_size()) * int64_t(sizeof(Real));
    dense_recurrence |= layer.recurrent && layer.shape.positions() == 1;
  }
  Blocking blocking{1, kWordSteps, 0};
  while (blocking.steps > 4 && blocking.steps * per_step > kSliceBytes) blocking.steps /= 2;
  // With dense recurrence the rows of the matrix product are samples: shorter slices rather than fewer samples.
  while (dense_recurrence && blocking.samples < kMostBlock) {
    blocking.samples *= 2;
    if (blocking.samples * blocking.steps * per_step > kSliceBytes && blocking.steps > 4) blocking.steps /= 2;
  }
  blocking.group = std::min<int64_t>(8, (problem.batch + 15) / 16);
  const int64_t partial = weight_elements(*problem.plan) * int64_t(sizeof(Real));
  while (blocking.group < problem.batch && problem.batch / blocking.group * partial > kPartialBytes) blocking.group *= 2;
  blocking.samples = int(std::min<int64_t>(blocking.samples, blocking.group));
  return blocking;
}

// to[0..length) += the rows picked by the bits of one source neuron, sums in registers.
template <class Real, int vecs>
void add_picked_rows(Real* to, const Real* rows, int64_t pitch, uint32_t bits) {
  using S = Simd<Real>;
  typename S::vec sum[vecs];
#pragma GCC unroll 8
  for (int v = 0; v < vecs; ++v) sum[v] = S::load(to + v * S::lanes);
  for (; bits; bits &= bits - 1) {
    const Real* row = rows + __builtin_ctz(bits) * pitch;
#pragma GCC unroll 8
    for (int v = 0; v < vecs; ++v) sum[v] += S::load(row + v * S::lanes);
  }
#pragma GCC unroll 8
  for (int v = 0; v < vecs; ++v) S::store(to + v * S::lanes, sum[v]);
}

template <class Real>
void add_picked_rows(Real* to, const Real* rows, int64_t pitch, int length, uint32_t bits) {
  constexpr int lanes = Simd<Real>::lanes, wide = 8;
  int i = 0;
  for (; i + wide * lanes <= length; i += wide * lanes) add_picked_rows<Real, wide>(to + i, rows + i, pitch, bits);
  for (; i + 2 * lanes <= length; i += 2 * lanes) add_picked_rows<Real, 2>(to + i, rows + i, pitch, bits);
  for (; i < length; i += lanes) add_picked_rows<Real, 1>(to + i, rows + i, pitch, bits);
}

// Weight gradient of one connection, one sample and slice: for every spike, the gradients of the currents it reached.
// words: of the source at these steps, channels last; bit `first` is row 0 of `rows`.
template <class Real>
void weight_gradient_events(const Connection& c, const int32_t* words, int first, int steps, const Real* rows,
                            int64_t pitch, Real* gradient) {
  const int64_t channel_pitch = int64_t(c.taps()) * c.out.padded_channels();
  const uint32_t mask = steps == kWordSteps ? ~uint32_t(0) : (uint32_t(1) << steps) - 1;
  for (int p = 0; p < c.in.positions(); ++p) {
    const Target *begin = &c.targets[c.first_target[p]], *end = c.targets.data() + c.first_target[p + 1];
    Real* to = gradient;
    for (int ch = 0; ch < c.in.channels; ++ch, to += channel_pitch) {
      const uint32_t bits = (uint32_t(*words++) >> first) & mask;
      if (!bits) continue;
      for (const Target* t = begin; t < end; ++t) add_picked_rows(to + t->tap, rows + t->out_halo, pitch, t->length, bits);
    }
  }
}

// The same for input that is not binary. values: first step, as torch stores it (channels, positions).
template <class Real>
void weight_gradient_values(const Connection& c, const Real* values, int64_t time_stride, int steps, const Real* rows,
                            int64_t pitch, Real* gradient) {
  const int64_t channel_pitch = int64_t(c.taps()) * c.out.padded_channels();
  for (int p = 0; p < c.in.positions(); ++p)
    for (int ch = 0; ch < c.in.channels; ++ch)
      for (int q = 0; q < steps; ++q) {
        const Real value = values[q * time_stride + int64_t(ch) * c.in.positions() + p];
        if (value == 0) continue;
        for (int t = c.first_target[p]; t < c.first_target[p + 1]; ++t)
          add_scaled(gradient + ch * channel_pitch + c.targets[t].tap, rows + q * pitch + c.targets[t].out_halo, value,
                     c.targets[t].length);
      }
}

template <class Real>
struct LayerState {
  // Per sample of the block, one after the other. grad_injected: dL/dI[n+1] or, delayed, dL/dI[n+2].
  Buffer<Real> grad_membrane, grad_current, grad_injected, grad_counts, next_charged;
  Buffer<Real> grad_spikes;   // [sample][step of the slice][neuron, padded]: dL/dS, or dL/dU of a readout
  Buffer<Real> grad_currents; // [sample][step of the slice][neuron with halo]: dL/dJ
  Buffer<int32_t> best_step;
};

template <class Real, class Kept>
class BackwardWorker {
  using S = Simd<Real>;

 public:
  BackwardWorker(const Problem& problem, const Blocking& blocking, const std::vector<SharedWeights<Real>>& weights,
                 std::vector<std::vector<Partial<Real>>>& partials)
      : problem_(problem), plan_(*problem.plan), blocking_(blocking), weights_(weights), partials_(partials),
        state_(plan_.layers.size()) {
    const int64_t rows = int64_t(blocking.samples) * blocking.steps;
    for (size_t l = 0; l < plan_.layers.size(); ++l) {
      const Layer& layer = plan_.layers[l];
      LayerState<Real>& s = state_[l];
      const int64_t n = blocking.samples * layer.shape.padded_size();
      s.grad_membrane.allocate(n), s.grad_current.allocate(n), s.grad_injected.allocate(n), s.grad_counts.allocate(n);
      if (!layer.detach_reset) s.next_charged.allocate(n);
      if (layer.kind == Kind::readout_max) s.best_step.allocate(n);
      s.grad_spikes.allocate_zero(rows * layer.shape.padded_size());
      s.grad_currents.allocate_zero(rows * layer.halo_size());  // the halo stays zero
    }
    if (problem.grad_input && plan_.layers[0].has_feedforward)
      input_rows_.allocate_zero(rows * plan_.input_shape().padded_size());
    unused_row_.allocate(plan_.layers.empty() ? 0 : most_halo());
  }

  void operator()(int64_t group) {
    for (size_t l = 0; l < plan_.layers.size(); ++l) start_group(l, group);
    const int64_t first = group * blocking_.group, last = std::min(problem_.batch, first + blocking_.group);
    for (int64_t b = first; b < last; b += blocking_.samples) {
      first_sample_ = b;
      samples_ = int(std::min<int64_t>(blocking_.samples, last - b));
      run_block(group);
    }
  }

 private:
  int64_t most_halo() const {
    int64_t n = 0;
    for (const Layer& layer : plan_.layers) n = std::max(n, layer.halo_size());
    return n;
  }

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
    if (p.grad_recurrent_weight) partial.recurrence.allocate_zero(layer.recurrence.packed_size());
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
    load_samples(p.grad_membrane, layer.shape, s.grad_membrane);
    load_samples(p.grad_current, layer.shape, s.grad_current);
    load_samples(p.grad_counts, layer.shape, s.grad_counts);
    if (layer.delay)
      load_samples(p.grad_pending, layer.shape, s.grad_injected);
    else
      std::copy(s.grad_current.data(), s.grad_current.data() + s.grad_current.size(), s.grad_injected.data());
    if (layer.kind == Kind::lif && !layer.detach_reset) {
      const NeuronConstants<Real> k(layer);
      for (int r = 0; r < samples_; ++r)
        load_kept_row(layer, kept_row(l, r, problem_.n_steps), k.threshold,
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

  void run_slice(size_t l, int64_t group) {
    const Layer& layer = plan_.layers[l];
    if (l + 1 == plan_.layers.size() && layer.kind != Kind::readout_max) load_output_gradient(l);
    if (layer.kind == Kind::current) {
      for (int r = 0; r < samples_; ++r)
        for (int q = 0; q < steps_; ++q)
          copy_to_halo(layer, spike_row(l, r, q), current_row(l, r, q));
    } else {
      for (int r = 0; r < samples_; ++r)
        copy_to_halo(layer, state_[l].grad_injected.data() + r * layer.shape.padded_size(), current_row(l, r, steps_ - 1));
      for (int q = steps_ - 1; q >= 0; --q) {
        if (layer.recurrent) add_recurrent_gradient(l, q);
        for (int r = 0; r < samples_; ++r) layer.kind == Kind::lif ? retreat_lif(l, r, q) : retreat_readout(l, r, q);
      }
    }
    add_weight_gradients(l, group);
    if (l > 0)
      input_gradient(l, state_[l - 1].grad_spikes.data());
    else if (problem_.grad_input)
      finish_input_gradient();
  }

  // The gradient of the last layer's output, into the rows its gradient of spikes stands in.
  void load_output_gradient(size_t l) {
    const Shape& shape = plan_.layers[l].shape;
    for (int r = 0; r < samples_; ++r)
      for (int q = 0; q < steps_; ++q) {
        Real* to = spike_row(l, r, q);
        if (problem_.grad_output)
          to_channels_last(shape, sample(problem_.grad_output, shape,
                                         (word_ * kWordSteps + first_ + q) * problem_.batch + first_sample_ + r), to);
        else
          std::fill(to, to + shape.padded_size(), Real(0));
      }
  }

  void copy_to_halo(const Layer& layer, const Real* from, Real* to) {
    const int row = layer.shape.width * layer.shape.padded_channels();
    to += layer.halo() * layer.shape.padded_channels();
    for (int y = 0; y < layer.shape.height; ++y) std::copy(from + y * row, from + (y + 1) * row, to + y * layer.halo_row());
  }

  // grad_spikes += V^T grad_currents at one step: rows are the samples, or the positions along a row of the map.
  void add_recurrent_gradient(size_t l, int q) {
    const Connection& c = plan_.layers[l].recurrence;
    Product<Real> p{current_row(l, 0, q), 0, nullptr, 0, weights_[l].recurrence.data(), c.in.padded_channels(),
                    spike_row(l, 0, q), 0, true};
    if (c.in.positions() == 1) {
      p.in_pitch = blocking_.steps * plan_.layers[l].halo_size();
      p.out_pitch = blocking_.steps * plan_.layers[l].shape.padded_size();
      p.segments = c.row_targets.data(), p.n_segments = 1;
      product(p, samples_);
      return;
    }
    p.in_pitch = p.out_pitch = c.in.padded_channels();
    for (int r = 0; r < samples_; ++r)
      for (int y = 0; y < c.in.height; ++y) {
        p.in = current_row(l, r, q);
        p.out = spike_row(l, r, q) + int64_t(y) * c.in.width * c.in.padded_channels();
        p.segments = c.row_targets.data() + c.first_row_target[y];
        p.n_segments = c.first_row_target[y + 1] - c.first_row_target[y];
        product(p, c.in.width);
      }
  }

  // From the gradients at n + 1 to those at n (see lif_step.h); also leaves dL/dJ[n-1] in the row of the step before.
  void retreat_lif(size_t l, int r, int q) {
    const Layer& layer = plan_.layers[l];
    LayerState<Real>& s = state_[l];
    const NeuronConstants<Real> k(layer);
    const Shape& shape = layer.shape;
    const int64_t at = r * shape.padded_size(), n = word_ * kWordSteps + first_ + q;
    Real *grad_membrane = s.grad_membrane.data() + at, *grad_current = s.grad_current.data() + at;
    Real* grad_injected = s.grad_injected.data() + at;
    Real* next_charged = layer.detach_reset ? nullptr : s.next_charged.data() + at;
    const Real *grad_spikes = spike_row(l, r, q), *grad_counts = s.grad_counts.data() + at;
    const Kept* kept = kept_row(l, r, n);
    const int64_t word_pitch = problem_.batch * shape.size();
    const int32_t* words = problem_.layers[l].words + word_ * word_pitch + (first_sample_ + r) * shape.size();
    const int bit = first_ + q;
    // Was the neuron reset on the way to this step? Then its membrane is 0, not what was charged.
    const int32_t* words_before = bit > 0 ? words : words - word_pitch;
    const int bit_before = bit > 0 ? bit - 1 : kWordSteps - 1;
    const bool whole = shape.channels % kBlock == 0;
    for (int y = 0; y < shape.height; ++y) {
      Real* grad_before = (q > 0 ? current_row(l, r, q - 1) : unused_row_.data()) + y * layer.halo_row() +
                          layer.halo() * shape.padded_channels();
      for (int x = 0; x < shape.width; ++x)
        for (int c = 0; c < shape.padded_channels(); c += kBlock) {
          const int valid = std::min(kBlock, shape.channels - c);
          alignas(64) Kept kept_tail[kBlock];
          alignas(64) int32_t tail[kBlock], tail_before[kBlock];
          const Kept* kept_block = kept;
          const int32_t *block = words, *block_before = words_before;
          if (!whole) {
            std::memset(static_cast<void*>(kept_tail), 0, sizeof kept_tail);
            std::memset(tail, 0, sizeof tail), std::memset(tail_before, 0, sizeof tail_before);
            std::copy(kept, kept + valid, kept_tail), kept_block = kept_tail;
            std::copy(words, words + valid, tail), block = tail;
            if (next_charged && n > 0) std::copy(words_before, words_before + valid, tail_before), block_before = tail_before;
          }
#pragma GCC unroll 4
          for (int v = 0; v < kBlock; v += S::lanes) {
            const auto spike = S::widen((S::load_words(block + v) >> bit & 1) != 0);
            auto grad_spike = S::load(grad_spikes + v) + S::load(grad_counts + v);
            auto distance = load_kept(kept_block + v);
            const auto grad_next = S::load(grad_membrane + v);
            if (next_charged) {
              grad_spike -= S::load(next_charged + v) * grad_next;
              S::store(next_charged + v, distance + k.threshold);
              if (n > 0)
                distance = S::select(S::widen((S::load_words(block_before + v) >> bit_before & 1) != 0),
                                     S::all(-k.threshold), distance);
            }
            const auto unreset = S::select(spike, typename S::vec{}, grad_next);
            const auto surrogate = k.scale * reciprocal(surrogate_denominator(k, absolute(distance)));
            S::store(grad_membrane + v, membrane_adjoint(k, unreset, surrogate * grad_spike));
            const auto later = S::load(grad_current + v), now = current_adjoint(k, later, unreset);
            S::store(grad_current + v, now);
            const auto before = layer.delay ? later : now;
            S::store(grad_injected + v, before);
            S::store(grad_before + v, before);
          }
          grad_membrane += kBlock, grad_current += kBlock, grad_injected += kBlock, grad_spikes += kBlock;
          grad_counts += kBlock, grad_before += kBlock;
          if (next_charged) next_charged += kBlock;
          kept += valid, words += valid, words_before += valid;
        }
    }
  }

  void retreat_readout(size_t l, int r, int q) {
    const Layer& layer = plan_.layers[l];
    LayerState<Real>& s = state_[l];
    const NeuronConstants<Real> k(layer);
    const int64_t size = layer.shape.padded_size(), at = r * size, n = word_ * kWordSteps + first_ + q;
    const bool is_max = layer.kind == Kind::readout_max;
    Real* before_row = q > 0 ? current_row(l, r, q - 1) : unused_row_.data();
    for (int64_t v = 0; v < size; v += S::lanes) {
      const auto entering =
          is_max ? S::select(S::widen(S::load_words(s.best_step.data() + at + v) == int32_t(n)),
                             S::load(s.grad_counts.data() + at + v), typename S::vec{})
                 : S::load(spike_row(l, r, q) + v);
      const auto grad_next = S::load(s.grad_membrane.data() + at + v);
      const auto later = S::load(s.grad_current.data() + at + v), now = current_adjoint(k, later, grad_next);
      S::store(s.grad_membrane.data() + at + v, membrane_adjoint(k, grad_next, entering));
      S::store(s.grad_current.data() + at + v, now);
      const auto before = layer.delay ? later : now;
      S::store(s.grad_injected.data() + at + v, before);
      S::store(before_row + v, before);
    }
  }

  void add_weight_gradients(size_t l, int64_t group) {
    const Layer& layer = plan_.layers[l];
    const LayerPointers& p = problem_.layers[l];
    Partial<Real>& partial = partials_[l][group];
    for (int r = 0; r < samples_; ++r) {
      const int64_t b = first_sample_ + r;
      const Real* rows = current_row(l, r, 0);
      if (p.grad_weight) {
        const Connection& c = layer.feedforward;
        if (l == 0 && problem_.input.kind != InputKind::bits) {
          const Real* values = static_cast<const Real*>(problem_.input.data) + b * problem_.input.batch_stride +
                               (word_ * kWordSteps + first_) * problem_.input.time_stride;
          weight_gradient_values(c, values, problem_.input.time_stride, steps_, rows, layer.halo_size(),
                                 partial.feedforward.data());
        } else {
          const int32_t* words = l ? problem_.layers[l - 1].words : static_cast<const int32_t*>(problem_.input.data);
          weight_gradient_events(c, words + (word_ * problem_.batch + b) * c.in.size(), first_, steps_, rows,
                                 layer.halo_size(), partial.feedforward.data());
        }
      }
      if (p.grad_recurrent_weight)
        weight_gradient_events(layer.recurrence, p.words + (word_ * problem_.batch + b) * layer.shape.size(), first_,
                               steps_, rows, layer.halo_size(), partial.recurrence.data());
      if (p.grad_bias)
        for (int q = 0; q < steps_; ++q)
          for (int y = 0; y < layer.shape.height; ++y)
            for (int x = 0; x < layer.shape.width; ++x)
              add(partial.bias.data(), rows + q * layer.halo_size() + y * layer.halo_row() +
                                           (x + layer.halo()) * layer.shape.padded_channels(),
                  layer.shape.padded_channels());
    }
  }

  // W^T dL/dJ for every source position; rows are the steps of the slice.
  void input_gradient(size_t l, Real* to) {
    const Layer& layer = plan_.layers[l];
    const Connection& c = layer.feedforward;
    const int64_t pitch = c.in.padded_size();
    for (int r = 0; r < samples_; ++r)
      for (int p = 0; p < c.in.positions(); ++p) {
        const Product<Real> work{current_row(l, r, 0), layer.halo_size(), c.targets.data() + c.first_target[p],
                                 c.first_target[p + 1] - c.first_target[p], weights_[l].feedforward.data(),
                                 c.in.padded_channels(),
                                 to + int64_t(r) * blocking_.steps * pitch + int64_t(p) * c.in.padded_channels(), pitch,
                                 false};
        product(work, steps_);
      }
  }

  void finish_input_gradient() {
    const Layer& layer = plan_.layers[0];
    const Shape shape = plan_.input_shape();
    if (layer.has_feedforward) input_gradient(0, input_rows_.data());
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
      if (p.grad_pending0 && layer.delay)
        from_channels_last(layer.shape, s.grad_injected.data() + at, sample(p.grad_pending0, layer.shape, b));
    }
  }

  const Problem& problem_;
  const Plan& plan_;
  const Blocking& blocking_;
  const std::vector<SharedWeights<Real>>& weights_;
  std::vector<std::vector<Partial<Real>>>& partials_;  // [layer][group]
  std::vector<LayerState<Real>> state_;
  Buffer<Real> input_rows_, unused_row_;
  int64_t first_sample_ = 0, word_ = 0;
  int samples_ = 0, first_ = 0, steps_ = 0;
};

// Adds the groups in order into the first of them, a piece of the weights per work item.
template <class Real>
void sum_groups(std::vector<Partial<Real>>& groups, Buffer<Real> Partial<Real>::*which, int threads) {
  const int64_t size = (groups[0].*which).size(), piece = 4096;
  parallel_items((size + piece - 1) / piece, threads, [&] {
    return [&](int64_t item) {
      const int64_t lo = item * piece, hi = std::min(size, lo + piece);
      Real* to = (groups[0].*which).data();
      for (size_t g = 1; g < groups.size(); ++g) {
        const Real* from = (groups[g].*which).data();
        for (int64_t i = lo; i < hi; ++i) to[i] += from[i];
      }
    };
  });
}

template <class Real, class Kept>
void run_backward(const Problem& problem) {
  const Plan& plan = *problem.plan;
  std::vector<SharedWeights<Real>> weights(plan.layers.size());
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    Buffer<Real> packed;
    if (plan.layers[l].has_feedforward && (l > 0 || problem.grad_input)) {
      pack_weights(plan.layers[l].feedforward, static_cast<const Real*>(problem.layers[l].weight), packed);
      transpose_weights(plan.layers[l].feedforward, packed, weights[l].feedforward);
    }
    if (plan.layers[l].recurrent) {
      pack_weights(plan.layers[l].recurrence, static_cast<const Real*>(problem.layers[l].recurrent_weight), packed);
      transpose_weights(plan.layers[l].recurrence, packed, weights[l].recurrence);
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
      unpack_weights(plan.layers[l].feedforward, partials[l][0].feedforward.data(), static_cast<Real*>(p.grad_weight));
    }
    if (p.grad_recurrent_weight) {
      sum_groups(partials[l], &Partial<Real>::recurrence, problem.threads);
      unpack_weights(plan.layers[l].recurrence, partials[l][0].recurrence.data(), static_cast<Real*>(p.grad_recurrent_weight));
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
