// The neurons of a block in the backward pass: two steps back from the sums of products.h, dL/dJ of these steps to
// shared memory for the next products and to device memory. A warp has the same chunks all the time, mostly of a layer.
#pragma once

#include "backward_description.h"
#include "neuron_backward.h"

namespace fastlif::cuda {

__device__ __forceinline__ void prefetch([[maybe_unused]] const void* address) {
#if !defined(FASTLIF_EMULATED)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

template <class Real>
__device__ __forceinline__ Real number_or_zero(const void* tensor, int64_t index) {
  return tensor ? static_cast<const Real*>(tensor)[index] : Real(0);
}

template <class Real>
__device__ __forceinline__ void store(void* tensor, int64_t index, Real value) {
  if (tensor) static_cast<Real*>(tensor)[index] = value;
}

// The samples of a block are of one network, which grid.y counts.
template <int samples, class Problem>
__device__ __forceinline__ int64_t first_sample_of_block(const Problem& p) {
  return blockIdx.y * p.samples + int64_t(blockIdx.x) * samples;
}

// From that one on to the last of the network.
template <int samples, class Problem>
__device__ __forceinline__ int64_t samples_left(const Problem& p) {
  return p.samples - int64_t(blockIdx.x) * samples;
}

// A base for 32-bit indices: joined with them into one sum, the compiler computes every address in four instructions.
template <class T>
__device__ __forceinline__ T* base(T* pointer) {
#if defined(FASTLIF_EMULATED)
  return pointer;
#else
  size_t address = __cvta_generic_to_global(pointer);
  asm("" : "+l"(address));
  return static_cast<T*>(__cvta_global_to_generic(address));
#endif
}

// At once: the compiler splits the store of a structure of four numbers, but not of a built-in one.
template <class Real, int n>
__device__ __forceinline__ void store_aligned(Pack<Real, n>* to, const Pack<Real, n>& values) {
  if constexpr (sizeof(Real) == 4 && n == 4)
    *reinterpret_cast<float4*>(to) = {values.at[0], values.at[1], values.at[2], values.at[3]};
  else
    *to = values;
}

// Of one neuron of the samples that a thread takes together, the later step of a sample before the earlier one.
template <class Real, int samples>
using Steps = Pack<Real, 2 * together(samples)>;

// A layer in a block's shared memory.
template <class Real, int samples, bool tensor_cores>
struct Neurons {
  static constexpr int kTogether = together(samples), kPlanes = samples / kTogether, kColumns = 2 * samples;
  const DeviceLayer<Real>& layer;
  Real* shared;

  // dL/dU[n+1] and the earlier dL/dJ, by samples.
  __device__ __forceinline__ Steps<Real, samples>* state(int plane, int neuron) const {
    return reinterpret_cast<Steps<Real, samples>*>(shared + layer.state) + plane * layer.map.neurons + neuron;
  }
  __device__ __forceinline__ Pack<Real, kTogether>* counts(int plane, int neuron) const {
    return reinterpret_cast<Pack<Real, kTogether>*>(shared + layer.grad_counts) + plane * layer.map.neurons + neuron;
  }

  __device__ __forceinline__ void set_columns(int plane, int neuron, const Steps<Real, samples>& values) const {
    const int position = layer.map.channels.quotient(neuron);
    const int channel = neuron - position * layer.map.channels.divisor;
    Real* const to = shared + layer.columns;
    if constexpr (tensor_cores) {
      const int at = (position * layer.pitch + channel / kDepth * kDepth) * kColumns + channel % kDepth;
#pragma unroll
      for (int c = 0; c < 2 * kTogether; ++c)
        to[at + (plane * 2 * kTogether + c) * kDepth] = __uint_as_float(to_tf32(values.at[c]));
    } else {
      const int at = (position * layer.pitch + channel) * kPlanes + plane;
      store_aligned(reinterpret_cast<Steps<Real, samples>*>(to) + at, values);
    }
  }

  __device__ __forceinline__ Steps<Real, samples> product(int plane, int neuron) const {
    const Real* const from = shared + layer.product.product;
    Steps<Real, samples> sums{};
    if constexpr (tensor_cores) {
#pragma unroll 1
      for (int part = 0; part < layer.product.parts; ++part)
#pragma unroll
        for (int c = 0; c < 2 * kTogether; ++c)
          sums.at[c] += from[(part * kColumns + plane * 2 * kTogether + c) * layer.product.plane + neuron];
    } else if (layer.product.parts > 0) {
      sums = *(reinterpret_cast<const Steps<Real, samples>*>(from) + plane * layer.map.neurons + neuron);
    }
    return sums;
  }
};

// Calls visit(layer, begin, end) with the chunks of this warp in each layer: chunk c is neurons 32 (c / planes) on, of
// the samples of plane c % planes. The division is the same for all visits.
template <class Real, class Visit>
__device__ __forceinline__ void for_each_layer(const Parameters<Real>& p, const Visit& visit) {
  const int warp = int(threadIdx.x / 32), warps = int(blockDim.x / 32);
  const int begin = p.n_chunks * warp / warps, end = p.n_chunks * (warp + 1) / warps;
  for (int l = 0, first = 0; first < end; first = p.last_chunk[l++]) {
    const int low = begin > first ? begin : first, high = end < p.last_chunk[l] ? end : p.last_chunk[l];
    if (low < high) visit(p.layers[l], low - first, high - first);
  }
}

// From the gradients of the final state to dL/dJ[T-1] and dL/dJ[T-2].
template <class Real, int samples, bool tensor_cores>
__device__ __forceinline__ void start_chunks(const Parameters<Real>& p, const DeviceLayer<Real>& layer, Real* shared,
                                             int begin, int end) {
  const Neurons<Real, samples, tensor_cores> at{layer, shared};
  constexpr int planes = at.kPlanes, joint = at.kTogether;
  const BackwardLayer& t = layer.tensors;
  const int64_t last = p.n_steps - 1, neurons = layer.map.neurons;
  const int64_t first_sample = first_sample_of_block<samples>(p), left = samples_left<samples>(p);
  for (int chunk = begin; chunk < end; ++chunk) {
    const int plane = chunk % planes, neuron = chunk / planes * 32 + int(threadIdx.x % 32);
    if (neuron >= neurons) continue;
    const int user_neuron = layer.map.user_index(layer.map.place(neuron));
    Steps<Real, samples> states{}, columns{};
    Pack<Real, joint> counts{};
#pragma unroll
    for (int s = 0; s < joint; ++s) {
      const int64_t sample = first_sample + plane * joint + s, user = sample * neurons + user_neuron;
      if (plane * joint + s >= left) break;
      const auto flat = [&](int64_t step) { return (step * p.batch + sample) * neurons + neuron; };
      const Real membrane = number_or_zero<Real>(t.grad_membrane, user);
      const Real current = number_or_zero<Real>(t.grad_current, user);
      counts.at[s] = number_or_zero<Real>(layer.kind == Kind::readout_max ? t.grad_score : t.grad_counts, user);
      Real later = current, earlier;
      if (layer.delay) {
        later = number_or_zero<Real>(t.grad_pending, user), earlier = current;
      } else {
        const bool spike = layer.kind == Kind::lif && (t.words[flat(last / kWordSteps)] >> last % kWordSteps & 1);
        earlier = grad_current_at(layer.constants, current, membrane, spike);
      }
      states.at[2 * s] = membrane, states.at[2 * s + 1] = earlier;
      columns.at[2 * s] = later, columns.at[2 * s + 1] = earlier;
      store(t.grad_injected, flat(last), later);
      if (last > 0) store(t.grad_injected, flat(last - 1), earlier);
    }
    *at.state(plane, neuron) = states;
    if (layer.grad_counts >= 0) *at.counts(plane, neuron) = counts;
    at.set_columns(plane, neuron, columns);
  }
}

// Steps n and n - 1 (only n when that is 0): from dL/dU[n+1], dL/dJ[n], dL/dJ[n-1] to those two steps before, at the
// beginning to the gradients of the initial state. `plain`: a spiking layer without delay, its reset detached, half
// kept, every sample of the block there, n at least 3; the same formulas without the questions.
template <bool plain, class Real, int samples, bool tensor_cores>
__device__ __forceinline__ void retreat_chunks(const Parameters<Real>& p, const DeviceLayer<Real>& layer, Real* shared,
                                               int64_t n, int begin, int end) {
  const Neurons<Real, samples, tensor_cores> at{layer, shared};
  constexpr int planes = at.kPlanes, joint = at.kTogether;
  const BackwardLayer& t = layer.tensors;
  const NeuronConstants<Real> k = layer.constants;
  const bool spiking = plain || layer.kind == Kind::lif, detach = plain || layer.detach_reset;
  const bool delay = !plain && layer.delay, two = plain || n > 0, half = plain || p.half_kept;
  const int neurons = layer.map.neurons, n_parts = layer.product.parts;
  const int64_t first_sample = first_sample_of_block<samples>(p), row = p.batch * neurons;
  const int64_t first = n * row + first_sample * neurons;  // of the block at step n
  const int64_t left = samples_left<samples>(p);
  const int bit = int(n % kWordSteps);
  const int32_t* const words = base(t.words + (n / kWordSteps * p.batch + first_sample) * neurons);
  const int32_t* const words_before = base(words - row);
  const bool two_words = bit < 2 && n >= kWordSteps, has_counts = layer.grad_counts >= 0;
  const auto kept_at = [&](int64_t index) {
    return half ? to_number<Real>(static_cast<const Half*>(t.kept)[index]) : static_cast<const Real*>(t.kept)[index];
  };
  const Half* const kept_later = base(static_cast<const Half*>(t.kept) + first);
  const Half* const kept_earlier = base(kept_later - row);
  Real* const out_later = base(static_cast<Real*>(t.grad_injected) + (first - 2 * row));
  Real* const out_earlier = base(out_later - row);
  for (int chunk = begin; chunk < end; ++chunk) {
    const int plane = chunk % planes, neuron = chunk / planes * 32 + int(threadIdx.x % 32);
    if (neuron >= neurons) continue;
    NeuronStep<Real> later[joint], earlier[joint];  // steps n and n - 1
    bool spike_first[joint];                        // at n - 2
#pragma unroll
    for (int s = 0; s < joint; ++s) {
      later[s] = earlier[s] = NeuronStep<Real>{}, spike_first[s] = false;
      const int in_block = (plane * joint + s) * neurons + neuron;
      if (!spiking || (!plain && plane * joint + s >= left)) continue;
      if constexpr (plain) {
        later[s].kept = to_number<Real>(kept_later[in_block]);
        earlier[s].kept = to_number<Real>(kept_earlier[in_block]);
      } else {
        later[s].kept = kept_at(first + in_block);
        if (two) earlier[s].kept = kept_at(first - row + in_block), earlier[s].kept_next = later[s].kept;
        if (!detach) later[s].kept_next = kept_at(first + row + in_block);
      }
      // Steps n, n - 1, n - 2 in the topmost bits; none before step 0.
      const uint32_t before = two_words ? uint32_t(words_before[in_block]) : 0;
      const uint32_t spikes = __funnelshift_l(before, uint32_t(words[in_block]), unsigned(31 - bit));
      later[s].spike = spikes >> 31, earlier[s].spike = spikes >> 30 & 1, spike_first[s] = spikes >> 29 & 1;
      later[s].spike_before = earlier[s].spike, earlier[s].spike_before = spike_first[s];
    }
    // dL/dS, of a readout dL/dU, from outside this neuron
    Steps<Real, samples> entering{};
    if (plain || n_parts > 0) entering = at.product(plane, neuron);
    if (has_counts) {
      const Pack<Real, joint> counts = *at.counts(plane, neuron);
#pragma unroll
      for (int s = 0; s < joint; ++s)
        if (plain || layer.kind != Kind::readout_max) {
          entering.at[2 * s] += counts.at[s], entering.at[2 * s + 1] += counts.at[s];
        } else if (plane * joint + s < left) {
          const int user = layer.map.user_index(layer.map.place(neuron));
          const int64_t best = t.best_step[(first_sample + plane * joint + s) * neurons + user];
          entering.at[2 * s] = best == n ? counts.at[s] : Real(0);
          entering.at[2 * s + 1] = best == n - 1 ? counts.at[s] : Real(0);
        }
    }
    if (t.grad_spikes && (plain || layer.kind != Kind::readout_max))
#pragma unroll
      for (int s = 0; s < joint; ++s) {
        if (!plain && plane * joint + s >= left) break;
        const int in_block = (plane * joint + s) * neurons + neuron;
        const Real* const from = static_cast<const Real*>(t.grad_spikes) + first + in_block;
        entering.at[2 * s] += *from;
        if (two) entering.at[2 * s + 1] += *(from - row);
      }
    const auto membrane_before = [&](Real grad_membrane, Real gradient, const NeuronStep<Real>& step) {
      return spiking ? grad_membrane_at(k, detach, grad_membrane, gradient, step)
                     : membrane_adjoint(k, grad_membrane, gradient);
    };
    // dL/dJ[m-2] from dL/dJ[m-1] and what step m did to dL/dU.
    const auto injected_before = [&](Real injected, Real membrane_after, Real membrane, bool spike, bool spike_before) {
      return delay ? grad_current_at(k, injected, membrane_after, spike)
                   : grad_current_at(k, injected, membrane, spike_before);
    };
    Steps<Real, samples> states = *at.state(plane, neuron), columns;
#pragma unroll
    for (int s = 0; s < joint; ++s) {
      const Real after = states.at[2 * s], injected = states.at[2 * s + 1];
      Real membrane = membrane_before(after, entering.at[2 * s], later[s]);
      columns.at[2 * s] = injected;
      columns.at[2 * s + 1] = injected_before(injected, after, membrane, later[s].spike, earlier[s].spike);
      if (two) {
        const Real middle = membrane;
        membrane = membrane_before(middle, entering.at[2 * s + 1], earlier[s]);
        columns.at[2 * s] = columns.at[2 * s + 1];
        columns.at[2 * s + 1] =
            injected_before(columns.at[2 * s], middle, membrane, earlier[s].spike, spike_first[s]);
      }
      states.at[2 * s] = membrane, states.at[2 * s + 1] = columns.at[2 * s + 1];
      const int in_block = (plane * joint + s) * neurons + neuron;
      if constexpr (plain) {
        out_later[in_block] = columns.at[2 * s], out_earlier[in_block] = columns.at[2 * s + 1];
      } else if (plane * joint + s < left) {
        if (n >= 2) out_later[in_block] = columns.at[2 * s];
        if (n >= 3) out_earlier[in_block] = columns.at[2 * s + 1];
        if (n < 2) {  // the columns are dL/dJ[-1] and dL/dJ[-2]
          const int64_t user = (first_sample + plane * joint + s) * neurons +
                               layer.map.user_index(layer.map.place(neuron));
          store(t.grad_membrane0, user, membrane);
          store(t.grad_current0, user, delay ? columns.at[2 * s + 1] : columns.at[2 * s]);
          if (delay) store(t.grad_pending0, user, columns.at[2 * s]);
        }
      }
    }
    store_aligned(at.state(plane, neuron), states);
    at.set_columns(plane, neuron, columns);
  }
}

// Neurons [begin, end) of the block's samples in the rows (step or word, batch, neuron) row - 1, ... of a tensor, each
// number of `size` bytes. A lane has a line of a sample and row.
template <int samples, int rows, class Real>
__device__ __forceinline__ void prefetch_rows(const Parameters<Real>& p, const void* tensor, int size, int64_t row,
                                              int neurons, int begin, int end) {
  const int line = 128 / size, lines = (end - begin + line - 1) / line + 1;
  for (int i = int(threadIdx.x % 32); i < lines * samples * rows; i += 32) {
    const int neuron = begin + i / (samples * rows) * line;
    const int in_block = i / rows % samples;
    const int64_t sample = first_sample_of_block<samples>(p) + in_block;
    const int64_t at = ((row - 1 - i % rows) * p.batch + sample) * neurons + (neuron < end ? neuron : end - 1);
    if (in_block < samples_left<samples>(p)) prefetch(static_cast<const char*>(tensor) + at * size);
  }
}

// What the warp's next two steps read.
template <class Real, int samples>
__device__ __forceinline__ void prefetch_chunks(const Parameters<Real>& p, const DeviceLayer<Real>& layer, int64_t n,
                                                int begin, int end) {
  constexpr int planes = samples / together(samples);
  if (n < 3 || layer.kind != Kind::lif) return;
  const int neurons = layer.map.neurons, past = (end + planes - 1) / planes * 32;
  const int first = begin / planes * 32, last = past < neurons ? past : neurons;
  const int size = p.half_kept ? 2 : int(sizeof(Real));
  prefetch_rows<samples, 2>(p, layer.tensors.kept, size, n - 1, neurons, first, last);
  if (n % kWordSteps < 4 && n >= kWordSteps)
    prefetch_rows<samples, 1>(p, layer.tensors.words, 4, n / kWordSteps, neurons, first, last);
}

}  // namespace fastlif::cuda
