// What the forward and the backward block loops share: packed weights, event lists, layout changes.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "engine.h"
#include "simd.h"

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

// Calls visit(place in torch's (in, kernel_h, kernel_w), place in [in][kernel_h][slot]) for every weight of an output.
template <class Visit>
void visit_taps(const Connection& c, Visit visit) {
  int64_t at = 0;
  for (int64_t row = 0; row < int64_t(c.in.channels) * c.kernel_h; ++row)
    for (int kx = 0; kx < c.kernel_w; ++kx) visit(at++, row * c.kernel_w + c.slot_of_tap[kx]);
}

// Torch weights (out, in, kernel_h, kernel_w) to [in][kernel_h][slot][out, padded], the order in which spikes read them.
// row_pitch: distance between the weights of two outputs, which may have weights of other sources between them.
template <class Real>
void pack_weights(const Connection& c, const Real* weight, int64_t row_pitch, Buffer<Real>& packed) {
  const int out_channels = c.out.padded_channels();
  packed.allocate_zero(c.packed_size());
  for (int first = 0; first < c.out.channels; first += kBlock) {
    const int outs = std::min(kBlock, c.out.channels - first);
    visit_taps(c, [&](int64_t at, int64_t slot) {
      Real* to = packed.data() + slot * out_channels + first;
      for (int o = 0; o < outs; ++o) to[o] = weight[(first + o) * row_pitch + at];
    });
  }
}

template <class Real>
void pack_weights(const Connection& c, const Real* weight, Buffer<Real>& packed) {
  pack_weights(c, weight, c.in.channels * c.taps(), packed);
}

// The inverse for gradients.
template <class Real>
void unpack_weights(const Connection& c, const Real* packed, int64_t row_pitch, Real* weight) {
  const int out_channels = c.out.padded_channels();
  for (int first = 0; first < c.out.channels; first += kBlock) {
    const int outs = std::min(kBlock, c.out.channels - first);
    visit_taps(c, [&](int64_t at, int64_t slot) {
      const Real* from = packed + slot * out_channels + first;
      for (int o = 0; o < outs; ++o) weight[(first + o) * row_pitch + at] = from[o];
    });
  }
}

template <class Real>
void unpack_weights(const Connection& c, const Real* packed, Real* weight) {
  unpack_weights(c, packed, c.in.channels * c.taps(), weight);
}

// Packed weights to rows [kernel_h][slot][out, padded] with a column per source channel, padded, in the panels of
// matmul.h, as input gradients read them. Source channels begin at column `first`; the columns around them are zero.
template <class Real>
void transpose_weights(const Connection& c, const Buffer<Real>& packed, Buffer<Real>& transposed, int first = 0) {
  const int64_t out_channels = c.out.padded_channels(), in_channels = padded(first + c.in.channels);
  transposed.allocate_zero(c.taps() * out_channels * in_channels);
  const int64_t n_rows = c.taps() * out_channels;
  for (int64_t column = 0; column < in_channels; column += kBlock) {
    const Panel panel(column, in_channels, n_rows);
    const int64_t begin = std::max<int64_t>(column, first), end = std::min<int64_t>(column + kBlock, first + c.in.channels);
    for (int64_t tap = 0; tap < c.taps(); ++tap)
      for (int o = 0; o < c.out.channels; ++o) {
        Real* to = transposed.data() + panel.at + (tap * out_channels + o) * panel.pitch - column;
        for (int64_t i = begin; i < end; ++i) to[i] = packed[((i - first) * c.taps() + tap) * out_channels + o];
      }
  }
}

// (channels, positions) as torch stores it to channels last, `pitch` elements from one position to the next; what lies
// behind the channels is left alone.
template <class Real>
void to_channels_last(const Shape& shape, const Real* from, int pitch, Real* to) {
  if (shape.positions() == 1) {
    std::copy(from, from + shape.channels, to);
    return;
  }
  const int positions = shape.positions();
  for (int c = 0; c < shape.channels; ++c)
    for (int p = 0; p < positions; ++p) to[int64_t(p) * pitch + c] = from[int64_t(c) * positions + p];
}

// The same with padded channels.
template <class Real>
void to_channels_last(const Shape& shape, const Real* from, Real* to) {
  to_channels_last(shape, from, shape.padded_channels(), to);
}

// The inverse. `from` may have rows with a halo; row_pitch is the distance between its rows in elements.
template <class Real>
void from_channels_last(const Shape& shape, const Real* from, int64_t row_pitch, Real* to) {
  if (shape.positions() == 1) {
    std::copy(from, from + shape.channels, to);
    return;
  }
  const int pitch = shape.padded_channels();
  for (int c = 0; c < shape.channels; ++c)
    for (int y = 0; y < shape.height; ++y)
      for (int x = 0; x < shape.width; ++x) *to++ = from[y * row_pitch + int64_t(x) * pitch + c];
}

template <class Real>
void from_channels_last(const Shape& shape, const Real* from, Real* to) {
  from_channels_last(shape, from, int64_t(shape.width) * shape.padded_channels(), to);
}

// A map to the same map with `halo` extra positions at both ends of its rows, which are left alone.
template <class Real>
void copy_to_halo(const Shape& shape, int halo, const Real* from, Real* to) {
  const int row = shape.width * shape.padded_channels(), row_with_halo = row + 2 * halo * shape.padded_channels();
  to += halo * shape.padded_channels();
  for (int y = 0; y < shape.height; ++y) std::copy(from + y * row, from + (y + 1) * row, to + y * row_with_halo);
}

// Codes of the neurons of a map: position << 16 | channel, `pitch` entries a position, of which the channels count.
inline Buffer<uint32_t> neuron_codes(const Shape& shape, int pitch) {
  const int64_t n = int64_t(shape.positions()) * pitch;
  Buffer<uint32_t> codes;
  codes.allocate_zero(n + kBlock);
  for (int p = 0; p < shape.positions(); ++p)
    for (int c = 0; c < shape.channels; ++c) codes[int64_t(p) * pitch + c] = uint32_t(p) << 16 | uint32_t(c);
  return codes;
}

inline int event_position(uint32_t code) { return int(code >> 16); }
inline int event_channel(uint32_t code) { return int(code & 0xffffu); }

// Spikes of up to 32 steps of one sample: per step, the codes of the neurons that fired, ascending.
struct Events {
  Buffer<uint32_t> codes;
  int64_t capacity = 0;
  int count[kWordSteps];

  void reserve(int64_t neurons) {
    capacity = neurons + kBlock;  // room for append_codes to write past the end
    codes.allocate(capacity * kWordSteps);
  }
  uint32_t* step(int q) { return codes.data() + q * capacity; }
  const uint32_t* step(int q) const { return codes.data() + q * capacity; }
  void clear() { std::fill(count, count + kWordSteps, 0); }
};

// Words of one sample, neurons channels last and unpadded, to events. `codes` are those of the unpadded neurons.
inline void words_to_events(int64_t neurons, const int32_t* words, const uint32_t* codes, int steps, Events& events) {
  events.clear();
  int64_t i = 0;
  for (; i + kBlock <= neurons; i += kBlock)
    for (int q = 0; q < steps; ++q)
      events.count[q] += append_codes(codes + i, lanes_with_any(words + i, uint32_t(1) << q),
                                      events.step(q) + events.count[q]);
  for (; i < neurons; ++i)
    for (uint32_t w = uint32_t(words[i]); w; w &= w - 1) {
      const int q = __builtin_ctz(w);
      events.step(q)[events.count[q]++] = codes[i];
    }
}

// to[i] += from[i], length a multiple of 16.
template <class Real>
inline void add(Real* to, const Real* from, int length) {
  using S = Simd<Real>;
  for (int i = 0; i < length; i += S::lanes) S::store(to + i, S::load(to + i) + S::load(from + i));
}

template <class Real>
inline void add_scaled(Real* to, const Real* from, Real scale, int length) {
  using S = Simd<Real>;
  for (int i = 0; i < length; i += S::lanes) S::store(to + i, S::load(to + i) + scale * S::load(from + i));
}

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
