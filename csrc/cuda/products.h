// The products of the backward pass, W^T dL/dJ of the layer above and V^T dL/dJ of the layer itself, of one block: for
// every neuron of a layer the sum over the neurons it reaches, for a few samples and two steps ("columns") at once.
//
// dL/dJ stands in shared memory as [position][out channel][column], positions `pitch` channels apart: one load gives
// all columns of a neuron, and every weight that is loaded serves all columns of several positions. Positions of a tile
// lie one stride of the layer above apart: they see the same taps, at neighbouring output positions.
//
// The out channels are split in `parts` of a layer, each summed by itself into [part][neuron][column]. Within a part
// the order is fixed: V before W, taps and out channels ascending. The layer alone determines it, not tiles or columns.
#pragma once

#include "geometry.h"

namespace fastlif::cuda {

template <class Real, int n>
struct alignas(sizeof(Real) * n > 16 ? 16 : sizeof(Real) * n) Pack {
  Real at[n];
};

// One axis of a connection, seen from its input.
struct AdjointAxis {
  int outputs = 1, stride = 1, padding = 0, dilation = 1, taps = 1;
  int tap_step = 1, out_step = 1;  // taps that reach the same position differ by tap_step, their outputs by out_step
};

// Taps first_tap + m tap_step for m in [begin, end) lead from an input to the outputs first_out - m out_step; no other
// tap leads to an output, nor to one up to `extent` further on.
struct Reach {
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

// A connection seen from its input.
template <class Real>
struct Adjoint {
  const Real* weight = nullptr;  // (kernel h, kernel w, out channels, in channels); null: there is no such connection
  AdjointAxis y, x;
  int in_channels = 0, out_channels = 0;
  int part_channels = 0;  // out channels of a part, a multiple of 8
  int columns = 0;        // offset in shared memory of the columns of its output
  int pitch = 0;          // channels from one output position to the next
  int spread = 1;         // outputs that neighbouring positions of a tile lie apart
};

// The product of one layer.
template <class Real>
struct LayerProduct {
  Adjoint<Real> links[2];  // the recurrence, then the feed-forward connection of the layer above
  int width = 1, channels = 1;  // of the layer's map
  int spacing = 1;         // positions from one column of a tile to the next
  int parts = 0;           // 0: this layer has no product
  int tiles_x = 1, tiles = 1, channel_groups = 1;  // a tile is in one row of the map
  int product = 0;         // offset in shared memory
  int neurons = 0;
  bool vectors = false;    // exact: a thread has several channels, their weights loaded together
  bool single = false;     // the map is one position: tiles of one
};

// Position and channels of a thread (exact) or a warp (tensor cores).
struct TilePlace {
  int part, y, x, channel_group;
};

template <class Real>
FASTLIF_BOTH inline TilePlace tile_place(const LayerProduct<Real>& layer, int item, int tile_positions) {
  const int rest = item / layer.channel_groups, tile = rest % layer.tiles, row = tile / layer.tiles_x;
  const int in_row = tile - row * layer.tiles_x, run = in_row / layer.spacing;
  return {rest / layer.tiles, row, run * layer.spacing * tile_positions + in_row - run * layer.spacing,
          item - rest * layer.channel_groups};
}

// ---- exact: plain multiply-add

template <class Real, int columns, int channels, int positions>
struct ExactTile {
  Real sum[positions][channels][columns];
};

template <class Real, int columns, int channels, int positions>
__device__ __forceinline__ void add_exact(ExactTile<Real, columns, channels, positions>& tile,
                                          const Adjoint<Real>& link, const Real* shared,
                                          const Pack<Real, columns>* zeros, const TilePlace& at) {
  if (!link.weight) return;
  const int first = at.part * link.part_channels;
  const int left = link.out_channels - first, n = left < link.part_channels ? left : link.part_channels;
  if (n <= 0) return;
  const auto* const grads = reinterpret_cast<const Pack<Real, columns>*>(shared + link.columns) + first;
  const Real* const weights = link.weight + int64_t(first) * link.in_channels + at.channel_group * channels;
  const Reach rows = reach(link.y, at.y, 0), cols = reach(link.x, at.x, (positions - 1) * link.spread);
  for (int my = rows.begin; my < rows.end; ++my) {
    const int tap_y = rows.first_tap + my * link.y.tap_step, out_y = rows.first_out - my * link.y.out_step;
    for (int mx = cols.begin; mx < cols.end; ++mx) {
      const int tap = tap_y * link.x.taps + cols.first_tap + mx * link.x.tap_step;
      const int out_x = cols.first_out - mx * link.x.out_step;
      const Real* weight = weights + int64_t(tap) * link.out_channels * link.in_channels;
      const Pack<Real, columns>* grad[positions];
#pragma unroll
      for (int j = 0; j < positions; ++j) {
        const int x = out_x + j * link.spread;
        const bool inside = unsigned(x) < unsigned(link.x.outputs);
        grad[j] = inside ? grads + (out_y * link.x.outputs + x) * link.pitch : zeros;
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
            for (int c = 0; c < columns; ++c) tile.sum[j][v][c] += w.at[v] * g.at[c];
        }
      }
    }
  }
}

template <class Real, int columns, int channels, int positions>
__device__ __forceinline__ void exact_item(const LayerProduct<Real>& layer, Real* shared,
                                           const Pack<Real, columns>* zeros, int item) {
  const TilePlace at = tile_place(layer, item, positions);
  if (at.part >= layer.parts) return;
  ExactTile<Real, columns, channels, positions> tile;
#pragma unroll
  for (int j = 0; j < positions; ++j)
#pragma unroll
    for (int v = 0; v < channels; ++v)
#pragma unroll
      for (int c = 0; c < columns; ++c) tile.sum[j][v][c] = Real(0);
#pragma unroll 1
  for (int link = 0; link < 2; ++link) add_exact(tile, layer.links[link], shared, zeros, at);
  auto* const to = reinterpret_cast<Pack<Real, columns>*>(shared + layer.product) + at.part * layer.neurons;
#pragma unroll
  for (int j = 0; j < positions; ++j) {
    const int x = at.x + j * layer.spacing;
    if (x >= layer.width) break;
#pragma unroll
    for (int v = 0; v < channels; ++v) {
      Pack<Real, columns> value;
#pragma unroll
      for (int c = 0; c < columns; ++c) value.at[c] = tile.sum[j][v][c];
      to[(at.y * layer.width + x) * layer.channels + at.channel_group * channels + v] = value;
    }
  }
}

// Positions in a tile and channels of a thread: 32 sums of a float, 16 of a double.
FASTLIF_BOTH constexpr int exact_positions(int columns) { return 8 / columns; }
template <class Real>
constexpr int exact_channels = 16 / int(sizeof(Real));

// The 32 items from `first` on, one a lane.
template <class Real, int columns>
__device__ __forceinline__ void exact_product(const LayerProduct<Real>& layer, Real* shared,
                                              const Pack<Real, columns>* zeros, int first) {
  constexpr int many = exact_channels<Real>, positions = exact_positions(columns);
  const int item = first + int(threadIdx.x % 32);
  if (layer.single)
    layer.vectors ? exact_item<Real, columns, many, 1>(layer, shared, zeros, item)
                  : exact_item<Real, columns, 1, 1>(layer, shared, zeros, item);
  else
    layer.vectors ? exact_item<Real, columns, many, positions>(layer, shared, zeros, item)
                  : exact_item<Real, columns, 1, positions>(layer, shared, zeros, item);
}

// ---- tf32: tensor cores, rows = 16 channels of the layer, columns = positions x columns, depth = out channels x taps.
// Both factors are rounded to tf32 (11 bits), the sums are float.

constexpr int kFragmentRows = 16, kFragmentColumns = 8, kFragmentDepth = 8;

FASTLIF_BOTH constexpr int tf32_fragments(int columns) { return columns == 2 ? 2 : 4; }  // of a tile, side by side

// Rows of fragments that a warp has: every dL/dJ that it loads serves all of them.
FASTLIF_BOTH constexpr int tf32_rows(int channels) { return channels % (2 * kFragmentRows) == 0 ? 2 : 1; }

// Without `whole` some channels of the fragments may not exist.
template <bool whole, int columns, int fragments, int rows>
__device__ __forceinline__ void add_tf32(float (&sums)[rows][fragments][4], const Adjoint<float>& link,
                                         const float* shared, const float* zeros, const TilePlace& at, int first,
                                         int last) {
  constexpr int positions = kFragmentColumns / columns;  // of one fragment
  const int lane = int(threadIdx.x % 32), group = lane / 4, k = lane % 4;
  const int channel = at.channel_group * rows * kFragmentRows + group, next = 4 * link.in_channels;
  const auto weight_at = [&](const float* weight, int row, bool exists) {
    return to_tf32(whole || (exists && channel + row < link.in_channels) ? __ldg(weight + row) : 0.f);
  };
  const Reach down = reach(link.y, at.y, 0), along = reach(link.x, at.x, (fragments * positions - 1) * link.spread);
  for (int my = down.begin; my < down.end; ++my) {
    const int tap_y = down.first_tap + my * link.y.tap_step, out_y = down.first_out - my * link.y.out_step;
    for (int mx = along.begin; mx < along.end; ++mx) {
      const int tap = tap_y * link.x.taps + along.first_tap + mx * link.x.tap_step;
      const int out_x = along.first_out - mx * link.x.out_step + group / columns * link.spread;
      const float* weight = link.weight + (int64_t(tap) * link.out_channels + first + k) * link.in_channels + channel;
      const float* grad[fragments];
#pragma unroll
      for (int f = 0; f < fragments; ++f) {
        const int x = out_x + f * positions * link.spread;
        const bool inside = unsigned(x) < unsigned(link.x.outputs);
        grad[f] = (inside ? shared + link.columns + (out_y * link.x.outputs + x) * link.pitch * columns : zeros) +
                  (first + k) * columns + group % columns;
      }
      for (int o = first; o < last; o += kFragmentDepth, weight += 2 * next) {
        const bool near = o + k < last, far = o + k + 4 < last;
        uint32_t a[rows][4];
#pragma unroll
        for (int r = 0; r < rows; ++r) {
          a[r][0] = weight_at(weight, r * kFragmentRows, near);
          a[r][1] = weight_at(weight, r * kFragmentRows + 8, near);
          a[r][2] = weight_at(weight + next, r * kFragmentRows, far);
          a[r][3] = weight_at(weight + next, r * kFragmentRows + 8, far);
        }
#pragma unroll
        for (int f = 0; f < fragments; ++f) {
          const uint32_t b[2] = {to_tf32(whole || near ? grad[f][0] : 0.f),
                                 to_tf32(whole || far ? grad[f][4 * columns] : 0.f)};
#pragma unroll
          for (int r = 0; r < rows; ++r) mma_m16n8k8_tf32(sums[r][f], a[r], b);
          grad[f] += kFragmentDepth * columns;
        }
      }
    }
  }
}

template <int columns, int fragments, int rows>
__device__ __forceinline__ void tf32_tile(const LayerProduct<float>& layer, float* shared, const float* zeros,
                                          int item) {
  constexpr int positions = kFragmentColumns / columns;
  const TilePlace at = tile_place(layer, item, fragments * positions);
  float sums[rows][fragments][4];
#pragma unroll
  for (int r = 0; r < rows; ++r)
#pragma unroll
    for (int f = 0; f < fragments; ++f)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[r][f][i] = 0.f;
#pragma unroll 1
  for (int l = 0; l < 2; ++l) {
    const Adjoint<float>& link = layer.links[l];
    const int first = at.part * link.part_channels, end = first + link.part_channels;
    const int last = end < link.out_channels ? end : link.out_channels;
    if (!link.weight || first >= last) continue;
    if (layer.channels % (rows * kFragmentRows) == 0 && (last - first) % kFragmentDepth == 0)
      add_tf32<true, columns>(sums, link, shared, zeros, at, first, last);
    else
      add_tf32<false, columns>(sums, link, shared, zeros, at, first, last);
  }
  const int lane = int(threadIdx.x % 32), column = lane % 4 * 2;
  float* const to = shared + layer.product + at.part * layer.neurons * columns + column % columns;
#pragma unroll
  for (int f = 0; f < fragments; ++f) {
    const int x = at.x + (f * positions + column / columns) * layer.spacing;
    if (x >= layer.width) continue;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const int channel = (at.channel_group * rows + r) * kFragmentRows + lane / 4;
      const int neuron = (at.y * layer.width + x) * layer.channels + channel;
      if (channel < layer.channels)
        *reinterpret_cast<Pack<float, 2>*>(to + neuron * columns) = {{sums[r][f][0], sums[r][f][1]}};
      if (channel + 8 < layer.channels)
        *reinterpret_cast<Pack<float, 2>*>(to + (neuron + 8) * columns) = {{sums[r][f][2], sums[r][f][3]}};
    }
  }
}

// One tile by the whole warp.
template <int columns>
__device__ __forceinline__ void tf32_product(const LayerProduct<float>& layer, float* shared,
                                             const Pack<float, columns>* zeros, int item) {
  constexpr int many = tf32_fragments(columns);
  const float* const zero = reinterpret_cast<const float*>(zeros);
  if (tf32_rows(layer.channels) == 2)
    layer.single ? tf32_tile<columns, 1, 2>(layer, shared, zero, item)
                 : tf32_tile<columns, many, 2>(layer, shared, zero, item);
  else
    layer.single ? tf32_tile<columns, 1, 1>(layer, shared, zero, item)
                 : tf32_tile<columns, many, 1>(layer, shared, zero, item);
}

}  // namespace fastlif::cuda
