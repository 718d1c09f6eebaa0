// The adjoint of skip connections.
#pragma once

#include "backward_state.h"
#include "matmul.h"
#include "skips.h"
#include "weight_gradient.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

template <class Real>
void transpose_skips(const Layer& layer, const Real* weight, std::vector<Buffer<Real>>& transposed) {
  std::vector<Buffer<Real>> packed;
  pack_skips(layer, weight, packed);
  transposed.resize(packed.size());
  for (size_t i = 0; i < packed.size(); ++i) transpose_weights(layer.skip_connections[i], packed[i], transposed[i]);
}

template <class Real>
void start_skip_partials(const Layer& layer, std::vector<Buffer<Real>>& partials) {
  partials.resize(layer.skip_connections.size());
  for (size_t i = 0; i < partials.size(); ++i) partials[i].allocate_zero(layer.skip_connections[i].packed_size());
}

// sources += W^T currents, for the first c.in.channels of every position of the sources; rows are the steps of the slice.
template <class Real>
void add_skip_gradient(const Connection& c, const Buffer<Real>& transposed, const Rows<Real>& currents,
                       const SpikeGradients<Real>& sources) {
  for (int r = 0; r < sources.samples; ++r)
    for (int p = 0; p < c.in.positions(); ++p)
      product<InLayout::strided>(
          Product<Real>{currents.data + r * currents.sample_pitch, currents.step_pitch,
                        c.exact_targets.data() + c.first_target[p], c.first_target[p + 1] - c.first_target[p],
                        transposed.data(), c.taps() * c.out.padded_channels(), c.in.padded_channels(),
                        sources.row(r, 0) + int64_t(p) * sources.layer.padded_channels(), sources.layer.padded_size(), true},
          sources.steps);
}

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
