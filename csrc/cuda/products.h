// The products of the backward pass, W^T dL/dJ of the layer above and V^T dL/dJ of the layer itself, of one block: for
// every neuron of a layer the sum over the neurons it reaches, for a few samples and two steps ("columns") at once.
//
// dL/dJ stands in shared memory by output positions, `pitch` channels apart, and there as
//   exact         [out channel][column]: one load gives several columns of a neuron;
//   tensor cores  [16 out channels][column][out channel of them], rounded to tf32: one load gives a lane four channels
//                 of a column, which are the right-hand sides of two instructions.
// Every weight that is loaded serves all columns of a tile of positions. They lie one stride of the layer above apart:
// they see the same taps, at neighbouring output positions.
//
// The out channels are split in `parts` of a layer, summed by themselves: by lanes of one warp, which then add them up
// in a tree, or on tensor cores by warps, whose sums the reader adds. Within a part the order is fixed: V before W,
// taps and out channels ascending. The layer alone determines the order, not tiles or columns.
#pragma once

#include "geometry.h"

namespace fastlif::cuda {

template <class Real, int n>
struct alignas(sizeof(Real) * n > 16 ? 16 : sizeof(Real) * n) Pack {
  Real at[n];
};

// In a register: otherwise the compiler computes where shared memory starts again and again.
template <class T>
__device__ __forceinline__ T* base_of_shared(T* pointer) {
#if defined(FASTLIF_EMULATED)
  return pointer;
#else
  unsigned address = unsigned(__cvta_generic_to_shared(pointer));
  asm("" : "+r"(address));
  return static_cast<T*>(__cvta_shared_to_generic(address));
#endif
}

// One axis of a connection, seen from its input.
struct AdjointAxis {
  int outputs = 1, stride = 1, padding = 0, dilation = 1, taps = 1;
  int tap_step = 1, out_step = 1;  // taps that reach the same position differ by tap_step, their outputs by out_step
};

// Taps first_tap + m tap_step for m in [begin, end) lead from an input to the outputs first_out - m out_step; no other
// tap leads to an output, nor to one up to `extent` further on.
struct alignas(16) Reach {
  int first_tap, first_out, begin, end;
};

FASTLIF_BOTH inline Reach reach(const AdjointAxis& axis, int input, int extent) {
  const int padded = input + axis.padding;
  int tap = 0;
  if (axis.stride > 1)
    while (tap < axis.tap_step && (padded - tap * axis.dilation) % axis.stride != 0) ++tap;
  if (tap == axis.tap_step || tap >= axis.taps) return {0, 0, 0, 0};
  Reach r{tap, (padded - tap * axis.dilation) / axis.stride, 0, (axis.taps - 1 - tap) / axis.tap_step + 1};
  const int excess = r.first_out - (axis.outputs - 1), last = r.first_out + extent;
  if (excess > 0) r.begin = (excess + axis.out_step - 1) / axis.out_step;
  if (last < 0) r.end = 0;
  else if (last / axis.out_step + 1 < r.end) r.end = last / axis.out_step + 1;
  return r;
}

// A connection seen from its input. Offsets are in shared memory, in numbers.
template <class Real>
struct Adjoint {
  const Real* weight = nullptr;  // (kernel h, kernel w, out channels, in channels); null: there is no such connection
  AdjointAxis y, x;
  int in_channels = 0, out_channels = 0;
  int part_channels = 0;  // out channels of a part
  int reach = 0;          // Reach of every row of the input, then of every x there, for the positions of a tile
  int columns = 0;        // the columns of its output
  int pitch = 0;          // channels from one output position to the next
  int spread = 1;         // outputs that neighbouring positions of a tile lie apart
};

// That of the network whose samples the block has: grid.y counts networks.
template <class Real>
__device__ __forceinline__ const Real* weight_of(const Adjoint<Real>& link) {
  const int64_t weights = int64_t(link.y.taps) * link.x.taps * link.out_channels * link.in_channels;
  return link.weight + blockIdx.y * weights;
}

// The product of one layer.
template <class Real>
struct LayerProduct {
  Adjoint<Real> links[2];  // the recurrence, then the feed-forward connection of the layer above
  int height = 1, width = 1, channels = 1;  // of the layer's map
  int spacing = 1;         // positions from one column of a tile to the next
  int items = 0;           // tiles x groups of channels; a tile is in one row of the map
  Divider by_channel_groups, by_tiles_x, by_runs;
  int product = 0;         // offset in shared memory
  int plane = 0;           // numbers from one group of columns to the next
  bool vectors = false;    // a thread's weights of several channels are loaded together
  bool single = false;     // the map is one position: tiles of one
  int8_t parts = 0;        // 0: this layer has no product
  int8_t item_bits = 5;    // exact: lanes with the same part, as a power of 2
  int8_t fragments = 1;    // tensor cores: of a tile, side by side
};

// Position and channels of a thread (exact) or a warp (tensor cores).
struct TilePlace {
  int part, y, x, channel_group;
};

// Tiles follow one another by x modulo the spacing first: neighbours have as many taps.
template <class Real>
FASTLIF_BOTH inline TilePlace tile_place(const LayerProduct<Real>& layer, int part, int item, int tile_positions) {
  const int tile = layer.by_channel_groups.quotient(item), y = layer.by_tiles_x.quotient(tile);
  const int in_row = tile - y * layer.by_tiles_x.divisor, offset = layer.by_runs.quotient(in_row);
  const int run = in_row - offset * layer.by_runs.divisor;
  return {part, y, run * layer.spacing * tile_positions + offset, item - tile * layer.by_channel_groups.divisor};
}

// What the tiles of a layer reach, once for all steps: a division for every number of it.
template <class Real>
__device__ inline void tabulate_reach(const LayerProduct<Real>& layer, Real* shared, int tile_positions) {
  for (int l = 0; l < 2; ++l) {
    const Adjoint<Real>& link = layer.links[l];
    if (!link.weight) continue;
    Reach* const rows = reinterpret_cast<Reach*>(shared + link.reach);
    for (int y = int(threadIdx.x); y < layer.height; y += int(blockDim.x)) rows[y] = reach(link.y, y, 0);
    const int extent = (tile_positions - 1) * link.spread;
    for (int x = int(threadIdx.x); x < layer.width; x += int(blockDim.x))
      rows[layer.height + x] = reach(link.x, x, extent);
  }
}

// ---- exact: plain multiply-add

// Neighbouring columns that stand together in the sums; groups of them have planes of their own.
FASTLIF_BOTH constexpr int column_unit(int columns) { return columns < 4 ? columns : 4; }

template <class Real, int columns, int channels, int positions>
__device__ __forceinline__ void add_exact(Real (&sums)[positions * channels * columns], const Adjoint<Real>& link,
                                          int height, const Real* shared, const Pack<Real, columns>* zeros,
                                          const TilePlace& at) {
  const int first = at.part * link.part_channels;
  const int left = link.out_channels - first, n = left < link.part_channels ? left : link.part_channels;
  if (n <= 0) return;
  const auto* const grads = reinterpret_cast<const Pack<Real, columns>*>(shared + link.columns) + first;
  const Reach* const table = reinterpret_cast<const Reach*>(shared + link.reach);
  const Reach rows = table[at.y], cols = table[height + at.x];
  const int tap_size = link.out_channels * link.in_channels;
  const Real* const weights = weight_of(link) + at.channel_group * channels + first * link.in_channels;
  for (int my = rows.begin; my < rows.end; ++my) {
    const int row = (rows.first_out - my * link.y.out_step) * link.x.outputs;
    int x = cols.first_out - cols.begin * link.x.out_step;
    int tap = (rows.first_tap + my * link.y.tap_step) * link.x.taps + cols.first_tap + cols.begin * link.x.tap_step;
    for (int mx = cols.begin; mx < cols.end; ++mx, tap += link.x.tap_step, x -= link.x.out_step) {
      const Real* weight = weights + int64_t(tap) * tap_size;
      const Pack<Real, columns>* grad[positions];
#pragma unroll
      for (int j = 0; j < positions; ++j) {
        const bool inside = positions == 1 || unsigned(x + j * link.spread) < unsigned(link.x.outputs);
        grad[j] = base_of_shared(inside ? grads + (row + x + j * link.spread) * link.pitch : zeros);
      }
#pragma unroll 4
      for (int o = 0; o < n; ++o, weight += link.in_channels) {
        const Pack<Real, channels> w = *reinterpret_cast<const Pack<Real, channels>*>(weight);
#pragma unroll
        for (int j = 0; j < positions; ++j) {
          const Pack<Real, columns> g = grad[j][o];
#pragma unroll
          for (int v = 0; v < channels; ++v)
#pragma unroll
            for (int c = 0; c < columns; ++c) sums[(j * channels + v) * columns + c] += w.at[v] * g.at[c];
        }
      }
    }
  }
}

// The first `count` sums are those from `base` on of the tile.
template <int count, class Real, int columns, int channels, int n>
__device__ __forceinline__ void store_exact(const Real (&sums)[n], const LayerProduct<Real>& layer, Real* shared,
                                            const TilePlace& at, int base) {
  constexpr int unit = column_unit(columns), groups = columns / unit;
#pragma unroll
  for (int i = 0; i < count / unit; ++i) {
    const int at_unit = base / unit + i, at_channel = at_unit / groups;
    const int x = at.x + at_channel / channels * layer.spacing;
    if (x >= layer.width) break;
    const int neuron = (at.y * layer.width + x) * layer.channels + at.channel_group * channels + at_channel % channels;
    Pack<Real, unit> value;
#pragma unroll
    for (int c = 0; c < unit; ++c) value.at[c] = sums[i * unit + c];
    *reinterpret_cast<Pack<Real, unit>*>(shared + layer.product + at_unit % groups * layer.plane + neuron * unit) =
        value;
  }
}

// Adds what the lanes have that are `distance` apart, and so on: each keeps half of the sums, as long as there are
// two units. Then stores them.
template <int count, class Real, int columns, int channels, int n>
__device__ __forceinline__ void add_parts(Real (&sums)[n], const LayerProduct<Real>& layer, Real* shared,
                                          const TilePlace& at, bool exists, int base, int distance) {
  const int least = 1 << layer.item_bits;
  const bool upper = int(threadIdx.x) & distance;
  if constexpr (count > column_unit(columns)) {
    if (distance >= least) {
      constexpr int half = count / 2;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const Real away = upper ? sums[i] : sums[half + i], own = upper ? sums[half + i] : sums[i];
        sums[i] = own + __shfl_xor_sync(0xffffffffu, away, distance);
      }
      return add_parts<half, Real, columns, channels>(sums, layer, shared, at, exists, base + (upper ? half : 0),
                                                      distance / 2);
    }
  } else {
    for (; distance >= least; distance /= 2) {
      exists = exists && !(int(threadIdx.x) & distance);
#pragma unroll
      for (int i = 0; i < count; ++i) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], distance);
    }
  }
  if (exists) store_exact<count, Real, columns, channels>(sums, layer, shared, at, base);
}

template <class Real, int columns, int channels, int positions>
__device__ __forceinline__ void exact_items(const LayerProduct<Real>& layer, Real* shared,
                                            const Pack<Real, columns>* zeros, int task) {
  const int lane = int(threadIdx.x % 32), part = lane >> layer.item_bits;
  const int item = (task << layer.item_bits) + lane - (part << layer.item_bits);
  const TilePlace at = tile_place(layer, part, item, positions);
  const bool exists = item < layer.items && at.x < layer.width;
  Real sums[positions * channels * columns];
#pragma unroll
  for (Real& sum : sums) sum = Real(0);
  if (exists)
#pragma unroll 1
    for (int link = 0; link < 2; ++link)
      if (layer.links[link].weight)
        add_exact<Real, columns, channels, positions>(sums, layer.links[link], layer.height, shared, zeros, at);
  __syncwarp();
  add_parts<positions * channels * columns, Real, columns, channels>(sums, layer, shared, at, exists, 0, 16);
}

// Positions in a tile and channels of a thread: 32 sums of a float, 16 of a double.
FASTLIF_BOTH constexpr int exact_positions(int columns) { return 8 / columns; }
template <class Real>
constexpr int exact_channels = 16 / int(sizeof(Real));

// As many items as there are lanes to a part.
template <class Real, int columns>
__device__ __forceinline__ void exact_product(const LayerProduct<Real>& layer, Real* shared,
                                              const Pack<Real, columns>* zeros, int task) {
  constexpr int many = exact_channels<Real>, positions = exact_positions(columns);
  if (positions == 1 || layer.single)
    layer.vectors ? exact_items<Real, columns, many, 1>(layer, shared, zeros, task)
                  : exact_items<Real, columns, 1, 1>(layer, shared, zeros, task);
  else
    layer.vectors ? exact_items<Real, columns, many, positions>(layer, shared, zeros, task)
                  : exact_items<Real, columns, 1, positions>(layer, shared, zeros, task);
}

// ---- tf32: tensor cores, rows = 16 channels of the layer, columns = positions x columns, depth = out channels x taps.
// Both factors are rounded to tf32 (11 bits), the sums are float.
//
// Which channel is which row, and which out channel which step of the depth, is free: rows group and group + 8 are the
// channels 2 group and 2 group + 1, and two instructions share 16 out channels of which a lane has 4 in a row.

constexpr int kFragmentRows = 16, kFragmentColumns = 8, kDepth = 16;

// Without `whole` some channels may not exist.
template <bool whole, int columns, int fragments>
__device__ __forceinline__ void add_tf32(float (&sums)[fragments][4], const Adjoint<float>& link, int height,
                                         const float* shared, const float* zeros, const TilePlace& at, int first,
                                         int last) {
  constexpr int positions = kFragmentColumns / columns;  // of one fragment
  const int lane = int(threadIdx.x % 32), group = lane / 4, k = lane % 4 * 4;
  const int channel = at.channel_group * kFragmentRows + 2 * group;
  const Reach* const table = reinterpret_cast<const Reach*>(shared + link.reach);
  const Reach down = table[at.y], along = table[height + at.x];
  const int tap_size = link.out_channels * link.in_channels;
  const float* const weights = weight_of(link) + (first + k) * link.in_channels + channel;
  const int64_t block = kDepth * link.in_channels, tap_step = link.x.tap_step * tap_size;
  const int position = link.pitch * columns, outputs = link.x.outputs, apart = positions * link.spread;
  const int back = link.x.out_step, in_position = first * columns + group % columns * kDepth + k;
  for (int my = down.begin; my < down.end; ++my) {
    const int row = (down.first_out - my * link.y.out_step) * outputs;
    const int tap = (down.first_tap + my * link.y.tap_step) * link.x.taps + along.first_tap;
    int out_x = along.first_out - along.begin * back + group / columns * link.spread;
    int from = link.columns + (row + out_x) * position + in_position;
    const float* weight = weights + int64_t(tap) * tap_size + along.begin * tap_step;
    for (int mx = along.begin; mx < along.end; ++mx, out_x -= back, from -= back * position) {
      const float* grad[fragments];
#pragma unroll
      for (int f = 0; f < fragments; ++f)
        grad[f] = unsigned(out_x + f * apart) < unsigned(outputs) ? shared + (from + f * apart * position)
                                                                  : zeros + in_position;
      const float* w = weight;
      weight += tap_step;
#pragma unroll 2
      for (int o = first; o < last; o += kDepth, w += block) {
        uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          Pack<float, 2> pair{{0.f, 0.f}};
          if constexpr (whole) {
            pair = *reinterpret_cast<const Pack<float, 2>*>(w + i * link.in_channels);
          } else if (o + k + i < last) {
            if (channel < link.in_channels) pair.at[0] = w[i * link.in_channels];
            if (channel + 1 < link.in_channels) pair.at[1] = w[i * link.in_channels + 1];
          }
          a[i / 2][i % 2 * 2] = to_tf32(pair.at[0]), a[i / 2][i % 2 * 2 + 1] = to_tf32(pair.at[1]);
        }
#pragma unroll
        for (int f = 0; f < fragments; ++f) {
          const Pack<float, 4> g = *reinterpret_cast<const Pack<float, 4>*>(grad[f]);
          grad[f] += kDepth * columns;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const uint32_t b[2] = {__float_as_uint(g.at[2 * i]), __float_as_uint(g.at[2 * i + 1])};
            mma_m16n8k8_tf32(sums[f], a[i], b);
          }
        }
      }
    }
  }
}

template <int columns, int fragments>
__device__ __forceinline__ void tf32_tile(const LayerProduct<float>& layer, float* shared, const float* zeros,
                                          int task) {
  constexpr int positions = kFragmentColumns / columns;
  const int part = task / layer.items;
  const TilePlace at = tile_place(layer, part, task - part * layer.items, layer.single ? 1 : fragments * positions);
  if (at.x >= layer.width) return;
  float sums[fragments][4];
#pragma unroll
  for (int f = 0; f < fragments; ++f)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[f][i] = 0.f;
#pragma unroll 1
  for (int l = 0; l < 2; ++l) {
    const Adjoint<float>& link = layer.links[l];
    const int first = at.part * link.part_channels, end = first + link.part_channels;
    const int last = end < link.out_channels ? end : link.out_channels;
    if (!link.weight || first >= last) continue;
    if (layer.vectors && (last - first) % kDepth == 0)
      add_tf32<true, columns>(sums, link, layer.height, shared, zeros, at, first, last);
    else
      add_tf32<false, columns>(sums, link, layer.height, shared, zeros, at, first, last);
  }
  const int lane = int(threadIdx.x % 32), column = lane % 4 * 2;
  const int channel = at.channel_group * kFragmentRows + lane / 4 * 2;
  float* const to = shared + layer.product + (at.part * columns + column % columns) * layer.plane;
#pragma unroll
  for (int f = 0; f < fragments; ++f) {
    const int x = at.x + (f * positions + column / columns) * layer.spacing;
    if (x >= layer.width) continue;
    float* const later = to + (at.y * layer.width + x) * layer.channels + channel;
    float* const earlier = later + layer.plane;
    if (layer.vectors) {
      *reinterpret_cast<Pack<float, 2>*>(later) = {{sums[f][0], sums[f][2]}};
      *reinterpret_cast<Pack<float, 2>*>(earlier) = {{sums[f][1], sums[f][3]}};
    } else {
      if (channel < layer.channels) *later = sums[f][0], *earlier = sums[f][1];
      if (channel + 1 < layer.channels) later[1] = sums[f][2], earlier[1] = sums[f][3];
    }
  }
}

// One tile by the whole warp.
template <int columns>
__device__ __forceinline__ void tf32_product(const LayerProduct<float>& layer, float* shared,
                                             const Pack<float, columns>* zeros, int task) {
  const float* const zero = reinterpret_cast<const float*>(zeros);
  if (layer.fragments == 4)
    tf32_tile<columns, 4>(layer, shared, zero, task);
  else if (layer.fragments == 2)
    tf32_tile<columns, 2>(layer, shared, zero, task);
  else
    tf32_tile<columns, 1>(layer, shared, zero, task);
}

}  // namespace fastlif::cuda
