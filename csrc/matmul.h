// Small matrix products with the sums in registers: the dense part of the input gradient.
#pragma once

#include <utility>

#include "plan.h"
#include "simd.h"

namespace fastlif {
namespace FASTLIF_ISA {

// out[r][0..columns) (+)= sum over segments s and k < s.length of
//     in[r * in_pitch + s.out_halo + k] * weights[(s.tap + k) * columns + ...]
// Each output is one chain of fused multiply-adds in the order of segments and k, whatever the number of rows: the
// result of a row does not depend on which rows are computed with it.
template <class Real>
struct Product {
  const Real* in;
  int64_t in_pitch;
  const Target* segments;
  int n_segments;
  const Real* weights;
  int columns;
  Real* out;
  int64_t out_pitch;
  bool accumulate;
};

template <class Real, int rows, int vecs>
void product_tile(const Product<Real>& p, int row, int column) {
  using S = Simd<Real>;
  typename S::vec sum[rows][vecs];
  const Real* in = p.in + row * p.in_pitch;
  Real* out = p.out + row * p.out_pitch + column;
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v)
      sum[r][v] = p.accumulate ? S::load(out + r * p.out_pitch + v * S::lanes) : typename S::vec{};
  for (int s = 0; s < p.n_segments; ++s) {
    const Real* a = in + p.segments[s].out_halo;
    const Real* w = p.weights + int64_t(p.segments[s].tap) * p.columns + column;
    for (int k = 0; k < p.segments[s].length; ++k, w += p.columns) {
      typename S::vec b[vecs];
#pragma GCC unroll 4
      for (int v = 0; v < vecs; ++v) b[v] = S::load(w + v * S::lanes);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const auto x = S::all(a[r * p.in_pitch + k]);
#pragma GCC unroll 4
        for (int v = 0; v < vecs; ++v) sum[r][v] += x * b[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) S::store(out + r * p.out_pitch + v * S::lanes, sum[r][v]);
}

// The most rows for which the sums of `vecs` columns fit in the registers.
constexpr int most_rows(int vecs) {
  if (kRegisters == 32) return vecs == 1 ? 14 : vecs == 2 ? 12 : vecs == 3 ? 8 : 6;
  return vecs == 1 ? 10 : 6;
}
constexpr int kMostVecs = kRegisters == 32 ? 4 : 2;

template <class Real, int vecs, size_t... rows>
void product_rows(const Product<Real>& p, int n_rows, int column, std::index_sequence<rows...>) {
  using Tile = void (*)(const Product<Real>&, int, int);
  static constexpr Tile tiles[] = {product_tile<Real, int(rows) + 1, vecs>...};
  const int n_tiles = (n_rows + most_rows(vecs) - 1) / most_rows(vecs);
  int row = 0;
  for (int t = 0; t < n_tiles; ++t) {  // tiles of nearly equal height
    const int height = (n_rows - row + n_tiles - t - 1) / (n_tiles - t);
    tiles[height - 1](p, row, column);
    row += height;
  }
}

template <class Real>
void product(const Product<Real>& p, int n_rows) {
  constexpr int lanes = Simd<Real>::lanes;
  for (int column = 0; column < p.columns;) {
    const int vecs = (p.columns - column) / lanes;
    if (kMostVecs >= 4 && vecs >= 4) {
      product_rows<Real, kMostVecs >= 4 ? 4 : 1>(p, n_rows, column, std::make_index_sequence<most_rows(4)>());
      column += 4 * lanes;
    } else if (kMostVecs >= 4 && vecs == 3) {
      product_rows<Real, kMostVecs >= 4 ? 3 : 1>(p, n_rows, column, std::make_index_sequence<most_rows(3)>());
      column += 3 * lanes;
    } else if (vecs >= 2) {
      product_rows<Real, 2>(p, n_rows, column, std::make_index_sequence<most_rows(2)>());
      column += 2 * lanes;
    } else {
      product_rows<Real, 1>(p, n_rows, column, std::make_index_sequence<most_rows(1)>());
      column += lanes;
    }
  }
}

}  // namespace FASTLIF_ISA
}  // namespace fastlif
