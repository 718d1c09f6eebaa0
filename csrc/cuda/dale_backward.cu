// The backward pass of a layer with inhibitory neurons, all steps in one launch. A block owns one or two samples and
// takes them back two steps at a time, as stack_backward.cu does and for the same reason. What stands above the layer
// is given as dL/dS; of the products only those within the layer are left: V^T dL/dJ for the excitatory neurons and
// V_inh^T dL/dK for the inhibitory ones (products.h, exact).
#include <algorithm>
#include <string>

#include "backward_neurons.h"
#include "busiest.h"
#include "launch.h"

namespace fastlif::cuda {
namespace {

constexpr int kDaleThreads = 512;

// Offsets are in shared memory, in numbers.
template <class Real>
struct DaleProblem {
  int64_t n_steps = 0, batch = 0;
  int64_t samples = 0;  // of a network
  NeuronConstants<Real> constants[2] = {NeuronConstants<Real>(Layer()), NeuronConstants<Real>(Layer())};
  LayerProduct<Real> products[2];  // for the excitatory and for the inhibitory neurons
  Map map;                         // of the whole layer
  int excitatory_channels = 0;
  int tasks[2] = {};  // of warps
  int columns[2] = {}, pitch = 0;  // of dL/dJ and dL/dK at two steps (products.h), by positions of the whole layer
  int columns_end = 0;             // shared memory before it starts as zero
  int state = 0;                   // (3, samples, neurons): dL/dU[n+1] and the earlier dL/dJ and dL/dK
  bool delay = false, detach_reset = true, half_kept = false;
  DaleBackwardLayer tensors;
  int64_t shared_numbers = 0;

  DaleProblem(const Layer& layer, const DaleBackwardLayer& given, int samples) : tensors(given) {
    const Shape& shape = layer.shape;
    constants[0] = NeuronConstants<Real>(layer), constants[1] = NeuronConstants<Real>(layer, true);
    map = Map(shape);
    excitatory_channels = layer.emitted().channels;
    delay = layer.delay != 0, detach_reset = layer.detach_reset;
    pitch = shape.positions() == 1 ? shape.channels : shape.channels | 1;  // neighbours in different banks
    reserve(int64_t(pitch) * 2 * samples);                                 // zeros
    for (int& at : columns) at = reserve(int64_t(shape.positions()) * pitch * 2 * samples);
    columns_end = int(std::min<int64_t>(shared_numbers, INT32_MAX));
    if (layer.recurrent) divide(0, layer.recurrence, given.recurrent_weight, 2 * samples);
    divide(1, layer.inhibition, given.inhibitory_weight, 2 * samples);
    state = reserve(3 * samples * shape.size());
  }

  int64_t shared_bytes() const { return shared_numbers * int64_t(sizeof(Real)); }

 private:
  int reserve(int64_t numbers) {
    const int64_t at = shared_numbers, whole = 16 / int64_t(sizeof(Real));
    shared_numbers += (numbers + whole - 1) / whole * whole;
    return int(std::min<int64_t>(at, INT32_MAX));
  }

  // The product of one population, whose sums are divided among lanes where its neurons are few.
  void divide(int population, const Connection& c, const void* weight, int n_columns) {
    LayerProduct<Real>& product = products[population];
    Adjoint<Real>& link = product.links[0];
    const int channels = c.in.channels, neurons = int(c.in.size());
    product.parts = 1;
    while (product.parts < kMostParts && product.parts * 8 < c.out.channels &&
           (product.parts * neurons < kPartedNeurons || product.parts * kPartedDepth < c.taps() * c.out.channels)) {
      product.parts *= 2;
      --product.item_bits;
    }
    link.weight = static_cast<const Real*>(weight);
    link.y = axis(c.out.height, 1, c.padding_h, 1, c.kernel_h);
    link.x = axis(c.out.width, 1, c.padding_w, 1, c.kernel_w);
    link.in_channels = channels, link.out_channels = c.out.channels;
    link.part_channels = ceil_div(ceil_div(c.out.channels, product.parts), 4) * 4;
    link.columns = columns[population], link.pitch = pitch;
    product.height = c.in.height, product.width = c.in.width, product.channels = channels;
    product.single = c.in.positions() == 1;
    product.vectors = channels % exact_channels<Real> == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
    const int groups = product.vectors ? channels / exact_channels<Real> : channels;
    const int runs = ceil_div(product.width, product.single ? 1 : exact_positions(n_columns));
    product.items = runs * product.height * groups;
    product.by_tiles_x = product.by_runs = Divider(runs);
    product.by_channel_groups = Divider(groups);
    product.plane = neurons * n_columns;
    product.product = reserve(int64_t(neurons) * n_columns);
    link.reach = reserve(int64_t(product.height + product.width) * int64_t(sizeof(Reach) / sizeof(Real)));
    tasks[population] = ceil_div(product.items, 1 << product.item_bits);
  }
};

// A neuron of one sample of the block.
struct DaleNeuron {
  int in_block, neuron;  // its sample; its place in the layer, channels last
  Place at;
  int64_t sample;
};

template <class Real, int samples>
struct DaleRetreat {
  static constexpr int kColumns = 2 * samples;
  const DaleProblem<Real>& p;
  Real* const shared;

  // Calls visit(neuron, whether it is inhibitory) for the neurons of this thread.
  template <class Visit>
  __device__ __forceinline__ void for_each_neuron(const Visit& visit) const {
#pragma unroll 1
    for (int i = int(threadIdx.x); i < samples * p.map.neurons; i += int(blockDim.x)) {
      DaleNeuron own;
      own.in_block = i / p.map.neurons, own.neuron = i - own.in_block * p.map.neurons;
      if (own.in_block >= samples_left<samples>(p)) return;
      own.sample = first_sample_of_block<samples>(p) + own.in_block;
      own.at = p.map.place(own.neuron);
      visit(own, own.at.channel >= p.excitatory_channels);
    }
  }

  __device__ __forceinline__ int64_t flat(const DaleNeuron& own, int64_t step) const {
    return (step * p.batch + own.sample) * p.map.neurons + own.neuron;
  }
  __device__ __forceinline__ int64_t user(const DaleNeuron& own) const {
    return own.sample * p.map.neurons + p.map.user_index(own.at);
  }
  __device__ __forceinline__ Real& state(int which, const DaleNeuron& own) const {
    return shared[p.state + (which * samples + own.in_block) * p.map.neurons + own.neuron];
  }
  __device__ __forceinline__ void set_columns(int which, const DaleNeuron& own, Real later, Real earlier) const {
    Real* const to = shared + p.columns[which] + (own.at.position * p.pitch + own.at.channel) * kColumns;
    to[2 * own.in_block] = later, to[2 * own.in_block + 1] = earlier;
  }
  // What the products bring to dL/dS at step n (0) or n - 1 (1).
  __device__ __forceinline__ Real product(const DaleNeuron& own, bool inhibitory, int earlier) const {
    const LayerProduct<Real>& product = p.products[inhibitory];
    if (product.parts == 0) return Real(0);
    const int channel = own.at.channel - (inhibitory ? p.excitatory_channels : 0);
    return shared[product.product + (own.at.position * product.channels + channel) * kColumns + 2 * own.in_block +
                  earlier];
  }
  __device__ __forceinline__ bool spike(const DaleNeuron& own, int64_t step) const {
    return step >= 0 && (p.tensors.words[flat(own, step / kWordSteps)] >> step % kWordSteps & 1);
  }
  __device__ __forceinline__ Real kept(const DaleNeuron& own, int64_t step) const {
    return p.half_kept ? to_number<Real>(static_cast<const Half*>(p.tensors.kept)[flat(own, step)])
                       : static_cast<const Real*>(p.tensors.kept)[flat(own, step)];
  }
  __device__ __forceinline__ Real given(const void* tensor, const DaleNeuron& own) const {
    return tensor ? static_cast<const Real*>(tensor)[user(own)] : Real(0);
  }
  __device__ __forceinline__ void give(void* tensor, int64_t at, Real value) const {
    if (tensor) static_cast<Real*>(tensor)[at] = value;
  }

  // dL/dJ and dL/dK of a step: what the layer below and the weights get.
  __device__ __forceinline__ void emit(const DaleNeuron& own, int64_t step, Real injected, Real inhibitory) const {
    give(p.tensors.grad_injected, flat(own, step), injected);
    give(p.tensors.grad_inhibitory_injected, flat(own, step), inhibitory);
  }

  // From the gradients of the final state to dL/dJ and dL/dK of the last two steps.
  __device__ __forceinline__ void start() const {
    const DaleBackwardLayer& t = p.tensors;
    const int64_t last = p.n_steps - 1;
    for_each_neuron([&](const DaleNeuron& own, bool is_inhibitory) {
      const NeuronConstants<Real>& k = p.constants[is_inhibitory];
      const Real membrane = given(t.grad_membrane, own);
      const Real current = given(t.grad_current, own), inhibitory = given(t.grad_inhibitory, own);
      Real later = current, later_inhibitory = inhibitory, earlier = current, earlier_inhibitory = inhibitory;
      if (p.delay) {
        later = given(t.grad_pending, own), later_inhibitory = given(t.grad_pending_inhibitory, own);
      } else {
        const bool spiked = spike(own, last);
        earlier = grad_current_at(k, current, membrane, spiked);
        earlier_inhibitory = inhibitory_adjoint(k, inhibitory, unless_reset(spiked, membrane));
      }
      state(0, own) = membrane, state(1, own) = earlier, state(2, own) = earlier_inhibitory;
      set_columns(0, own, later, earlier), set_columns(1, own, later_inhibitory, earlier_inhibitory);
      emit(own, last, later, later_inhibitory);
      if (last > 0) emit(own, last - 1, earlier, earlier_inhibitory);
    });
  }

  // dL/dS of step n from outside and from the layer itself.
  __device__ __forceinline__ Real entering(const DaleNeuron& own, bool is_inhibitory, int64_t n, int earlier) const {
    Real sum = product(own, is_inhibitory, earlier) + given(p.tensors.grad_counts, own);
    if (is_inhibitory || !p.tensors.grad_spikes) return sum;
    const int64_t row = (n - earlier) * p.batch + own.sample, emitted = p.map.positions * p.excitatory_channels;
    return sum + static_cast<const Real*>(
                     p.tensors.grad_spikes)[row * emitted + own.at.position * p.excitatory_channels + own.at.channel];
  }

  // Steps n and n - 1 (only n when that is 0): from dL/dU[n+1] and dL/dJ, dL/dK of n - 1 to those two steps before, at
  // the beginning to the gradients of the initial state.
  __device__ __forceinline__ void retreat(int64_t n) const {
    const bool two = n > 0;
    for_each_neuron([&](const DaleNeuron& own, bool is_inhibitory) {
      const NeuronConstants<Real>& k = p.constants[is_inhibitory];
      Real membrane = state(0, own), injected = state(1, own), inhibitory = state(2, own);
      Real later = injected, later_inhibitory = inhibitory, kept_next = 0;
      if (!p.detach_reset) kept_next = kept(own, n + 1);
      bool spiked = spike(own, n);
#pragma unroll 1
      for (int i = 0; i < 1 + two; ++i) {
        const bool before = spike(own, n - i - 1);
        const NeuronStep<Real> step{kept(own, n - i), kept_next, spiked, before};
        const Real after = membrane;
        membrane = grad_membrane_at(k, p.detach_reset, after, entering(own, is_inhibitory, n, i), step);
        // dL/dJ[m-2] from dL/dJ[m-1] and what step m did to dL/dU; likewise dL/dK.
        const Real grad = p.delay ? unless_reset(spiked, after) : unless_reset(before, membrane);
        later = injected, later_inhibitory = inhibitory;
        injected = current_adjoint(k, injected, grad);
        inhibitory = inhibitory_adjoint(k, inhibitory, grad);
        kept_next = step.kept, spiked = before;
      }
      state(0, own) = membrane, state(1, own) = injected, state(2, own) = inhibitory;
      set_columns(0, own, later, injected), set_columns(1, own, later_inhibitory, inhibitory);
      if (n >= 2) emit(own, n - 2, later, later_inhibitory);
      if (n >= 3) emit(own, n - 3, injected, inhibitory);
      if (n >= 2) return;
      // What would be dL/dJ[-1] and dL/dJ[-2].
      const int64_t at = user(own);
      give(p.tensors.grad_membrane0, at, membrane);
      give(p.tensors.grad_current0, at, p.delay ? injected : later);
      give(p.tensors.grad_inhibitory0, at, p.delay ? inhibitory : later_inhibitory);
      if (!p.delay) return;
      give(p.tensors.grad_pending0, at, later), give(p.tensors.grad_pending_inhibitory0, at, later_inhibitory);
    });
  }

  __device__ __forceinline__ void run() const {
    const auto* const zeros = reinterpret_cast<const Pack<Real, kColumns>*>(shared);
    for (int i = int(threadIdx.x); i < p.columns_end; i += int(blockDim.x)) shared[i] = Real(0);
    for (int s = 0; s < 2; ++s)
      if (p.products[s].parts > 0)
        tabulate_reach(p.products[s], shared, p.products[s].single ? 1 : exact_positions(kColumns));
    __syncthreads();
    start();
    __syncthreads();
#pragma unroll 1
    for (int64_t n = p.n_steps - 1; n >= 0; n -= 2) {
#pragma unroll 1
      for (int task = int(threadIdx.x / 32); task < p.tasks[0] + p.tasks[1]; task += int(blockDim.x / 32)) {
        const int second = task >= p.tasks[0];
        exact_product<Real, kColumns>(p.products[second], shared, zeros, task - second * p.tasks[0]);
      }
      __syncthreads();
      retreat(n);
      __syncthreads();
    }
  }
};

template <class Real, int samples>
__global__ void __launch_bounds__(kDaleThreads, 1) dale_backward_kernel(const DaleProblem<Real> p) {
  FASTLIF_SHARED(Real, shared_memory);
  DaleRetreat<Real, samples>{p, base_of_shared(shared_memory)}.run();
}

template <class Real, int samples>
void start_dale(DaleProblem<Real> problem, int64_t n_steps, int64_t batch, Networks networks, bool half_kept,
                cudaStream_t stream) {
  static_assert(sizeof(problem) <= 4096, "more than a kernel takes as parameters");
  problem.n_steps = n_steps, problem.batch = batch, problem.samples = batch / networks.count;
  problem.half_kept = half_kept;
  const auto name = [&] {
    return "dale_backward of " + std::to_string(problem.map.neurons) + " neurons, " + std::to_string(n_steps) +
           " steps, " + std::to_string(batch) + " samples" + networks.text() + " and " +
           std::to_string(problem.shared_bytes()) + " bytes of shared memory a block";
  };
  FASTLIF_LAUNCH(name(), (dale_backward_kernel<Real, samples>),
                 dim3(unsigned(ceil_div(problem.samples, samples)), unsigned(networks.count)), dim3(kDaleThreads),
                 size_t(problem.shared_bytes()), stream, problem);
}

template <class Real>
void launch_dale(const Layer& layer, const DaleBackwardLayer& tensors, int64_t n_steps, int64_t batch,
                 Networks networks, bool half_kept, int shared_bytes, cudaStream_t stream) {
  const DaleProblem<Real> pair(layer, tensors, 2);
  const int processors = multiprocessors();
  const auto load = [&](int samples) { return busiest(batch / networks.count, networks.count, samples, processors); };
  if (load(2) <= load(1) && pair.shared_bytes() <= shared_bytes)
    start_dale<Real, 2>(pair, n_steps, batch, networks, half_kept, stream);
  else
    start_dale<Real, 1>(DaleProblem<Real>(layer, tensors, 1), n_steps, batch, networks, half_kept, stream);
}

}  // namespace

int64_t dale_backward_bytes(const Layer& layer, Precision precision) {
  const DaleBackwardLayer none;
  return precision == Precision::float64 ? DaleProblem<double>(layer, none, 1).shared_bytes()
                                         : DaleProblem<float>(layer, none, 1).shared_bytes();
}

void dale_backward(const Layer& layer, const DaleBackwardLayer& pointers, int64_t n_steps, int64_t batch,
                   Networks networks, Precision precision, int shared_bytes, cudaStream_t stream) {
  if (n_steps == 0 || batch == 0) return;
  const bool half_kept = precision == Precision::float32_half;
  if (precision == Precision::float64)
    launch_dale<double>(layer, pointers, n_steps, batch, networks, false, shared_bytes, stream);
  else
    launch_dale<float>(layer, pointers, n_steps, batch, networks, half_kept, shared_bytes, stream);
}

}  // namespace fastlif::cuda
