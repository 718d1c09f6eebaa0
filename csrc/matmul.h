// Small matrix products with the sums in registers: the dense part of the input gradient.
#pragma once

#include <utility>

#include "plan.h"
#include "simd.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

// How the rows of `in` lie. `strided`: row r starts at r * in_pitch. `block`: in_pitch is 16, known when compiling.
// `transposed`: element k of row r stands at k * kWordSteps + r. With constant distances the addresses of many rows need
// no registers of their own, which narrow tiles depend on: 105 against 70 GFLOP/s on one core.
enum class InLayout { strided, block, transposed };

// out[r][0..columns) (+)= sum over segments s and k < s.length of
//     in(row r, element s.out_halo + k) * weights(row s.tap + k, ...)
// Each output is one chain of fused multiply-adds in the order of segments and k, whatever the number of rows: the
// result of a row does not depend on which rows are computed with it.
template <class Real>
struct Product {
  const Real* in;
  int64_t in_pitch;
  const Target* segments;
  int n_segments;
  const Real* weights;  // in panels
  int64_t weight_rows;
  int columns;
  Real* out;
  int64_t out_pitch;
  bool accumulate;
};

template <class Real, int rows, int vecs, InLayout layout>
void product_tile(const Product<Real>& p, int row, int column) {
  using S = Simd<Real>;
  typename S::vec sum[rows][vecs];
  constexpr bool transposed = layout == InLayout::transposed;
  const Panel panel(column, p.columns, p.weight_rows);
  const int64_t in_pitch = transposed ? 1 : layout == InLayout::block ? kBlock : p.in_pitch;
  constexpr int in_step = transposed ? kWordSteps : 1;
  const Real* in = p.in + row * in_pitch;
  Real* out = p.out + row * p.out_pitch + column;
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v)
      sum[r][v] = p.accumulate ? S::load(out + r * p.out_pitch + v * S::lanes) : typename S::vec{};
  for (int s = 0; s < p.n_segments; ++s) {
    const Real* a = in + int64_t(p.segments[s].out_halo) * in_step;
    const Real* w = p.weights + panel.at + p.segments[s].tap * panel.pitch;
    for (int k = 0; k < p.segments[s].length; ++k, w += panel.pitch, a += in_step) {
      typename S::vec b[vecs];
#pragma GCC unroll 4
      for (int v = 0; v < vecs; ++v) b[v] = S::load(w + v * S::lanes);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const auto x = S::all(a[r * in_pitch]);
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
  if (kRegisters == 32) return vecs == 1 ? 14 : vecs == 2 ? 12 : 6;
  return vecs == 1 ? 10 : vecs == 2 ? 6 : 3;
}

template <class Real, int vecs, InLayout layout, size_t... rows>
void product_rows(const Product<Real>& p, int n_rows, int column, std::index_sequence<rows...>) {
  using Tile = void (*)(const Product<Real>&, int, int);
  static constexpr Tile tiles[] = {product_tile<Real, int(rows) + 1, vecs, layout>...};
  const int n_tiles = (n_rows + most_rows(vecs) - 1) / most_rows(vecs);
  int row = 0;
  for (int t = 0; t < n_tiles; ++t) {  // tiles of nearly equal height
    const int height = (n_rows - row + n_tiles - t - 1) / (n_tiles - t);
    tiles[height - 1](p, row, column);
    row += height;
  }
}

// Few rows take wide tiles, for enough independent sums; many rows take narrow ones, which read the weights less often.
template <InLayout layout, class Real>
void product(const Product<Real>& p, int n_rows, int column, int end) {
  constexpr int lanes = Simd<Real>::lanes;
  while (column < end) {
    const int vecs = (end - column) / lanes;
    if (vecs >= 4 && n_rows <= most_rows(4)) {
      product_rows<Real, 4, layout>(p, n_rows, column, std::make_index_sequence<most_rows(4)>());
      column += 4 * lanes;
    } else if (vecs >= 2) {
      product_rows<Real, 2, layout>(p, n_rows, column, std::make_index_sequence<most_rows(2)>());
      column += 2 * lanes;
    } else {
      product_rows<Real, 1, layout>(p, n_rows, column, std::make_index_sequence<most_rows(1)>());
      column += lanes;
    }
  }
}

template <InLayout layout, class Real>
void product(const Product<Real>& p, int n_rows) {
  product<layout>(p, n_rows, 0, p.columns);
}

// Rows of `steps` <= kWordSteps steps to the transposed layout; elements a multiple of 16, rows beyond `steps` undefined.
template <class Real>
void transpose_rows(const Real* rows, int64_t pitch, int steps, int64_t elements, Real* to) {
  using S = Simd<Real>;
  constexpr int lanes = S::lanes;
  for (int q = 0; q < steps; q += lanes)
    for (int64_t i = 0; i < elements; i += lanes) {
      typename S::vec block[lanes];
#pragma GCC unroll 16
      for (int r = 0; r < lanes; ++r) block[r] = S::load(rows + (q + r < steps ? q + r : q) * pitch + i);
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 4
      for (int step = 1; step < lanes; step *= 2) {
        typename S::mask low, high;  // low[j] = j & step ? b[j - step] : a[j];  high[j] = j & step ? b[j] : a[j + step]
#pragma GCC unroll 16
        for (int j = 0; j < lanes; ++j) {
          low[j] = j & step ? lanes + j - step : j;
          high[j] = j & step ? lanes + j : j + step;
        }
#pragma GCC unroll 16
        for (int r = 0; r < lanes; ++r)
          if (!(r & step)) {
            const auto a = block[r], b = block[r + step];
            block[r] = __builtin_shuffle(a, b, low);
            block[r + step] = __builtin_shuffle(a, b, high);
          }
      }
#pragma GCC unroll 16
      for (int r = 0; r < lanes; ++r) S::store(to + (i + r) * kWordSteps + q, block[r]);
#else
      for (int r = 0; r < lanes; ++r)
        for (int j = 0; j < lanes; ++j) to[(i + j) * kWordSteps + q + r] = block[r][j];
#endif
    }
}

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
