// What a block of the forward kernel keeps in shared memory, and the work of its warps. Host side.
#pragma once

#include <algorithm>

#include "spike_lists.h"

namespace fastlif::cuda::forward {

constexpr int kMostLayers = 8;      // of a segment: their pointers and sizes are arguments of the kernel, at most 4 KB
constexpr int kMostNeurons = 4096;  // that a block advances in lockstep, unless a recurrent layer has more
constexpr int kTileGroups = 32, kSmallTileGroups = 8;  // of 32 neurons, of a layer whose neurons do not meet
constexpr int64_t kMultiprocessors = 132;  // of a large GPU; the speed depends on it, the results do not

// State of the neurons, one slot a neuron, in whole groups. Offsets in bytes; -1 for what the layer does not have.
struct LayerLayout {
  int membrane = -1, current = -1, pending = -1;
  int ahead = -1;  // two rows: the given current of the next two steps
  int best = -1, best_step = -1;
  int word = -1, count = -1;
  int groups = 0, first_item = 0;
};

struct Layout {
  LayerLayout layers[kMostLayers];
  SourceLayout sources[kMostLayers + 1];  // the input of the segment, then the spikes of its layers
  int n_layers = 0;
  int items = 0;  // groups of all layers: one is one warp's work
  int jobs = 0;   // chunks of 32 words of masks to list
  int tile_groups = 0;
  bool direct_input = false;  // masks of the input are read from global memory
  int bytes = 0;
};

inline int take(Layout& layout, int64_t bytes) {
  const int64_t begin = layout.bytes, end = begin + (bytes + 15) / 16 * 16;
  layout.bytes = int(std::min<int64_t>(end, INT32_MAX / 2));  // no device has that much
  return int(begin);
}

inline void add_source(Layout& layout, int index, int words) {
  SourceLayout& source = layout.sources[index];
  source.words = words;
  // Room for a quarter of the neurons: with more spikes the words are as quick to read. An entry has 16 bits.
  source.capacity = words > 2048 ? 0 : std::min(words * 32, std::max(64, words * 8));
  source.masks = take(layout, int64_t(2) * words * sizeof(uint32_t));
  source.ranked = take(layout, int64_t(2) * (words + 1) * sizeof(RankedWord));
  source.lists = take(layout, int64_t(2) * source.capacity * sizeof(uint16_t));
}

inline void add_layer(Layout& layout, int index, const Layer& layer, int groups, bool injected, int real_bytes) {
  LayerLayout& l = layout.layers[index];
  l.groups = groups;
  l.first_item = layout.items;
  layout.items += groups;
  const int64_t reals = int64_t(32) * groups * real_bytes, ints = int64_t(32) * groups * sizeof(int32_t);
  if (injected) l.ahead = take(layout, 2 * reals);
  if (layer.kind == Kind::current) return;
  l.membrane = take(layout, reals), l.current = take(layout, reals);
  if (layer.delay) l.pending = take(layout, reals);
  if (layer.kind == Kind::lif) l.word = take(layout, ints), l.count = take(layout, ints);
  if (layer.kind == Kind::readout_max) l.best = take(layout, reals), l.best_step = take(layout, ints);
}

// Words of the input that a tile sees, at most. A tile counts its sources from the first word that it sees.
inline int visible_words(const Layer& layer, int tile_groups) {
  const Map map(layer.shape);
  const Geometry geometry(layer.feedforward);
  int most = 0;
  for (int64_t first = 0; first < map.neurons; first += int64_t(tile_groups) * 32) {
    int begin, end;
    const int64_t last = std::min<int64_t>(first + int64_t(tile_groups) * 32, map.neurons) - 1;
    geometry.visible(map, int(first), int(last), &begin, &end);
    if (begin < end) most = std::max(most, (end - 1) / 32 - begin / 32 + 1);
  }
  return most;
}

inline bool can_tile(const Plan& plan, int first, int last) {
  return last - first == 1 && !plan.layers[first].recurrent;
}

// `tile_groups` of 0: the layers whole.
inline Layout make_layout(const Plan& plan, int first, int last, int real_bytes, bool injected, int tile_groups,
                          bool direct_input) {
  Layout layout;
  layout.n_layers = last - first;
  layout.direct_input = direct_input && !injected;
  const Layer& front = plan.layers[first];
  layout.tile_groups = tile_groups ? std::min(tile_groups, Map(front.shape).groups()) : Map(front.shape).groups();
  if (front.has_feedforward && !injected && !direct_input)
    add_source(layout, 0, tile_groups ? visible_words(front, layout.tile_groups) : Map(front.feedforward.in).groups());
  for (int l = first; l < last; ++l) {
    const Layer& layer = plan.layers[l];
    const int groups = tile_groups ? layout.tile_groups : Map(layer.shape).groups();
    add_layer(layout, l - first, layer, groups, injected && l == first, real_bytes);
    if (layer.recurrent || l + 1 < last) add_source(layout, l - first + 1, groups);
  }
  for (SourceLayout& source : layout.sources) source.first_job = layout.jobs, layout.jobs += 2 * source.chunks();
  return layout;
}

// The layout for a launch: tiles where the neurons do not depend on each other, the input read directly where nothing
// else fits. `bytes` exceeds shared_bytes when a recurrent layer cannot run at all.
inline Layout choose_layout(const Plan& plan, int first, int last, int real_bytes, bool injected, int64_t batch,
                            int shared_bytes) {
  int tile = 0;
  if (can_tile(plan, first, last)) {
    const int64_t groups = Map(plan.layers[first].shape).groups();
    tile = batch * ((groups + kTileGroups - 1) / kTileGroups) < 2 * kMultiprocessors ? kSmallTileGroups : kTileGroups;
    tile = int(std::max<int64_t>(tile, (groups + 65534) / 65535));  // blocks of a grid in this dimension
  }
  Layout layout;
  for (const bool direct : {false, true}) {
    layout = make_layout(plan, first, last, real_bytes, injected, tile, direct);
    for (int smaller = tile / 2; layout.bytes > shared_bytes && smaller >= 1; smaller /= 2)
      layout = make_layout(plan, first, last, real_bytes, injected, smaller, direct);
    if (layout.bytes <= shared_bytes) break;
  }
  return layout;
}

// Threads of a block: the blocks that a multiprocessor holds at once share its 32 warps of 64 registers a thread. More
// warps than groups would idle.
inline int threads_of(const Layout& layout, int64_t blocks, int shared_bytes) {
  const int64_t fit = shared_bytes / std::max(layout.bytes, 1);
  const int64_t side_by_side = std::max<int64_t>(1, std::min(fit, (blocks + kMultiprocessors - 1) / kMultiprocessors));
  return 32 * std::max(1, std::min(int(std::max<int64_t>(32 / side_by_side, 4)), layout.items));
}

}  // namespace fastlif::cuda::forward
