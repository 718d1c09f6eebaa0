// Weight gradients: a visit to every spike (or non-zero value) of the input.
#pragma once

#include <utility>

#include "block.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

constexpr int kMostBlock = 32;  // samples handled together at most

// Gradients of the injected current of a block of samples at the steps of a slice.
template <class Real>
struct Rows {
  const Real* data;
  int64_t step_pitch, sample_pitch;
  int samples;
};

// to[0..vecs * lanes) += the rows picked by the bits of one source neuron, one set of bits a sample; sums in registers.
template <class Real, int vecs>
void add_picked(Real* to, const Rows<Real>& rows, int64_t offset, const uint32_t* bits_of_sample) {
  using S = Simd<Real>;
  typename S::vec sum[vecs];
#pragma GCC unroll 16
  for (int v = 0; v < vecs; ++v) sum[v] = S::load(to + v * S::lanes);
  for (int r = 0; r < rows.samples; ++r) {
    const Real* first = rows.data + r * rows.sample_pitch + offset;
    for (uint32_t bits = bits_of_sample[r]; bits; bits &= bits - 1) {
      const Real* row = first + __builtin_ctz(bits) * rows.step_pitch;
#pragma GCC unroll 16
      for (int v = 0; v < vecs; ++v) sum[v] += S::load(row + v * S::lanes);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < vecs; ++v) S::store(to + v * S::lanes, sum[v]);
}

constexpr int kMostPicked = kRegisters == 32 ? 16 : 8;

template <class Real>
using AddPicked = void (*)(Real*, const Rows<Real>&, int64_t, const uint32_t*);

template <class Real, size_t... vecs>
void add_picked(Real* to, const Rows<Real>& rows, int64_t offset, int length, const uint32_t* bits,
                std::index_sequence<vecs...>) {
  static constexpr AddPicked<Real> exactly[] = {add_picked<Real, int(vecs) + 1>...};
  constexpr int most = kMostPicked * Simd<Real>::lanes;
  for (int i = 0; i < length; i += most)
    exactly[(std::min(length - i, most) / Simd<Real>::lanes) - 1](to + i, rows, offset + i, bits);
}

struct ActiveChannels {
  Buffer<uint32_t> all, found;  // 0, 1, 2, ...; those that fired
  explicit ActiveChannels(int channels) : all(channels + kBlock), found(channels + 2 * kBlock) {
    for (int i = 0; i < channels + kBlock; ++i) all[i] = uint32_t(i);
  }
};

// Channels of one position that fired in any sample at the steps of `bits`; without a branch, since about half of them
// do, in no pattern.
inline int active_channels(const int32_t* words, int channels, int64_t sample_pitch, int samples, uint32_t bits,
                           ActiveChannels& active) {
  int n = 0, ch = 0;
  for (; ch + kBlock <= channels; ch += kBlock) {
    alignas(64) int32_t any[kBlock];
    std::copy_n(words + ch, kBlock, any);
    for (int r = 1; r < samples; ++r)
      for (int i = 0; i < kBlock; ++i) any[i] |= words[r * sample_pitch + ch + i];
    n += append_codes(active.all.data() + ch, lanes_with_any(any, bits), active.found.data() + n);
  }
  for (; ch < channels; ++ch) {
    uint32_t any = 0;
    for (int r = 0; r < samples; ++r) any |= uint32_t(words[r * sample_pitch + ch]);
    active.found[n] = uint32_t(ch);
    n += (any & bits) != 0;
  }
  return n;
}

// Words of a block of samples, channels last: of a connection's sources, which may be some channels of their layer only.
struct SourceWords {
  const int32_t* data;  // the first source's
  const Shape& layer;
};

// Weight gradient of one connection for a block of samples and a slice: for every spike, the gradients of the currents
// it reached. Bit `first` of the words is the first step of `rows`.
template <class Real>
void weight_gradient_events(const Connection& c, const SourceWords& source, int first, int steps, const Rows<Real>& rows,
                            ActiveChannels& active, Real* gradient) {
  const int64_t channel_pitch = int64_t(c.taps()) * c.out.padded_channels(), size = source.layer.size();
  const int32_t* words = source.data;
  const uint32_t mask = steps == kWordSteps ? ~uint32_t(0) : (uint32_t(1) << steps) - 1;
  uint32_t bits[kMostBlock];
  for (int p = 0; p < c.in.positions(); ++p, words += source.layer.channels) {
    const int n = active_channels(words, c.in.channels, size, rows.samples, mask << first, active);
    const Target *begin = c.targets.data() + c.first_target[p], *end = c.targets.data() + c.first_target[p + 1];
    for (int i = 0; i < n; ++i) {
      const int ch = int(active.found[i]);
      for (int r = 0; r < rows.samples; ++r) bits[r] = uint32_t(words[r * size + ch]) >> first & mask;
      for (const Target* t = begin; t < end; ++t)
        add_picked<Real>(gradient + ch * channel_pitch + t->tap, rows, t->out_halo, t->length, bits,
                         std::make_index_sequence<kMostPicked>());
    }
  }
}

// The same for input that is not binary. values: first step, as torch stores it (channels, positions).
template <class Real>
void weight_gradient_values(const Connection& c, const Real* values, int64_t time_stride, int steps, const Real* rows,
                            int64_t pitch, Real* gradient) {
  const int64_t channel_pitch = int64_t(c.taps()) * c.out.padded_channels();
  for (int p = 0; p < c.in.positions(); ++p)
    for (int ch = 0; ch < c.in.channels; ++ch)
      for (int q = 0; q < steps; ++q) {
        const Real value = values[q * time_stride + int64_t(ch) * c.in.positions() + p];
        if (value == 0) continue;
        for (int t = c.first_target[p]; t < c.first_target[p + 1]; ++t)
          add_scaled(gradient + ch * channel_pitch + c.targets[t].tap, rows + q * pitch + c.targets[t].out_halo, value,
                     c.targets[t].length);
      }
}

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
