// Forward of a layer with inhibitory neurons. A block is one sample; it advances two steps at a time, as
// stack_forward.cu does and for the same reason: what spikes at step n inject is first seen by S[n+2].
//
// The populations stand apart, each in groups of 32 neurons of its own, channels last among its channels: what a neuron
// hears of either through one kernel row then is one run of sources. Outside the block neurons of both stand together.
//
// Compiled without contraction into fused multiply-adds: sums and roundings are those of the CPU kernels.
#include <algorithm>
#include <string>

#include "../lif_step.h"
#include "forward_tables.h"
#include "launch.h"

namespace fastlif::cuda {
namespace {

using namespace forward;

// State of 32 neurons.
template <class Real>
struct alignas(16) Group {
  Real membrane[32], current[32], inhibitory[32], pending[32], pending_inhibitory[32];
  uint32_t word[32];
  int32_t count[32];
};

template <class Real>
struct Population {
  Map map;  // of its neurons alone
  int first_channel = 0, groups = 0;
  NeuronConstants<Real> constants{Layer{}};
};

template <class Real, class Kept>
struct DaleArguments {
  Population<Real> populations[2];  // excitatory, inhibitory
  Synapse<Real> from_input, from_excitatory, from_inhibitory;
  Layout layout;  // sources: the input, the excitatory and the inhibitory neurons
  int groups = 0;  // bytes of shared memory before the groups
  int channels = 0, positions = 0, neurons = 0;  // of the whole layer
  int n_steps = 0;
  int64_t batch = 0;
  int samples = 0;  // of a network
  bool delay = false, keep_unreset = false;
  InputMasks input;
  const Real *bias = nullptr, *injected = nullptr;
  const Real *membrane0 = nullptr, *current0 = nullptr, *pending0 = nullptr, *inhibitory0 = nullptr,
             *pending_inhibitory0 = nullptr;
  Kept* kept = nullptr;
  int32_t* words = nullptr;
  Real *counts = nullptr, *membrane = nullptr, *current = nullptr, *pending = nullptr, *inhibitory = nullptr,
       *pending_inhibitory = nullptr;
};

// A neuron of the layer: in its population, and as it stands in tensors.
struct Own {
  bool real;  // the last group of a population may have room for more
  Place at;   // its channel is that of the whole layer
  int64_t flat, user;
};

template <class Real, class Kept>
struct DaleWorker {
  const DaleArguments<Real, Kept>& p;
  unsigned char* const shared;
  const int network;
  const int64_t sample;  // of all networks' samples

  __device__ __forceinline__ const uint32_t* input_row(int step) const { return p.input.row(step, sample, network); }

  __device__ __forceinline__ Own own(const Population<Real>& population, int group) const {
    const int neuron = group * 32 + int(threadIdx.x & 31);
    Own own;
    own.real = neuron < population.map.neurons;
    own.at = population.map.place(own.real ? neuron : 0);
    own.at.channel += population.first_channel;
    own.flat = sample * p.neurons + own.at.position * p.channels + own.at.channel;
    own.user = sample * p.neurons + own.at.channel * p.positions + own.at.position;
    return own;
  }

  // Calls visit(population, group in it, state) for the groups of this warp.
  template <class Visit>
  __device__ __forceinline__ void for_each_group(const Visit& visit) const {
    const int first = p.populations[0].groups, all = first + p.populations[1].groups;
#pragma unroll 1
    for (int group = int(threadIdx.x >> 5); group < all; group += int(blockDim.x >> 5)) {
      Group<Real>& state = shared_at<Group<Real>>(shared, p.groups)[group];
      const int population = group >= first;
      visit(population, population ? group - first : group, state);
    }
  }

  __device__ __forceinline__ void start() const {
    for_each_group([&](int population, int group, Group<Real>& state) {
      const Own neuron = own(p.populations[population], group);
      const int lane = threadIdx.x & 31;
      const auto given = [&](const Real* tensor) { return tensor && neuron.real ? tensor[neuron.user] : Real(0); };
      state.membrane[lane] = given(p.membrane0), state.current[lane] = given(p.current0);
      state.inhibitory[lane] = given(p.inhibitory0), state.pending[lane] = given(p.pending0);
      state.pending_inhibitory[lane] = given(p.pending_inhibitory0);
      state.word[lane] = 0, state.count[lane] = 0;
    });
  }

  __device__ __forceinline__ void hear(const Synapse<Real>& synapse, int source, const Place& at, Real& a,
                                       Real& b) const {
    if (!synapse.weight) return;
    gather(synapse.geometry, p.layout.sources[source], shared, at, synapse.weight_of(network), 0, a, b);
  }

  // J[m-2] and J[m-1] of one neuron without what the layer's own neurons bring.
  __device__ __forceinline__ void hear_input(int m, const Own& neuron, Real& a, Real& b) const {
    const bool has_b = m - 1 < p.n_steps;
    if (p.injected) {
      const Real* from = p.injected + int64_t(m - 2) * p.batch * p.neurons + neuron.flat;
      a = __ldg(from);
      if (has_b) b = __ldg(from + p.batch * p.neurons);
      return;
    }
    a = b = p.bias ? __ldg(p.bias + (network * p.channels + neuron.at.channel)) : Real(0);
    if (!p.layout.direct_input) return hear(p.from_input, 0, neuron.at, a, b);
    gather_direct(p.from_input.geometry, input_row(m - 2), has_b ? input_row(m - 1) : nullptr, p.input.words, neuron.at,
                  p.from_input.weight_of(network), a, b);
  }

  // From (U[n-1], I[n-2], H[n-2]) to (U[n], I[n-1], H[n-1]) by J[n-2] and K[n-2], if there are such steps. Returns U[n]
  // before the reset.
  __device__ __forceinline__ Real move(const NeuronConstants<Real>& k, int n, Real injected, Real injected_inhibitory,
                                       Group<Real>& state) const {
    const int lane = threadIdx.x & 31;
    Real current = state.current[lane], inhibitory = state.inhibitory[lane];
    if (n >= 2 && n <= p.n_steps + 1) {
      current = next_current(k, current, p.delay ? state.pending[lane] : injected);
      inhibitory = next_inhibitory(k, inhibitory, p.delay ? state.pending_inhibitory[lane] : injected_inhibitory);
      state.pending[lane] = injected, state.pending_inhibitory[lane] = injected_inhibitory;
      state.current[lane] = current, state.inhibitory[lane] = inhibitory;
    }
    const Real membrane = state.membrane[lane];
    if (n < 1 || n > p.n_steps) return membrane;
    const Real charged = charged_membrane(k, membrane, net_current(current, inhibitory));
    state.membrane[lane] = membrane > k.threshold ? Real(0) : charged;
    return charged;
  }

  // Iteration m of a group: S[m] and S[m+1].
  __device__ __forceinline__ void visit(int m, int population, int group, Group<Real>& state) const {
    const Population<Real>& own_population = p.populations[population];
    const NeuronConstants<Real>& k = own_population.constants;
    const Own neuron = own(own_population, group);
    const int lane = threadIdx.x & 31;
    Real a = 0, b = 0, inhibitory_a = 0, inhibitory_b = 0;
    if (m > 0) {
      hear_input(m, neuron, a, b);
      hear(p.from_excitatory, 1, neuron.at, a, b);
      hear(p.from_inhibitory, 2, neuron.at, inhibitory_a, inhibitory_b);
    }
    const Real charged_a = move(k, m, a, inhibitory_a, state), membrane_a = state.membrane[lane];
    const Real charged_b = move(k, m + 1, b, inhibitory_b, state), membrane_b = state.membrane[lane];
    if (p.kept && neuron.real) {
      const int rows = p.n_steps + (p.keep_unreset ? 1 : 0);
      Kept* kept = p.kept + int64_t(m) * p.batch * p.neurons + neuron.flat;
      const KeptPair<Real, Kept> keep((p.keep_unreset ? charged_a : membrane_a) - k.threshold,
                                      (p.keep_unreset ? charged_b : membrane_b) - k.threshold);
      if (m < rows) *kept = keep.a;
      if (m + 1 < rows) kept[p.batch * p.neurons] = keep.b;
    }
    const bool spike_a = neuron.real && m < p.n_steps && membrane_a > k.threshold;
    const bool spike_b = neuron.real && m + 1 < p.n_steps && membrane_b > k.threshold;
    const uint2 masks = make_uint2(__ballot_sync(0xffffffffu, spike_a), __ballot_sync(0xffffffffu, spike_b));
    if (lane == 0) shared_at<uint2>(shared, p.layout.sources[1 + population].masks)[group] = masks;
    if (m >= p.n_steps) return;
    const uint32_t word = state.word[lane] | (uint32_t(spike_a) | uint32_t(spike_b) << 1) << (m & 31);
    state.word[lane] = word;
    if ((m & 31) != 30 && m + 2 < p.n_steps) return;
    if (p.words && neuron.real) p.words[int64_t(m >> 5) * p.batch * p.neurons + neuron.flat] = int32_t(word);
    state.count[lane] += __popc(word);
    state.word[lane] = 0;
  }

  // Masks of the input at the steps m and m + 1 for the next iteration.
  __device__ __forceinline__ void stage(int m) const {
    const SourceLayout& input = p.layout.sources[0];
    const uint32_t* from = input_row(m);
    for (int i = int(threadIdx.x); i < input.words; i += int(blockDim.x))
      shared_at<uint2>(shared, input.masks)[i] =
          make_uint2(m < p.n_steps ? __ldg(from + i) : 0,
                     m + 1 < p.n_steps ? __ldg(from + p.input.batch * p.input.words + i) : 0);
  }

  __device__ __forceinline__ void finish() const {
    for_each_group([&](int population, int group, Group<Real>& state) {
      const Own neuron = own(p.populations[population], group);
      const int lane = threadIdx.x & 31;
      if (!neuron.real) return;
      const auto give = [&](Real* tensor, Real value) {
        if (tensor) tensor[neuron.user] = value;
      };
      give(p.membrane, state.membrane[lane]), give(p.current, state.current[lane]);
      give(p.inhibitory, state.inhibitory[lane]), give(p.counts, Real(state.count[lane]));
      if (!p.delay) return;
      give(p.pending, state.pending[lane]), give(p.pending_inhibitory, state.pending_inhibitory[lane]);
    });
  }

  __device__ __forceinline__ void run() const {
    start();
#pragma unroll 1
    for (int m = 0; m < p.n_steps + 2; m += 2) {
      if (m > 0) {
        list_spikes(p.layout, shared, int(threadIdx.x >> 5));
        __syncthreads();
      }
      for_each_group([&](int population, int group, Group<Real>& state) { visit(m, population, group, state); });
      stage(m);
      __syncthreads();
    }
    finish();
  }
};

template <class Real>
constexpr int kMostThreads = sizeof(Real) == 4 ? 1024 : 512;

template <class Real, class Kept>
__global__ void __launch_bounds__(kMostThreads<Real>, 1)
    dale_forward_kernel(const DaleArguments<Real, Kept> arguments) {
  FASTLIF_SHARED(unsigned char, shared);
  const int network = int(blockIdx.y);
  DaleWorker<Real, Kept>{arguments, shared, network, int64_t(network) * arguments.samples + blockIdx.x}.run();
}

Shape population_shape(const Layer& layer, int population) {
  const Shape excitatory = layer.emitted();
  return {population ? layer.n_inhibitory : excitatory.channels, excitatory.height, excitatory.width};
}

// Shared memory of a block, its input staged there or read directly. Returns where the groups begin.
template <class Real>
int lay_out(const Layer& layer, bool staged, Layout& layout) {
  const int channels = layer.shape.channels;
  layout.n_layers = 2, layout.direct_input = !staged;
  if (staged) add_source(layout, 0, Map(layer.feedforward.in).groups(), channels);
  int groups = 0;
  for (int population = 0; population < 2; ++population) {
    const int own = Map(population_shape(layer, population)).groups();
    add_source(layout, 1 + population, own, channels);
    groups += own;
  }
  return take(layout, int64_t(groups) * int64_t(sizeof(Group<Real>)));
}

template <class Real, class Kept>
void launch_dale(const Layer& layer, const ForwardLayer& from, const uint32_t* input_masks, int64_t n_steps,
                 int64_t batch, Networks networks, int shared_bytes, cudaStream_t stream) {
  DaleArguments<Real, Kept> to;
  static_assert(sizeof(to) <= 4096, "arguments of a kernel");
  to.groups = lay_out<Real>(layer, input_masks != nullptr, to.layout);
  if (to.layout.bytes > shared_bytes) {
    to.layout = Layout();
    to.groups = lay_out<Real>(layer, false, to.layout);
  }
  const auto in = [](const void* tensor) { return static_cast<const Real*>(tensor); };
  const auto out = [](void* tensor) { return static_cast<Real*>(tensor); };
  for (int population = 0; population < 2; ++population) {
    Population<Real>& own = to.populations[population];
    own.map = Map(population_shape(layer, population));
    own.first_channel = population ? layer.emitted().channels : 0;
    own.groups = own.map.groups();
    own.constants = NeuronConstants<Real>(layer, population == 1);
  }
  if (layer.has_feedforward && input_masks) {
    to.from_input = {in(from.weight), layer.feedforward};
    to.input = {input_masks, batch, networks};
    to.input.words = Map(layer.feedforward.in).groups();
  }
  if (layer.recurrent) to.from_excitatory = {in(from.recurrent_weight), layer.recurrence};
  to.from_inhibitory = {in(from.inhibitory_weight), layer.inhibition};
  to.channels = layer.shape.channels, to.positions = layer.shape.positions(), to.neurons = int(layer.shape.size());
  to.n_steps = int(n_steps), to.batch = batch, to.samples = int(batch / networks.count);
  to.delay = layer.delay != 0, to.keep_unreset = !layer.detach_reset;
  to.bias = in(from.bias), to.injected = in(from.injected);
  to.membrane0 = in(from.membrane0), to.current0 = in(from.current0), to.pending0 = in(from.pending0);
  to.inhibitory0 = in(from.inhibitory0), to.pending_inhibitory0 = in(from.pending_inhibitory0);
  to.kept = static_cast<Kept*>(from.kept), to.words = from.words;
  to.counts = out(from.counts), to.membrane = out(from.membrane), to.current = out(from.current);
  to.pending = out(from.pending), to.inhibitory = out(from.inhibitory);
  to.pending_inhibitory = out(from.pending_inhibitory);
  const int threads = std::min(32 * (to.populations[0].groups + to.populations[1].groups), kMostThreads<Real>);
  const auto name = [&] {
    return "dale_forward of " + std::to_string(to.neurons) + " neurons, " + std::to_string(n_steps) + " steps, " +
           std::to_string(batch) + " samples" + networks.text() + " and " + std::to_string(to.layout.bytes) +
           " bytes of shared memory a block";
  };
  FASTLIF_LAUNCH(name(), (dale_forward_kernel<Real, Kept>),
                 dim3(unsigned(to.samples), unsigned(networks.count)), dim3(unsigned(threads)),
                 size_t(to.layout.bytes), stream, to);
}

}  // namespace

int64_t dale_forward_bytes(const Layer& layer, Precision precision) {
  Layout layout;
  precision == Precision::float64 ? lay_out<double>(layer, false, layout) : lay_out<float>(layer, false, layout);
  return layout.bytes;
}

void dale_forward(const Layer& layer, const ForwardLayer& pointers, const uint32_t* input_masks, int64_t n_steps,
                  int64_t batch, Networks networks, Precision precision, int shared_bytes, cudaStream_t stream) {
  if (n_steps > INT32_MAX - 32)
    throw std::invalid_argument("at most 2147483615 steps, got " + std::to_string(n_steps));
  const auto run = [&](auto launch) {
    launch(layer, pointers, input_masks, n_steps, batch, networks, shared_bytes, stream);
  };
  switch (precision) {
    case Precision::float32_half: return run(launch_dale<float, Half>);
    case Precision::float32_exact: return run(launch_dale<float, float>);
    case Precision::float64: return run(launch_dale<double, double>);
  }
}

}  // namespace fastlif::cuda
