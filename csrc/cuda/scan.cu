// One spiking layer without recurrence, its injected current given: a thread owns one or two neighbouring neurons for
// all steps, with their state in registers, and lanes lie along the neurons, so that every access is coalesced. Memory
// is the limit: forward moves 4 + 2 + 1/8 bytes per neuron and step (current in; kept and spikes out), backward
// 4 + 2 + 1/8 + 4, with single precision and kept values of 16 bits.
//
// Compiled without contraction into fused multiply-adds: the forward pass rounds as the CPU does.
#include "scan.h"

#include "neuron_backward.h"

namespace fastlif::cuda {

namespace {

// ---- Forward

template <class Real, class Kept>
struct ForwardScan {
  NeuronConstants<Real> constants;
  UserLayout layout;
  bool detach_reset, delayed;
  int64_t n_steps, size;  // size: neurons of all samples
  const Real *injected, *membrane0, *current0, *pending0;
  Kept* kept;
  int32_t* words;
  Real *counts, *membrane, *current, *pending;
};

template <class Real>
struct ForwardState {
  Real membrane, current, pending;  // U[n], I[n], J[n-1]
  uint32_t word;                    // spikes since the last multiple of 32 steps
  int count;
};

// The thread's place in the rows that come next.
template <class Real, class Kept>
struct ForwardRows {
  const Real* injected;
  Kept* kept;
  int32_t* words;
};

// Loads J of the next steps, of which `left` are left.
template <int steps, class Real, class Kept, int width>
__device__ __forceinline__ void load_injected(const ForwardScan<Real, Kept>& p, int left, ForwardRows<Real, Kept>& rows,
                                              Neighbours<Real, width> (&injected)[steps]) {
#pragma unroll
  for (int j = 0; j < steps; ++j) {
    if (j < left) injected[j] = load<width>(rows.injected);
    rows.injected += p.size;
  }
}

// Spikes of step n and the state at n + 1.
template <class Real, class Kept, int width>
__device__ __forceinline__ void advance(const ForwardScan<Real, Kept>& p, uint32_t bit,
                                        const Neighbours<Real, width>& injected, ForwardRows<Real, Kept>& rows,
                                        ForwardState<Real> (&state)[width]) {
  Neighbours<Kept, width> kept;
#pragma unroll
  for (int v = 0; v < width; ++v) {
    ForwardState<Real>& s = state[v];
    const Real charged = charged_membrane(p.constants, s.membrane, s.current);
    kept.of[v] = to_kept<Kept>((p.detach_reset ? s.membrane : charged) - p.constants.threshold);
    const bool spike = s.membrane > p.constants.threshold;
    if (spike) s.word |= bit;
    s.membrane = spike ? Real(0) : charged;
    s.current = next_current(p.constants, s.current, p.delayed ? s.pending : injected.of[v]);
    s.pending = injected.of[v];
  }
  if (p.kept) {
    store<width>(rows.kept, kept);
    rows.kept += p.size;
  }
}

template <class Real, class Kept, int width>
__device__ __forceinline__ void finish_word(const ForwardScan<Real, Kept>& p, ForwardRows<Real, Kept>& rows,
                                            ForwardState<Real> (&state)[width]) {
  Neighbours<int32_t, width> words;
#pragma unroll
  for (int v = 0; v < width; ++v) {
    words.of[v] = int32_t(state[v].word);
    state[v].count += __popc(state[v].word);
    state[v].word = 0;
  }
  if (p.words) {
    store<width>(rows.words, words);
    rows.words += p.size;
  }
}

template <class Real, class Kept, int width>
__global__ void __launch_bounds__(kThreads) scan_forward_kernel(const ForwardScan<Real, Kept> p) {
  constexpr int kSteps = kInFlight / width;
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * width;
  if (first >= p.size) return;
  ForwardState<Real> state[width];
  Neighbours<Kept, width> kept;
#pragma unroll
  for (int v = 0; v < width; ++v) {
    const int64_t at = p.layout.at(first + v);
    state[v] = {value_or_zero(p.membrane0, at), value_or_zero(p.current0, at), value_or_zero(p.pending0, at), 0, 0};
    kept.of[v] = to_kept<Kept>(state[v].membrane - p.constants.threshold);
  }
  ForwardRows<Real, Kept> rows{p.injected + first, p.kept ? p.kept + first : nullptr,
                               p.words ? p.words + first : nullptr};
  if (p.kept && !p.detach_reset) {  // row n + 1 holds U[n+1] before the reset
    store<width>(rows.kept, kept);
    rows.kept += p.size;
  }
  Neighbours<Real, width> injected[kSteps]{}, coming[kSteps]{};
  load_injected(p, steps_left(p.n_steps), rows, injected);
#pragma unroll 1
  for (int64_t n = 0; n < p.n_steps; n += kSteps) {
    const int left = steps_left(p.n_steps - n);
    load_injected(p, left - kSteps, rows, coming);
    const uint32_t bit = uint32_t(1) << (n % kWordSteps);  // kSteps divides 32: the steps lie in one word
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      if (j < left) advance(p, bit << j, injected[j], rows, state);
      injected[j] = coming[j];
    }
    if (left <= kSteps || (n + kSteps) % kWordSteps == 0) finish_word(p, rows, state);
  }
#pragma unroll
  for (int v = 0; v < width; ++v) {
    const int64_t at = p.layout.at(first + v);
    store_if(p.counts, at, Real(state[v].count));
    store_if(p.membrane, at, state[v].membrane);
    store_if(p.current, at, state[v].current);
    if (p.delayed) store_if(p.pending, at, state[v].pending);
  }
}

// ---- Backward

template <class Real, class Kept>
struct BackwardScan {
  NeuronConstants<Real> constants;
  UserLayout layout;
  bool delayed;
  int64_t n_steps, size;
  const Real *grad_spikes, *grad_counts, *grad_membrane, *grad_current, *grad_pending;
  const Kept* kept;
  const int32_t* words;
  Real *grad_injected, *grad_membrane0, *grad_current0, *grad_pending0;
};

template <class Real>
struct BackwardState {
  Real grad_membrane, grad_current, grad_injected;  // dL/dU[n+1], dL/dI[n+1], dL/dJ[n]
  Real grad_counts, kept_next;                      // kept_next: kept[n+1]
};

// Spikes of the 32 steps that n lies in, and of the 32 before, so that their load is never waited for.
template <int width>
struct SpikeWords {
  Neighbours<int32_t, width> now, before;
};

// The thread's place in the rows of step n.
template <class Real, class Kept>
struct BackwardRows {
  const Real* grad_spikes;
  const Kept* kept;
  Real* grad_injected;
};

// From the state at n + 1 to that at n. dL/dJ[n] is stored only now: it may take the place of dL/dS[n].
template <bool detach_reset, class Real, class Kept, int width>
__device__ __forceinline__ void retreat(const BackwardScan<Real, Kept>& p, int bit, const SpikeWords<width>& words,
                                        const Neighbours<Real, width>& grad_spikes, const Neighbours<Kept, width>& kept,
                                        BackwardRows<Real, Kept>& rows, BackwardState<Real> (&state)[width]) {
  Neighbours<Real, width> injected;
#pragma unroll
  for (int v = 0; v < width; ++v) {
    BackwardState<Real>& s = state[v];
    const uint32_t now = uint32_t(words.now.of[v]), before = uint32_t(words.before.of[v]);
    const Real distance = to_number<Real>(kept.of[v]);
    const NeuronStep<Real> step{distance, s.kept_next, (now >> bit & 1u) != 0,
                                ((bit > 0 ? now >> (bit - 1) : before >> (kWordSteps - 1)) & 1u) != 0};
    injected.of[v] = s.grad_injected;
    const Real current = grad_current_at(p.constants, s.grad_current, s.grad_membrane, step.spike);
    s.grad_membrane =
        grad_membrane_at(p.constants, detach_reset, s.grad_membrane, grad_spikes.of[v] + s.grad_counts, step);
    s.grad_injected = p.delayed ? s.grad_current : current;
    s.grad_current = current;
    s.kept_next = distance;
  }
  store<width>(rows.grad_injected, injected);
  rows.grad_injected -= p.size;
}

template <class Real, class Kept, bool detach_reset, int width>
__global__ void __launch_bounds__(kThreads) scan_backward_kernel(const BackwardScan<Real, Kept> p) {
  constexpr int kSteps = kInFlight / width;
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * width;
  if (first >= p.size) return;
  const int64_t last_word = (p.n_steps - 1) / kWordSteps;
  SpikeWords<width> words{load<width>(p.words + last_word * p.size + first), {}};
  if (last_word > 0) words.before = load<width>(p.words + (last_word - 1) * p.size + first);
  Neighbours<Kept, width> kept_last{};
  if (!detach_reset) kept_last = load<width>(p.kept + p.n_steps * p.size + first);
  BackwardState<Real> state[width];
#pragma unroll
  for (int v = 0; v < width; ++v) {
    const int64_t at = p.layout.at(first + v);
    const Real grad_current = value_or_zero(p.grad_current, at);
    state[v] = {value_or_zero(p.grad_membrane, at), grad_current,
                p.delayed ? value_or_zero(p.grad_pending, at) : grad_current, value_or_zero(p.grad_counts, at),
                to_number<Real>(kept_last.of[v])};
  }
  const int64_t at = (p.n_steps - 1) * p.size + first;
  BackwardRows<Real, Kept> rows{p.grad_spikes ? p.grad_spikes + at : nullptr, p.kept + at, p.grad_injected + at};
#pragma unroll 1
  for (int64_t start = (p.n_steps - 1) / kSteps * kSteps; start >= 0; start -= kSteps) {
    // Fewer than kSteps are left only at the end of the sequence: there the last step stands in for those past it.
    const int left = steps_left(p.n_steps - start);
    Neighbours<Real, width> grad_spikes[kSteps];
    Neighbours<Kept, width> kept[kSteps];
#pragma unroll
    for (int j = kSteps - 1; j >= 0; --j) {
      grad_spikes[j] = Neighbours<Real, width>{};
      if (p.grad_spikes) {
        grad_spikes[j] = load<width>(rows.grad_spikes);
        if (j < left) rows.grad_spikes -= p.size;
      }
      kept[j] = load<width>(rows.kept);
      if (j < left) rows.kept -= p.size;
    }
    const int first_bit = int(start % kWordSteps);  // kSteps divides 32: the steps lie in one word
    if (first_bit + kSteps == kWordSteps && start + kSteps < p.n_steps) {
      const int64_t word = start / kWordSteps;
      words.now = words.before;
      words.before = word > 0 ? load<width>(p.words + (word - 1) * p.size + first) : Neighbours<int32_t, width>{};
    }
#pragma unroll
    for (int j = kSteps - 1; j >= 0; --j)
      if (j < left) retreat<detach_reset>(p, first_bit + j, words, grad_spikes[j], kept[j], rows, state);
  }
#pragma unroll
  for (int v = 0; v < width; ++v) {
    const int64_t at = p.layout.at(first + v);
    store_if(p.grad_membrane0, at, state[v].grad_membrane);
    store_if(p.grad_current0, at, state[v].grad_current);
    if (p.delayed) store_if(p.grad_pending0, at, state[v].grad_injected);
  }
}

// ---- Launch

unsigned blocks_for(int64_t size, int width) {
  const int64_t per_block = int64_t(kThreads) * width, blocks = (size + per_block - 1) / per_block;
  if (blocks > INT32_MAX)
    throw std::runtime_error("scan: " + std::to_string(size) + " neurons of all samples are too many");
  return unsigned(blocks);
}

std::string named(const char* kernel, const Layer& layer, int64_t n_steps, int64_t batch) {
  return std::string(kernel) + " (" + std::to_string(n_steps) + " steps, " + std::to_string(batch) + " samples, " +
         std::to_string(layer.shape.size()) + " neurons)";
}

void check_layer(const char* kernel, const Layer& layer) {
  if (layer.kind != Kind::lif || layer.recurrent)
    throw std::invalid_argument(std::string(kernel) + " takes a spiking layer without recurrence");
}

}  // namespace

void scan_forward(const Layer& layer, const ForwardLayer& pointers, int64_t n_steps, int64_t batch, Precision precision,
                  cudaStream_t stream) {
  check_layer("scan_forward", layer);
  with_numbers(precision, [&](auto real, auto kept) {
    using Real = decltype(real);
    using Kept = decltype(kept);
    const auto in = [](const void* tensor) { return static_cast<const Real*>(tensor); };
    const auto out = [](void* tensor) { return static_cast<Real*>(tensor); };
    const ForwardLayer& t = pointers;
    const ForwardScan<Real, Kept> scan{
        NeuronConstants<Real>(layer), UserLayout(layer.shape), layer.detach_reset, layer.delay != 0, n_steps,
        batch * layer.shape.size(), in(t.injected), in(t.membrane0), in(t.current0), in(t.pending0),
        static_cast<Kept*>(t.kept), t.words, out(t.counts), out(t.membrane), out(t.current), out(t.pending)};
    with_width<Real>(scan.size, {t.injected, t.kept, t.words}, [&](auto width) {
      FASTLIF_LAUNCH(named("scan_forward", layer, n_steps, batch), (scan_forward_kernel<Real, Kept, width()>),
                     blocks_for(scan.size, width()), kThreads, 0, stream, scan);
    });
  });
}

void scan_backward(const Layer& layer, const BackwardLayer& pointers, int64_t n_steps, int64_t batch,
                   Precision precision, cudaStream_t stream) {
  check_layer("scan_backward", layer);
  with_numbers(precision, [&](auto real, auto kept) {
    using Real = decltype(real);
    using Kept = decltype(kept);
    const auto in = [](const void* tensor) { return static_cast<const Real*>(tensor); };
    const auto out = [](void* tensor) { return static_cast<Real*>(tensor); };
    const BackwardLayer& t = pointers;
    const BackwardScan<Real, Kept> scan{
        NeuronConstants<Real>(layer), UserLayout(layer.shape), layer.delay != 0, n_steps, batch * layer.shape.size(),
        in(t.grad_spikes), in(t.grad_counts), in(t.grad_membrane), in(t.grad_current), in(t.grad_pending),
        static_cast<const Kept*>(t.kept), t.words, out(t.grad_injected), out(t.grad_membrane0), out(t.grad_current0),
        out(t.grad_pending0)};
    with_width<Real>(scan.size, {t.grad_spikes, t.kept, t.words, t.grad_injected}, [&](auto width) {
      const auto start = [&](auto kernel) {
        FASTLIF_LAUNCH(named("scan_backward", layer, n_steps, batch), kernel, blocks_for(scan.size, width()), kThreads,
                       0, stream, scan);
      };
      layer.detach_reset ? start(scan_backward_kernel<Real, Kept, true, width()>)
                         : start(scan_backward_kernel<Real, Kept, false, width()>);
    });
  });
}

}  // namespace fastlif::cuda
