// One block of the forward kernel: what its threads do. The kernel is in stack_forward.cu.
#pragma once

#include "forward_tables.h"

namespace fastlif::cuda::forward {

// One block.
template <class Real, class Kept>
struct Worker {
  const Arguments<Real, Kept>& p;
  unsigned char* const shared;
  const int network;
  const int64_t sample;   // of all networks' samples
  const int first_group;  // of the tile
  int first_word = 0;     // of the input that the tile sees
  int first_position = 0;  // of the tile
  int warp = 0;

  // Entry `lane` of a row of 32 in the record of a group.
  template <class T>
  __device__ __forceinline__ T& entry(unsigned char* record, int offset, int lane) const {
    return reinterpret_cast<T*>(record + offset)[lane];
  }
  static constexpr int kWords = 64 * int(sizeof(Real)), kCounts = kWords + 128;  // in a record of a spiking layer

  __device__ __forceinline__ const uint32_t* input_row(int step) const {
    return p.input.row(step, sample, network);
  }

  // Word i of the pair of rows of input masks of the steps m and m + 1.
  __device__ __forceinline__ uint32_t input_word(int m, int i) const {
    const int words = p.layout.sources[0].words, row = i >= words, word = first_word + i - row * words;
    return m + row < p.n_steps && word < p.input.words ? __ldg(input_row(m + row) + word) : 0;
  }

  // Where it goes.
  __device__ __forceinline__ void stage(int i, uint32_t bits) const {
    const int words = p.layout.sources[0].words, row = i >= words;
    shared_at<uint32_t>(shared, p.layout.sources[0].masks)[(i - row * words) * 2 + row] = bits;
  }

  // Calls visit(layer, group in the block) for the groups of this warp; the last tile has some without neurons. Layers
  // are counted by all warps alike, so that what belongs to them is read once for a warp, not by its lanes.
  template <class Visit>
  __device__ __forceinline__ void for_each_group(const Visit& visit) const {
    const int n_warps = blockDim.x >> 5;
    int item = warp;
#pragma unroll 1
    for (int l = 0; l < p.layout.n_layers; ++l) {
      const int first = p.layout.layers[l].first_item;
#pragma unroll 1
      for (; item < p.layout.layers[l].end_item; item += n_warps) visit(l, item - first);
    }
  }

  __device__ __forceinline__ unsigned char* record_of(int l, int group) const {
    return shared + p.layout.layers[l].state + group * p.layout.layers[l].group_bytes;
  }

  __device__ __forceinline__ void start() const {
    for_each_group([&](int l, int group) {
      const LayerArguments<Real, Kept>& layer = p.layers[l];
      const LayerLayout& at = p.layout.layers[l];
      const int lane = threadIdx.x & 31, neuron = (first_group + group) * 32 + lane;
      const bool real = neuron < layer.map.neurons;
      const int64_t user = sample * layer.map.neurons + (real ? layer.map.user_index(layer.map.place(neuron)) : 0);
      unsigned char* record = record_of(l, group);
      if (at.ahead >= 0) entry<Real>(record, at.ahead, lane) = entry<Real>(record, at.ahead, 32 + lane) = Real(0);
      if (layer.kind == Kind::current) return;
      const Real membrane = real && layer.membrane0 ? layer.membrane0[user] : Real(0);
      entry<Neuron<Real>>(record, 0, lane) = {membrane, real && layer.current0 ? layer.current0[user] : Real(0)};
      if (layer.delay) entry<Real>(record, at.pending, lane) = real && layer.pending0 ? layer.pending0[user] : Real(0);
      if (layer.kind == Kind::lif) entry<uint32_t>(record, kWords, lane) = 0, entry<int>(record, kCounts, lane) = 0;
      if (layer.kind == Kind::readout_max)
        entry<Real>(record, at.best, lane) = membrane, entry<int>(record, at.best_step, lane) = 0;
    });
  }

  __device__ __forceinline__ int first_source(int l, int s) const { return l + s == 0 ? first_word * 32 : 0; }

  // What the groups of a plain layer need to know of a synapse.
  struct Feed {
    const Real* weight;
    int entries;  // of position 0, in bytes of shared memory
    int pitch;    // from one position to the next: 0 if there is no such synapse
  };
  __device__ __forceinline__ Feed feed_of(int l, int s) const {
    const Synapse<Real>& synapse = p.layers[l].synapses[s];
    const int pitch = held(synapse.rows * int(sizeof(Listed)));
    return {synapse.weight_of(network), held(p.layout.layers[l].tables[s].entries - first_position * pitch), pitch};
  }

  // Adds what one synapse delivers to a neuron, by the table of its position.
  __device__ __forceinline__ void deliver(const Feed& feed, int l, int s, int position, const Column<Real>& column,
                                          Real& a, Real& b) const {
    if (feed.pitch == 0) return;
    const Listed* listed = shared_at<Listed>(shared, feed.entries + position * feed.pitch);
    Listed found = *listed;
    if (found.counts == kTooMany) {
      const Synapse<Real>& synapse = p.layers[l].synapses[s];
      const Place at = p.layers[l].map.place(position * column.channels + column.first);
      return gather(synapse.geometry, p.layout.sources[l + s], shared, at, feed.weight, first_source(l, s), a, b);
    }
    int left = feed.pitch;
    while (true) {
      add_listed(column, shared, found, a, b);
      if ((left -= int(sizeof(Listed))) == 0) break;
      found = *++listed;
    }
  }

  // J[m-2] and J[m-1] of one neuron. The second is not used when there is no such step.
  __device__ __forceinline__ void inject(int l, int m, unsigned char* record, int neuron, Real& a, Real& b) const {
    const LayerArguments<Real, Kept>& layer = p.layers[l];
    const Place at = layer.map.place(neuron);
    a = b = layer.bias ? __ldg(layer.bias + (network * layer.map.channels.divisor + at.channel)) : Real(0);
    if (layer.injected) {
      const int ahead = p.layout.layers[l].ahead, lane = threadIdx.x & 31;
      a = entry<Real>(record, ahead, lane), b = entry<Real>(record, ahead, 32 + lane);
    }
#pragma unroll 1
    for (int s = 0; s < 2; ++s) {
      const Synapse<Real>& synapse = layer.synapses[s];
      if (!synapse.weight) continue;
      if (l + s == 0 && p.layout.direct_input)
        gather_direct(synapse.geometry, input_row(m - 2), m - 1 < p.n_steps ? input_row(m - 1) : nullptr, p.input.words,
                      at, synapse.weight_of(network), a, b);
      else
        gather(synapse.geometry, p.layout.sources[l + s], shared, at, synapse.weight_of(network), first_source(l, s), a,
               b);
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

  // From (U[n-1], I[n-2]) to (U[n], I[n-1]) by J[n-2], if there are such steps. Returns U[n] before the reset.
  __device__ __forceinline__ Real move(const LayerArguments<Real, Kept>& layer, int n, Real injected,
                                       Neuron<Real>& neuron, Real& pending) const {
    if (n >= 2 && n <= p.n_steps + 1) {
      neuron.current = next_current(layer.constants, neuron.current, layer.delay ? pending : injected);
      pending = injected;
    }
    Real charged = neuron.membrane;
    if (n >= 1 && n <= p.n_steps) {
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
  __device__ __forceinline__ void advance(int l, int m, int64_t row, int group, unsigned char* record, bool real,
                                          Real a, Real b) const {
    const LayerArguments<Real, Kept>& layer = p.layers[l];
    const LayerLayout& lies = p.layout.layers[l];
    const int lane = threadIdx.x & 31, own = (first_group + group) * 32 + lane;
    const int64_t step = p.batch * layer.map.neurons;
    const bool has_a = m < p.n_steps, has_b = m + 1 < p.n_steps;  // spikes, membranes of the user
    Neuron<Real> neuron = entry<Neuron<Real>>(record, 0, lane);
    Real pending = layer.delay ? entry<Real>(record, lies.pending, lane) : Real(0);
    const Real charged_a = move(layer, m, a, neuron, pending), membrane_a = neuron.membrane;
    const Real charged_b = move(layer, m + 1, b, neuron, pending), membrane_b = neuron.membrane;
    entry<Neuron<Real>>(record, 0, lane) = neuron;
    if (layer.delay) entry<Real>(record, lies.pending, lane) = pending;
    if (layer.kind == Kind::lif) {
      const Real threshold = layer.constants.threshold;
      if (layer.kept && real) {
        const int rows = p.n_steps + (layer.keep_unreset ? 1 : 0);
        Kept* kept = layer.kept + row * layer.map.neurons + own;
        const KeptPair<Real, Kept> keep((layer.keep_unreset ? charged_a : membrane_a) - threshold,
                                        (layer.keep_unreset ? charged_b : membrane_b) - threshold);
        if (m < rows) *kept = keep.a;
        if (m + 1 < rows) kept[step] = keep.b;
      }
      hand_on(l, m, group, record, real && has_a && membrane_a > threshold, real && has_b && membrane_b > threshold);
    } else if (layer.kind == Kind::readout_max) {
      if (has_a) compare(lies, m, record, membrane_a);
      if (has_b) compare(lies, m + 1, record, membrane_b);
    } else if (real) {
      Real* output = layer.output + user_element(layer, row, own);
      if (has_a) *output = membrane_a;
      if (has_b) output[step] = membrane_b;
    }
  }

  // A warp's share of iteration m: a group of 32 neurons of any layer at any step. `row` is m * batch + sample.
  __device__ __forceinline__ void visit(int l, int m, int64_t row, int group) const {
    const LayerArguments<Real, Kept>& layer = p.layers[l];
    const LayerLayout& lies = p.layout.layers[l];
    const int lane = threadIdx.x & 31, own = (first_group + group) * 32 + lane, last = layer.map.neurons - 1;
    const bool real = own <= last;
    const int neuron = real ? own : last;  // the rest of the last group does as its last neuron does
    unsigned char* record = record_of(l, group);
    Real a = 0, b = 0, next_a = 0, next_b = 0;
    fetch_injected(layer, m, row, neuron, next_a, next_b);
    if (m > 0) inject(l, m, record, neuron, a, b);
    if (layer.injected)
      entry<Real>(record, lies.ahead, lane) = next_a, entry<Real>(record, lies.ahead, 32 + lane) = next_b;
    if (layer.kind == Kind::current) {
      if (!real || m == 0) return;
      const int64_t step = p.batch * layer.map.neurons;
      Real* output = layer.output + user_element(layer, row, own) - 2 * step;
      *output = a;
      if (m - 1 < p.n_steps) output[step] = b;
    } else {
      advance(l, m, row, group, record, real, a, b);
    }
  }

  // The same, from `group` on, where the layer is plain and both steps and those two before them are there.
  __device__ __forceinline__ void visit_plain(int l, int m, int group, int behind) const {
    const LayerArguments<Real, Kept>& layer = p.layers[l];
    const SourceLayout& source = p.layout.sources[l + 1];
    const int lane = threadIdx.x & 31, n_warps = blockDim.x >> 5, last = held(layer.map.neurons - 1);
    const int last_kept = held(layer.kept ? last : -1);
    const bool writes_masks = lane == 0 && source.words;
    const Real threshold = layer.constants.threshold;
    const int step = held(int(p.batch) * layer.map.neurons);
    const int channels = layer.map.channels.divisor;
    const uint32_t bit = held(1u << (m & 31));
    const Feed feeds[2] = {feed_of(l, 0), feed_of(l, 1)};
    int own = (first_group + group) * 32 + lane;
    unsigned char* record = record_of(l, group);
    Kept* kept = layer.kept + (int64_t(m) * step + int(sample) * layer.map.neurons + own);
#pragma unroll 1
    for (; group < behind; group += n_warps) {
      const int neuron_index = own < last ? own : last, position = layer.map.channels.quotient(neuron_index);
      const Column<Real> column{feeds[0].weight, channels, neuron_index - position * channels};
      Real a = 0;
      if (layer.has_bias) a = __ldg(layer.bias + (network * channels + column.first));
      Real b = a;
      deliver(feeds[0], l, 0, position, column, a, b);
      deliver(feeds[1], l, 1, position, {feeds[1].weight, channels, column.first}, a, b);
      Neuron<Real> neuron = entry<Neuron<Real>>(record, 0, lane);
      const auto move_on = [&](Real injected) {
        const bool spiked = neuron.membrane > threshold;
        neuron.current = next_current(layer.constants, neuron.current, injected);
        const Real charged = charged_membrane(layer.constants, neuron.membrane, neuron.current);
        neuron.membrane = spiked ? Real(0) : charged;
        return neuron.membrane;
      };
      const Real membrane_a = move_on(a), membrane_b = move_on(b);
      entry<Neuron<Real>>(record, 0, lane) = neuron;
      const KeptPair<Real, Kept> keep(membrane_a - threshold, membrane_b - threshold);
      if (own <= last_kept) kept[0] = keep.a, kept[step] = keep.b;
      const bool spike_a = own <= last && membrane_a > threshold, spike_b = own <= last && membrane_b > threshold;
      const uint2 masks = make_uint2(__ballot_sync(0xffffffffu, spike_a), __ballot_sync(0xffffffffu, spike_b));
      if (writes_masks) shared_at<uint2>(shared, source.masks)[group] = masks;
      const uint32_t word = entry<uint32_t>(record, kWords, lane) | (spike_a ? bit : 0) | (spike_b ? bit << 1 : 0);
      entry<uint32_t>(record, kWords, lane) = word;
      if (bit == 1u << 30 || m + 2 >= p.n_steps) end_word(l, m, record, own, word);
      own += n_warps * 32, record += n_warps * p.layout.layers[l].group_bytes, kept += n_warps * 32;
    }
  }

  // The word of 32 steps, or of the last, to the user.
  __device__ __forceinline__ void end_word(int l, int m, unsigned char* record, int neuron, uint32_t word) const {
    const LayerArguments<Real, Kept>& layer = p.layers[l];
    const int lane = threadIdx.x & 31;
    if (layer.words && neuron < layer.map.neurons)
      layer.words[((m >> 5) * p.batch + sample) * layer.map.neurons + neuron] = int32_t(word);
    entry<int>(record, kCounts, lane) += __popc(word);
    entry<uint32_t>(record, kWords, lane) = 0;
  }

  // Spikes of a pair of steps to the masks that the next iteration reads, to the word of 32 steps and to the count.
  __device__ __forceinline__ void hand_on(int l, int m, int group, unsigned char* record, bool spike_a,
                                          bool spike_b) const {
    const SourceLayout& source = p.layout.sources[l + 1];
    const int lane = threadIdx.x & 31, neuron = (first_group + group) * 32 + lane;
    if (source.words) {
      const uint32_t mask_a = __ballot_sync(0xffffffffu, spike_a), mask_b = __ballot_sync(0xffffffffu, spike_b);
      if (lane == 0) shared_at<uint2>(shared, source.masks)[group] = make_uint2(mask_a, mask_b);
    }
    if (m >= p.n_steps) return;
    const uint32_t pair = uint32_t(spike_a) | uint32_t(spike_b) << 1;
    const uint32_t word = entry<uint32_t>(record, kWords, lane) | pair << (m & 31);
    entry<uint32_t>(record, kWords, lane) = word;
    if ((m & 31) == 30 || m + 2 >= p.n_steps) end_word(l, m, record, neuron, word);
  }

  // The first of equals stays, and so does the first NaN, which must not be lost.
  __device__ __forceinline__ void compare(const LayerLayout& lies, int n, unsigned char* record, Real membrane) const {
    const int lane = threadIdx.x & 31;
    const Real best = entry<Real>(record, lies.best, lane);
    if (!(membrane <= best) && best == best)
      entry<Real>(record, lies.best, lane) = membrane, entry<int>(record, lies.best_step, lane) = n;
  }

  __device__ __forceinline__ void finish() const {
    for_each_group([&](int l, int group) {
      const LayerArguments<Real, Kept>& layer = p.layers[l];
      const LayerLayout& lies = p.layout.layers[l];
      const int lane = threadIdx.x & 31, neuron = (first_group + group) * 32 + lane;
      if (neuron >= layer.map.neurons || layer.kind == Kind::current) return;
      const int64_t user = sample * layer.map.neurons + layer.map.user_index(layer.map.place(neuron));
      unsigned char* record = record_of(l, group);
      const Neuron<Real> end = entry<Neuron<Real>>(record, 0, lane);
      if (layer.membrane) layer.membrane[user] = end.membrane;
      if (layer.current) layer.current[user] = end.current;
      if (layer.delay && layer.pending) layer.pending[user] = entry<Real>(record, lies.pending, lane);
      if (layer.kind == Kind::lif && layer.counts) layer.counts[user] = Real(entry<int>(record, kCounts, lane));
      if (layer.kind == Kind::readout_max) {
        layer.output[user] = entry<Real>(record, lies.best, lane);
        if (layer.best_step) layer.best_step[user] = entry<int>(record, lies.best_step, lane);
      }
    });
  }

  // Iteration m of all neurons.
  __device__ __forceinline__ void advance_all(int m) const {
    const int64_t row = int64_t(m) * p.batch + sample;
    const int n_warps = blockDim.x >> 5;
    const bool inner = m >= 2 && m + 1 < p.n_steps;
    int item = warp;
#pragma unroll 1
    for (int l = 0; l < p.layout.n_layers; ++l) {
      const int first = p.layout.layers[l].first_item, behind = p.layout.layers[l].end_item;
      if (item >= behind) continue;
      if (inner && p.layers[l].plain) {
        visit_plain(l, m, item - first, behind - first);
        item += (behind - item + n_warps - 1) / n_warps * n_warps;
      }
#pragma unroll 1
      for (; item < behind; item += n_warps) visit(l, m, row, item - first);
    }
  }

  __device__ __forceinline__ void run() {
    const Map& map = p.layers[0].map;
    const int input_words = p.layout.sources[0].words;
    first_position = map.channels.quotient(first_group * 32);
    // From lane 0, so that the compiler knows that it is the same in all lanes and keeps what follows from it once.
    warp = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 5, 0);
    if (input_words) {
      const int64_t behind = (int64_t(first_group) + p.layout.tile_groups) * 32;
      const int last = behind < map.neurons ? int(behind) - 1 : map.neurons - 1;
      int begin, end;
      p.layers[0].synapses[0].geometry.visible(map, first_group * 32, last, &begin, &end);
      first_word = begin / 32;
    }
    start();
    for (int m = 0; m < p.n_steps + 2; m += 2) {
      if (m > 0) {
        list_spikes(p.layout, shared, warp);
        __syncthreads();
        if (p.layout.look_ups > 0) {
          look_up_positions(p, shared, warp, first_group, first_word * 32);
          __syncthreads();
        }
      }
      // The input of the next iteration is on its way while this one works.
      const bool stages = m < p.n_steps && int(threadIdx.x) < 2 * input_words;
      const uint32_t ahead = stages ? input_word(m, threadIdx.x) : 0;
      advance_all(m);
      if (stages) {
        stage(threadIdx.x, ahead);
        for (int i = threadIdx.x + blockDim.x; i < 2 * input_words; i += blockDim.x) stage(i, input_word(m, i));
      }
      __syncthreads();
    }
    finish();
  }
};

}  // namespace fastlif::cuda::forward
