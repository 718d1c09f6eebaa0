// One block of the forward kernel: what it is given and what its threads do. The kernel is in stack_forward.cu.
#pragma once

#include "../lif_step.h"
#include "forward_layout.h"

namespace fastlif::cuda::forward {

template <class Real>
struct Synapse {
  const Real* weight = nullptr;
  Geometry geometry;
};

template <class Real, class Kept>
struct LayerArguments {
  Synapse<Real> synapses[2];  // from the layer below, from the layer itself
  const Real *bias = nullptr, *injected = nullptr;
  const Real *membrane0 = nullptr, *current0 = nullptr, *pending0 = nullptr;
  Kept* kept = nullptr;
  int32_t* words = nullptr;
  Real *counts = nullptr, *membrane = nullptr, *current = nullptr, *pending = nullptr, *output = nullptr;
  int32_t* best_step = nullptr;
  NeuronConstants<Real> constants{Layer{}};
  Map map;
  Kind kind = Kind::lif;
  bool delay = false, keep_unreset = false;
};

template <class Real, class Kept>
struct Arguments {
  LayerArguments<Real, Kept> layers[kMostLayers];
  Layout layout;
  const uint32_t* input_masks = nullptr;
  int input_words = 0;  // of a step of input_masks
  int n_steps = 0;
  int64_t batch = 0;
};

template <class Real>
struct Neuron {
  Real membrane, current, pending;
};

__device__ __forceinline__ Half to_kept(float distance, Half) { return to_half_saturated(distance); }
template <class Real>
__device__ __forceinline__ Real to_kept(Real distance, Real) {
  return distance;
}

// One block.
template <class Real, class Kept>
struct Worker {
  const Arguments<Real, Kept>& p;
  unsigned char* const shared;
  const int64_t sample;
  const int first_group;  // of the tile
  int first_word = 0;     // of the input that the tile sees

  template <class T>
  __device__ __forceinline__ T& state(int offset, int slot) const {
    return reinterpret_cast<T*>(shared + offset)[slot];
  }

  __device__ __forceinline__ const uint32_t* input_row(int step) const {
    return p.input_masks + (int64_t(step) * p.batch + sample) * p.input_words;
  }

  // Word i of the pair of rows of input masks of the steps m and m + 1.
  __device__ __forceinline__ uint32_t input_word(int m, int i) const {
    const int words = p.layout.sources[0].words, row = i >= words, word = first_word + i - row * words;
    return m + row < p.n_steps && word < p.input_words ? __ldg(input_row(m + row) + word) : 0;
  }

  // Calls visit(layer, group of the layer, slot of the neuron) for the groups of this warp.
  template <class Visit>
  __device__ __forceinline__ void for_each_group(const Visit& visit) const {
    const int lane = threadIdx.x & 31, n_warps = blockDim.x >> 5;
    int l = 0;
    for (int item = threadIdx.x >> 5; item < p.layout.items; item += n_warps) {
      while (l + 1 < p.layout.n_layers && item >= p.layout.layers[l + 1].first_item) ++l;
      const int group = item - p.layout.layers[l].first_item;
      if ((first_group + group) * 32 >= p.layers[l].map.neurons) continue;  // behind the last tile
      visit(l, first_group + group, group * 32 + lane);
    }
  }

  __device__ __forceinline__ void start() const {
    for_each_group([&](int l, int group, int slot) {
      const LayerArguments<Real, Kept>& layer = p.layers[l];
      const LayerLayout& at = p.layout.layers[l];
      const int neuron = group * 32 + int(threadIdx.x & 31);
      const bool real = neuron < layer.map.neurons;
      const int64_t user = sample * layer.map.neurons + (real ? layer.map.user_index(layer.map.place(neuron)) : 0);
      if (at.ahead >= 0) state<Real>(at.ahead, slot) = state<Real>(at.ahead, at.groups * 32 + slot) = Real(0);
      if (layer.kind == Kind::current) return;
      const Real membrane = real && layer.membrane0 ? layer.membrane0[user] : Real(0);
      state<Real>(at.membrane, slot) = membrane;
      state<Real>(at.current, slot) = real && layer.current0 ? layer.current0[user] : Real(0);
      if (layer.delay) state<Real>(at.pending, slot) = real && layer.pending0 ? layer.pending0[user] : Real(0);
      if (layer.kind == Kind::lif) state<uint32_t>(at.word, slot) = 0, state<int>(at.count, slot) = 0;
      if (layer.kind == Kind::readout_max) state<Real>(at.best, slot) = membrane, state<int>(at.best_step, slot) = 0;
    });
  }

  __device__ __forceinline__ void list_spikes() const {
    const int n_warps = blockDim.x >> 5;
    int s = 0;
    for (int job = threadIdx.x >> 5; job < p.layout.jobs; job += n_warps) {
      while (s < p.layout.n_layers && job >= p.layout.sources[s + 1].first_job) ++s;
      list_chunk(p.layout.sources[s], shared, job - p.layout.sources[s].first_job);
    }
  }

  // J[m-2] and J[m-1] of one neuron. The second is not used when there is no such step.
  __device__ __forceinline__ void inject(int l, int m, int slot, int neuron, Real& a, Real& b) const {
    const LayerArguments<Real, Kept>& layer = p.layers[l];
    const Place at = layer.map.place(neuron);
    a = b = layer.bias ? __ldg(layer.bias + at.channel) : Real(0);
    if (layer.injected) {
      const int ahead = p.layout.layers[l].ahead;
      a = state<Real>(ahead, slot), b = state<Real>(ahead, p.layout.layers[l].groups * 32 + slot);
    }
#pragma unroll 1
    for (int s = 0; s < 2; ++s) {
      const Synapse<Real>& synapse = layer.synapses[s];
      if (!synapse.weight) continue;
      const bool from_input = l + s == 0;
      if (from_input && p.layout.direct_input)
        gather_direct(synapse.geometry, input_row(m - 2), m - 1 < p.n_steps ? input_row(m - 1) : nullptr, p.input_words,
                      at, synapse.weight + at.channel, a, b);
      else
        gather(synapse.geometry, p.layout.sources[l + s], shared, at, synapse.weight + at.channel,
               from_input ? first_word * 32 : 0, a, b);
    }
  }

  // The given current of the steps m and m + 1 is on its way while those before it are used.
  __device__ __forceinline__ void fetch_injected(const LayerArguments<Real, Kept>& layer, int m, int64_t row,
                                                 int neuron, Real& a, Real& b) const {
    if (!layer.injected) return;
    const Real* from = layer.injected + row * layer.map.neurons + neuron;
    if (m < p.n_steps) a = __ldg(from);
    if (m + 1 < p.n_steps) b = __ldg(from + p.batch * layer.map.neurons);
  }

  // From (U[n-1], I[n-2]) to (U[n], I[n-1]) by J[n-2]; `inner` promises that there are such steps. Returns U[n] before
  // the reset.
  template <bool inner>
  __device__ __forceinline__ Real move(const LayerArguments<Real, Kept>& layer, int n, Real injected,
                                       Neuron<Real>& neuron) const {
    if (inner || (n >= 2 && n <= p.n_steps + 1)) {
      neuron.current = next_current(layer.constants, neuron.current, layer.delay ? neuron.pending : injected);
      neuron.pending = injected;
    }
    Real charged = neuron.membrane;
    if (inner || (n >= 1 && n <= p.n_steps)) {
      const bool spiked = layer.kind == Kind::lif && neuron.membrane > layer.constants.threshold;
      charged = charged_membrane(layer.constants, neuron.membrane, neuron.current);
      neuron.membrane = spiked ? Real(0) : charged;
    }
    return charged;
  }

  // Where step m of a neuron stands in a tensor of the user's layout, (T, B, channels, positions).
  __device__ __forceinline__ int64_t user_element(const LayerArguments<Real, Kept>& layer, int64_t row,
                                                  int neuron) const {
    return row * layer.map.neurons + layer.map.user_index(layer.map.place(neuron));
  }

  // What one lane does in iteration m with J[m-2] and J[m-1].
  template <bool inner>
  __device__ __forceinline__ void advance(int l, int m, int64_t row, int group, int slot, int own, bool real, Real a,
                                          Real b) const {
    const LayerArguments<Real, Kept>& layer = p.layers[l];
    const LayerLayout& lies = p.layout.layers[l];
    const int64_t step = p.batch * layer.map.neurons;
    const bool has_a = inner || m < p.n_steps, has_b = inner || m + 1 < p.n_steps;  // spikes, membranes of the user
    Neuron<Real> neuron{state<Real>(lies.membrane, slot), state<Real>(lies.current, slot),
                        layer.delay ? state<Real>(lies.pending, slot) : Real(0)};
    const Real charged_a = move<inner>(layer, m, a, neuron), membrane_a = neuron.membrane;
    const Real charged_b = move<inner>(layer, m + 1, b, neuron), membrane_b = neuron.membrane;
    state<Real>(lies.membrane, slot) = neuron.membrane;
    state<Real>(lies.current, slot) = neuron.current;
    if (layer.delay) state<Real>(lies.pending, slot) = neuron.pending;
    if (layer.kind == Kind::lif) {
      const Real threshold = layer.constants.threshold;
      if (layer.kept && real) {
        const int rows = p.n_steps + (layer.keep_unreset ? 1 : 0);
        Kept* kept = layer.kept + row * layer.map.neurons + own;
        const Real keep_a = layer.keep_unreset ? charged_a : membrane_a;
        const Real keep_b = layer.keep_unreset ? charged_b : membrane_b;
        if (inner || m < rows) *kept = to_kept(keep_a - threshold, Kept{});
        if (inner || m + 1 < rows) kept[step] = to_kept(keep_b - threshold, Kept{});
      }
      hand_on(l, m, group, slot, real && has_a && membrane_a > threshold, real && has_b && membrane_b > threshold);
    } else if (layer.kind == Kind::readout_max) {
      if (has_a) compare(lies, m, slot, membrane_a);
      if (has_b) compare(lies, m + 1, slot, membrane_b);
    } else if (real) {
      Real* output = layer.output + user_element(layer, row, own);
      if (has_a) *output = membrane_a;
      if (has_b) output[step] = membrane_b;
    }
  }

  // A warp's share of iteration m: a group of 32 neurons. `row` is m * batch + sample.
  __device__ __forceinline__ void visit(int l, int m, int64_t row, int group, int slot) const {
    const LayerArguments<Real, Kept>& layer = p.layers[l];
    const LayerLayout& lies = p.layout.layers[l];
    const int own = group * 32 + int(threadIdx.x & 31), last = layer.map.neurons - 1;
    const bool real = own <= last;
    const int neuron = real ? own : last;  // the rest of the last group does as its last neuron does
    Real a = 0, b = 0, next_a = 0, next_b = 0;
    fetch_injected(layer, m, row, neuron, next_a, next_b);
    if (m > 0) inject(l, m, slot, neuron, a, b);
    if (layer.injected)
      state<Real>(lies.ahead, slot) = next_a, state<Real>(lies.ahead, lies.groups * 32 + slot) = next_b;
    if (layer.kind == Kind::current) {
      if (!real || m == 0) return;
      const int64_t step = p.batch * layer.map.neurons;
      Real* output = layer.output + user_element(layer, row, own) - 2 * step;
      *output = a;
      if (m - 1 < p.n_steps) output[step] = b;
    } else if (m >= 2 && m + 1 < p.n_steps) {
      advance<true>(l, m, row, group, slot, own, real, a, b);
    } else {
      advance<false>(l, m, row, group, slot, own, real, a, b);
    }
  }

  // Spikes of a pair of steps to the masks that the next iteration reads, to the word of 32 steps and to the count.
  __device__ __forceinline__ void hand_on(int l, int m, int group, int slot, bool spike_a, bool spike_b) const {
    const LayerArguments<Real, Kept>& layer = p.layers[l];
    const LayerLayout& lies = p.layout.layers[l];
    const SourceLayout& source = p.layout.sources[l + 1];
    const int lane = threadIdx.x & 31, neuron = group * 32 + lane;
    if (source.words) {
      const uint32_t mask_a = __ballot_sync(0xffffffffu, spike_a), mask_b = __ballot_sync(0xffffffffu, spike_b);
      if (lane == 0) masks_of(source, shared, 0)[group] = mask_a, masks_of(source, shared, 1)[group] = mask_b;
    }
    if (m >= p.n_steps) return;
    uint32_t word = state<uint32_t>(lies.word, slot) | (uint32_t(spike_a) | uint32_t(spike_b) << 1) << (m & 31);
    if ((m & 31) == 30 || m + 2 >= p.n_steps) {
      if (layer.words && neuron < layer.map.neurons)
        layer.words[((m >> 5) * p.batch + sample) * layer.map.neurons + neuron] = int32_t(word);
      state<int>(lies.count, slot) += __popc(word);
      word = 0;
    }
    state<uint32_t>(lies.word, slot) = word;
  }

  // The first of equals stays, and so does the first NaN, which must not be lost.
  __device__ __forceinline__ void compare(const LayerLayout& lies, int n, int slot, Real membrane) const {
    const Real best = state<Real>(lies.best, slot);
    if (!(membrane <= best) && best == best)
      state<Real>(lies.best, slot) = membrane, state<int>(lies.best_step, slot) = n;
  }

  __device__ __forceinline__ void finish() const {
    for_each_group([&](int l, int group, int slot) {
      const LayerArguments<Real, Kept>& layer = p.layers[l];
      const LayerLayout& lies = p.layout.layers[l];
      const int neuron = group * 32 + int(threadIdx.x & 31);
      if (neuron >= layer.map.neurons || layer.kind == Kind::current) return;
      const int64_t user = sample * layer.map.neurons + layer.map.user_index(layer.map.place(neuron));
      if (layer.membrane) layer.membrane[user] = state<Real>(lies.membrane, slot);
      if (layer.current) layer.current[user] = state<Real>(lies.current, slot);
      if (layer.delay && layer.pending) layer.pending[user] = state<Real>(lies.pending, slot);
      if (layer.kind == Kind::lif && layer.counts) layer.counts[user] = Real(state<int>(lies.count, slot));
      if (layer.kind == Kind::readout_max) {
        layer.output[user] = state<Real>(lies.best, slot);
        if (layer.best_step) layer.best_step[user] = state<int>(lies.best_step, slot);
      }
    });
  }

  __device__ __forceinline__ void run() {
    const int input_words = p.layout.sources[0].words;
    if (input_words) {
      const Map& map = p.layers[0].map;
      const int64_t behind = (int64_t(first_group) + p.layout.tile_groups) * 32;
      const int last = behind < map.neurons ? int(behind) - 1 : map.neurons - 1;
      int begin, end;
      p.layers[0].synapses[0].geometry.visible(map, first_group * 32, last, &begin, &end);
      first_word = begin / 32;
    }
    start();
    for (int m = 0; m < p.n_steps + 2; m += 2) {
      if (m > 0) {
        list_spikes();
        __syncthreads();
      }
      // The input of the next iteration is on its way while this one works.
      const bool stages = m < p.n_steps && int(threadIdx.x) < 2 * input_words;
      const uint32_t ahead = stages ? input_word(m, threadIdx.x) : 0;
      const int64_t row = int64_t(m) * p.batch + sample;
      for_each_group([&](int l, int group, int slot) { visit(l, m, row, group, slot); });
      if (stages) {
        uint32_t* masks = masks_of(p.layout.sources[0], shared, 0);  // both rows
        masks[threadIdx.x] = ahead;
        for (int i = threadIdx.x + blockDim.x; i < 2 * input_words; i += blockDim.x) masks[i] = input_word(m, i);
      }
      __syncthreads();
    }
    finish();
  }
};

}  // namespace fastlif::cuda::forward
