// A connection as the kernels see it, and the sources of one of its neurons.
//
// A dense synapse, whose kernel covers the whole input, is folded into a 1 x 1 convolution of one position with all
// sources as channels; its packed weights are the same.
#pragma once

#include "../plan.h"
#include "portable.h"

namespace fastlif::cuda {

// Division by a constant of numbers below 2^31, by multiplication (Granlund and Montgomery 1994).
struct Divider {
  int divisor = 1;
  uint32_t multiplier = 1;
  int shift = 0;

  Divider() = default;
  explicit Divider(int d) : divisor(d) {
    while ((int64_t(1) << shift) < d) ++shift;
    multiplier = uint32_t((uint64_t(1) << 32) * ((uint64_t(1) << shift) - uint64_t(d)) / uint64_t(d) + 1);
  }
  FASTLIF_BOTH int quotient(int n) const {
    const uint32_t high = uint32_t(uint64_t(uint32_t(n)) * multiplier >> 32);
    return int((high + uint32_t(n)) >> shift);
  }
};

// Where a neuron of a map stands: flat index = (y * width + x) * channels + channel.
struct Place {
  int position, channel, x, y;
};

struct Map {
  Divider channels, width;
  int positions = 0, neurons = 0;

  Map() = default;
  explicit Map(const Shape& shape)
      : channels(shape.channels), width(shape.width), positions(shape.positions()), neurons(int(shape.size())) {}
  int groups() const { return int((int64_t(neurons) + 31) / 32); }  // of 32 neurons, a mask each

  FASTLIF_BOTH Place place(int neuron) const {
    Place at;
    at.position = channels.quotient(neuron);
    at.channel = neuron - at.position * channels.divisor;
    at.y = width.quotient(at.position);
    at.x = at.position - at.y * width.divisor;
    return at;
  }
  // Of the same neuron in a (channels, positions) tensor.
  FASTLIF_BOTH int user_index(const Place& at) const { return at.channel * positions + at.position; }
};

// A run of sources [begin, end) of one neuron; their packed weights are the rows first_row, first_row + 1, ...
struct SourceRange {
  int begin, end, first_row;
};

struct Geometry {
  int in_height = 1, in_width = 1, in_channels = 0;
  int kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, padding_h = 0, padding_w = 0;
  int dilation_h = 1, dilation_w = 1;
  int out_channels = 0;
  // The taps of a kernel row read one run of sources, or one run each when they are dilated.
  int runs = 1, taps_per_run = 1;
  bool dense = false;  // every neuron sees every source

  Geometry() = default;
  explicit Geometry(const Connection& c)
      : in_height(c.in.height), in_width(c.in.width), in_channels(c.in.channels), kernel_h(c.kernel_h),
        kernel_w(c.kernel_w), stride_h(c.stride_h), stride_w(c.stride_w), padding_h(c.padding_h),
        padding_w(c.padding_w), dilation_h(c.dilation_h), dilation_w(c.dilation_w), out_channels(c.out.channels) {
    if (kernel_h == in_height && kernel_w == in_width && padding_h == 0 && padding_w == 0 && dilation_h == 1 &&
        dilation_w == 1) {
      in_channels = int(c.in.size());
      in_height = in_width = kernel_h = kernel_w = stride_h = stride_w = 1;
    }
    dense = in_height * in_width == 1 && kernel_h * kernel_w == 1;
    runs = dilation_w == 1 ? 1 : kernel_w;
    taps_per_run = dilation_w == 1 ? kernel_w : 1;
  }

  FASTLIF_BOTH int sources() const { return in_height * in_width * in_channels; }

  // Runs in the order (kernel row, run) are in ascending order of their sources. An empty one has begin == end.
  FASTLIF_BOTH SourceRange range(const Place& at, int kernel_row, int run) const {
    const int y = at.y * stride_h - padding_h + kernel_row * dilation_h;
    const int x = at.x * stride_w - padding_w + run * dilation_w;
    const int first = x < 0 ? -x : 0, last = in_width - x < taps_per_run ? in_width - x : taps_per_run;
    if (y < 0 || y >= in_height || first >= last) return {0, 0, 0};
    const int row = y * in_width + x;
    return {(row + first) * in_channels, (row + last) * in_channels,
            (kernel_row * kernel_w + run + first) * in_channels};
  }

  // The sources that the neurons [first, last] of a map see lie in [begin, end).
  FASTLIF_BOTH void visible(const Map& map, int first, int last, int* begin, int* end) const {
    const Place low = map.place(first), high = map.place(last);
    int top = low.y * stride_h - padding_h, bottom = high.y * stride_h - padding_h + (kernel_h - 1) * dilation_h + 1;
    int left = 0, right = in_width;
    if (low.y == high.y) {
      left = low.x * stride_w - padding_w;
      right = high.x * stride_w - padding_w + (kernel_w - 1) * dilation_w + 1;
    }
    top = top < 0 ? 0 : top, bottom = bottom > in_height ? in_height : bottom;
    left = left < 0 ? 0 : left, right = right > in_width ? in_width : right;
    *begin = *end = 0;
    if (top >= bottom || left >= right) return;
    *begin = (top * in_width + left) * in_channels;
    *end = ((bottom - 1) * in_width + right) * in_channels;
  }
};

}  // namespace fastlif::cuda
