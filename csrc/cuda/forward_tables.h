// Between two steps of the neurons: the spikes of all sources into lists, and where each position finds its own.
#pragma once

#include "forward_arguments.h"

namespace fastlif::cuda::forward {

__device__ __forceinline__ void list_spikes(const Layout& layout, unsigned char* shared, int warp) {
  const int n_warps = blockDim.x >> 5;
  int job = warp;
#pragma unroll 1
  for (int s = 0; s <= layout.n_layers; ++s) {
    const SourceLayout& source = layout.sources[s];
#pragma unroll 1
    for (; job < source.first_job + source.chunks(); job += n_warps)
      list_chunk(source, shared, job - source.first_job);
  }
}

// Spikes that reach each position of each layer, once for all its channels. The block has the neurons from
// `first_group` on and counts the sources of the segment's input from `first_source`.
template <class Real, class Kept>
__device__ __forceinline__ void look_up_positions(const Arguments<Real, Kept>& p, unsigned char* shared, int warp,
                                                  int first_group, int first_source) {
  const int lane = threadIdx.x & 31, n_warps = blockDim.x >> 5;
  int job = warp;
#pragma unroll 1
  for (int i = 0; i < 2 * p.layout.n_layers; ++i) {
    const int l = i >> 1, s = i & 1;
    const Table& table = p.layout.layers[l].tables[s];
    if (job >= table.end_job) continue;
    const Map& map = p.layers[l].map;
    const Geometry& geometry = p.layers[l].synapses[s].geometry;
    const int behind = (first_group + p.layout.layers[l].groups) * 32;
    const int first = map.channels.quotient(first_group * 32);
    const int last = map.channels.quotient((behind < map.neurons ? behind : map.neurons) - 1);
#pragma unroll 1
    for (; job < table.end_job; job += n_warps) {
      const int index = (job - table.first_job) * 32 + lane;
      const int from = geometry.kernel_h == 1 ? index : index / geometry.kernel_h;
      if (first + from > last) continue;
      const Place at = map.place((first + from) * map.channels.divisor);
      const SourceRange r = geometry.range(at, index - from * geometry.kernel_h, 0);
      const int before = i == 0 && r.begin < r.end ? first_source : 0;  // an empty range is looked up as [0, 0)
      shared_at<Listed>(shared, table.entries)[index] =
          look_up(p.layout.sources[l + s], shared, r.begin - before, r.end - before, r.first_row);
    }
  }
}

}  // namespace fastlif::cuda::forward
