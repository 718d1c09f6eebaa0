// What a block of the forward kernel keeps in shared memory, and the work of its warps. Host side.
#pragma once

#include <algorithm>

#include "spike_lists.h"

namespace fastlif::cuda::forward {

constexpr int kMostLayers = 8;      // of a segment: their pointers and sizes are arguments of the kernel, at most 4 KB
constexpr int kMostNeurons = 4096;  // that a block advances in lockstep, unless a recurrent layer has more
constexpr int kTileGroups = 32, kSmallTileGroups = 8;  // of 32 neurons, of a layer whose neurons do not meet
constexpr int64_t kMultiprocessors = 132;  // of a large GPU; the speed depends on it, the results do not

// Where the spikes that reach each position of a layer through one synapse are found, a Listed per position and kernel
// row. A dense synapse has the one that the source keeps of all its neurons; -1: every neuron looks them up itself.
struct Table {
  int entries = -1;                // bytes
  int first_job = 0, end_job = 0;  // of a warp that looks up 32 entries
};

// State of the neurons of a layer, a record per group of 32. In the record, in bytes: membrane and current of lane 0,
// of lane 1 and so on; of spiking layers 32 words and 32 counts; then what only some layers have, -1 if it is absent.
struct LayerLayout {
  int state = 0;  // of the first group
  int16_t group_bytes = 0;
  int16_t pending = -1;
  int16_t ahead = -1;  // two rows: the given current of the next two steps
  int16_t best = -1, best_step = -1;
  int groups = 0, first_item = 0, end_item = 0;
  Table tables[2];  // of the synapses from the layer below and from the layer itself
};

struct Layout {
  LayerLayout layers[kMostLayers];
  SourceLayout sources[kMostLayers + 1];  // the input of the segment, then the spikes of its layers
  int n_layers = 0;
  int items = 0;     // groups of all layers: one is one warp's work
  int jobs = 0;      // chunks of 32 words of masks to list
  int look_ups = 0;  // 32 entries of tables each
  int tile_groups = 0;
  bool direct_input = false;  // masks of the input are read from global memory
  int bytes = 0;
};

inline int take(Layout& layout, int64_t bytes) {
  const int64_t begin = layout.bytes, end = begin + (bytes + 15) / 16 * 16;
  layout.bytes = int(std::min<int64_t>(end, INT32_MAX / 2));  // no device has that much
  return int(begin);
}

// `channels` is the most that a layer has which reads it.
inline void add_source(Layout& layout, int index, int words, int64_t channels) {
  SourceLayout& source = layout.sources[index];
  source.words = words;
  // Room for a quarter of the neurons: with more spikes the words are as quick to read. Entries and counts have 16
  // bits, products of sources and channels 31.
  const bool listed = words < 2048 && words * channels <= INT32_MAX / 32;
  source.capacity = listed ? std::min(words * 32, std::max(64, words * 8)) : 0;
  source.masks = take(layout, int64_t(2) * words * sizeof(uint32_t));
  source.ranked = take(layout, int64_t(words + 1) * sizeof(RankedWord));
  source.lists = take(layout, int64_t(2) * source.capacity * sizeof(uint16_t));
  source.all = take(layout, sizeof(Listed));
  source.first_job = layout.jobs;
  layout.jobs += source.chunks();
}

inline void add_layer(Layout& layout, int index, const Layer& layer, int groups, bool injected, int real_bytes) {
  LayerLayout& l = layout.layers[index];
  l.groups = groups;
  l.first_item = layout.items;
  layout.items += groups;
  l.end_item = layout.items;
  int bytes = 0;
  const auto field = [&](int bytes_each) {
    const int at = bytes;
    bytes += 32 * bytes_each;
    return int16_t(at);
  };
  if (layer.kind != Kind::current) field(2 * real_bytes);
  if (layer.kind == Kind::lif) field(sizeof(uint32_t)), field(sizeof(int32_t));
  if (layer.kind == Kind::readout_max) l.best = field(real_bytes), l.best_step = field(sizeof(int32_t));
  if (layer.kind != Kind::current && layer.delay) l.pending = field(real_bytes);
  if (injected) l.ahead = field(2 * real_bytes);
  l.group_bytes = int16_t(bytes);
  l.state = take(layout, int64_t(groups) * bytes);
}

// The table of a synapse whose source has its place already. Taps of a dilated row have sources here and there.
inline void add_table(Layout& layout, Table& table, const Connection& connection, const SourceLayout& source,
                      int neurons) {
  const Geometry geometry(connection);
  if (geometry.dense) {
    table.entries = source.all;
  } else if (geometry.runs == 1) {
    const int channels = connection.out.channels;
    const int64_t positions = std::min(connection.out.positions(), (neurons + channels - 2) / channels + 1);
    const int64_t entries = positions * geometry.kernel_h;
    table.entries = take(layout, entries * int64_t(sizeof(Listed)));
    table.first_job = layout.look_ups;
    layout.look_ups += int((entries + 31) / 32);
    table.end_job = layout.look_ups;
  }
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
                          bool direct_input, bool tables) {
  Layout layout;
  layout.n_layers = last - first;
  layout.direct_input = direct_input && !injected;
  const Layer& front = plan.layers[first];
  layout.tile_groups = tile_groups ? std::min(tile_groups, Map(front.shape).groups()) : Map(front.shape).groups();
  const bool staged = front.has_feedforward && !injected && !direct_input;
  if (staged)
    add_source(layout, 0, tile_groups ? visible_words(front, layout.tile_groups) : Map(front.feedforward.in).groups(),
               front.shape.channels);
  for (int l = first; l < last; ++l) {
    const Layer& layer = plan.layers[l];
    const int groups = tile_groups ? layout.tile_groups : Map(layer.shape).groups(), index = l - first;
    add_layer(layout, index, layer, groups, injected && l == first, real_bytes);
    const int above = l + 1 < last ? plan.layers[l + 1].shape.channels : 0;
    if (layer.recurrent || above) add_source(layout, index + 1, groups, std::max(layer.shape.channels, above));
    if (!tables) continue;
    Table* own = layout.layers[index].tables;
    if (layer.has_feedforward && (staged || l > first))
      add_table(layout, own[0], layer.feedforward, layout.sources[index], groups * 32);
    if (layer.recurrent) add_table(layout, own[1], layer.recurrence, layout.sources[index + 1], groups * 32);
  }
  return layout;
}

// The layout for a launch: tiles where the neurons do not depend on each other; without tables, then with the input
// read directly, where nothing else fits. `bytes` exceeds shared_bytes when a recurrent layer cannot run at all.
inline Layout choose_layout(const Plan& plan, int first, int last, int real_bytes, bool injected, int64_t batch,
                            int shared_bytes) {
  int tile = 0;
  if (can_tile(plan, first, last)) {
    const int64_t groups = Map(plan.layers[first].shape).groups();
    tile = batch * ((groups + kTileGroups - 1) / kTileGroups) < 2 * kMultiprocessors ? kSmallTileGroups : kTileGroups;
    tile = int(std::max<int64_t>(tile, (groups + 65534) / 65535));  // blocks of a grid in this dimension
  }
  Layout layout;
  for (const bool direct : {false, true})
    for (const bool tables : {true, false}) {
      layout = make_layout(plan, first, last, real_bytes, injected, tile, direct, tables);
      for (int smaller = tile / 2; layout.bytes > shared_bytes && smaller >= 1; smaller /= 2)
        layout = make_layout(plan, first, last, real_bytes, injected, smaller, direct, tables);
      if (layout.bytes <= shared_bytes) return layout;
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
