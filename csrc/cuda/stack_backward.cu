// The backward pass of some layers of a stack, all steps in one launch. A block owns a few samples and takes all layers
// back in lockstep, two steps at a time: dL/dJ[n] first enters dL/dU[n] and that first enters dL/dJ[n-2], so the
// products with dL/dJ[n+1] and dL/dJ[n] (products.h) need nothing that is still to come.
#include "backward_description.h"
#include "launch.h"
#include "neuron_backward.h"

#if defined(FASTLIF_EMULATED)
#define FASTLIF_GRID_CONSTANT
#else
#define FASTLIF_GRID_CONSTANT __grid_constant__
#endif

namespace fastlif::cuda {

namespace {

template <class Real, int samples>
using Columns = Pack<Real, 2 * samples>;

__device__ __forceinline__ void prefetch([[maybe_unused]] const void* address) {
#if !defined(FASTLIF_EMULATED)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

// One neuron of one sample.
template <class Real, int samples>
struct Cell {
  const Parameters<Real>& p;
  const DeviceLayer<Real>& layer;
  Real* shared;
  int in_block, neuron;  // sample of the block
  int64_t sample;

  // dL/dJ at the two steps about to be taken, the later first.
  __device__ __forceinline__ Pack<Real, 2>* columns() const {
    const int position = layer.map.channels.quotient(neuron);
    const int channel = neuron - position * layer.map.channels.divisor;
    return at_columns(layer.columns + (position * layer.pitch + channel) * 2 * samples);
  }
  __device__ __forceinline__ Pack<Real, 2>* product(int part) const {
    return at_columns(layer.product.product + (part * layer.map.neurons + neuron) * 2 * samples);
  }
  __device__ __forceinline__ Real* number(int offset) const {
    return shared + offset + in_block * layer.map.neurons + neuron;
  }
  // In (T, B, N) and (B, channels, positions).
  __device__ __forceinline__ int64_t row() const { return p.batch * layer.map.neurons; }
  __device__ __forceinline__ int64_t flat(int64_t step) const {
    return (step * p.batch + sample) * layer.map.neurons + neuron;
  }
  __device__ __forceinline__ int64_t user() const {
    return sample * layer.map.neurons + layer.map.user_index(layer.map.place(neuron));
  }
  __device__ __forceinline__ Real kept(int64_t index) const {
    return p.half_kept ? to_number<Real>(static_cast<const Half*>(layer.tensors.kept)[index])
                       : static_cast<const Real*>(layer.tensors.kept)[index];
  }

 private:
  __device__ __forceinline__ Pack<Real, 2>* at_columns(int offset) const {
    return reinterpret_cast<Pack<Real, 2>*>(shared + offset + 2 * in_block);
  }
};

template <class Real>
__device__ __forceinline__ Real number_or_zero(const void* tensor, int64_t index) {
  return tensor ? static_cast<const Real*>(tensor)[index] : Real(0);
}

template <class Real>
__device__ __forceinline__ void store(void* tensor, int64_t index, Real value) {
  if (tensor) static_cast<Real*>(tensor)[index] = value;
}

// Calls visit(cell) for the cells of this thread, always the same ones.
template <class Real, int samples, class Visit>
__device__ __forceinline__ void for_each_cell(const Parameters<Real>& p, Real* shared, const Visit& visit) {
  const int lane = int(threadIdx.x % 32), warps = int(blockDim.x / 32);
  int l = 0, first = 0;
  for (int chunk = int(threadIdx.x / 32); chunk < p.n_chunks; chunk += warps) {
    while (chunk >= p.layers[l].last_chunk) first = p.layers[l++].last_chunk;
    const int in_block = (chunk - first) % samples, neuron = (chunk - first) / samples * 32 + lane;
    const int64_t sample = int64_t(blockIdx.x) * samples + in_block;
    if (sample < p.batch && neuron < p.layers[l].map.neurons)
      visit(Cell<Real, samples>{p, p.layers[l], shared, in_block, neuron, sample});
  }
}

// From the gradients of the final state to dL/dJ[T-1] and dL/dJ[T-2].
template <class Real, int samples>
__device__ __forceinline__ void start(const Cell<Real, samples>& cell) {
  const DeviceLayer<Real>& layer = cell.layer;
  const BackwardLayer& t = layer.tensors;
  const int64_t user = cell.user(), last = cell.p.n_steps - 1;
  const Real membrane = number_or_zero<Real>(t.grad_membrane, user);
  const Real current = number_or_zero<Real>(t.grad_current, user);
  *cell.number(layer.grad_membrane) = membrane;
  if (layer.grad_counts >= 0)
    *cell.number(layer.grad_counts) =
        number_or_zero<Real>(layer.kind == Kind::readout_max ? t.grad_score : t.grad_counts, user);
  Pack<Real, 2> columns;
  if (layer.delay) {
    columns = {{number_or_zero<Real>(t.grad_pending, user), current}};
  } else {
    const bool spike = layer.kind == Kind::lif && (t.words[cell.flat(last / kWordSteps)] >> last % kWordSteps & 1);
    columns = {{current, grad_current_at(layer.constants, current, membrane, spike)}};
  }
  *cell.columns() = columns;
  store(t.grad_injected, cell.flat(last), columns.at[0]);
  if (last > 0) store(t.grad_injected, cell.flat(last - 1), columns.at[1]);
}

// Spikes at steps n - 2, n - 1, n in bits 0, 1, 2; none before step 0.
template <class Real, int samples>
__device__ __forceinline__ unsigned spikes_until(const Cell<Real, samples>& cell, int64_t n) {
  const int64_t word = n / kWordSteps;
  const int bit = int(n % kWordSteps);
  const int32_t* const words = cell.layer.tensors.words;
  uint64_t bits = uint64_t(uint32_t(words[cell.flat(word)])) << 32;
  if (bit < 2 && word > 0) bits |= uint32_t(words[cell.flat(word - 1)]);
  return unsigned(bits >> (bit + 30)) & 7u;
}

// Steps n and n - 1 (only n when that is 0): from dL/dU[n+1], dL/dJ[n], dL/dJ[n-1] to those two steps before.
template <class Real, int samples>
__device__ __forceinline__ void retreat(const Cell<Real, samples>& cell, int64_t n) {
  const DeviceLayer<Real>& layer = cell.layer;
  const BackwardLayer& t = layer.tensors;
  const NeuronConstants<Real>& k = layer.constants;
  const bool spiking = layer.kind == Kind::lif, two = n > 0;
  const int64_t at = cell.flat(n), row = cell.row();
  NeuronStep<Real> later{}, earlier{};  // steps n and n - 1
  bool spike_first = false;             // at n - 2
  if (spiking) {
    later.kept = cell.kept(at);
    if (two) earlier.kept = cell.kept(at - row), earlier.kept_next = later.kept;
    if (!layer.detach_reset) later.kept_next = cell.kept(at + row);
    const unsigned spikes = spikes_until(cell, n);
    later.spike = spikes & 4, later.spike_before = earlier.spike = spikes & 2;
    earlier.spike_before = spike_first = spikes & 1;
    if (n >= 3) {  // what the next call reads
      const int64_t size = cell.p.half_kept ? 2 : int64_t(sizeof(Real));
      const char* const kept = static_cast<const char*>(t.kept) + at * size;
      prefetch(kept - 2 * row * size), prefetch(kept - 3 * row * size);
      if (n % kWordSteps < 4 && n >= kWordSteps) prefetch(t.words + cell.flat(n / kWordSteps - 1));
    }
  }
  Pack<Real, 2> entering{{Real(0), Real(0)}};  // dL/dS, of a readout dL/dU, from outside this neuron
  for (int part = 0; part < layer.product.parts; ++part) {
    const Pack<Real, 2> product = *cell.product(part);
    entering.at[0] += product.at[0], entering.at[1] += product.at[1];
  }
  if (layer.kind == Kind::readout_max) {
    const Real score = layer.grad_counts >= 0 ? *cell.number(layer.grad_counts) : Real(0);
    const int64_t best = t.best_step[cell.user()];
    entering = {{best == n ? score : Real(0), best == n - 1 ? score : Real(0)}};
  } else {
    if (layer.grad_counts >= 0) {
      const Real counts = *cell.number(layer.grad_counts);
      entering.at[0] += counts, entering.at[1] += counts;
    }
    if (t.grad_spikes) {
      entering.at[0] += number_or_zero<Real>(t.grad_spikes, at);
      if (two) entering.at[1] += number_or_zero<Real>(t.grad_spikes, at - row);
    }
  }
  const auto membrane_before = [&](Real grad_membrane, Real gradient, const NeuronStep<Real>& step) {
    return spiking ? grad_membrane_at(k, layer.detach_reset, grad_membrane, gradient, step)
                   : membrane_adjoint(k, grad_membrane, gradient);
  };
  // dL/dJ[m-2] from dL/dJ[m-1] and what step m did to dL/dU.
  const auto injected_before = [&](Real injected, Real membrane_after, Real membrane, bool spike, bool spike_before) {
    return layer.delay ? grad_current_at(k, injected, membrane_after, spike)
                       : grad_current_at(k, injected, membrane, spike_before);
  };
  const Pack<Real, 2> columns = *cell.columns();
  const Real after = *cell.number(layer.grad_membrane);
  Real membrane = membrane_before(after, entering.at[0], later);
  Pack<Real, 2> before{{columns.at[1], injected_before(columns.at[1], after, membrane, later.spike, earlier.spike)}};
  if (two) {
    const Real middle = membrane;
    membrane = membrane_before(middle, entering.at[1], earlier);
    before = {{before.at[1], injected_before(before.at[1], middle, membrane, earlier.spike, spike_first)}};
  }
  *cell.number(layer.grad_membrane) = membrane;
  *cell.columns() = before;
  if (n >= 2) store(t.grad_injected, at - 2 * row, before.at[0]);
  if (n >= 3) store(t.grad_injected, at - 3 * row, before.at[1]);
}

// The gradients of the initial state; the columns are dL/dJ[-1] and dL/dJ[-2].
template <class Real, int samples>
__device__ __forceinline__ void finish(const Cell<Real, samples>& cell) {
  const BackwardLayer& t = cell.layer.tensors;
  const int64_t user = cell.user();
  const Pack<Real, 2> columns = *cell.columns();
  store(t.grad_membrane0, user, *cell.number(cell.layer.grad_membrane));
  store(t.grad_current0, user, cell.layer.delay ? columns.at[1] : columns.at[0]);  // an index would need local memory
  if (cell.layer.delay) store(t.grad_pending0, user, columns.at[0]);
}

template <int samples>
constexpr int kThreads = samples == 1 ? 256 : 512;

template <class Real, int samples, bool tensor_cores>
__global__ void __launch_bounds__(kThreads<samples>, 512 / kThreads<samples>) stack_backward_kernel(
    const FASTLIF_GRID_CONSTANT Parameters<Real> p) {
  FASTLIF_SHARED(Real, shared);
  const auto* const zeros = reinterpret_cast<const Columns<Real, samples>*>(shared);
  for (int i = int(threadIdx.x); i < p.columns_end; i += int(blockDim.x)) shared[i] = Real(0);
  __syncthreads();
  for_each_cell<Real, samples>(p, shared, [](const auto& cell) { start(cell); });
  __syncthreads();
  for (int64_t n = p.n_steps - 1; n >= 0; n -= 2) {
    int next = 0, first = 0;
    for (int task = int(threadIdx.x / 32); task < p.n_tasks; task += int(blockDim.x / 32)) {
      while (task >= p.last_task[next]) first = p.last_task[next++];
      const LayerProduct<Real>& product = p.layers[p.order[next]].product;
      if constexpr (tensor_cores)
        tf32_product<2 * samples>(product, shared, zeros, task - first);
      else
        exact_product<Real, 2 * samples>(product, shared, zeros, (task - first) * 32);
    }
    __syncthreads();
    for_each_cell<Real, samples>(p, shared, [n](const auto& cell) { retreat(cell, n); });
    __syncthreads();
  }
  for_each_cell<Real, samples>(p, shared, [](const auto& cell) { finish(cell); });
}

// ---- host

int multiprocessors() {
#if defined(FASTLIF_EMULATED)
  return 4;
#else
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "the current device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "its multiprocessors");
  return count;
#endif
}

int64_t bytes_of(const BackwardProblem& problem, int samples, bool all_counts) {
  return problem.precision == Precision::float64 ? Description<double>(problem, samples, all_counts).shared_bytes()
                                                 : Description<float>(problem, samples, all_counts).shared_bytes();
}

// More samples share each weight that is loaded, as long as no multiprocessor gets more of them for it.
int samples_of_block(const BackwardProblem& problem, int most, int shared_bytes) {
  const int processors = multiprocessors();
  const auto load = [&](int samples) {
    return int64_t(samples) * ceil_div(ceil_div(problem.batch, samples), processors);
  };
  int best = 1;
  for (int samples = 2; samples <= most; samples *= 2)
    if (samples <= problem.batch && load(samples) <= load(best) && bytes_of(problem, samples, false) <= shared_bytes)
      best = samples;
  return best;
}

std::string text(const BackwardProblem& problem) {
  std::string shape = "stack_backward of layers " + std::to_string(problem.first) + " to " +
                      std::to_string(problem.last - 1) + ", neurons";
  for (int l = problem.first; l < problem.last; ++l)
    shape += " " + std::to_string(problem.plan->layers[size_t(l)].shape.size());
  return shape + ", steps " + std::to_string(problem.n_steps) + ", batch " + std::to_string(problem.batch);
}

template <class Real, int samples, bool tensor_cores>
void run(const BackwardProblem& problem, int shared_bytes, cudaStream_t stream) {
  const Description<Real> description(problem, samples, false);
  static_assert(sizeof(description.p) <= 4096, "more than a kernel takes as parameters");
  if (description.shared_bytes() > shared_bytes)
    throw std::invalid_argument(text(problem) + ": needs " + std::to_string(description.shared_bytes()) +
                                " bytes of shared memory per block, " + std::to_string(shared_bytes) +
                                " are available");
  FASTLIF_LAUNCH(text(problem), (stack_backward_kernel<Real, samples, tensor_cores>),
                 dim3(unsigned(ceil_div(problem.batch, samples))), dim3(kThreads<samples>),
                 size_t(description.shared_bytes()), stream, description.p);
}

template <class Real, bool tensor_cores>
void run(const BackwardProblem& problem, int samples, int shared_bytes, cudaStream_t stream) {
  if constexpr (sizeof(Real) == 4)
    if (samples == 4) return run<Real, 4, tensor_cores>(problem, shared_bytes, stream);
  samples == 2 ? run<Real, 2, tensor_cores>(problem, shared_bytes, stream)
               : run<Real, 1, tensor_cores>(problem, shared_bytes, stream);
}

// Shared memory for any one sample, whatever the products: which of them takes more depends on the channels.
int64_t segment_bytes(const Plan& plan, Precision precision, int first, int last) {
  BackwardProblem part;
  part.plan = &plan, part.first = first, part.last = last;
  part.n_steps = part.batch = 1, part.precision = precision;
  part.layers.resize(size_t(last - first));
  const int64_t exact = bytes_of(part, 1, true);
  if (precision == Precision::float64) return exact;
  part.products = Products::tf32;
  return std::max(exact, bytes_of(part, 1, true));
}

}  // namespace

std::vector<std::pair<int, int>> backward_segments(const Plan& plan, Precision precision, int shared_bytes) {
  const int n_layers = int(plan.layers.size());
  std::vector<std::pair<int, int>> segments;
  for (int first = 0, last; first < n_layers; first = last) {
    const Layer& layer = plan.layers[size_t(first)];
    const auto runs = [&](int end) { return segment_bytes(plan, precision, first, end) <= shared_bytes; };
    last = first + 1;
    const bool alone = layer.kind == Kind::current || !runs(last);
    if (alone && layer.kind != Kind::current && (layer.kind != Kind::lif || layer.recurrent))
      throw std::invalid_argument("layer " + std::to_string(first) + " of " + std::to_string(layer.shape.size()) +
                                  " neurons needs " + std::to_string(segment_bytes(plan, precision, first, last)) +
                                  " bytes of shared memory per block in the backward pass, " +
                                  std::to_string(shared_bytes) + " are available");
    while (!alone && last < n_layers && last - first < kMostLayers &&
           plan.layers[size_t(last)].kind != Kind::current && runs(last + 1))
      ++last;
    segments.emplace_back(first, last);
  }
  return segments;
}

void stack_backward(const BackwardProblem& problem, int shared_bytes, cudaStream_t stream) {
  if (problem.n_steps == 0 || problem.batch == 0) return;
  const bool is_double = problem.precision == Precision::float64;
  const int samples = samples_of_block(problem, is_double ? 2 : 4, shared_bytes);
  if (is_double)
    run<double, false>(problem, samples, shared_bytes, stream);
  else if (problem.products == Products::tf32)
    run<float, true>(problem, samples, shared_bytes, stream);
  else
    run<float, false>(problem, samples, shared_bytes, stream);
}

}  // namespace fastlif::cuda
