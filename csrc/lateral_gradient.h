// Gradients through the synapses inside a layer: V^T times the gradients of the currents they inject.
#pragma once

#include "matmul.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

// The gradients at one step of the samples of a block: sample r starts at data + r * pitch.
template <class Real>
struct SampleRows {
  Real* data;
  int64_t pitch;
};

// spikes += V^T currents, for `columns` channels of every position of `spikes`, whose positions have as many padded
// channels as those of the currents. Currents have the halo of `c`; weights as transpose_weights leaves them. Rows of the
// products are the samples, or the positions along a row of the map.
template <class Real>
void add_lateral_gradient(const Connection& c, const Real* weights, int columns, const SampleRows<Real>& currents,
                          const SampleRows<Real>& spikes, int samples) {
  const int64_t weight_rows = c.taps() * c.out.padded_channels();
  Product<Real> p{currents.data, currents.pitch, c.row_targets.data(), 1, weights, weight_rows, columns,
                  spikes.data, spikes.pitch, true};
  if (c.in.positions() == 1) {
    product<InLayout::strided>(p, samples);
    return;
  }
  p.in_pitch = p.out_pitch = c.out.padded_channels();
  for (int r = 0; r < samples; ++r)
    for (int y = 0; y < c.in.height; ++y) {
      p.in = currents.data + r * currents.pitch;
      p.out = spikes.data + r * spikes.pitch + int64_t(y) * c.in.width * p.out_pitch;
      p.segments = c.row_targets.data() + c.first_row_target[y];
      p.n_segments = c.first_row_target[y + 1] - c.first_row_target[y];
      p.in_pitch == kBlock ? product<InLayout::block>(p, c.in.width) : product<InLayout::strided>(p, c.in.width);
    }
}

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
