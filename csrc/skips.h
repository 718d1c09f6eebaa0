// Skip connections: a readout hears earlier layers besides the one before it. Its weight has their columns behind those
// of the layer before; each source is a connection of its own here.
#pragma once

#include <vector>

#include "block.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

// Calls visit(index, connection, first column of the weight) for every skip of a layer.
template <class Visit>
void visit_skips(const Layer& layer, const Visit& visit) {
  int64_t column = layer.feedforward.in.channels * layer.feedforward.taps();
  for (size_t i = 0; i < layer.skip_connections.size(); ++i) {
    visit(i, layer.skip_connections[i], column);
    column += layer.skip_connections[i].in.size();
  }
}

template <class Real>
void pack_skips(const Layer& layer, const Real* weight, std::vector<Buffer<Real>>& packed) {
  packed.resize(layer.skips.size());
  visit_skips(layer, [&](size_t i, const Connection& c, int64_t column) {
    pack_weights(c, weight + column, layer.weight_columns(), packed[i]);
  });
}

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
