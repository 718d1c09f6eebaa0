// Max pooling of spikes: a window emits a spike where any of its sources does. Words hold 32 steps, so that both passes
// decide about 32 steps at once.
#pragma once

#include "block.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

// Calls visit(source position) for the sources of a window, row by row; what lies beyond the border is left out.
template <class Visit>
void visit_window(const Connection& c, int out_y, int out_x, const Visit& visit) {
  for (int ky = 0; ky < c.kernel_h; ++ky) {
    const int y = out_y * c.stride_h - c.padding_h + ky * c.dilation_h;
    if (y < 0 || y >= c.in.height) continue;
    for (int kx = 0; kx < c.kernel_w; ++kx) {
      const int x = out_x * c.stride_w - c.padding_w + kx * c.dilation_w;
      if (x >= 0 && x < c.in.width) visit(y * c.in.width + x);
    }
  }
}

// Words of a pooled map, channels last and padded, pads 0. The source has `pitch` words a position, of which the first
// c.in.channels are pooled.
inline void pool_words(const Connection& c, const int32_t* from, int pitch, int32_t* to) {
  const int channels = c.in.channels;
  std::fill_n(to, c.out.padded_size(), 0);
  for (int y = 0; y < c.out.height; ++y)
    for (int x = 0; x < c.out.width; ++x, to += c.out.padded_channels())
      visit_window(c, y, x, [&](int p) {
        const int32_t* __restrict source = from + int64_t(p) * pitch;
        int32_t* __restrict pooled = to;
        for (int i = 0; i < channels; ++i) pooled[i] |= source[i];
      });
}

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
