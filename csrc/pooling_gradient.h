// The adjoint of max pooling: the gradient of every pooled spike goes to the one source that torch's max_pool2d names too,
// the first of the window that spikes, or the first of all when none does.
#pragma once

#include "backward_state.h"
#include "pooling.h"
#include "weight_gradient.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

template <class Real>
class PoolingGradient {
  using S = Simd<Real>;

 public:
  // Overwrites the gradients of the sources. Bit `first` of their words is the first step of the slice.
  void operator()(const Connection& c, const SourceWords& words, int first, const SpikeGradients<Real>& pooled,
                  const SpikeGradients<Real>& sources) {
    const int channels = c.out.padded_channels();
    const int most = std::max(1, int(std::min<int64_t>(c.out.width, kMostMasks / (c.taps() * channels))));
    reserve(masks_, most * c.taps() * channels);
    reserve(taken_, channels);
    for (int r = 0; r < pooled.samples; ++r) {
      std::fill_n(sources.row(r, 0), pooled.steps * sources.layer.padded_size(), Real(0));
      const SourceWords own{words.data + r * words.layer.size(), words.layer};
      for (int y = 0; y < c.out.height; ++y)
        for (int x = 0; x < c.out.width; x += most) {
          const int windows = std::min(most, c.out.width - x);
          find_winners(c, own, y, x, windows);
          for (int q = 0; q < pooled.steps; ++q)
            hand_down(c, first + q, y, x, windows, pooled.row(r, q), {sources.row(r, q), sources.layer.padded_channels()});
        }
    }
  }

 private:
  static constexpr int kMostMasks = 1 << 13;  // a share of the first-level cache

  struct Map {
    Real* data;
    int pitch;  // of positions
  };

  static void reserve(Buffer<int32_t>& buffer, int64_t size) {
    if (buffer.size() < size) buffer.allocate(size);
  }

  // For each source of some neighbouring windows of a row, the steps at which it gets the window's gradient; pads none.
  void find_winners(const Connection& c, const SourceWords& words, int y, int x, int windows) {
    const int channels = c.in.channels, pads = c.out.padded_channels() - channels;
    int32_t* __restrict mask = masks_.data();
    int32_t* __restrict taken = taken_.data();
    for (int w = 0; w < windows; ++w) {
      int32_t* const first = mask;
      std::fill_n(taken, channels, 0);
      visit_window(c, y, x + w, [&](int p) {
        const int32_t* __restrict source = words.data + int64_t(p) * words.layer.channels;
        for (int i = 0; i < channels; ++i) {
          mask[i] = source[i] & ~taken[i];
          taken[i] |= source[i];
        }
        std::fill_n(mask + channels, pads, 0);
        mask += channels + pads;
      });
      for (int i = 0; i < channels; ++i) first[i] |= ~taken[i];
    }
  }

  // Adds the gradients of these windows at one step to those of their sources. Windows may overlap.
  void hand_down(const Connection& c, int bit, int y, int x, int windows, const Real* pooled, const Map& sources) {
    const int channels = c.out.padded_channels();
    const int32_t* mask = masks_.data();
    for (int w = 0; w < windows; ++w) {
      const Real* from = pooled + int64_t(y * c.out.width + x + w) * channels;
      visit_window(c, y, x + w, [&](int p) {
        Real* to = sources.data + int64_t(p) * sources.pitch;
        for (int i = 0; i < channels; i += S::lanes) {
          const auto wins = S::widen((S::load_words(mask + i) >> bit & 1) != 0);
          S::store(to + i, S::load(to + i) + S::select(wins, S::load(from + i), typename S::vec{}));
        }
        mask += channels;
      });
    }
  }

  Buffer<int32_t> masks_, taken_;
};

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
